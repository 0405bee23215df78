"""Writes the files of a run as its trainer does, from records that a test chooses."""

from pathlib import Path
from typing import Any

from rlkd.gsrm.alignment import Verdict
from rlkd.gsrm.factory import make
from rlkd.structure import Step, Structure
from tests.helpers.json_lines import write_json_lines


def write_run(
    run: Path,
    *,
    log: list[dict[str, Any]] | None = None,
    rollouts: list[dict[str, Any]] | None = None,
    evaluations: list[dict[str, Any]] | None = None,
) -> Path:
    """Write a run of these records: by default ten steps of four rollouts, and two evaluations; return its folder."""
    (run / "rollouts").mkdir(parents=True)
    steps = range(1, 11)
    log = [metrics(step) for step in steps] if log is None else log
    rollouts = [rollout(step, index) for step in steps for index in range(4)] if rollouts is None else rollouts
    if evaluations is None:
        evaluations = [evaluation(0, [0.0, 0.0, 1.0]), evaluation(10, [1.0, 0.0, 1.0])]
    write_json_lines(run / "metrics.jsonl", *log)
    write_json_lines(run / "eval.jsonl", *evaluations)
    write_json_lines(run / "rollouts" / "rank0.jsonl", *rollouts)
    return run


def metrics(step: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl, with a metric of the reward's own."""
    return {
        "step": step,
        "reward": 0.5 + step / 100,
        "rewards/accuracy/mean": step / 100,
        "rewards/accuracy/failed": 0.0,
        "frac_reward_zero_std": 0.25,
        "entropy": 1.0,
        "rewards/accuracy/words": 7.0 + step,
        **more,
    }


def rollout(step: int, index: int, **more: Any) -> dict[str, Any]:
    """A rollout with two rewards; those of a step are of one row. The second calculation is right for odd ones."""
    return {
        "step": step,
        "id": f"row-{step}",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {step}?"}],
        "completion": f"4 * 12 = 48\n48 - 30 = {17 + index % 2}\n#### {index}",
        "answer": "6",
        "rewards": {
            "accuracy": {"status": "score", "value": float(index % 2), "seconds": 0.001},
            "structure": {"status": "score", "value": 0.5, "detail": compared_structures()},
        },
        "advantage": index % 2 - 0.5,
        **more,
    }


def compared_structures() -> dict[str, Any]:
    """The detail of a structure reward: the second of two steps differs, and is wrong."""
    student = Structure([Step("Count the rolls", "4*12", "48"), Step("Take away", "48-30", "17")])
    teacher = Structure([Step("Count the rolls", "4*12", "48"), Step("Share them", "18/3", "6")])
    verdicts = [[Verdict(True, True, True), Verdict(False, False, False)]]
    score = make("alignment", "teacher").score(student, teacher, verdicts, 2)
    return dict(score.to_dict())


def weighted_trace(step: int, weights: list[float], policy: str = "student") -> dict[str, Any]:
    """A trace of validity-calibrated distillation, with a step per weight."""
    texts = [f"{i} + 1 = {i + 1}" for i in range(len(weights))]
    return {
        "step": step,
        "id": f"row-{step}",
        "policy": policy,
        "prompt": "Count.",
        "completion": "\n".join(texts),
        "answer": None,
        "steps": [
            {"text": text, "tokens": 5, "weight": weight, "margin": weight - 1, "teacher": -0.1, "student": -0.2}
            for text, weight in zip(texts, weights, strict=True)
        ],
    }


def evaluation(step: int, right: list[float], sampled: list[float] | None = None) -> dict[str, Any]:
    """A line of eval.jsonl with these answers."""

    def figures(values: list[float]) -> dict[str, Any]:
        return {"mean": sum(values) / len(values), "low": 0.1, "high": 0.9, "n": len(values)}

    rows: list[dict[str, Any]] = [
        {"id": f"test-{i}", "correct": value, "tokens": 9, "completion": "#### 1"} for i, value in enumerate(right)
    ]
    record = {"step": step, "accuracy": figures(right), "ended": figures([1.0]), "tokens": 12.5, "rows": rows}
    if sampled is not None:
        for row, value in zip(rows, sampled, strict=True):
            row["sampled_correct"] = value
        record["sampled"] = {"samples": 2, "temperature": 0.9, "accuracy": figures(sampled)}
    return record
