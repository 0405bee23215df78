"""What a batch of completions was scored with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.contract import Outcome


@dataclass(frozen=True, slots=True)
class Failure:
    """A reward that failed on one sample: its name, the cause, and the row."""

    reward: str
    cause: str
    row: str


@dataclass(frozen=True)
class ScoredBatch:
    """The completions of a batch (B) as `texts`, each with its row, and the outcomes of their rewards (F) by name.

    Rows have `prompt`, and `id` and `answer` if there are any. Reward models have a score in TRL's tensor only.
    """

    rows: Sequence[Mapping[str, Any]]
    texts: Sequence[str] = ()
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)

    def failed(self, names: Sequence[str]) -> list[list[bool]]:
        """Whether each of the named rewards failed, [B][F]."""
        return [
            [name in self.outcomes and self.outcomes[name][i].status == "failed" for name in names]
            for i in range(len(self.rows))
        ]

    def failures(self) -> list[Failure]:
        """Every failure, reward by reward."""
        return [
            Failure(name, outcome.cause or "", str(i if (row_id := self.rows[i].get("id")) is None else row_id))
            for name, outcomes in self.outcomes.items()
            for i, outcome in enumerate(outcomes)
            if outcome.status == "failed"
        ]

    def failure_message(self) -> str:
        """The first reward that failed, with its cause and rows: why `on_failure: raise` ends the run."""
        failures = self.failures()
        if not failures:
            return "a reward failed on another process (on_failure is 'raise'); its own message says which"
        name = failures[0].reward
        own = [failure for failure in failures if failure.reward == name]
        return (
            f"reward {name!r} failed on {len(own)} of {len(self.rows)} completions (on_failure is 'raise'): "
            f"{own[0].cause}. Rows: {', '.join(failure.row for failure in own[:5])}"
        )

    def records(self) -> list[dict[str, Any]]:
        """A record per completion, as the rollouts file has it."""
        return [
            {
                "id": row.get("id"),
                "prompt": row.get("prompt"),
                "completion": text,
                "answer": row.get("answer"),
                "rewards": {name: outcomes[i].record() for name, outcomes in self.outcomes.items()},
            }
            for i, (row, text) in enumerate(zip(self.rows, self.texts, strict=True))
        ]
