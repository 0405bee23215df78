"""`rlkd study`: compares arms of a recipe over several seeds, with intervals against a control.

`docs/studies.md` says how to write one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlkd.errors import UsageError
from rlkd.installation import studies

if TYPE_CHECKING:
    from rlkd.study.definition import Study

Value = TypeVar("Value", str, int)

USAGE = """\
Run a study: arms x seeds of a recipe, a table and a figure against the control.

  rlkd study list                                   the included studies
  rlkd study NAME --out FOLDER                      run it, or go on where it was interrupted
  rlkd study my_study.yaml --out FOLDER             a study of your own (docs/studies.md)
  rlkd study NAME --out FOLDER --analyse            only read what has run so far
  rlkd study NAME --out FOLDER -- --bf16 true       words behind -- go to every run

FOLDER has a folder per run (ARM-SEED), table.md, results.json, figure.svg and figure.png."""


def main(arguments: Sequence[str]) -> int:
    """Run `rlkd study`."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="rlkd study", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", metavar="NAME|FILE|list", help="included study, or a .yaml file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the runs and results")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="some of the arms; the control is always one of them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="some of the seeds")
    parser.add_argument("--at_once", type=int, default=2, metavar="N", help="runs side by side (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="two seeds of a tiny size; the figures mean nothing")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--analyse", action="store_true", help="run nothing, read the finished runs")
    action.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args(arguments[:end])
    if options.study == "list":
        return list_studies()
    if options.out is None:
        parser.error("--out FOLDER is needed")
    if options.at_once < 1:
        parser.error(f"--at_once {options.at_once}: expected at least 1")
    return run_study(options, arguments[end + 1 :])


def list_studies() -> int:
    """`rlkd study list`."""
    from rlkd.study.definition import read_study

    for name, path in studies().items():
        study = read_study(path)
        print(f"{name:<22} {study.title}: {len(study.arms)} arms x {len(study.seeds)} seeds")
        print(f"{'':<22} {study.question}")
    return 0


def run_study(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Run what is missing, then write the results; 1 where a run failed."""
    from rlkd.study.commands import plan, read_options
    from rlkd.study.definition import find_study, read_study
    from rlkd.study.runner import only_here, record_study, recorded_study, run_all

    out: Path = options.out
    if options.analyse:
        study = recorded_study(out)
        if study.name != Path(options.study).stem:
            raise UsageError(f"{out} holds the study {study.name!r}, not {options.study!r}")
    else:
        study = read_study(find_study(options.study), smoke=options.smoke, words=words)
    arms, seeds = chosen(options.arms, study.arms, "--arms"), chosen(options.seeds, study.seeds, "--seeds")
    if study.control not in arms:
        arms = [study.control, *arms]
    failed = []
    if not options.analyse:
        # On stderr: the output of --dry_run is commands. Each recipe takes seconds to list its keys.
        print(
            f"{study.name}: {len(arms)} arms x {len(seeds)} seeds, {len(arms) * len(seeds)} runs in {out}; checking "
            f"their keys with the recipes ({', '.join(study.recipes())}) ...",
            file=sys.stderr,
            flush=True,
        )
        runs = plan(study, out, arms, seeds, read_options(study.recipes()))
        if options.dry_run:
            print(*(shlex.join(command.words) for run in runs for command in run.commands), sep="\n")
            return 0
        out.mkdir(parents=True, exist_ok=True)
        with only_here(out) as lock:
            record_study(study, out)
            try:
                failed = run_all(runs, at_once=options.at_once, lock=lock)
            except KeyboardInterrupt:
                print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
                return 130
    write_results(study, out, arms, seeds, command_of(options, study))
    if failed:
        print(f"{len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def chosen(given: Sequence[Value] | None, known: Iterable[Value], option: str) -> list[Value]:
    """The named ones in the order of the study, all by default. Raises `UsageError` for one that it does not have."""
    from rlkd.registry import suggestion

    names = list(known)
    for name in given or ():
        if name not in names:
            raise UsageError(f"{option} {name}: not in this study.{suggestion(str(name), map(str, names))}")
    return [name for name in names if given is None or name in given]


def command_of(options: argparse.Namespace, study: Study) -> str:
    """The command that makes the table again."""
    parts = ["rlkd", "study", options.study, "--out", str(options.out)]
    parts += ["--smoke"] if study.smoke else []
    parts += ["--arms", *options.arms] if options.arms else []
    parts += ["--seeds", *map(str, options.seeds)] if options.seeds else []
    return shlex.join([*parts, *(["--", *study.words] if study.words else [])])


def write_results(study: Study, out: Path, arms: Sequence[str], seeds: Sequence[int], command: str) -> None:
    """Write and print the figures of the finished runs: `results.json`, `table.md`, `figure.svg` and `figure.png`.

    Raises `UsageError` where no run has finished.
    """
    from rlkd.files import write_atomically
    from rlkd.report.plots import NO_PLOTS
    from rlkd.study.analysis import analyse, plain
    from rlkd.study.figure import draw
    from rlkd.study.measures import read_run
    from rlkd.study.table import render

    finished = [(arm, seed) for arm in arms for seed in seeds if (out / f"{arm}-{seed}" / "done").exists()]
    missing = {arm: [seed for seed in seeds if (arm, seed) not in finished] for arm in arms}
    if not finished:
        raise UsageError(f"no run in {out} has finished, so there is no table yet")
    runs = [read_run(out / f"{arm}-{seed}", arm, seed) for arm, seed in finished]
    # All that were planned, whichever arms are shown: choosing arms afterwards must not lower the adjusted p-values.
    figures = analyse(runs, study.control, study.primary, study.comparisons)
    table = render(study, runs, figures, command, missing)
    content = {"study": study.name, "command": command, "missing": missing, **plain(figures), "runs": plain(runs)}
    write_atomically(out / "results.json", json.dumps(content, indent=1) + "\n")
    write_atomically(out / "table.md", table)
    drawn = draw(study, runs, figures, out)
    print(f"\n{table}\ntable:  {out / 'table.md'}\nfigure: {drawn[-1] if drawn else NO_PLOTS}", flush=True)
