"""Made-up runs of a study: measurements, and the files of a run with them."""

import json
from collections.abc import Sequence
from pathlib import Path

from rlkd.study.measures import HeldOut, StudyRun


def answers(curve: Sequence[tuple[float, float]], rows: int = 40) -> HeldOut:
    """Held-out rows that are all as good as the curve says at its ends."""
    before, after = (
        {f"row-{i}": value + (i % 2 - 0.5) / 50 for i in range(rows)} for value in (curve[0][1], curve[-1][1])
    )
    return HeldOut(before, after, list(curve))


def made_up(arm: str, seed: int, *points: float, every: int = 640) -> StudyRun:
    """A run whose sampled accuracy is `points` at equal distances; greedy answers are twice as good."""
    curve = [(float(every * i), point) for i, point in enumerate(points)]
    return StudyRun(
        arm,
        seed,
        greedy=answers([(x, 2 * y) for x, y in curve]),
        sampled=answers(curve),
        rollouts=curve[-1][0],
        counts_steps=False,
        calculations=3.0,
        tokens=30.0,
        zero_std=0.4,
        seconds=90.0,
    )


def write_run(folder: Path, points: Sequence[float], *, rows: int = 10, every: int = 2, group: int = 4) -> None:
    """The files of a finished run, with an evaluation every `every` steps in which `points` of the rows are right."""
    folder.mkdir(parents=True, exist_ok=True)
    last = every * (len(points) - 1)
    evaluations = [evaluation(every * i, point, rows) for i, point in enumerate(points)]
    metrics = [{"step": step, "reward": step / 10, "frac_reward_zero_std": 0.25} for step in range(1, last + 1)]
    rollouts = [{"step": step, "id": f"row-{i}"} for step in range(1, last + 1) for i in range(group)]
    (folder / "rollouts").mkdir(exist_ok=True)
    for name, records in {"eval": evaluations, "metrics": metrics, "rollouts/rank0": rollouts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "times.jsonl").write_text('{"seconds": 30.0, "status": 0}\n')
    (folder / "done").touch()


def evaluation(step: int, share: float, rows: int) -> dict:
    right = round(share * rows)
    found = {"mean": share, "low": max(0.0, share - 0.1), "high": min(1.0, share + 0.1), "n": rows}
    return {
        "step": step,
        "accuracy": found,
        "tokens": 20.0,
        "calculations": 2.0,
        "rows": [
            {"id": f"row-{i}", "correct": float(i < right), "sampled_correct": i < right and 0.5} for i in range(rows)
        ],
        "sampled": {
            "samples": 4,
            "temperature": 1.0,
            "accuracy": {**found, "mean": share / 2},
            "tokens": 25.0,
            "calculations": 2.5,
        },
    }
