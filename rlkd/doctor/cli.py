"""`rlkd doctor`: checks the machine, versions, devices, disk, servers, the hub and the sandbox."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlkd.doctor.findings import Finding, rendered

DESCRIPTION = """\
Check this machine and installation. Each line is ok, a warning or a problem, with a way out. No model is loaded.

  rlkd doctor
  rlkd doctor --server http://127.0.0.1:8000 --output /data/runs
  rlkd doctor --json

Exit status 1 if there is a problem: something that rlkd, or an argument of this command, needs does not work."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd doctor`; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="rlkd doctor", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--server", metavar="URL", action="append", default=[], help="server to check, http://HOST:PORT; repeatable"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, default=Path("runs"), help="output folder (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of {topic, level, text, way_out}")
    parsed = parser.parse_args(arguments)
    findings = examine(parsed.server, parsed.output)
    if parsed.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(rendered(findings))
    return int(any(finding.level == "problem" for finding in findings))


def examine(servers: Sequence[str] = (), output: Path = Path("runs")) -> list[Finding]:
    """Everything that `rlkd doctor` finds."""
    from rlkd.doctor.devices import check_devices
    from rlkd.doctor.disk import check_disk
    from rlkd.doctor.machine import check_machine
    from rlkd.doctor.sandbox import check_sandbox
    from rlkd.doctor.servers import check_hub, check_server
    from rlkd.doctor.versions import check_versions

    asked = [finding for url in servers for finding in check_server(url)]
    return [
        *check_machine(),
        *check_versions(),
        *check_devices(),
        *check_disk(output),
        *asked,
        check_hub(),
        check_sandbox(),
    ]
