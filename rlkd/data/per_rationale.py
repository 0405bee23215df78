"""Columns of ours with one entry for each rationale of a row: where a rationale is left out, its entries are too."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlkd.data.rows import Row

ALIGNED = ("sources", "paths", "scores", "stages")
"""Columns of `recipes/rationales.py` with one entry for each rationale."""


def columns_per_rationale(others: Collection[str] = ()) -> tuple[str, ...]:
    """The columns that may have an entry for each rationale, `others` among them."""
    return tuple(dict.fromkeys(("structures", *ALIGNED, *others)))


def keep_rationales(row: Row, stays: Sequence[bool], columns: Collection[str]) -> None:
    """Keep those rationales of a row that stay, and their entries in those of `columns` that have one for each."""
    for name in ("rationales", *columns):
        value = row.get(name)
        if isinstance(value, list | tuple) and len(value) == len(stays):
            row[name] = [each for each, kept in zip(value, stays, strict=True) if kept]
