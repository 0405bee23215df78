"""Does weighting steps by validity teach more than plain distillation, and more than its controls?

    python benchmarks/studies/validity_kd.py --out runs/validity-study                  # the full grid
    python benchmarks/studies/validity_kd.py --out runs/validity-study --arms plain expected --seeds 11
    python benchmarks/studies/validity_kd.py --out runs/validity-study --analyse        # only reads what is there
    python benchmarks/studies/validity_kd.py --out /tmp/smoke --smoke                   # does the script work?

Arms x seeds of `recipes/validity_kd.py`; arms differ in the keys that `ARMS` gives and in nothing else:

    plain           weight 1 everywhere: the baseline
    expected        likelihood against an expectation (the default)
    likelihood      likelihood against a step that the other model really writes
    same_size       `expected` with `normalise: weights`: the weights of the other arms average more than 1, so their
                    loss is larger than that of `plain`, which clipping of gradients sees; here it is not
    shuffled, teacher_only, position, entropy, divergence
                    controls, each of which lacks one ingredient of `expected` (docs/validity.md)

Runs of a seed share the order of questions, the coin between rollouts and traces, and the held-out rows. A run that
was killed goes on from its last checkpoint, one that is done is not repeated: the same command again finishes a study.
`runs.jsonl` in the output folder has a line a finished run, in the order of the grid; `table.md` the table.

The figure, fixed before any result: accuracy on the held-out rows after the last step, arm minus `plain`, paired by
seed and row. Its 95 % interval is a bootstrap over seeds and rows together (2,000 draws, two levels): with few seeds
it is wide, which is what few seeds are worth. What was before training stands in the table, too.

Arguments after `--` go to the recipe of all runs, e.g. `-- --max_steps 20`. The last line printed is a JSON object.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.files import write_atomically
from rlkd.statistics import two_level_mean

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes/validity_kd.yaml"
ARMS: dict[str, list[str]] = {
    "plain": ["--control", "uniform"],
    "expected": [],
    "likelihood": ["--proposals", "generate"],
    "same_size": ["--normalise", "weights"],
    "shuffled": ["--control", "shuffled"],
    "teacher_only": ["--control", "teacher_only"],
    "position": ["--control", "position"],
    "entropy": ["--control", "entropy"],
    "divergence": ["--control", "divergence"],
}
BASELINE = "plain"
# Chosen before the first run.
SEEDS = (11, 23, 37, 41, 53)
BOOTSTRAP_SEED = 13
FULL = ["--max_steps", "100", "--eval_rows", "200"]
SMOKE = [
    *"--max_steps 2 --eval_rows 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1".split(),  # noqa: SIM905
    *"--max_completion_length 12 --max_step_tokens 6 --save_steps 1".split(),  # noqa: SIM905
]


def main() -> int:
    arguments, extra = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description="Validity-calibrated distillation against its controls.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and results")
    parser.add_argument("--config", type=Path, default=CONFIG, help="config of all runs (default: %(default)s)")
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="some of them"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="(default: %(default)s)")
    parser.add_argument("--analyse", action="store_true", help="train nothing, read what is there")
    parser.add_argument("--smoke", action="store_true", help="two tiny steps of each arm; the figures mean nothing")
    given = parser.parse_args(arguments)
    # What a kill interrupts must end its child: it would go on writing into the folder of its run.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seeds = given.seeds[:2] if given.smoke else given.seeds
    overrides = [*(SMOKE if given.smoke else FULL), *extra]
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        if not given.analyse:
            require_same_study(given.out, given.config, overrides)
        runs = []
        for seed in seeds:
            for arm in given.arms:
                folder = given.out / f"{arm}-{seed}"
                if not given.analyse:
                    train(folder, given.config, [*ARMS[arm], "--seed", str(seed), *overrides])
                if (record := read_run(folder, arm, seed)) is not None:
                    runs.append(record)
                    write_runs(given.out / "runs.jsonl", runs)
        results = analyse(runs)
    except UsageError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    (given.out / "table.md").write_text(table(results))
    print(table(results))
    print(json.dumps({"smoke": given.smoke, "runs": len(runs), **results}))
    return 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is for this script, and what stands behind `--` for the recipe."""
    if "--" not in arguments:
        return list(arguments), []
    place = list(arguments).index("--")
    return list(arguments[:place]), list(arguments[place + 1 :])


def require_same_study(out: Path, config: Path, overrides: Sequence[str]) -> None:
    """Keep what the runs of this folder have in common; raise `UsageError` where it was something else before."""
    study = {"config": config.read_text(), "overrides": list(overrides)}
    path = out / "study.json"
    if path.exists() and json.loads(path.read_text()) != study:
        raise UsageError(
            f"{out} holds runs with another config or other arguments ({path}); runs of both would not compare. Name "
            f"another --out, or give the same"
        )
    path.write_text(json.dumps(study, indent=1) + "\n")


def train(folder: Path, config: Path, arguments: Sequence[str]) -> None:
    """Run one arm with one seed, from its last checkpoint if there is one; nothing where it is done."""
    if is_done(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "recipes/validity_kd.py"), "--config", str(config)]
    command += ["--output_dir", str(folder), *arguments, "--resume_from_checkpoint"]
    run_recipe(command, folder)
    (folder / "done").touch()


def run_recipe(command: Sequence[str], folder: Path) -> None:
    """Run a command with its output in `log.txt` of the folder; raises `UsageError` with its end where it fails."""
    print(f"{folder.name}: training; its output goes to {folder / 'log.txt'}", flush=True)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
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
    """Whether a run has come to its end: it leaves a mark then."""
    return (folder / "done").exists()


def read_run(folder: Path, arm: str, seed: int) -> dict[str, Any] | None:
    """What the study needs of a finished run: its measurements row by row; None where it is not finished."""
    if not is_done(folder):
        return None
    from trainers.common.run_files import read_steps

    measured = read_steps(folder / "eval.jsonl")
    metrics = [record for record in read_steps(folder / "metrics.jsonl") if "loss" in record]
    steps = [record for record in metrics if record.get("kd_weight/mean") is not None]
    return {
        "arm": arm,
        "seed": seed,
        "steps": measured[-1]["step"],
        "before": {row["id"]: row["correct"] for row in measured[0]["rows"]},
        "after": {row["id"]: row["correct"] for row in measured[-1]["rows"]},
        "ended": measured[-1]["ended"]["value"],
        "tokens": measured[-1]["tokens"],
        "loss": metrics[-1]["loss"],
        "weight": sum(record["kd_weight/mean"] for record in steps) / len(steps) if steps else None,
        "failed": max((record.get("validity/failed") or 0.0 for record in metrics), default=0.0),
    }


def write_runs(path: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """All finished runs, a JSON object a line; a kill leaves the file as it was."""
    write_atomically(path, "".join(json.dumps(run) + "\n" for run in runs))


def analyse(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each arm accuracy before and after, and after minus `plain`, each as [mean, low, high]."""
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    plain = by_arm.get(BASELINE, {})
    found: dict[str, Any] = {}
    for arm, of_seed in by_arm.items():
        paired = {seed: run for seed, run in of_seed.items() if seed in plain}
        found[arm] = {
            "seeds": sorted(of_seed),
            "before": interval([differences(run["before"]) for run in of_seed.values()]),
            "after": interval([differences(run["after"]) for run in of_seed.values()]),
            "gain": interval([differences(run["after"], run["before"]) for run in of_seed.values()]),
            "over_plain": interval([differences(run["after"], plain[seed]["after"]) for seed, run in paired.items()])
            if arm != BASELINE
            else None,
            "weight": mean([run["weight"] for run in of_seed.values() if run["weight"] is not None]),
            "ended": mean([run["ended"] for run in of_seed.values()]),
            "tokens": mean([run["tokens"] for run in of_seed.values()]),
        }
    return {"arms": found}


def differences(one: Mapping[str, float | None], other: Mapping[str, float | None] | None = None) -> list[float]:
    """Row by row `one` minus `other`; rows that one of them could not judge are left out."""
    values = []
    for row, value in one.items():
        base = 0.0 if other is None else other.get(row)
        if value is not None and base is not None:
            values.append(value - base)
    return values


def interval(seeds: Sequence[Sequence[float]]) -> list[float] | None:
    """Mean and 95 % interval over seeds and their rows, as JSON has it; None without a value."""
    figure = two_level_mean(seeds, seed=BOOTSTRAP_SEED)
    return None if figure is None else [figure.value, figure.low, figure.high]


def mean(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return sum(values) / len(values) if values else float("nan")


def table(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| arm | seeds | before | after | after minus `plain` | mean weight | ended | tokens |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm, found in results["arms"].items():
        lines.append(
            f"| {arm} | {len(found['seeds'])} | {shown(found['before'])} | {shown(found['after'])} "
            f"| {shown(found['over_plain'], sign=True)} | {found['weight']:.2f} | {found['ended']:.0%} "
            f"| {found['tokens']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def shown(value: Sequence[float] | None, *, sign: bool = False) -> str:
    """`0.300 (0.100 to 0.500)`, or a dash."""
    if value is None:
        return "-"
    one = "+.3f" if sign else ".3f"
    return f"{value[0]:{one}} ({value[1]:{one}} to {value[2]:{one}})"


if __name__ == "__main__":
    sys.exit(main())
