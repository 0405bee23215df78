import pytest

from rlkd.errors import UsageError
from rlkd.report.records import read_run
from rlkd.report.summary import summary_of
from tests.helpers.run_folder import evaluation, metrics, rollout, write_run


def read(folder, name=None):
    return read_run(folder, most_rollouts=1000, name=name)


def test_the_change_of_a_run_is_paired_by_row(tmp_path):
    evaluations = [evaluation(0, [0.0] * 20), evaluation(9, [1.0] * 10 + [0.0] * 10)]
    (change,) = summary_of([read(write_run(tmp_path / "run", evaluations=evaluations))])["changes"]
    assert change["what"] == "Greedy accuracy, step 9 minus step 0"
    assert change["figure"].startswith("+50.0% (95 % interval +2")
    assert (change["clear"], change["up"]) == (True, True)


def test_two_runs_are_compared_on_the_rows_of_their_last_evaluations(tmp_path):
    first = write_run(tmp_path / "a", evaluations=[evaluation(0, [0.0] * 20), evaluation(9, [1.0] * 15 + [0.0] * 5)])
    other = write_run(tmp_path / "b", evaluations=[evaluation(4, [0.0, 1.0] * 12)])  # with four rows more
    changes = summary_of([read(first), read(other)])["changes"]
    assert changes[-1]["what"] == "a minus b: greedy accuracy, step 9 minus step 4"
    assert changes[-1]["figure"].startswith("+25.0% (95 % interval ")
    assert changes[-1]["figure"].endswith("n = 20)")


def test_evaluations_with_different_settings_are_named(tmp_path):
    for name, limit, seed in (("a", 64, 1), ("b", 96, 2), ("c", 64, 3)):
        folder = write_run(tmp_path / name)
        (folder / "evaluation.json").write_text(
            f'{{"max_completion_length": {limit}, "seed": {seed}, "eval_rows": 3}}'
        )
    a, b, c = (read(tmp_path / name) for name in "abc")
    note = "The runs were evaluated with different settings: max_completion_length."
    assert summary_of([a, b])["changes"][-1]["note"] == note
    assert summary_of([a, c])["changes"][-1]["note"] == ""


def test_sampled_answers_are_compared_where_both_have_them(tmp_path):
    evaluations = [evaluation(0, [0.0] * 9, sampled=[0.5] * 9), evaluation(1, [0.0] * 9, sampled=[1.0] * 9)]
    changes = summary_of([read(write_run(tmp_path / "run", evaluations=evaluations))])["changes"]
    assert [change["what"].split(",")[0] for change in changes] == ["Greedy accuracy", "Sampled accuracy"]
    assert changes[1]["figure"].startswith("+50.0%")


def test_rewards_have_their_trend_over_the_steps(tmp_path):
    log = [metrics(step, **{"rewards/accuracy/mean": step / 100 + step % 2 / 50}) for step in range(1, 41)]
    rows = summary_of([read(write_run(tmp_path / "run", log=log))])["rewards"]
    assert [row["name"] for row in rows] == ["accuracy", "structure"]
    assert rows[0]["trend"]["figure"].startswith("+0.99")
    assert rows[0]["trend"]["clear"]
    assert rows[1]["trend"] is None  # the log has no metric of that reward


def test_failures_are_listed_by_cause(tmp_path):
    failed = {"rewards": {"accuracy": {"status": "failed", "cause": "timeout"}}}
    found = summary_of([read(write_run(tmp_path / "run", rollouts=[rollout(1, 0, **failed)]))])["failures"]
    assert found == [{"run": "run", "reward": "accuracy", "cause": "timeout", "count": 1}]


def test_an_evaluation_that_cannot_be_read_is_named(tmp_path):
    folder = write_run(tmp_path / "run", evaluations=[{"step": 3, "rows": []}])
    with pytest.raises(UsageError, match=r"eval\.jsonl, step 3: not an evaluation of a run \(KeyError: 'accuracy'\)"):
        summary_of([read(folder)])
