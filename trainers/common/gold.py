"""Columns that rewards need: whether they have values, and gold answers that can be read, before a run starts.

A gold answer that cannot be read makes a reward not applicable, whatever the student writes. So an empty completion is
judged for each row: it is wrong where the gold answer can be read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rewards import Outcome, Reward, RewardError
from rlkd.answers import VerificationError, are_correct
from rlkd.errors import UsageError
from rlkd.process import is_first_process

logger = logging.getLogger(__name__)

# Rows that are looked at: enough for a share, in a second or two.
SAMPLED_ROWS = 256


def check_reward_columns(reward: Reward, dataset: Any, columns: Sequence[str], part: str) -> None:
    """Check that the columns a reward needs exist and hold values that it can read; raises `RewardError`."""
    reward.check_columns(columns)
    if not hasattr(dataset, "__len__"):
        return
    alternatives: list[tuple[str, ...]] = [(column,) for column in reward.required_columns]
    if reward.needs_any:
        alternatives.append(reward.needs_any)
    for names in alternatives:
        present = [name for name in names if name in columns]
        if any(value is not None and value != [] for name in present for value in dataset[name]):
            continue
        problem = f"empty in all {len(dataset)} rows of" if present else "missing in"
        raise RewardError(
            f"reward {reward.__name__!r} needs the column {' or '.join(map(repr, names))}, which is {problem} {part}. "
            f"Fill it, or leave the reward out."
        )
    check_gold(reward, dataset, part)


def check_gold(reward: Reward, dataset: Any, part: str) -> None:
    """Check the gold answers that a reward reads (its `gold_columns`); a warning says how many it cannot read.

    Raises `RewardError` where it can read none.
    """
    columns = [name for name in getattr(reward.function, "gold_columns", ()) if name in dataset.column_names]
    if not columns or not len(dataset):
        return
    stride = max(1, len(dataset) // SAMPLED_ROWS)
    rows = dataset.select(range(0, len(dataset), stride))
    kept = [
        i for i, values in enumerate(zip(*(rows[name] for name in columns), strict=True)) if any(map(_given, values))
    ]
    if not kept:
        return  # the check of columns has said so
    rows = rows.select(kept)
    given = {name: rows[name] for name in rows.column_names if name not in ("prompt", "completion", "completion_ids")}
    try:
        returned = reward.function(completions=[""] * len(rows), completion_ids=[[]] * len(rows), **given)
        outcomes = [Outcome.of(value, reward.__name__, i) for i, value in enumerate(returned)]
    except Exception as error:
        # The first batch reports it, sample by sample.
        logger.info("the gold answers of %s could not be checked for the reward %r: %s", part, reward.__name__, error)
        return
    unreadable = [i for i, outcome in enumerate(outcomes) if outcome.status != "score"]
    examples = [str(next(filter(_given, (rows[name][i] for name in columns)))) for i in unreadable[:3]]
    problem = _described(len(unreadable), len(rows), examples)
    where = f"{part}, column {' or '.join(map(repr, columns))}"
    if len(unreadable) == len(rows):
        raise RewardError(
            f"reward {reward.__name__!r}: {problem} ({where}), so it would apply to no completion. docs/answers.md "
            f"says what can be read; name another column ({{answer: COLUMN}} in columns), or take another reward"
        )
    if unreadable and is_first_process():
        logger.warning("reward %r: %s (%s): it does not apply to these rows", reward.__name__, problem, where)


def check_held_out(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check the answers of held-out rows; a warning says how many cannot be read.

    Raises `UsageError` where none can be read. Rows without an answer are not counted.
    """
    golds = [str(row["answer"]) for row in rows if row.get("answer") is not None]
    verdicts = are_correct([""] * len(golds), golds)
    unreadable = [
        gold
        for gold, verdict in zip(golds, verdicts, strict=True)
        if verdict is None or isinstance(verdict, VerificationError)
    ]
    problem = _described(len(unreadable), len(golds), unreadable[:3])
    if golds and len(unreadable) == len(golds):
        raise UsageError(
            f"held-out rows: {problem}, so there would be no accuracy. docs/answers.md says what can be read; name "
            f"another column ({{answer: COLUMN}} in columns), or set eval_rows: 0"
        )
    if unreadable and is_first_process():
        logger.warning("held-out rows: %s: they do not count in the accuracy", problem)


def _given(value: Any) -> bool:
    return value is not None and value != []


def _described(unreadable: int, total: int, examples: Sequence[str]) -> str:
    shown = ", ".join(repr(example[:60]) for example in examples)
    return f"{unreadable} of {total} answers cannot be read as gold answers, such as {shown}"
