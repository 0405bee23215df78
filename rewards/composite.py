"""Several rewards as one, for trainers that have neither weights nor gates, such as TRL's AsyncGRPOTrainer.

    >>> import asyncio
    >>> from rewards import build_rewards
    >>> rewards = build_rewards(["tag_count", "think_format"])
    >>> both = CompositeReward(rewards, weights=[1.0, 0.5])
    >>> texts = ["<think>a</think> b", "b"]
    >>> asyncio.run(both(completions=[[{"role": "assistant", "content": text}] for text in texts]))
    [1.0, 0.0]

`RLKDTrainer` does not need it: it settles missing rewards and gates by the same function, and TRL adds the weights.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewards.arithmetic import penalised_by_gate, settle
from rewards.batch import ScoredBatch
from rewards.contract import RewardError
from rewards.runner import Reward
from rlkd.data.rows import completion_text
from rlkd.files import read_records, remove_truncated_line
from rlkd.registry import suggestion

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum_then_normalize", "normalize_then_sum")
# What TRL adds to a standard deviation before it divides by it.
_EPSILON = 1e-4


class CompositeReward:
    """The weighted sum of several rewards over one group of completions; picklable, asynchronous.

    A call must get the completions of whole groups: `group_size` each, or one group for None, as AsyncGRPOTrainer
    calls it. Missing rewards are settled within the group before anything is added up (`rewards.arithmetic.settle`): a
    reward that a completion lacks counts there as the mean of that reward over the rest of the group, and a reward
    that the whole group lacks is left out for all of it. A completion is not applicable (None) if all rewards are
    missing for the whole group, or, under `on_failure="drop"`, if one of its rewards failed.

    Args:
        weights: one for each reward (whose names must be unique), by default 1.
        gates: {gated: condition}: the gated reward is multiplied by the condition, clipped to [0, 1].
        aggregation: `sum_then_normalize` adds the weighted rewards; `normalize_then_sum` first subtracts from each
            its mean over the group and divides by its standard deviation (GDPO, as TRL's option of that name).
        on_failure: `impute`, `drop`, or `raise` (a `RewardError` that names the reward and its cause).
        group_size: completions per group, if a call has several groups.
        name: of the metric.
        log: a JSON Lines file of all completions: `group` (a running number, which continues that of an existing
            file), `id` and `answer` of the row, `prompt`, `completion`, each reward's outcome as in the rollouts of
            `RLKDTrainer`, and the combined `score`. For one writing process.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        *,
        weights: Sequence[float] | None = None,
        gates: Mapping[str, str] | None = None,
        aggregation: Aggregation = "sum_then_normalize",
        on_failure: Literal["impute", "drop", "raise"] = "impute",
        group_size: int | None = None,
        name: str = "composite",
        log: str | Path | None = None,
    ):
        self.rewards = list(rewards)
        names = [reward.__name__ for reward in self.rewards]
        if len(set(names)) < len(names):
            raise RewardError(f"rewards {names}: names must be unique")
        check_combination(names, weights, gates or {})
        check_gated(self.rewards, gates or {})
        self.weights = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
        if aggregation not in AGGREGATIONS:
            raise RewardError(f"aggregation {aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
        if on_failure not in ("impute", "drop", "raise"):
            raise RewardError(f"on_failure {on_failure!r}: expected 'impute', 'drop' or 'raise'")
        self.gates = dict(gates or {})
        self.aggregation = aggregation
        self.on_failure = on_failure
        self.group_size = group_size
        self.log = None if log is None else Path(log)
        self._next_group: int | None = None  # in the log, once it is known
        self._warned = False
        self.__name__ = name

    async def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score whole groups: all rewards concurrently, then the arithmetic group by group."""
        size = self.group_size or len(completions)
        if size and len(completions) % size:
            raise RewardError(f"reward {self.__name__!r}: {len(completions)} completions are not groups of {size}")
        arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
        outcomes_FB = await asyncio.gather(*(reward.score_async(**arguments) for reward in self.rewards))
        if log_metric := columns.get("log_metric"):
            for reward, outcomes in zip(self.rewards, outcomes_FB, strict=True):
                for status in ("failed", "not_applicable"):
                    share = sum(o.status == status for o in outcomes) / max(1, len(outcomes))
                    log_metric(f"rewards/{reward.__name__}/{status}", share)
        shown = {"id": columns.get("id"), "answer": columns.get("answer"), "prompt": prompts}
        scores: list[float | None] = []
        for start in range(0, len(completions), size or 1):
            group = range(start, start + size)
            batch = ScoredBatch(
                [{name: None if column is None else column[i] for name, column in shown.items()} for i in group],
                [completion_text(completions[i]) for i in group],
                {
                    reward.__name__: outcomes[start : start + size]
                    for reward, outcomes in zip(self.rewards, outcomes_FB, strict=True)
                },
            )
            combined: list[float | None] = [None] * size
            try:
                combined = self.combine(batch)
            finally:  # the log also gets the group that ended the run (`on_failure="raise"`)
                if self.log is not None:
                    self._write(self.log, batch, combined)
            scores += combined
        return scores

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise `RewardError` if the data lacks a column that one of the rewards needs."""
        for reward in self.rewards:
            reward.check_columns(available)

    def check_ready(self) -> None:
        """Raise `RewardError` if something that one of the rewards needs at run time is missing."""
        for reward in self.rewards:
            reward.check_ready()

    def combine(self, group: ScoredBatch) -> list[float | None]:
        """The score of each completion of one group."""
        import torch

        names = [reward.__name__ for reward in self.rewards]
        values_FG = [[math.nan if o.value is None else o.value for o in group.outcomes[name]] for name in names]
        gates = {names.index(gated): names.index(condition) for gated, condition in self.gates.items()}
        observed_GF, failed_GF = torch.tensor(values_FG, dtype=torch.float64).T.contiguous(), group.failed(names)
        settled = partial(
            settle,
            observed_GF,
            torch.tensor(failed_GF),
            len(group.rows),
            on_failure=self.on_failure,
            gates=gates,
            describe=group.failure_message,
        )
        rewards_GF = settled()
        missing_G = rewards_GF.isnan().all(dim=1).tolist()
        if not self._warned and (found := penalised_by_gate(rewards_GF, gates)) is not None:
            self._warned = True
            logger.warning(gate_warning(names[found[0]], names[found[1]]))
        if self.aggregation == "normalize_then_sum":
            rewards_GF = _normalised(settled(fill=False))
        totals_G = (rewards_GF * torch.tensor(self.weights, dtype=torch.float64)).nansum(dim=1).tolist()
        return [None if missing else total for missing, total in zip(missing_G, totals_G, strict=True)]

    def _write(self, log: Path, group: ScoredBatch, scores: Sequence[float | None]) -> None:
        if self._next_group is None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._next_group = _next_group(log)
        lines = [
            json.dumps({"group": self._next_group, **record, "score": score}, default=str) + "\n"
            for record, score in zip(group.records(), scores, strict=True)
        ]
        with log.open("a", encoding="utf-8") as stream:
            stream.write("".join(lines))
        self._next_group += 1


def check_combination(names: Sequence[str], weights: Sequence[float] | None, gates: Mapping[str, str]) -> None:
    """Check weights and gates against the names of the rewards; raises `RewardError`."""
    if weights is not None and len(weights) != len(names):
        raise RewardError(
            f"reward_weights has {len(weights)} entries {list(weights)} for {len(names)} rewards {list(names)}; give "
            f"one weight per reward, in that order"
        )
    for gated, condition in gates.items():
        for name in (gated, condition):
            if name not in names:
                raise RewardError(f"reward_gates: {name!r} is no reward of this run.{suggestion(name, names)}")
        if gated == condition:
            raise RewardError(f"reward_gates: {gated!r} cannot be its own condition")


def check_gated(rewards: Sequence[Any], gates: Mapping[str, str]) -> None:
    """Refuse a gate on a reward that says it may be a penalty (`penalises`); raises `RewardError`.

    Others are seen once such a score comes (`rewards.arithmetic.penalised_by_gate`).
    """
    for reward in rewards:
        name = getattr(reward, "__name__", "")
        if name in gates and getattr(getattr(reward, "function", reward), "penalises", False):
            raise RewardError(f"reward_gates: {gate_warning(name, gates[name])}")


def gate_warning(gated: str, condition: str) -> str:
    """Why a gate on a penalty is wrong, and the way out."""
    return (
        f"{gated!r} is negative for some completions, and its gate multiplies it by {condition!r}: a completion that "
        f"fails {condition!r} escapes the penalty, which is a prize for failing. Leave {gated!r} without a gate, or "
        f"shift it so that it is 0 or above."
    )


def _next_group(log: Path) -> int:
    """The number of the next group in a log; removes a last line that a kill truncated."""
    remove_truncated_line(log)
    groups = [record["group"] for record in read_records(log)] if log.exists() else []
    return int(groups[-1]) + 1 if groups else 0


def _normalised(rewards_GF: Tensor) -> Tensor:
    """(value - mean) / (standard deviation + 1e-4), with the sample's deviation, as in TRL; NaN stays NaN."""
    centred_GF = rewards_GF - rewards_GF.nanmean(dim=0, keepdim=True)
    count_1F = (~rewards_GF.isnan()).sum(dim=0, keepdim=True)
    variance_1F = (centred_GF**2).nansum(dim=0, keepdim=True) / (count_1F - 1).clamp(min=1)
    return centred_GF / (variance_1F.sqrt() + _EPSILON)
