"""Counts of the writing: requests, tokens, failures and candidates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class WritingCounts:
    """Counts of the writing so far: the same for an interrupted run and one without interruption."""

    questions: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by stage
    tokens: Counter[str] = field(default_factory=Counter)  # written, by stage
    prompt_characters: Counter[str] = field(default_factory=Counter)  # by stage
    failed: Counter[str] = field(default_factory=Counter)  # by stage
    truncated: int = 0  # at max_new_tokens
    unusable: int = 0  # not a step-keyed reply; kept as text
    candidates: Counter[str] = field(default_factory=Counter)  # by source
    discarded: Counter[str] = field(default_factory=Counter)  # by reason
    right: int = 0  # candidates of questions with a gold answer
    wrong: int = 0
    barred: Counter[str] = field(default_factory=Counter)  # right answers kept out of the bank, by reason

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON, keys sorted."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }
