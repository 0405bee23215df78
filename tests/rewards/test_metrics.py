"""Rewards as metrics: each completion with its row's columns, by the kind of its answers, failures with causes."""

from pathlib import Path

import pytest

from rewards import RewardError
from rewards.metrics import BATCH, announced_answer, metric_rewards, scored_completions
from rlkd.evaluation.folder import RecordedCompletion

ROWS = {
    "r0": {"id": "r0", "prompt": [{"role": "user", "content": "1 + 1?"}], "question": "1 + 1?", "answer": "2"},
    "r1": {"id": "r1", "prompt": [{"role": "user", "content": "2 + 1?"}], "question": "2 + 1?", "answer": "3"},
}


def written(name: str, sample: int, text: str) -> RecordedCompletion:
    return RecordedCompletion(name, sample, text, 3, True)


def values(found: list[RecordedCompletion], metric: str) -> list[float | None]:
    return [each.scores[metric].get("value") for each in found]


def test_accuracy_is_the_reward_for_the_kind_of_answers() -> None:
    for kind, answer, right, wrong in (
        ("exact", "1/2", "The answer is 0.5.", "The answer is 2."),
        ("choice", "B", "(B) closet", "A"),
        ("boolean", "true", "Yes, they are.", "The answer is no."),
    ):
        rewards = metric_rewards(["accuracy"], kind, cache=False)
        assert [reward.__name__ for reward in rewards] == ["accuracy"]
        row = {"r0": ROWS["r0"] | {"answer": answer, "choices": ["river", "closet"]}}
        found = scored_completions(rewards, row, [written("r0", 0, right), written("r0", 1, wrong)], answers=kind)
        assert values(found, "accuracy") == [1.0, 0.0]


def test_answers_are_in_a_form_in_which_they_can_be_counted() -> None:
    row = {"choices": {"label": ["A", "B"], "text": ["river", "closet"]}}
    texts = ("The answer is closet.", "B", "(B), because rivers are wet", "I do not know")
    assert [announced_answer("choice", row, text) for text in texts] == ["B", "B", "B", None]
    assert [announced_answer("boolean", {}, text) for text in ("Yes.", "The answer is false", "Hm.")] == [
        "yes",
        "no",
        None,
    ]
    assert announced_answer("exact", {}, "so #### 72") == "72"
    assert announced_answer("exact", {}, "so #### 72", prefilled=True) is None  # a thought that does not end


def test_an_answer_that_counts_as_right_has_a_vote() -> None:
    rewards = metric_rewards(["accuracy"], "exact", {"accuracy": {"fallback": "last_number"}}, cache=False)
    [found] = scored_completions(rewards, ROWS, [written("r0", 1, "1 + 1 makes 2")])
    assert (found.scores["accuracy"]["value"], found.answer) == (1.0, "2")


def test_rewards_get_columns_and_parameters_and_a_failure_keeps_its_cause(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rewards import Failed\n"
        "def echo(completions, question, id, *, bonus=0, **columns):\n"
        "    return [Failed('too long') if len(c[0]['content']) > 5 else bonus + len(q) for c, q in\n"
        "            zip(completions, question)]\n"
    )
    rewards = metric_rewards([f"{tmp_path}/mine.py:echo"], "exact", {"echo": {"bonus": 10}}, cache=False)
    found = scored_completions(rewards, ROWS, [written("r0", 0, "abc"), written("r1", 0, "abcdef")])
    assert values(found, "echo") == [16.0, None]
    assert found[1].scores["echo"] == {"status": "failed", "cause": "too long"}
    for reward in rewards:
        reward.close()


def test_a_parameter_of_no_metric_is_refused() -> None:
    with pytest.raises(RewardError, match="'acuracy'"):
        metric_rewards(["accuracy"], "exact", {"acuracy": {"fallback": "last_number"}}, cache=False)


def test_all_samples_of_a_row_are_scored_in_one_call(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def size(completions, **columns):\n    return [len(completions)] * len(completions)\n"
    )
    rewards = metric_rewards([f"{tmp_path}/mine.py:size"], "exact", options={"size": {"isolate": False}}, cache=False)
    rows = {f"r{i}": ROWS["r0"] | {"id": f"r{i}"} for i in range(BATCH)}
    greedy = [written(name, 0, "a") for name in rows]
    sampled = [written(name, number, "a") for name in list(rows)[:3] for number in range(1, BATCH // 2)]
    found = scored_completions(rewards, rows, [*greedy, *sampled])
    assert set(values(found[:BATCH], "size")) == {BATCH}
    sizes = values(found[BATCH:], "size")
    assert sizes == [3 * (BATCH // 2 - 1)] * len(sizes)


def test_rewards_that_read_ids_get_those_of_the_tokenizer() -> None:
    rewards = metric_rewards(
        ["get_soft_overlong_punishment"],
        "exact",
        {"get_soft_overlong_punishment": {"max_completion_len": 4, "soft_punish_cache": 2}},
        cache=False,
    )
    found = scored_completions(rewards, ROWS, [written("r0", 0, "ab"), written("r0", 1, "abcdef")], encode=list)
    assert values(found, rewards[0].__name__) == [0.0, -1.0]
