"""What one GPU is asked within eight minutes: does training work, how fast is it, how much memory does it take?

    python benchmarks/gpu_day.py run --out runs/gpu_day              # on the first visible GPU
    python benchmarks/gpu_day.py run --out runs/smoke --smoke        # every part at toy size on the CPU, about 90 s
    python benchmarks/gpu_day.py run --out runs/gpu_day --only kd    # one part, or several

On a machine without network, first a folder of what it lacks, made where there is one:

    python benchmarks/gpu_day.py bundle --python 3.12 --out runs/gpu_bundle
    python benchmarks/gpu_day.py run --bundle runs/gpu_bundle --out runs/gpu_day

And the page with the results, from the JSON files in benchmarks/gpu/recorded:

    python benchmarks/gpu_day.py render

Models are random, made on the device from a seed with the shapes of Qwen2.5-0.5B and 1.5B; nothing is downloaded.
Every part is a process with a time limit; results are saved after every figure (`gpu/runner.py`). docs/gpu.md
describes the parts. Exits with 1 if one failed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu import bundle, install, page
from gpu.day import GpuDay
from gpu.parts import PARTS
from gpu.runner import DayRun, run_part

MINUTES = 7.75


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.command == "bundle":
        have = bundle.named_packages(given.have)
        made = bundle.make_bundle(given.out, given.python, have, given.limit_mb, given.machine)
        total = sum(made["wheels"].values()) / 1e6
        print(f"{given.out}: {len(made['wheels'])} wheels, {total:.1f} MB, for Python {given.python}")
        print(f"the machine must have: {', '.join(made['must_exist'])}")
        return 0
    if given.command == "render":
        print(page.write_page())
        return 0
    if given.command == "part":
        day = GpuDay(given.size == "smoke", given.limit_s, given.out)
        return run_part(given.place, day, given.result)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: with what it has started
    with tempfile.TemporaryDirectory(prefix="rlkd-gpu-site-") as site:
        run = DayRun(given.out, given.smoke, 60 * (given.minutes or (math.inf if given.smoke else MINUTES)))
        if given.bundle:
            run.installed = install.install(given.bundle, Path(site))
            run.site = Path(site)
            print(f"from {given.bundle}: {', '.join(run.installed['wheels']) or 'nothing was missing'}", flush=True)
            if conflict := run.installed.get("conflict"):
                print(f"the versions here do not fit together: {conflict}", flush=True)
        status = run.run(given.only or list(PARTS))
        print(json.dumps(run.results()))
    return status


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description="Measure training on this machine's GPU.")
    commands = whole.add_subparsers(dest="command", required=True)
    made = commands.add_parser("bundle", help="make a folder of the packages that a machine without network lacks")
    made.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    made.add_argument("--python", default=bundle.this_python(), help="that machine's Python (default: %(default)s)")
    made.add_argument("--machine", default=bundle.this_machine(), help="its processor (default: %(default)s)")
    made.add_argument(
        "--have",
        nargs="+",
        default=[],
        metavar="PACKAGE|FILE",
        help=f"what it has besides {', '.join(bundle.MUST_EXIST)}; FILE: the output of pip list --format=freeze there",
    )
    made.add_argument("--limit_mb", type=float, default=bundle.LIMIT_MB, help="(default: %(default)g)")
    run = commands.add_parser("run", help="run the parts")
    run.add_argument("--out", type=Path, required=True, help="folder of the results")
    run.add_argument("--bundle", type=Path, help="folder of packages, from which missing ones are taken")
    run.add_argument("--smoke", action="store_true", help="toy size on the CPU: rehearses all parts, without a GPU")
    run.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART", help=", ".join(PARTS))
    run.add_argument("--minutes", type=float, help=f"time of all parts together (default: {MINUTES:g}, --smoke: none)")
    commands.add_parser("render", help="write the recorded results into docs/gpu.md")
    part = commands.add_parser("part")
    part.add_argument("place")
    part.add_argument("size", choices=["full", "smoke"])
    part.add_argument("limit_s", type=float)
    part.add_argument("result", type=Path)
    part.add_argument("out", type=Path)
    return whole


if __name__ == "__main__":
    sys.exit(main())
