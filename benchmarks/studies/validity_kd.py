"""Does weighting steps by validity teach more than plain distillation, and more than its controls?

    python benchmarks/studies/validity_kd.py --out runs/validity-study                  # the full grid
    python benchmarks/studies/validity_kd.py --out runs/validity-study --arms plain expected --seeds 11
    python benchmarks/studies/validity_kd.py --out runs/validity-study --analyse        # only reads finished runs
    python benchmarks/studies/validity_kd.py --out /tmp/smoke --smoke                   # does the script work?

Arms x seeds of `recipes/validity_kd.py`; arms differ in the keys of `ARMS` only. Runs of a seed share the order of
questions, the choice between rollouts and traces, and the held-out rows. The same command again finishes a study that
was killed. `runs.jsonl` in the output folder has a line per finished run, `table.md` the table.

The figure, fixed before any result: accuracy on the held-out rows after the last step, arm minus `plain`, paired by
seed and row, with a 95 % interval over seeds and rows, which are crossed: every seed is measured on the same rows
(`rlkd.statistics.crossed_mean`).

Arguments after `--` go to the recipe of all runs, e.g. `-- --max_steps 20`. The last line printed is a JSON object.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grid import (
    ROOT,
    Run,
    add_grid,
    arguments,
    by_arm,
    differences,
    gains,
    guarded,
    interval,
    is_done,
    mean,
    read_run,
    run_grid,
    run_recipe,
    shown,
)

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
FULL = ["--max_steps", "100", "--eval_rows", "200"]
SMOKE = [
    *"--max_steps 2 --eval_rows 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1".split(),  # noqa: SIM905
    *"--max_completion_length 12 --max_step_tokens 6 --save_steps 1".split(),  # noqa: SIM905
]


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description="Validity-calibrated distillation against its controls.")
    add_grid(parser, ARMS)
    given, extra = arguments(parser, CONFIG)
    given.seeds = given.seeds[:2] if given.smoke else given.seeds
    overrides = [*(SMOKE if given.smoke else FULL), *extra]

    def produce() -> Iterator[None]:
        for seed in given.seeds:
            for arm in given.arms:
                folder = given.out / f"{arm}-{seed}"
                if not is_done(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    words = ["--config", str(given.config), *ARMS[arm], "--seed", str(seed), *overrides]
                    run_recipe("validity_kd.py", folder, words)
                    (folder / "done").touch()
                    yield

    run_grid(given, overrides, produce, read, analyse, table)


def read(folder: Path, arm: str, seed: int) -> Run:
    from trainers.common.run_files import read_steps

    run, measured = read_run(folder, arm, seed)
    metrics = [record for record in read_steps(folder / "metrics.jsonl") if "loss" in record]
    weights = [record["kd_weight/mean"] for record in metrics if record.get("kd_weight/mean") is not None]
    return run | {
        "ended": measured[-1]["ended"]["mean"],
        "tokens": measured[-1]["tokens"],
        "loss": metrics[-1]["loss"],
        "weight": sum(weights) / len(weights) if weights else None,
        "failed": max((record.get("validity/failed") or 0.0 for record in metrics), default=0.0),
    }


def analyse(runs: Sequence[Run]) -> dict[str, Any]:
    """Of each arm accuracy before and after, and after minus `plain`, each as [mean, low, high]."""
    arms = by_arm(runs)
    found: dict[str, Any] = {}
    for arm, of_seed in arms.items():
        found[arm] = {
            "seeds": sorted(of_seed),
            "before": interval([differences(run["before"]) for run in of_seed.values()]),
            "after": interval([differences(run["after"]) for run in of_seed.values()]),
            "gain": interval([differences(run["after"], run["before"]) for run in of_seed.values()]),
            "over_plain": gains(of_seed, arms.get(BASELINE, {})) if arm != BASELINE else None,
            "weight": mean([run["weight"] for run in of_seed.values() if run["weight"] is not None]),
            "ended": mean([run["ended"] for run in of_seed.values()]),
            "tokens": mean([run["tokens"] for run in of_seed.values()]),
        }
    return {"arms": found}


def table(results: Mapping[str, Any]) -> str:
    lines = ["| arm | seeds | before | after | after minus `plain` | mean weight | ended | tokens |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm, found in results["arms"].items():
        lines.append(
            f"| {arm} | {len(found['seeds'])} | {shown(found['before'])} | {shown(found['after'])} "
            f"| {shown(found['over_plain'], '+.3f')} | {found['weight']:.2f} | {found['ended']:.0%} "
            f"| {found['tokens']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
