"""Several rewards as one, for trainers that have neither weights nor gates, such as TRL's AsyncGRPOTrainer.

    >>> import asyncio
    >>> from rewards import build_rewards
    >>> rewards = build_rewards(["tag_count", "think_format"])
    >>> both = CompositeReward(rewards, weights=[1.0, 0.5])
    >>> texts = ["<think>a</think> b", "b"]
    >>> asyncio.run(both(completions=[[{"role": "assistant", "content": text}] for text in texts]))
    [1.0, 0.0]

`RLKDTrainer` needs none of this: it settles missing rewards, gates and weights itself, with the same arithmetic.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rewards.contract import Outcome, RewardError
from rewards.runner import AsyncReward, Reward
from rlkd.data.rows import completion_text
from rlkd.registry import suggestion

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
AGGREGATIONS: tuple[Aggregation, ...] = ("sum_then_normalize", "normalize_then_sum")
# What TRL adds to a standard deviation before it divides by it.
_EPSILON = 1e-4


class CompositeReward:
    """The weighted sum of several rewards over one group of completions; picklable, asynchronous.

    A call must get the completions of whole groups: `group_size` each, or one group for None, as AsyncGRPOTrainer
    calls it. What is missing is settled within the group before anything is added up, as `RLKDTrainer` does it
    (`trainers.common.missing`): a reward that a completion lacks counts there as the mean of that reward over the rest
    of the group, and a reward that the whole group lacks is left out for all of it. A completion is not applicable
    (None) if all rewards are missing for the whole group, or, under `on_failure="drop"`, if one of its rewards failed.

    Args:
        rewards: what to combine; names must be unique.
        weights: one for each reward, by default 1.
        gates: {gated: condition}: the gated reward is multiplied by the condition, clipped to [0, 1].
        aggregation: `sum_then_normalize` adds the weighted rewards; `normalize_then_sum` first subtracts from each
            its mean over the group and divides by its standard deviation (GDPO, as TRL's option of that name).
        on_failure: `impute`, `drop`, or `raise` (a `RewardError` that names the reward and its cause).
        group_size: completions a group, where a call has several groups.
        name: of the metric.
        log: a file that every completion goes to, a JSON object a line: `group` (a running number, which goes on when
            the file is there already), `id` and `answer` of the row, `prompt`, `completion`, each reward's outcome as
            in the rollouts of `RLKDTrainer`, and the combined `score`. For one writing process.
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
        self.weights = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(names):
            raise RewardError(f"{len(self.weights)} weights {self.weights} for {len(names)} rewards {names}")
        for gated, condition in (gates or {}).items():
            for one in (gated, condition):
                if one not in names:
                    raise RewardError(f"gates: {one!r} is no reward here.{suggestion(one, names)}")
        if aggregation not in AGGREGATIONS:
            raise RewardError(f"aggregation {aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
        if on_failure not in ("impute", "drop", "raise"):
            raise RewardError(f"on_failure {on_failure!r}: expected 'impute', 'drop' or 'raise'")
        self.gates = dict(gates or {})
        self.aggregation = aggregation
        self.on_failure = on_failure
        self.group_size = group_size
        self.log = None if log is None else Path(log)
        self._group: int | None = None  # the number of the next group in the log, once it is known
        self.__name__ = name

    async def __call__(
        self,
        prompts: Sequence[Any] | None = None,
        completions: Sequence[Any] = (),
        completion_ids: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score whole groups: all rewards side by side, then the arithmetic group by group."""
        size = self.group_size or len(completions)
        if size and len(completions) % size:
            raise RewardError(f"reward {self.__name__!r}: {len(completions)} completions are no groups of {size}")
        outcomes_FB = await asyncio.gather(
            *(self._judged(reward, prompts, completions, completion_ids, columns) for reward in self.rewards)
        )
        if log_metric := columns.get("log_metric"):
            for reward, outcomes in zip(self.rewards, outcomes_FB, strict=True):
                for status in ("failed", "not_applicable"):
                    share = sum(o.status == status for o in outcomes) / max(1, len(outcomes))
                    log_metric(f"rewards/{reward.__name__}/{status}", share)
        scores: list[float | None] = []
        for start in range(0, len(completions), size or 1):
            outcomes_FG = [outcomes[start : start + size] for outcomes in outcomes_FB]
            of_group: list[float | None] = [None] * size
            try:
                of_group = self.combine(outcomes_FG)
            finally:  # what ended the run (`on_failure="raise"`) is in the log, too
                if self.log is not None:
                    rows = [
                        {name: _at(columns.get(name), start + i) for name in ("id", "answer")} for i in range(size)
                    ]
                    texts = [completion_text(completion) for completion in completions[start : start + size]]
                    asked = [_at(prompts, start + i) for i in range(size)]
                    self._write(rows, asked, texts, outcomes_FG, of_group)
            scores += of_group
        return scores

    def check_columns(self, available: Sequence[str]) -> None:
        """Raise `RewardError` if the data lacks a column that one of the rewards needs."""
        for reward in self.rewards:
            reward.check_columns(available)

    def check_ready(self) -> None:
        """Raise `RewardError` if something that one of the rewards needs at run time is not there."""
        for reward in self.rewards:
            reward.check_ready()

    def combine(self, outcomes_FG: Sequence[Sequence[Outcome]]) -> list[float | None]:
        """The score of each completion of one group (G), from the outcomes of F rewards."""
        columns_FG = [[_value(outcome) for outcome in outcomes] for outcomes in outcomes_FG]
        count = len(columns_FG[0]) if columns_FG else 0
        dropped = [False] * count
        for reward, outcomes in zip(self.rewards, outcomes_FG, strict=True):
            for i, outcome in enumerate(outcomes):
                if outcome.status == "failed" and self.on_failure == "raise":
                    raise RewardError(f"reward {reward.__name__!r} failed (on_failure is 'raise'): {outcome.cause}")
                dropped[i] |= outcome.status == "failed" and self.on_failure == "drop"
        # A dropped completion neither enters the means of its group nor is filled from them.
        kept_FG = [_without(column, dropped) for column in columns_FG]
        filled = {
            reward.__name__: _without(_filled(column), dropped)
            for reward, column in zip(self.rewards, kept_FG, strict=True)
        }
        ready = dict(filled)
        for gated, condition in self.gates.items():
            ready[gated] = [
                value * min(max(share, 0.0), 1.0)
                for value, share in zip(filled[gated], filled[condition], strict=True)
            ]
        terms = [ready[reward.__name__] for reward in self.rewards]
        if self.aggregation == "normalize_then_sum":
            terms = [_normalised(column) for column in terms]
        scores: list[float | None] = []
        for i in range(count):
            present = [
                weight * column[i]
                for weight, column in zip(self.weights, terms, strict=True)
                if not math.isnan(column[i])
            ]
            scores.append(sum(present) if present else None)
        return scores

    def _write(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        texts: Sequence[str],
        outcomes_FG: Sequence[Sequence[Outcome]],
        scores: Sequence[float | None],
    ) -> None:
        """Add a group to the log."""
        assert self.log is not None
        if self._group is None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._group = _next_group(self.log)
        lines = [
            json.dumps(
                {
                    "group": self._group,
                    "id": row["id"],
                    "prompt": prompt,
                    "completion": text,
                    "answer": row["answer"],
                    "rewards": {
                        reward.__name__: _shown(outcomes[i])
                        for reward, outcomes in zip(self.rewards, outcomes_FG, strict=True)
                    },
                    "score": score,
                },
                default=str,
            )
            for i, (row, prompt, text, score) in enumerate(zip(rows, prompts, texts, scores, strict=True))
        ]
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write("".join(line + "\n" for line in lines))
        self._group += 1

    async def _judged(
        self, reward: Reward, prompts: Any, completions: Any, completion_ids: Any, columns: Mapping[str, Any]
    ) -> list[Outcome]:
        if isinstance(reward, AsyncReward):
            return await reward.judge(prompts, completions, completion_ids, **columns)
        return await asyncio.to_thread(reward.judge, prompts, completions, completion_ids, **columns)


def _at(column: Sequence[Any] | None, index: int) -> Any:
    return None if column is None else column[index]


def _shown(outcome: Outcome) -> dict[str, Any]:
    shown = {
        "status": outcome.status,
        "value": outcome.value,
        "cause": outcome.cause,
        "detail": dict(outcome.detail) if outcome.detail else None,
        "seconds": outcome.seconds,
        "reused": outcome.reused,
    }
    return {key: value for key, value in shown.items() if value is not None}


def _next_group(log: Path) -> int:
    """The number of the next group in a log; takes out a last line that a kill cut short."""
    if not log.exists():
        return 0
    whole, last = 0, b""
    with log.open("rb+") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                whole, last = whole + len(line), line
        stream.truncate(whole)
    return int(json.loads(last)["group"]) + 1 if last else 0


def _value(outcome: Outcome) -> float:
    return math.nan if outcome.value is None else outcome.value


def _without(column: Sequence[float], dropped: Sequence[bool]) -> list[float]:
    return [math.nan if gone else value for value, gone in zip(column, dropped, strict=True)]


def _filled(column: Sequence[float]) -> list[float]:
    """The column with the mean of what was observed in place of each NaN; all NaN stays as it is."""
    seen = [value for value in column if not math.isnan(value)]
    if not seen or len(seen) == len(column):
        return list(column)
    mean = min(max(math.fsum(seen) / len(seen), min(seen)), max(seen))
    return [mean if math.isnan(value) else value for value in column]


def _normalised(column: Sequence[float]) -> list[float]:
    """(value - mean) / (standard deviation + 1e-4), with the sample's deviation, as TRL has it; NaN stays NaN."""
    seen = [value for value in column if not math.isnan(value)]
    if not seen:
        return list(column)
    mean = math.fsum(seen) / len(seen)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in seen) / max(1, len(seen) - 1))
    return [(value - mean) / (deviation + _EPSILON) for value in column]
