import pytest

from trainers.common.overoptimisation import overoptimisation, rising_rewards


def evaluation(step: int, right: list[float], sampled: list[float] | None = None) -> dict:
    rows = [{"id": str(number), "correct": value} for number, value in enumerate(right)]
    if sampled is not None:
        rows = [{**row, "sampled_correct": value} for row, value in zip(rows, sampled, strict=True)]
    return {"step": step, "rows": rows, **({"sampled": {}} if sampled is not None else {})}


def history(slope: float, name: str = "structure", steps: int = 40) -> list[dict]:
    noise = (0.02, -0.03, 0.01, 0.0, -0.01)
    return [{"loss": 0.0, f"rewards/{name}/mean": 0.3 + slope * step + noise[step % 5]} for step in range(steps)]


FALLEN = [evaluation(0, [1.0] * 30 + [0.0] * 30), evaluation(40, [1.0] * 15 + [0.0] * 45)]
RISEN = [*reversed(FALLEN)]


def test_a_rising_reward_beside_falling_accuracy_is_named_with_the_fall_and_a_way_out() -> None:
    text = overoptimisation(FALLEN, history(0.01))
    assert "held-out accuracy has changed by -25.0% (95 % interval " in text
    assert "while 'structure' rose in training" in text
    assert "reward_gates: {structure: accuracy}" in text


@pytest.mark.parametrize(
    ("evaluations", "steps"),
    [
        (RISEN, history(0.01)),  # accuracy rises as well
        (FALLEN, history(0.0)),  # nothing rises
        (FALLEN, history(-0.01)),
        (FALLEN, history(0.01, "accuracy")),  # accuracy in training is no proxy
        (FALLEN, history(0.01, steps=8)),  # too few steps for a trend
        (FALLEN[:1], history(0.01)),
        (
            [evaluation(0, [1.0, 0.0]), evaluation(40, [0.0, 0.0])],
            history(0.01),
        ),  # too few rows for an interval below 0
    ],
)
def test_nothing_is_said(evaluations, steps) -> None:
    assert overoptimisation(evaluations, steps) == ""


def test_sampled_answers_decide_where_there_are_some() -> None:
    greedy = [1.0] * 30 + [0.0] * 30
    falling = [evaluation(0, greedy, [0.5] * 60), evaluation(40, greedy, [0.25] * 45 + [0.5] * 15)]
    assert "changed by -18.8%" in overoptimisation(falling, history(0.01))


def test_the_rewards_that_rise() -> None:
    both = [{**a, **b} for a, b in zip(history(0.01), history(0.0, "format"), strict=True)]
    assert rising_rewards(both) == ["structure"]
