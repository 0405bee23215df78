"""A curriculum: examples in stages from easy to hard, each stage with all examples of the ones before it.

SRD (arXiv 2508.06135) trains stage by stage on nested subsets. The selector `srd` gives each rationale its stage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rlkd.errors import UsageError

STAGES = "stages"
T = TypeVar("T")


def stages_of_row(row: Mapping[str, Any]) -> list[int]:
    """The stage of each rationale of a row, from 1; raises `UsageError` where they are missing, or others."""
    stages, rationales = row.get(STAGES), row["rationales"]
    if stages is None:
        raise UsageError(
            f"curriculum: row {row['id']!r} has no column {STAGES}. Let the selector srd write it: "
            f"recipes/rationales.py --selectors clean correct srd (docs/selection.md)"
        )
    if len(stages) != len(rationales):
        raise UsageError(
            f"curriculum: row {row['id']!r} has {len(stages)} {STAGES} for {len(rationales)} rationales; "
            f"expected one each"
        )
    if not all(isinstance(stage, int) and stage >= 1 for stage in stages):
        raise UsageError(f"curriculum: row {row['id']!r} has the {STAGES} {stages}; expected numbers from 1")
    return list(stages)


def exchanged_stages(stages: Sequence[int], seed: int) -> list[int]:
    """The stages on other examples: the control for what a curriculum owes to its order. As many of each stage.

    Raises `UsageError` where all have one stage, which leaves nothing to exchange.
    """
    if len(set(stages)) < 2:
        raise UsageError("shuffle_stages: all examples have one stage. Rank them in more (selector srd, stages)")
    return random.Random(seed).sample(stages, len(stages))


def in_stages(
    examples: Sequence[T],
    stages: Sequence[int],
    batch_size: int,
    arrange: Callable[[list[T], int], list[T]],
) -> list[T]:
    """One pass of the curriculum: in stage s, all examples of stages up to s, as `arrange(examples, s)` orders them.

    Stages consist of whole batches: the remainder of one goes into the next, besides its regular turn there.

    >>> in_stages(["a", "b", "c"], [1, 2, 1], 1, lambda examples, stage: examples)
    ['a', 'c', 'a', 'b', 'c']
    """
    ordered: list[T] = []
    left: list[T] = []
    last = max(stages, default=0)
    for stage in sorted(set(stages)):
        own = [example for example, its in zip(examples, stages, strict=True) if its <= stage]
        arranged = arrange([*left, *own], stage)
        whole = len(arranged) if stage == last else len(arranged) - len(arranged) % batch_size
        ordered += arranged[:whole]
        left = arranged[whole:]
    return ordered
