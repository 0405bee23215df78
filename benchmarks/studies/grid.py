"""What the studies share: a command line, recipes as child processes, a grid of arms x seeds, and the last lines."""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.files import write_atomically
from rlkd.statistics import Interval, crossed_mean
from rlkd.study.analysis import differences, matrix

ROOT = Path(__file__).resolve().parents[2]
# Chosen before the first run.
SEEDS = (11, 23, 37, 41, 53)

Run = Mapping[str, Any]
Runs = dict[str, dict[int, Run]]
"""Finished runs by arm and seed."""


# Command line and report


def guarded(main: Callable[[], None]) -> Callable[[], int]:
    """Turn a `main` into one that prints a `UsageError` in a line, and returns the exit status."""

    @functools.wraps(main)
    def with_status() -> int:
        # An interrupted study must end its children: they would go on writing into the folders of their runs.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            main()
        except UsageError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        return 0

    return with_status


def arguments(parser: argparse.ArgumentParser, config: Path) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of a study that runs recipes, and those behind `--`, which go to the recipe."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--config", type=Path, default=config, help="config of all runs (default: %(default)s)")
    parser.add_argument("--analyse", action="store_true", help="train nothing, read the finished runs")
    parser.add_argument("--smoke", action="store_true", help="a tiny size of each run; the figures mean nothing")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:end]), words[end + 1 :]


def add_grid(parser: argparse.ArgumentParser, arms: Mapping[str, Any]) -> None:
    names = list(arms)
    parser.add_argument("--arms", nargs="+", default=names, choices=names, metavar="ARM", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="seeds (default: %(default)s)")


def write_results(out: Path, results: Mapping[str, Any], table: str) -> None:
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table)
    print(table)


def run_grid(
    given: argparse.Namespace,
    settings: Sequence[str],
    produce: Callable[[], Iterator[None]],
    read: Callable[[Path, str, int], Run | None],
    analyse: Callable[[Sequence[Run]], Mapping[str, Any]],
    table: Callable[[Mapping[str, Any]], str],
) -> None:
    """Produce what is missing, then write and print the results of all finished runs.

    `runs.jsonl` is updated whenever `produce` yields. `settings`: what all runs of the folder must have in common.
    """
    given.out.mkdir(parents=True, exist_ok=True)

    def finished() -> list[Run]:
        folders = [(given.out / f"{arm}-{seed}", arm, seed) for seed in given.seeds for arm in given.arms]
        runs = [read(*each) for each in folders if is_done(each[0])]
        write_atomically(given.out / "runs.jsonl", "".join(json.dumps(run) + "\n" for run in runs))
        return [run for run in runs if run is not None]

    if not given.analyse:
        require_same_study(given.out, given.config, settings)
        for _ in produce():
            finished()
    runs = finished()
    results = analyse(runs)
    (given.out / "table.md").write_text(table(results))
    print(table(results))
    print(json.dumps({"smoke": given.smoke, "runs": len(runs), **results}))


# Runs


def require_same_study(out: Path, config: Path, settings: Sequence[str]) -> None:
    """Record the common settings of this folder's runs; raise `UsageError` if the folder has others."""
    study = {"config": config.read_text(), "overrides": list(settings)}
    path = out / "study.json"
    if path.exists() and json.loads(path.read_text()) != study:
        raise UsageError(
            f"{out} holds runs with another config or other arguments ({path}); runs of both would not compare. Name "
            f"another --out, or give the same"
        )
    path.write_text(json.dumps(study, indent=1) + "\n")


def run_recipe(recipe: str, folder: Path, words: Sequence[str]) -> None:
    """Run a recipe from its last checkpoint, with its output in `log.txt` of the folder.

    Raises `UsageError` with the end of the output if it fails.
    """
    print(f"{folder.name}: training; its output goes to {folder / 'log.txt'}", flush=True)
    command = [sys.executable, str(ROOT / "recipes" / recipe), "--output_dir", str(folder), *words]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--resume_from_checkpoint"], stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ)
        )
        try:
            status = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status != 0:
        tail = (folder / "log.txt").read_bytes().decode(errors="replace")[-2000:]
        raise UsageError(f"the run {folder.name} ended with an error; the same command goes on from there.\n{tail}")


def is_done(folder: Path) -> bool:
    return (folder / "done").exists()


def read_run(folder: Path, arm: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Held-out answers of a finished run before and after training, row by row; and all its measurements."""
    from trainers.common.run_files import read_steps

    measured = read_steps(folder / "eval.jsonl")
    before, after = ({row["id"]: row["correct"] for row in measured[end]["rows"]} for end in (0, -1))
    return {"arm": arm, "seed": seed, "steps": measured[-1]["step"], "before": before, "after": after}, measured


# Figures


def by_arm(runs: Sequence[Run]) -> Runs:
    found: Runs = {}
    for run in runs:
        found.setdefault(run["arm"], {})[run["seed"]] = run
    return found


def gains(arm: Mapping[int, Run], control: Mapping[int, Run]) -> list[float] | None:
    """Accuracy after training, arm minus control, paired by seed and row."""
    pairs = [(run, control[seed]) for seed, run in arm.items() if seed in control]
    return interval([differences(one["after"], other["after"]) for one, other in pairs])


def interval(seeds: Sequence[Mapping[str, float]], least: float = -1, most: float = 1) -> list[float] | None:
    """Mean and 95 % interval over seeds and the rows that all of them have; None without a value.

    `least` and `most`: what the mean can be; by default those of a difference of shares.
    """
    figure = crossed_mean(matrix(seeds), least, most)
    return None if figure is None else [figure.value, figure.low, figure.high]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def shown(value: Sequence[float] | None, spec: str = ".3f") -> str:
    """`0.300 (0.100 to 0.500)`, or a dash."""
    return "-" if value is None else Interval(*value, n=0).short(spec)
