import io
import json
import math
import random
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from rlkd.errors import UsageError
from rlkd.report.rewards import RewardReport, SlowCall, read_report, render_report


def score(value: float, **more: object) -> dict[str, object]:
    return {"status": "score", "value": value, **more}


def write(run: Path, records: list[dict[str, object]], rank: int = 0, tail: str = "") -> None:
    (run / "rollouts").mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run / "rollouts" / f"rank{rank}.jsonl").write_text(lines + tail)


def report_of(run: Path, outcomes: list[dict[str, object]], **more: object) -> RewardReport:
    """The report of one reward with one outcome per rollout, all in one group."""
    write(run, [{"step": 1, "id": "a", "rewards": {"some": outcome}, **more} for outcome in outcomes])
    return read_report(run)


def test_mean_and_std_are_of_the_scores_alone(tmp_path):
    outcomes = [score(0.0), score(1.0), score(0.5), {"status": "not_applicable"}, {"status": "failed", "cause": "x"}]
    figures = report_of(tmp_path, outcomes).rewards["some"]
    assert (figures.samples, figures.scored) == (5, 3)
    assert figures.mean == pytest.approx(0.5)
    assert figures.std == pytest.approx(0.5)
    assert (figures.not_applicable, figures.failed) == (0.2, 0.2)


def test_the_three_most_frequent_causes_are_named(tmp_path):
    causes = ["timeout"] * 3 + ["down"] * 2 + ["out of memory"] * 4 + ["once"] + [None]
    figures = report_of(tmp_path, [{"status": "failed", "cause": cause} for cause in causes]).rewards["some"]
    assert figures.causes == [("out of memory", 4), ("timeout", 3), ("down", 2)]
    assert (figures.mean, figures.std, figures.failed) == (None, None, 1.0)


def test_times_are_of_actual_calls(tmp_path):
    outcomes = [score(1.0, seconds=float(i)) for i in range(1, 101)]
    outcomes += [score(1.0, seconds=500.0, reused="batch"), score(1.0, reused="cache"), score(1.0, reused="cache")]
    figures = report_of(tmp_path, outcomes).rewards["some"]
    assert (figures.seconds_p50, figures.seconds_p95) == (50.0, 95.0)
    assert figures.reused_batch == pytest.approx(1 / 103)
    assert figures.reused_cache == pytest.approx(2 / 103)
    assert [slow.seconds for slow in figures.slowest] == [100.0, 99.0, 98.0, 97.0, 96.0]


def test_samples_of_one_call_are_one_slow_call(tmp_path):
    seconds = [0.5, 0.5, 0.5, 2.0, 0.25]
    write(
        tmp_path,
        [{"step": i, "id": f"row-{i}-{j}", "rewards": {"some": score(0.0, seconds=s)}}
         for i, s in enumerate(seconds) for j in range(3)],
    )  # fmt: skip
    assert read_report(tmp_path).rewards["some"].slowest == [
        SlowCall(2.0, "row-3-0", 3, 3),
        SlowCall(0.5, "row-0-0", 0, 3),
        SlowCall(0.5, "row-1-0", 1, 3),
        SlowCall(0.5, "row-2-0", 2, 3),
        SlowCall(0.25, "row-4-0", 4, 3),
    ]


def test_a_group_is_the_rollouts_of_a_row_in_a_step_on_any_process(tmp_path):
    def record(step: int, row: str, value: float) -> dict[str, object]:
        return {"step": step, "id": row, "rewards": {"some": score(value)}}

    write(tmp_path, [record(1, "a", 0.5), record(1, "b", 1.0), record(2, "a", 0.5), record(2, "a", 0.5)])
    write(tmp_path, [record(1, "a", 0.5 + 1e-12), record(1, "b", 0.0), record(3, "a", 1.0)], rank=1)
    figures = read_report(tmp_path).rewards["some"]
    assert figures.groups == 3  # step 3 has a single score and no standard deviation
    assert figures.zero_std_groups == pytest.approx(2 / 3)


def test_rows_without_an_id_are_distinguished_by_their_prompts(tmp_path):
    records = [{"step": 1, "prompt": p, "rewards": {"some": score(v)}} for p, v in [("a", 0), ("b", 1), ("a", 0)]]
    write(tmp_path, records)
    assert read_report(tmp_path).rewards["some"].groups == 1


def test_correlations_are_pearsons_over_rollouts_that_both_scored(tmp_path):
    chance = random.Random(0)
    pairs = [(x := chance.gauss(1e6, 1), 0.5 * x + chance.gauss(0, 1)) for _ in range(200)]
    records = [{"step": 1, "id": "a", "rewards": {"x": score(x), "y": score(y), "flat": score(1.0)}} for x, y in pairs]
    records.append({"step": 1, "id": "a", "rewards": {"x": score(1e9), "y": {"status": "failed", "cause": "x"}}})
    write(tmp_path, records)
    found = {frozenset((one, other)): value for one, other, value in read_report(tmp_path).correlations}
    assert found[frozenset("xy")] == pytest.approx(statistics.correlation(*zip(*pairs, strict=True)), abs=1e-9)
    assert found[frozenset(("x", "flat"))] is None
    assert len(found) == 3


def test_rewards_without_common_rollouts_have_no_correlation(tmp_path):
    write(tmp_path, [{"step": 1, "id": "a", "rewards": {name: score(1.0)}} for name in ("one", "other")])
    assert read_report(tmp_path).correlations == [("one", "other", None)]


def test_rollouts_without_times_are_read(tmp_path):
    figures = report_of(tmp_path, [score(0.5), {"status": "not_applicable"}]).rewards["some"]
    assert (figures.seconds_p50, figures.reused_batch, figures.reused_cache) == (None, None, None)
    assert figures.slowest == []


def test_an_unfinished_last_line_is_skipped(tmp_path):
    write(tmp_path, [{"step": 1, "id": "a", "rewards": {"some": score(0.5)}}], tail='{"step": 2, "rewa')
    assert read_report(tmp_path).rollouts == 1


def test_a_run_with_only_a_reward_model_has_no_outcomes(tmp_path):
    write(tmp_path, [{"step": 1, "id": "a", "rewards": {}}])
    report = read_report(tmp_path)
    assert (report.rollouts, report.rewards, report.correlations) == (1, {}, [])
    assert "1 rollouts of 1 steps" in shown(report)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "rank0.jsonl, line 1: not JSON"),
        ("[1]", "rank0.jsonl, line 1: found list"),
        ('{"step": 1}', "rank0.jsonl, line 1: not a rollout of a run"),
        ('{"step": 1, "id": "a", "rewards": {"some": 1.0}}', "rank0.jsonl, line 1: not a rollout of a run"),
    ],
)
def test_a_line_that_is_not_a_rollout_is_named(tmp_path, line, message):
    write(tmp_path, [], tail=line + "\n")
    with pytest.raises(UsageError, match=message):
        read_report(tmp_path)


def test_a_run_without_rollouts_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"has no rollouts/rank\*.jsonl"):
        read_report(tmp_path)
    write(tmp_path, [])
    with pytest.raises(UsageError, match="has not finished a step"):
        read_report(tmp_path)


def shown(report: RewardReport) -> str:
    page = io.StringIO()
    Console(width=150, file=page).print(render_report(report))
    return page.getvalue()


def test_the_report_shows_every_figure(tmp_path):
    records = [
        {
            "step": step,
            "id": f"row-{step}",
            "rewards": {
                "accuracy": score(float(i % 2), seconds=0.25, reused="cache" if i else None),
                "judge": {"status": "failed", "cause": "[judge] is down", "seconds": float(step)},
            },
        }
        for step in (1, 2)
        for i in range(4)
    ]
    write(tmp_path, records)
    text = shown(read_report(tmp_path))
    rows = [[cell.strip() for cell in line.split("│")][1:-1] for line in text.splitlines() if "│" in line]
    assert ["accuracy", "8", "0.5", "0.535", "0.0%", "0.0%", "0.0% of 2"] in rows
    assert ["judge", "8", "-", "-", "0.0%", "100.0%", "-"] in rows
    assert ["accuracy", "0.25", "0.25", "0.0%", "75.0%"] in rows
    assert ["accuracy", "", "-"] in rows
    assert "judge: failed 8 x [judge] is down" in text
    assert ["judge", "2", "row-2", "2", "4"] in rows
    assert ["accuracy", "0.25", "row-1", "1", "1"] in rows


def test_the_report_is_plain_values(tmp_path):
    found = report_of(tmp_path, [score(0.5, seconds=1.0), score(1.0)]).to_dict()
    assert json.loads(json.dumps(found)) == {**found, "rewards": json.loads(json.dumps(found["rewards"]))}
    assert math.isclose(found["rewards"]["some"]["mean"], 0.75)
    assert found["rewards"]["some"]["slowest"] == [{"seconds": 1.0, "id": "a", "step": 1, "samples": 1}]
