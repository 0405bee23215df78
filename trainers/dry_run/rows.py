"""Rows: their fields, gold answers, rationales, and questions that occur twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rlkd.answers import VerificationError, are_correct
from rlkd.data.rows import FIELDS, question_of
from rlkd.evaluation.contamination import overlaps, words
from trainers.common.gold import SAMPLED_ROWS
from trainers.dry_run.dry_run import DryRun

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]
_SHOWN = 3


def show_rows(run: DryRun, train: Rows, test: Rows = (), *, source: str, tests: str = "") -> None:
    """Print what the rows have. `source`, `tests`: the names of their datasets."""
    run.section("rows")
    run.line("train", f"{len(train)} of {source}")
    if train:
        run.line("fields", field_list(train))
        run.line("rationales", rationale_counts(train))
        run.line("answers", answer_counts(train))
        _show_repeats(run, train)
    if test:
        run.line("test", f"{len(test)} of {tests}; answers: {answer_counts(test)}")
        _show_overlap(run, train, test)


def field_list(rows: Rows) -> str:
    """The fields of the rows, and the columns that go to the rewards as they are."""
    filled = Counter(name for row in rows for name, value in row.items() if value not in (None, "", []))
    count = len(rows)

    def named(name: str) -> str:
        return name if filled[name] == count else f"{name} ({filled[name]} of {count} rows)"

    own = ", ".join(named(name) for name in FIELDS if filled[name])
    others = ", ".join(named(name) for name in sorted(filled) if name not in FIELDS)
    return own + (f"; passed to the rewards: {others}" if others else "")


def rationale_counts(rows: Rows) -> str:
    """How many rows have a teacher's trace, and how many they have."""
    numbers = [len(row.get("rationales") or []) for row in rows]
    given = [number for number in numbers if number]
    if not given:
        return "no row has one"
    structures = sum(bool(row.get("structures")) for row in rows)
    known = f"; {structures} rows have their structures" if structures else ""
    return f"{len(given)} of {len(rows)} rows, {sum(given) / len(given):.1f} each{known}"


def answer_counts(rows: Rows) -> str:
    """How many rows have a gold answer, and how many of a sample can be read."""
    golds = [str(row["answer"]) for row in rows if row.get("answer") is not None]
    if not golds:
        return f"none of {len(rows)} rows has one"
    sampled = spread(golds, SAMPLED_ROWS)
    unreadable = unreadable_golds(sampled)
    text = f"{len(golds)} of {len(rows)} rows"
    looked = "all" if len(sampled) == len(golds) else f"{len(sampled)} sampled"
    if not unreadable:
        return f"{text}; {looked} can be read"
    examples = ", ".join(repr(gold[:60]) for gold in unreadable[:_SHOWN])
    return f"{text}; {len(unreadable)} of {len(sampled)} cannot be read, such as {examples} (docs/answers.md)"


def unreadable_golds(golds: Sequence[str]) -> list[str]:
    """The gold answers that no completion can be compared with."""
    verdicts = are_correct([""] * len(golds), golds)
    return [
        gold
        for gold, verdict in zip(golds, verdicts, strict=True)
        if verdict is None or isinstance(verdict, VerificationError)
    ]


def repeated_questions(rows: Rows) -> dict[str, list[str]]:
    """The ids of rows with the same question, by its words; only questions of several rows."""
    found: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        found.setdefault(tuple(words(question(row), signs=True)), []).append(str(row.get("id")))
    return {" ".join(key): ids for key, ids in found.items() if len(ids) > 1 and key}


def question(row: Mapping[str, Any]) -> str:
    """The question of a row, from its prompt if it has no field of its own."""
    asked = row.get("question") or question_of(row.get("prompt") or "")
    return asked if isinstance(asked, str) else " ".join(str(part.get("text", "")) for part in asked)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the items, evenly from the first on.

    >>> spread(range(10), 4)
    [0, 2, 5, 7]
    """
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _show_repeats(run: DryRun, train: Rows) -> None:
    repeats = repeated_questions(train)
    if not repeats:
        run.line("duplicates", "no question occurs twice")
        return
    extra = sum(len(ids) - 1 for ids in repeats.values())
    first = next(iter(repeats.values()))
    run.line("duplicates", f"{extra} rows have the question of an earlier row, such as {' and '.join(first[:2])}")
    run.warn(f"{extra} of {len(train)} training rows have the question of an earlier row (same words)")


def _show_overlap(run: DryRun, train: Rows, test: Rows) -> None:
    known = {tuple(words(question(row), signs=True)): str(row.get("id")) for row in train}
    same = [
        (str(row.get("id")), known[key]) for row in test if (key := tuple(words(question(row), signs=True))) in known
    ]
    if same:
        text = f"{len(same)} of {len(test)} test questions are training questions, such as {' and '.join(same[0])}"
        run.line("", text)
        run.warn(f"{text}. What is learnt by heart counts as accuracy there")
    else:
        run.line("", "no test question is a training question")
    tests = [(str(row["id"]), question(row)) for row in test]
    pairs = overlaps(tests, ((str(row.get("id")), [question(row)]) for row in train))
    if parts := len({pair.test for pair in pairs}) - len(same):
        run.line(
            "",
            f"{parts} others share 13 words in a row with one (rlkd evaluate --check_contamination shows them), such "
            f"as {pairs[0].text!r}",
        )
