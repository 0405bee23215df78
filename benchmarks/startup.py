"""Time of `rlkd --help` and `rlkd rewards list` compared with `python -c pass`, and the model libraries they import.

    python benchmarks/startup.py            # 7 runs of each command, a few seconds
    python benchmarks/startup.py --quick    # 3 runs

Exits with 1 if a command imports torch, transformers, trl, datasets or vllm.
"""

import argparse
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import harness

HEAVY = ("torch", "transformers", "trl", "datasets", "vllm")
COMMANDS = {"help": ["--help"], "list": ["rewards", "list"]}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the start-up time of the rlkd command.")
    runs = 3 if harness.parse(parser, quick="3 runs of each command").quick else 7
    entry = rlkd_command()
    arms = {"python": [sys.executable, "-c", "pass"]}
    arms |= {name: [sys.executable, *entry, *arguments] for name, arguments in COMMANDS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for command in arms.values():  # reads the files from disk once, and compiles what is not compiled yet
        timed(command)
    for results in harness.in_turn({name: partial(timed, command) for name, command in arms.items()}, runs):
        for name, spent in results.items():
            seconds[name].append(spent)
    heavy = sorted({module for arguments in COMMANDS.values() for module in heavy_imports(entry, arguments)})

    print(f"{runs} interleaved runs each, wall seconds of a whole process\n")
    print(f"{'command':<20} {'median':>7} {'fastest':>8} {'slowest':>8}")
    shown = {"python": "python -c pass", "help": "rlkd --help", "list": "rlkd rewards list"}
    for name, times in seconds.items():
        print(f"{shown[name]:<20} {median(times):>7.3f} {min(times):>8.3f} {max(times):>8.3f}")
    print(f"\nmodel libraries imported: {', '.join(heavy) or 'none'}")
    figures: dict[str, Any] = {f"{name}_s": round(median(times), 3) for name, times in seconds.items()}
    figures |= {"runs": runs, "imports_torch": bool(heavy), "heavy_imports": heavy}
    return harness.report(figures, {"no heavy import": not heavy})


def rlkd_command() -> list[str]:
    """The console script next to this Python, or the module of that entry point if there is none."""
    script = Path(sys.executable).with_name("rlkd")
    return [str(script)] if script.exists() else ["-m", "rlkd.cli"]


def timed(command: list[str]) -> float:
    return harness.timed(lambda: subprocess.run(command, check=True, capture_output=True))[1]


def heavy_imports(entry: list[str], arguments: list[str]) -> set[str]:
    command = [sys.executable, "-X", "importtime", *entry, *arguments]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    # import time:  self [us] | cumulative | imported package
    modules = re.findall(r"^import time:.*\|\s*([\w.]+)$", report, flags=re.MULTILINE)
    if not modules:
        raise RuntimeError(f"-X importtime reported no imports; stderr began with {report[:200]!r}")
    return {module.partition(".")[0] for module in modules} & set(HEAVY)


if __name__ == "__main__":
    sys.exit(main())
