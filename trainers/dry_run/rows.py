"""Rows: their fields, gold answers, rationales, and questions that occur twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from rlkd.answers import VerificationError, are_correct
from rlkd.data.rows import FIELDS, question_of
from rlkd.evaluation.contamination import overlaps, words
from trainers.common.gold import SAMPLED_ROWS
from trainers.dry_run.dry_run import DryRun

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]
_SHOWN = 3


@dataclass
class RowFacts:
    """What one pass over the rows finds: rows may lie in a file, and are read once.

    `filled`: rows with a value, by field; `traces`: rationales of each row that has some; `structures`: rows with
    structures; `golds`: the answers; `questions`: id and question of each row.
    """

    count: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    traces: list[int] = field(default_factory=list)
    structures: int = 0
    golds: list[str] = field(default_factory=list)
    questions: list[tuple[str, str]] = field(default_factory=list)


def read_facts(rows: Rows) -> RowFacts:
    """The facts of the rows."""
    facts = RowFacts()
    for row in rows:
        facts.count += 1
        facts.filled.update(name for name, value in row.items() if value not in (None, "", []))
        facts.traces += [len(row["rationales"])] if row.get("rationales") else []
        facts.structures += bool(row.get("structures"))
        facts.golds += [str(row["answer"])] if row.get("answer") is not None else []
        facts.questions.append((str(row.get("id")), question(row)))
    return facts


def show_rows(
    run: DryRun,
    train: Rows,
    test: Rows = (),
    *,
    source: str,
    tests: str = "",
    joins: bool = True,
    split: Literal["train", "test"] = "train",
) -> None:
    """Print what the rows have.

    `source`, `tests`: names of their datasets; `joins`: there is `join_questions`; `split`: what `train` is.
    """
    run.section("rows")
    run.line(split, f"{len(train)} of {source}")
    facts = read_facts(train)
    if facts.count:
        run.line("fields", field_list(facts))
        run.line("rationales", rationale_counts(facts))
        run.line("answers", answer_counts(facts))
        _show_repeats(run, facts, joins, "training" if split == "train" else "test")
    if len(test):
        others = read_facts(test)
        run.line("test", f"{others.count} of {tests}; answers: {answer_counts(others)}")
        _show_overlap(run, facts, others)


def field_list(facts: RowFacts) -> str:
    """The fields of the rows, and the columns that go to the rewards as they are."""

    def named(name: str) -> str:
        found = facts.filled[name]
        return name if found == facts.count else f"{name} ({found} of {facts.count} rows)"

    own = ", ".join(named(name) for name in FIELDS if facts.filled[name])
    others = ", ".join(named(name) for name in sorted(facts.filled) if name not in FIELDS)
    return own + (f"; passed to the rewards: {others}" if others else "")


def rationale_counts(facts: RowFacts) -> str:
    """How many rows have a teacher's trace, and how many they have."""
    having = len(facts.traces)
    if not having:
        return "no row has one"
    several = sum(count > 1 for count in facts.traces)
    known = f"; {several} rows have several" if several else ""
    known += f"; {facts.structures} rows have their structures" if facts.structures else ""
    return f"{having} of {facts.count} rows, {sum(facts.traces) / having:.1f} each{known}"


def answer_counts(facts: RowFacts) -> str:
    """How many rows have a gold answer, and how many of a sample can be read."""
    golds = facts.golds
    if not golds:
        return f"none of {facts.count} rows has one"
    sampled = spread(golds, SAMPLED_ROWS)
    unreadable = unreadable_golds(sampled)
    text = f"{len(golds)} of {facts.count} rows"
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


def repeated_questions(facts: RowFacts) -> dict[str, list[str]]:
    """The ids of rows with the same question, by its words; only questions of several rows."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, asked in facts.questions:
        found.setdefault(_key(asked), []).append(name)
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


def _key(asked: str) -> tuple[str, ...]:
    return tuple(words(asked, signs=True))


def _show_repeats(run: DryRun, train: RowFacts, joins: bool, kind: str) -> None:
    repeats = repeated_questions(train)
    if not repeats:
        run.line("duplicates", "no question occurs twice")
        return
    extra = sum(len(ids) - 1 for ids in repeats.values())
    first = next(iter(repeats.values()))
    run.line("duplicates", f"{extra} rows have the question of an earlier row, such as {' and '.join(first[:2])}")
    way_out = (
        ". Traces of one question in several rows are no branches: join_questions: true makes one row of them"
        if train.traces and joins
        else ""
    )
    run.warn(f"{extra} of {train.count} {kind} rows have the question of an earlier row (same words){way_out}")


def _show_overlap(run: DryRun, train: RowFacts, test: RowFacts) -> None:
    known = {_key(asked): name for name, asked in train.questions}
    same = [(name, known[key]) for name, asked in test.questions if (key := _key(asked)) in known]
    if same:
        text = f"{len(same)} of {test.count} test questions are training questions, such as {' and '.join(same[0])}"
        run.line("", text)
        run.warn(f"{text}. What is learnt by heart counts as accuracy there")
    else:
        run.line("", "no test question is a training question")
    pairs = overlaps(test.questions, ((name, [asked]) for name, asked in train.questions))
    if parts := len({pair.test for pair in pairs} - {name for name, _ in same}):
        run.line(
            "",
            f"{parts} others share 13 words in a row with one (rlkd evaluate --check_contamination shows them), such "
            f"as {pairs[-1].text!r}",
        )
