"""Groups without spread make room for others: in batches made by hand, and in real runs of a tiny model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from benchmarks.tiny import training_arguments
from rlkd.errors import UsageError
from tests.helpers.resumed_runs import compare_resumed_runs, odd_rows, trainer
from trainers import RLKDConfig
from trainers.common.checkpoints import is_at_its_end
from trainers.common.run_files import read_steps
from trainers.rlkd.resampling import Resampling, RolloutCount, Round, check_resampling, replace_groups

ROWS = [{"id": str(i)} for i in range(20)]


def config(tmp_path: Path, **changes: Any) -> RLKDConfig:
    values = {"per_device_train_batch_size": 6, "num_generations": 2, "resample_zero_std": 2}
    return RLKDConfig(**training_arguments(tmp_path / "run", **values | changes))


def batch(values: Sequence[int], width: int) -> dict[str, Any]:
    """A batch with a row for each value, whose prompt and completion have `width` tokens of that value."""
    ids = torch.tensor([[value] * width for value in values])
    return {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": torch.ones_like(ids),
        "advantages": torch.tensor([float(value) for value in values]),
        "importance_sampling_ratio": torch.tensor([[value / 10] for value in values]),
        "num_items_in_batch": torch.tensor(7),
    }


def test_a_group_takes_the_place_of_another_one_and_the_shorter_ones_are_padded() -> None:
    merged = replace_groups(batch([1, 2, 3, 4, 5, 6], 2), batch([7, 8, 9, 10], 3), [(1, 1), (2, 0)], 2, pad=0)
    assert merged["prompt_ids"].tolist() == [[0, 1, 1], [0, 2, 2], [9] * 3, [10] * 3, [7] * 3, [8] * 3]
    assert merged["completion_ids"].tolist() == [[1, 1, 0], [2, 2, 0], [9] * 3, [10] * 3, [7] * 3, [8] * 3]
    assert merged["prompt_mask"].tolist()[:2] == [[0, 1, 1]] * 2
    assert merged["completion_mask"].tolist()[:3] == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert merged["advantages"].tolist() == [1, 2, 9, 10, 7, 8]
    assert merged["importance_sampling_ratio"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.9, 1.0, 0.7, 0.8])
    # The other way round, the longer batch stays as it is.
    shorter = replace_groups(batch([1, 2], 3), batch([7, 8], 1), [(0, 0)], 2, pad=0)
    assert shorter["prompt_ids"].tolist() == [[0, 0, 7], [0, 0, 8]]
    assert shorter["completion_mask"].tolist() == [[1, 0, 0]] * 2


def test_a_ratio_of_tokens_is_1_where_it_is_padded() -> None:
    # Some losses add its logarithm over all places.
    first, second = batch([1, 2], 2), batch([7, 8], 3)
    for each, width in ((first, 2), (second, 3)):
        each["importance_sampling_ratio"] = torch.full((2, width), 0.5)
    merged = replace_groups(first, second, [], 2, pad=0)
    assert merged["importance_sampling_ratio"].tolist()[0][:2] == [0.5, 0.5]
    longer = replace_groups(second, first, [(0, 0)], 2, pad=0)
    assert longer["importance_sampling_ratio"].tolist() == [[0.5, 0.5, 1.0]] * 2


def test_a_batch_that_holds_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="'num_images' in a batch"):
        replace_groups(batch([1, 2], 1) | {"num_images": [1, 1]}, batch([3, 4], 1), [(0, 0)], 2, pad=0)


class Processes:
    """Plays rounds whose groups have a spread or not, as each process sees them."""

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, live: Sequence[Sequence[bool]], count: int = 2
    ):
        self.live, self.count, self.drawn, self.results = live, count, [], []
        for rank in range(count):
            args = config(tmp_path)
            monkeypatch.setattr(type(args), "process_index", rank)
            monkeypatch.setattr(type(args), "world_size", count)
            self.results.append(self._play(Resampling(args, ROWS, 0, RolloutCount())))

    def _play(self, resampling: Resampling) -> tuple[dict[str, Any], dict[str, float], list[Round]]:
        asked: list[list[str]] = []
        self.drawn.append(asked)

        def generate(rows: list[dict[str, Any]]) -> Round:
            asked.append([row["id"] for row in rows])
            values = [100 * len(asked) + i for i in range(len(rows))]
            return Round(batch(values, 1), [{"value": value} for value in values], self.live[len(asked)])

        size = 2 * len(self.live[0]) // self.count
        first = Round(batch(range(size), 1), [{"value": i} for i in range(size)], self.live[0])
        rounds = [first]
        output, metrics = resampling(rounds, generate, 5)
        return output, metrics, rounds


def test_each_process_fills_its_places_and_all_make_as_many_rounds(tmp_path, monkeypatch) -> None:
    live = [
        [True, False, False, True, True, False],  # two places to fill on the first process, one on the second
        [False, True, True, True],  # one group and two with spread: a surplus on the second
        [False, True],
    ]
    played = Processes(tmp_path, monkeypatch, live)
    (first, metrics, rounds), (second, others, _) = played.results
    assert first["advantages"].tolist() == [0, 1, 102, 103, 4, 5]  # the last place stays empty
    assert second["advantages"].tolist() == [0, 1, 2, 3, 100, 101]
    assert (
        metrics
        == others
        == {
            "resampling/rounds": 2.0,
            "resampling/dropped": pytest.approx(1 - 6 / 12),
            "resampling/frac_zero_std": pytest.approx(1 / 6),
        }
    )
    dropped = [[record["value"] for record in each.records if record.get("dropped")] for each in rounds]
    assert dropped == [[2, 3], [100, 101], [200, 201]]
    # No question twice in a round, a question for each group.
    for one, other in zip(*played.drawn, strict=True):
        questions = [*one[::2], *other[::2]]
        assert [*one[1::2], *other[1::2]] == questions
        assert len(set(questions)) == len(questions)
    again = Processes(tmp_path, monkeypatch, live)
    assert again.drawn == played.drawn


def test_no_round_follows_a_full_batch_or_the_last_rollout(tmp_path) -> None:
    full = Round(batch(range(4), 1), [{} for _ in range(4)], [True, True])
    empty = Round(batch(range(4), 1), [{} for _ in range(4)], [False, False])
    ended = RolloutCount(8)
    ended.total = 8
    for first, count, share in ((full, RolloutCount(), 0.0), (empty, ended, 1.0)):
        output, metrics = Resampling(config(tmp_path), ROWS, 0, count)([first], lambda rows: pytest.fail("a round"), 0)
        assert output is first.output
        assert metrics == {"resampling/rounds": 0, "resampling/dropped": 0, "resampling/frac_zero_std": share}


@pytest.mark.parametrize(
    ("changes", "dataset", "message"),
    [
        ({"scale_rewards": "batch"}, ROWS, "depend on the whole batch"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, ROWS, "depend on the whole batch"),
        ({"teacher_kl": 0.1, "teacher": "embedded"}, ROWS, "learns from the teacher"),
        ({}, iter(ROWS), "iterable dataset"),
        ({}, Dataset.from_list([{"prompt": "1?"}]).to_iterable_dataset(), "iterable dataset"),
        ({}, Dataset.from_list([{"prompt": "a", "image": "b"}]), "environments or images"),
    ],
)
def test_runs_whose_groups_cannot_be_replaced_are_refused(tmp_path, changes, dataset, message) -> None:
    with pytest.raises(UsageError, match=message):
        check_resampling(config(tmp_path, **changes), dataset)
    check_resampling(config(tmp_path, resample_zero_std=0, **changes), dataset)


def test_a_group_on_two_processes_is_refused(tmp_path, monkeypatch) -> None:
    args = config(tmp_path, per_device_train_batch_size=3, num_generations=3)
    check_resampling(args, ROWS)
    monkeypatch.setattr(type(args), "world_size", 2)
    args.num_generations = 2
    with pytest.raises(UsageError, match="3 completions of a batch, which are no whole groups of 2"):
        check_resampling(args, ROWS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"resample_zero_std": -1}, "resample_zero_std -1: expected"), ({"max_rollouts": 0}, "max_rollouts 0: expected")],
)
def test_numbers_that_are_none_are_refused(tmp_path, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **changes)


def run(model: str, folder: Path, **changes: Any) -> Any:
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "no", "rows": 8} | changes
    made = trainer("rlkd", model, folder, reward=odd_rows, **settings)
    made.train()
    return made


@pytest.mark.slow
def test_a_run_trains_on_groups_with_spread_and_records_and_counts_all_rollouts(tiny_model, tmp_path) -> None:
    made = run(tiny_model, tmp_path / "run", resample_zero_std=6)
    records = read_steps(made.rollouts_path)
    kept = [record for record in records if not record.get("dropped")]
    assert [sum(record["step"] == step for record in kept) for step in (1, 2)] == [4, 4]
    assert all(record["advantage"] for record in kept)
    assert len(records) > len(kept)
    # Each is dropped for its lack of spread, or since its place was taken.
    metrics = read_steps(made.metrics_path)
    assert [line["rollouts"] for line in metrics] == [
        sum(record["step"] <= step for record in records) for step in (1, 2)
    ]
    assert all(line["resampling/frac_zero_std"] == 0 for line in metrics)
    # What is trained on is what the file says: texts and advantages of the last step.
    [inputs] = made._buffered_inputs
    texts = made.processing_class.batch_decode(
        [row[mask.bool()] for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)],
        skip_special_tokens=True,
    )
    found = sorted(zip(texts, inputs["advantages"].tolist(), strict=True))
    expected = sorted((record["completion"], record["advantage"]) for record in kept if record["step"] == 2)
    assert found == expected
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()


@pytest.mark.slow
def test_without_further_rounds_a_run_is_that_without_resampling(tiny_model, tmp_path) -> None:
    plain, ready = (run(tiny_model, tmp_path / name, max_rollouts=most) for name, most in (("a", None), ("b", 8)))
    for one, other in zip(plain.model.parameters(), ready.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "rollouts" not in read_steps(plain.metrics_path)[0]
    assert not [key for line in read_steps(ready.metrics_path) for key in line if key.startswith("resampling")]


@pytest.mark.slow
def test_a_run_ends_after_its_rollouts_with_a_checkpoint_that_has_no_step_left(tiny_model, tmp_path) -> None:
    made = run(tiny_model, tmp_path / "run", max_steps=9, max_rollouts=9, save_strategy="steps", save_steps=100)
    assert made.state.global_step == 3
    assert len(read_steps(made.rollouts_path)) == 12
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert is_at_its_end(checkpoint, made.args)
    made.args.max_rollouts = 13
    assert not is_at_its_end(checkpoint, made.args)


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_questions(tiny_model, tmp_path) -> None:
    changes = {"resample_zero_std": 2, "steps_per_generation": 2, "num_iterations": 1, "reward": odd_rows, "rows": 5}
    found = compare_resumed_runs(lambda folder: trainer("rlkd", tiny_model, folder, **changes), tmp_path, (1, 3))
    assert found == {1: [], 3: []}
