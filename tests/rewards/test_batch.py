"""What a batch of completions was scored with: failures, and records for the rollouts file."""

from rewards import Outcome
from rewards.batch import Failure, ScoredBatch

BATCH = ScoredBatch(
    rows=[{"id": "a", "prompt": "1 + 1?", "answer": "2"}, {"prompt": "1 + 2?"}],
    texts=["It is 2.", "It is 3."],
    outcomes={
        "accuracy": [Outcome("score", 1.0, seconds=0.5), Outcome("not_applicable")],
        "judge": [Outcome("score", 0.5, detail={"steps": 2}, reused="cache"), Outcome("failed", cause="down")],
    },
)


def test_failures_name_reward_cause_and_row_or_its_index() -> None:
    assert BATCH.failures() == [Failure("judge", "down", "1")]
    assert BATCH.failed(["judge", "a reward model", "accuracy"]) == [[False] * 3, [True, False, False]]


def test_the_message_names_the_reward_that_failed() -> None:
    assert BATCH.failure_message() == (
        "reward 'judge' failed on 1 of 2 completions (on_failure is 'raise'): down. Rows: 1"
    )
    assert "on another process" in ScoredBatch([{}]).failure_message()


def test_a_record_has_the_fields_that_are_set() -> None:
    first, second = BATCH.records()
    assert first == {
        "id": "a",
        "prompt": "1 + 1?",
        "completion": "It is 2.",
        "answer": "2",
        "rewards": {
            "accuracy": {"status": "score", "value": 1.0, "seconds": 0.5},
            "judge": {"status": "score", "value": 0.5, "reused": "cache", "detail": {"steps": 2}},
        },
    }
    assert second["rewards"] == {
        "accuracy": {"status": "not_applicable"},
        "judge": {"status": "failed", "cause": "down"},
    }
    assert (second["id"], second["answer"]) == (None, None)
