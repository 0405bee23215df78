import threading

import pytest

from rewards import Failed, Provisional
from rewards.accuracy import Accuracy
from tests.helpers.rewards import build_reward


def score(text, gold, **parameters):
    [value] = Accuracy(**parameters)(completions=[text], answer=[gold])
    return value


@pytest.mark.parametrize(
    ("text", "gold", "value"),
    [
        ("#### 1,000", "1000", 1.0),
        (r"<think>\boxed{1}</think> so \boxed{\frac12}", "0.5", 1.0),
        ("<answer>.5</answer>", "0.50", 1.0),
        ("#### -3", "3", 0.0),
        (r"\boxed{72", "72", 0.0),
        ("72", "72", 0.0),
        ("", "72", 0.0),
    ],
)
def test_the_announced_answer_is_right_or_wrong(text, gold, value):
    assert score(text, gold) == value


@pytest.mark.parametrize("gold", [None, "", "???"])
def test_without_a_readable_gold_answer_accuracy_does_not_apply(gold):
    assert score("#### 72", gold) is None


def test_the_last_number_counts_as_fallback():
    assert score("so 72", "72") == 0.0
    assert score("so 72", "72", fallback="last_number") == 1.0


def test_completions_may_be_messages():
    [value] = Accuracy()(completions=[[{"role": "assistant", "content": "#### 72"}]], answer=["72"])
    assert value == 1.0


@pytest.mark.slow
def test_a_gold_answer_that_hangs_is_a_failure_of_its_sample_only():
    reward = build_reward("accuracy")
    given = {"completions": ["#### 5", "#### 5"], "answer": ["5", r"\boxed{9^{9^{9^{9}}}}"]}
    returned = []
    thread = threading.Thread(target=lambda: returned.append(reward(**given)), daemon=True)
    thread.start()
    thread.join(60)
    assert returned == [[1.0, None]]
    assert [outcome.status for outcome in reward.outcomes] == ["score", "failed"]


@pytest.mark.slow
def test_failed_differs_from_wrong():
    returned = []
    hard = ("#### 5", "9^{9^{9^{9}}}")
    thread = threading.Thread(target=lambda: returned.append(score(*hard, seconds=1.0)), daemon=True)
    thread.start()
    thread.join(60)
    assert isinstance(returned[0], Failed)
    assert "took more than 1 s" in returned[0].cause
    assert score("#### x + 1", "y") == 0.0
    stopped = score(r"#### 9^{9^{9^{9}}}", r"\sqrt{5}", seconds=1.0)
    assert (stopped, type(stopped)) == (0.0, Provisional)
    assert type(score("#### x + 1", "y")) is float
