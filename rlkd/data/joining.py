"""Rows of one question joined into one row with all their traces (`join_questions`).

The files of two teachers have two rows of a question. As one row, the traces are branches of RLKD and several examples
of a fine-tuning.

>>> rows = [{"question": "1 + 1?", "answer": "2", "rationales": [text], "structures": []} for text in ("a", "b")]
>>> checked = [CheckedRow(f"{name}.jsonl, line 1", f"{name}-0", row, False) for name, row in zip("xy", rows)]
>>> [(each.name, each.row["rationales"]) for each in QuestionJoin("x, y", BadRows("x, y", skip=False)).join(checked)]
[('x-0', ['a', 'b'])]
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rlkd.answers import extract_answer, number
from rlkd.data.bad_rows import BadRows
from rlkd.data.per_rationale import ALIGNED
from rlkd.data.rows import Row, RowError, shown
from rlkd.process import is_first_process

logger = logging.getLogger(__name__)

# What a student sees of a row: rows that differ here are different questions.
_ASKED = ("prompt", "choices", "options", "image", "images")


class CheckedRow(NamedTuple):
    """A row with its place for messages, a name made from source and position, and whether its traces have flags."""

    where: str
    name: str
    row: Row
    flagged: bool


class QuestionJoin:
    """Joins the rows of a source that have the same question and the same answer.

    `per_rationale`: columns with a value for each rationale, or one for all rationales of their row. `joined`: rows
    that have gone into an earlier one.
    """

    def __init__(self, source: str, bad: BadRows, per_rationale: Collection[str] = ()) -> None:
        self._source = source
        self._bad = bad
        self._per_rationale = per_rationale
        self._differing: Counter[str] = Counter()
        self._partly_structured = 0
        self.joined = 0

    def join(self, rows: Iterable[CheckedRow]) -> Iterator[CheckedRow]:
        """One row for each question, in the order of their first rows; reads all `rows` first.

        Rationales stand in the order of the rows, and with them structures and columns with a value for each, None
        where a row has no such list. Of another column, the first value counts. Structures stay where each rationale
        has one. A joined row is flagged if all its parts are. A row with another answer than the one before it is bad
        (`RowError`).
        """
        found: dict[str, list[CheckedRow]] = {}
        for each in rows:
            same = found.setdefault(_key(each.row), [])
            answered = next((earlier for earlier in same if earlier.row["answer"] is not None), None)
            if answered is not None and not _agree(answered.row["answer"], each.row["answer"]):
                before = f"{answered.where}: {shown(answered.row['answer'])}"
                self._bad.add(
                    RowError(
                        f"{each.where}, field 'answer': another answer than that of an earlier row with this "
                        f"question, found {shown(each.row['answer'])} ({before})"
                    )
                )
            else:
                same.append(each)
        for same in found.values():
            yield self._one(same)
        self._report(len(found))

    def _one(self, same: Sequence[CheckedRow]) -> CheckedRow:
        rows = [each.row for each in same]
        aligned = [name for name in ALIGNED if any(_is_aligned(row, name) for row in rows)]
        aligned += [name for name in self._per_rationale if any(name in row for row in rows)]
        if len(same) == 1:
            listed = {name: _values(rows[0], name) for name in aligned if name in self._per_rationale}
            return same[0]._replace(row=rows[0] | listed)
        self.joined += len(same) - 1
        row: Row = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [each[name] for each in rows if each.get(name) is not None]
            row[name] = values[0] if values else None
            if name not in ("id", "question", "answer", "rationales", "structures", *aligned):
                self._differing[name] += any(value != values[0] for value in values)
        row["rationales"] = [text for each in rows for text in each["rationales"]]
        whole = all(len(each["structures"]) == len(each["rationales"]) for each in rows)
        row["structures"] = [steps for each in rows for steps in each["structures"]] if whole else []
        self._partly_structured += not whole and any(each["structures"] for each in rows)
        for name in aligned:
            given = name in self._per_rationale
            row[name] = [
                value
                for each in rows
                for value in (
                    _values(each, name) if given or _is_aligned(each, name) else [None] * len(each["rationales"])
                )
            ]
        return same[0]._replace(row=row, flagged=all(each.flagged for each in same))

    def _report(self, questions: int) -> None:
        if not is_first_process():
            return
        logger.info(
            "%s: %s rows joined to %s questions", self._source, f"{questions + self.joined:,}", f"{questions:,}"
        )
        if self._partly_structured:
            logger.warning(
                "%s: join_questions: %s of %s questions have structures for some of their rationales only; these are "
                "left out, and all rationales are decomposed again",
                self._source,
                f"{self._partly_structured:,}",
                f"{questions:,}",
            )
        if differing := +self._differing:
            name, times = differing.most_common(1)[0]
            logger.warning(
                "%s: join_questions: column %r differs within %s of %s questions, and the first value counts%s",
                self._source,
                name,
                f"{times:,}",
                f"{questions:,}",
                f"; so do {', '.join(sorted(set(differing) - {name}))}" if len(differing) > 1 else "",
            )


def _key(row: Row) -> str:
    question = " ".join((row.get("question") or "").split())
    return json.dumps([question, *(row.get(name) for name in _ASKED)], sort_keys=True, default=str)


def _agree(answer: str, other: str | None) -> bool:
    """Whether an answer is the same as another one, or the other row has none."""
    if other is None:
        return True
    left, right = (_final(text.strip()) for text in (answer, other))
    value = number(left)
    return left == right or (value is not None and value == number(right))


def _final(answer: str) -> str:
    """The answer at the end of a gold answer that is a whole solution."""
    return answer if number(answer) is not None else extract_answer(answer) or answer


def _is_aligned(row: Row, name: str) -> bool:
    value = row.get(name)
    return isinstance(value, list) and len(value) == len(row["rationales"])


def _values(row: Row, name: str) -> list[Any]:
    """The values of a column, one for each rationale; a list of another length stays, for its reader to refuse."""
    value = row.get(name)
    return list(value) if isinstance(value, list | tuple) else [value] * len(row["rationales"])
