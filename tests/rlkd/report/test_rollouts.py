from rlkd.report.records import read_run
from rlkd.report.rollouts import _check, rollout_details, rollout_table
from tests.helpers.run_folder import rollout, weighted_trace, write_run


def runs_of(tmp_path, records):
    return [read_run(write_run(tmp_path / "run", rollouts=records), most_rollouts=1000)]


def test_columns_have_a_value_per_rollout(tmp_path):
    failed = {"accuracy": {"status": "failed", "cause": "timeout"}, "structure": {"status": "not_applicable"}}
    records = [rollout(1, 0), rollout(1, 1), rollout(2, 0, rewards=failed, advantage=None)]
    table = rollout_table(runs_of(tmp_path, records))
    assert table["step"] == [1, 1, 2]
    assert table["group"] == [0, 0, 1]
    assert table["numbers"]["accuracy"] == [0.0, 1.0, None]
    assert table["numbers"]["advantage"] == [-0.5, 0.5, None]
    assert table["statuses"] == {"accuracy": [0, 0, 2], "structure": [0, 0, 1]}


def test_each_prompt_is_in_the_page_once(tmp_path):
    records = [rollout(1, 0), rollout(1, 1), rollout(2, 0, prompt="As text"), rollout(3, 0, prompt=None)]
    table = rollout_table(runs_of(tmp_path, records))
    assert table["prompt"] == [0, 0, 1, 2]
    assert table["prompts"][0] == [["system", "Be brief."], ["user", "Question 1?"]]
    assert table["prompts"][1:] == [[["prompt", "As text"]], [["prompt", ""]]]


def test_a_number_beyond_all_floats_has_no_mark():
    assert _check("2 * 3", "6")["right"]
    assert _check("2 * 3", "1e400") is None
    assert _check("2 * 3", "10^400") is None


def test_wrong_calculations_of_a_completion_are_counted(tmp_path):
    table = rollout_table(runs_of(tmp_path, [rollout(1, 0), rollout(1, 1)]))
    assert table["wrong"] == [1, 0]
    first, second = rollout_details(runs_of(tmp_path / "again", [rollout(1, 0), rollout(1, 1)]))
    assert first["checks"][1] == {"text": "48 - 30 = 17", "right": False, "value": "18"}
    assert second["checks"][1]["right"] is True


def test_steps_are_side_by_side_with_verdicts_and_arithmetic(tmp_path):
    (detail,) = rollout_details(runs_of(tmp_path, [rollout(1, 0)]))
    structure = detail["structures"]["structure"]
    assert [pair["verdict"] for pair in structure["pairs"]] == ["yes / yes / yes", "no / no / no"]
    assert [pair["points"] for pair in structure["pairs"]] == [1.0, 0.0]
    assert structure["pairs"][1]["student"]["check"]["right"] is False
    assert structure["pairs"][1]["teacher"]["meta"] == "Share them"
    assert "alignment teacher: 1 / 2 = 0.5 (steps of the longest branch)" in structure["arithmetic"]


def test_other_details_of_a_reward_are_kept_as_they_are(tmp_path):
    detail = {"verdicts": float("nan")}
    outcome = {"status": "score", "value": 1.0, "detail": detail, "reused": "cache", "seconds": 0.5}
    (detail,) = rollout_details(runs_of(tmp_path, [rollout(1, 0, rewards={"own": outcome})]))
    assert detail["rewards"]["own"] == {"seconds": 0.5, "reused": "cache", "detail": '{"verdicts": NaN}'}
    assert "structures" not in detail


def test_a_trace_of_distillation_has_its_weights(tmp_path):
    runs = runs_of(tmp_path, [weighted_trace(1, [0.5, 1.5])])
    numbers = rollout_table(runs)["numbers"]
    assert (numbers["weight"], numbers["least weight"], numbers["margin"]) == ([1.0], [0.5], [0.0])
    assert rollout_table(runs)["policy"] == ["student"]
    assert [step["weight"] for step in rollout_details(runs)[0]["steps"]] == [0.5, 1.5]


def test_credited_steps_have_their_text_where_they_were_found(tmp_path):
    found = {"reward": "structure", "score": 0.5, "place": [2, 5], "tokens": 3, "credit": -0.25}
    lost = {"reward": "structure", "score": 0.0, "place": None, "tokens": 0, "credit": None}
    one = rollout(1, 0) | {"completion": "abcdefg", "credit": [found, lost]}
    (detail,) = rollout_details(runs_of(tmp_path, [one]))
    assert detail["credit"] == [
        {"text": "cde", "score": 0.5, "tokens": 3, "credit": -0.25},
        {"text": None, "score": 0.0, "tokens": 0, "credit": None},
    ]
