"""Dynamic resampling: groups whose rewards are all equal are replaced by groups of other questions.

Such a group has advantage 0 everywhere and teaches nothing. After DAPO (arXiv 2503.14476), its place goes to the
rollouts of another question, in at most N further rounds of generation per batch. DAPO generates whole batches until
one is full; here a round has only as many groups as are missing, and the number of rounds is bounded (our choice).

Every process takes the same decisions, since each knows the rewards of all. In a round every process generates as many
groups as the process with the most open places needs, and fills its own places with the first groups whose rewards
differ. Questions are drawn by seed, place in the run and round alone, so that a resumed run draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rlkd.errors import UsageError

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Round:
    """The scored rollouts of a round.

    `output`: TRL's batch of this process. `records`: those of its rollouts, for the file. `live`: of each group of all
    processes, whether its rewards differ.
    """

    output: dict[str, Any]
    records: list[dict[str, Any]]
    live: Sequence[bool]


class RolloutCount(TrainerCallback):
    """Counts the rollouts of all processes, those that are dropped included; ends a run after `most` of them."""

    def __init__(self, most: int | None = None):
        self.most = most
        self.total = 0

    @property
    def reached(self) -> bool:
        """Whether there are as many as the run may generate."""
        return self.most is not None and self.total >= self.most

    def state_dict(self) -> dict[str, Any]:
        """The number so far."""
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.total = state["total"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Save and stop."""
        if self.reached:
            control.should_save = True
            control.should_training_stop = True
        return control


class Resampling:
    """Fills the places of groups without spread.

    Args:
        args: the run's config, whose `resample_zero_std` is above 0.
        dataset: the rows to draw from.
        pad: id of the padding token.
        count: the rollouts so far; no round begins once `count.reached`.
    """

    def __init__(self, args: RLKDConfig, dataset: Sequence[Row], pad: int, count: RolloutCount):
        assert args.num_generations is not None
        self.rounds = args.resample_zero_std
        self.size: int = args.num_generations
        self.seed, self.rank, self.processes = args.seed, args.process_index, args.world_size
        self.dataset, self.pad, self.count = dataset, pad, count

    def __call__(
        self, rounds: list[Round], generate: Callable[[list[dict[str, Any]]], Round], place: int
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The batch to train on and the metrics; further rounds are added to `rounds`, which has the first one.

        `generate` makes a round of rows; `place` is the number of the batch in the run. Records of rollouts that are
        not trained on get `dropped: true`.
        """
        first, output = rounds[0], rounds[0].output
        # Of each process the places that no group with spread has yet.
        empty = [[i for i, live in enumerate(own) if not live] for own in self._by_process(first.live)]
        while (groups := max(map(len, empty))) and len(rounds) <= self.rounds and not self.count.reached:
            fresh = generate(self._draw(groups, f"{self.seed} {place} {len(rounds)}"))
            rounds.append(fresh)
            found = [[i for i, live in enumerate(own) if live] for own in self._by_process(fresh.live)]
            moves = list(zip(empty[self.rank], found[self.rank], strict=False))
            output = replace_groups(output, fresh.output, moves, self.size, pad=self.pad)
            taken = {new for _, new in moves}
            self._drop(first.records, [place for place, _ in moves])
            self._drop(fresh.records, [i for i in range(groups) if i not in taken])
            empty = [places[len(live) :] for places, live in zip(empty, found, strict=True)]
        generated = sum(len(each.live) for each in rounds)
        metrics = {
            "resampling/rounds": float(len(rounds) - 1),
            "resampling/dropped": 1 - len(first.live) / generated,
            "resampling/frac_zero_std": sum(map(len, empty)) / len(first.live),
        }
        return output, metrics

    def _by_process(self, live: Sequence[bool]) -> list[Sequence[bool]]:
        own = len(live) // self.processes
        return [live[start : start + own] for start in range(0, len(live), own)]

    def _draw(self, groups: int, key: str) -> list[dict[str, Any]]:
        """The rows of this process, each once for every completion of its group."""
        wanted = groups * self.processes
        chosen = random.Random(key).sample(range(len(self.dataset)), min(wanted, len(self.dataset)))
        own = [chosen[i % len(chosen)] for i in range(self.rank * groups, (self.rank + 1) * groups)]
        return [dict(self.dataset[i]) for i in own for _ in range(self.size)]

    def _drop(self, records: Sequence[dict[str, Any]], groups: Sequence[int]) -> None:
        for group in groups:
            for record in records[group * self.size : (group + 1) * self.size]:
                record["dropped"] = True


def replace_groups(
    output: Mapping[str, Any], fresh: Mapping[str, Any], moves: Sequence[tuple[int, int]], size: int, *, pad: int
) -> dict[str, Any]:
    """TRL's batch, in which groups of `size` rows are those of another one; (place, group of `fresh`) for each.

    Tensors of tokens get the longer of both lengths: prompts are padded on the left, the others on the right.
    `num_items_in_batch` stays, and is to be counted again. Raises `UsageError` for a batch that holds something else
    than a tensor with a row per completion.
    """
    if not moves:
        return dict(output)
    here, there = (
        torch.cat([torch.arange(group * size, (group + 1) * size) for group in groups])
        for groups in zip(*moves, strict=True)
    )
    rows, merged = len(output["completion_ids"]), dict(output)
    for name, value in output.items():
        if name == "num_items_in_batch":
            continue
        new = fresh.get(name)
        if not (isinstance(value, Tensor) and isinstance(new, Tensor) and value.dim() and len(value) == rows):
            raise UsageError(
                f"resample_zero_std: this version of TRL has {name!r} in a batch, which cannot be replaced by group. "
                f"Set resample_zero_std: 0"
            )
        fill = {"prompt_ids": pad, "completion_ids": pad, "tool_mask": 1, "importance_sampling_ratio": 1}.get(name, 0)
        if value.dim() > 1:
            width = max(value.shape[1], new.shape[1])
            value, new = (_padded(each, width, fill, left=name.startswith("prompt_")) for each in (value, new))
        merged[name] = value.index_copy(0, here.to(value.device), new[there.to(new.device)].to(value))
    return merged


def _padded(values_BC: Tensor, width: int, fill: float, *, left: bool) -> Tensor:
    missing = width - values_BC.shape[1]
    return (
        torch.nn.functional.pad(values_BC, (missing, 0) if left else (0, missing), value=fill)
        if missing
        else values_BC
    )


def check_resampling(args: RLKDConfig, dataset: Any, *, has_environment: bool = False) -> None:
    """Raise `UsageError` where groups cannot be replaced, or the advantages of a group depend on others."""
    if not args.resample_zero_std:
        return
    assert args.num_generations is not None
    assert args.steps_per_generation is not None
    own = args.per_device_train_batch_size * args.steps_per_generation
    columns = getattr(dataset, "column_names", None) or ()
    refused = [
        (
            args.teacher_kl > 0,
            "with teacher_kl, a group without spread learns from the teacher",
            "teacher_kl: 0",
        ),
        (
            args.scale_rewards == "batch" or args.multi_objective_aggregation == "normalize_then_sum",
            "advantages depend on the whole batch, with the groups that are dropped",
            "scale_rewards: group and multi_objective_aggregation: sum_then_normalize",
        ),
        (
            dataset is not None and not hasattr(dataset, "__len__"),
            "rows of an iterable dataset cannot be drawn",
            "a dataset with random access",
        ),
        (
            has_environment or {"image", "images"} & set(columns),
            "rows with environments or images cannot be replaced within a batch",
            "text alone",
        ),
        (
            args.world_size > 1 and own % args.num_generations,
            f"a process has {own} completions of a batch, which are no whole groups of {args.num_generations}",
            "per_device_train_batch_size to a multiple of num_generations",
        ),
    ]
    for holds, reason, way_out in refused:
        if holds:
            raise UsageError(
                f"resample_zero_std {args.resample_zero_std}: {reason}. Set {way_out}, or resample_zero_std: 0"
            )
