"""The files of a run: questions between the stages, rows to train on, what was dropped, and one page that sums it up.

    written.jsonl        every question with its candidates (a line: `Question.to_json`), what `select` starts from
    selected.jsonl       the same after selection
    rationales.jsonl     rows to train on, as `rlkd.data.loading.load_rows` reads them; rationales.parquet is the same
    in Arrow dropped.jsonl        every candidate that did not make it, with stage and reason
    bank.json            the path bank
    summary.md, .json    counts by stage, paths, rationale difficulty, tokens

Each appears under its name when it is complete. Everything is in the order of the rows that came in. One process works
in a folder at a time (`alone_in`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.files import atomic_file
from rlkd.rationales.records import Candidate, Question

# Upper ends of the classes of log RD (nats a token of the answer); the last one is open.
RD_EDGES = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
# Rows that are turned into Arrow together.
BLOCK = 1000
OURS = ("id", "question", "answer", "rationales", "structures", "sources", "paths", "scores", "stages")
# What a column of the data is called in the rows if its own name is one of these.
PREFIX = "data_"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, which is made where it is missing.

    Raises `UsageError` where another one is in it. A process that dies gives it free.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process writes in {folder}. Wait for it, or name another output_dir") from None
    try:
        yield
    finally:
        lock.release()


def require_written(path: Path) -> None:
    """Raise `UsageError` where there is no such file."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}: run the stage `write` first, with the same output_dir")


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of `written.jsonl` or `selected.jsonl`, one after another.

    Raises `UsageError` where there is no such file, and for a line that holds something else.
    """
    require_written(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Question.from_json(json.loads(line))
            except (AttributeError, TypeError, ValueError) as error:
                raise UsageError(f"{path}, line {number}: not a question with candidates ({error})") from error


def line_of(record: Mapping[str, Any]) -> str:
    """A record as a line of a file."""
    return json.dumps(record, ensure_ascii=True) + "\n"


def dropped_record(question_id: str, stage: str, reason: str, candidate: Candidate) -> dict[str, Any]:
    """A line of `dropped.jsonl`."""
    return {"question_id": question_id, "stage": stage, "reason": reason, "candidate": candidate.to_json()}


def row_of(question: Question, score_names: Sequence[str]) -> dict[str, Any]:
    """A row to train on: one question with its rationales, and in the same order what is known of each.

    `structures` stand there if every rationale has one, since a structure without steps would count as known. `scores`
    hold all names, None where there is no such score. `stages` are those of a curriculum, where there is one: in stage
    s the rationales of stages up to s are trained on. A column of the data whose name is one of `OURS` goes by
    `data_NAME`.
    """
    candidates = question.candidates
    structures = [each.structure.to_list() for each in candidates if each.structure is not None]
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "answer": question.answer,
        "rationales": [each.text for each in candidates],
        "structures": structures if len(structures) == len(candidates) else [],
        "sources": [each.source for each in candidates],
        "paths": [list(each.path) for each in candidates],
        "scores": [{name: each.scores.get(name) for name in score_names} for each in candidates],
    }
    if "stage" in score_names:
        row["stages"] = [int(each.scores.get("stage", 1)) for each in candidates]
    return row | {f"{PREFIX}{name}" if name in OURS else name: value for name, value in question.columns.items()}


def write_rows(selected: Path, rows: Path, score_names: Iterable[str] | None = None) -> int:
    """Write `rows` (.jsonl) and the same as .parquet from the questions in `selected`; the number of rows.

    `score_names` are those of all candidates; None: they are looked up. Raises `RowError` where a column that came
    with the data has values of different kinds: then `rows` is there, and the other is not.
    """
    if score_names is None:
        found = (each.scores for question in read_questions(selected) for each in question.candidates)
        score_names = {name for scores in found for name in scores}
    names = sorted(score_names)
    number = 0
    with atomic_file(rows) as file:
        for question in read_questions(selected):
            file.write(line_of(row_of(question, names)))
            number += 1
    _write_parquet(rows, rows.with_suffix(".parquet"), names)
    return number


def _write_parquet(rows: Path, target: Path, score_names: Sequence[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    step = pyarrow.struct([(name, pyarrow.string()) for name in ("meta", "question", "answer")])
    texts = pyarrow.list_(pyarrow.string())
    # A struct has at least one field.
    score = pyarrow.struct([(name, pyarrow.float64()) for name in score_names or ["none"]])
    known = {
        "id": pyarrow.string(),
        "question": pyarrow.string(),
        "answer": pyarrow.string(),
        "rationales": texts,
        "structures": pyarrow.list_(pyarrow.list_(step)),
        "sources": texts,
        "paths": pyarrow.list_(texts),
        "scores": pyarrow.list_(score),
        "stages": pyarrow.list_(pyarrow.int64()),
    }
    try:
        others = pyarrow.schema([])
        for block in _blocks(rows):
            # By name: Arrow would read the names off the first row alone.
            names = dict.fromkeys(name for row in block for name in row if name not in OURS)
            found = pyarrow.table({name: [row.get(name) for row in block] for name in names}).schema
            others = pyarrow.unify_schemas([others, found], promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise RowError(f"{rows}: a column that came with the data has values of different kinds: {error}") from error
    ours = [name for name in OURS if name != "stages" or "stage" in score_names]
    schema = pyarrow.schema([(name, known[name]) for name in ours] + list(others))
    with atomic_file(target, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for block in _blocks(rows):
            writer.write_table(pyarrow.Table.from_pylist(block, schema=schema))


def _blocks(path: Path) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            block.append(json.loads(line))
            if len(block) == BLOCK:
                yield block
                block = []
    if block:
        yield block


def rd_histogram(values: Iterable[float]) -> list[tuple[str, int]]:
    """How many log RD lie in each class, as (name, count).

    >>> [(name, count) for name, count in rd_histogram([-3.0, -0.1, 7.0]) if count]
    [('-4 to -2', 1), ('-0.25 to 0', 1), ('above 2', 1)]
    """
    counts = [0] * (len(RD_EDGES) + 1)
    for value in values:
        counts[sum(value > edge for edge in RD_EDGES)] += 1
    names = [f"up to {RD_EDGES[0]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in itertools.pairwise(RD_EDGES)]
    return list(zip([*names, f"above {RD_EDGES[-1]:g}"], counts, strict=True))


def update_summary(folder: Path, stage: str, part: Mapping[str, Any]) -> dict[str, Any]:
    """Put a stage's part into `summary.json`, and write the page anew; the whole summary.

    A new writing takes away the part of an earlier selection, which no longer fits.
    """
    path = folder / "summary.json"
    summary: dict[str, Any] = {}
    if stage != "write" and path.is_file():
        summary = json.loads(path.read_text())
    summary[stage] = dict(part)
    with atomic_file(path) as file:
        file.write(json.dumps(summary, indent=1) + "\n")
    with atomic_file(folder / "summary.md") as file:
        file.write(page(summary))
    return summary


def page(summary: Mapping[str, Any]) -> str:
    """The summary as one page of Markdown."""
    lines = ["# Rationales", ""]
    if written := summary.get("write"):
        lines += _written_part(written)
    if selected := summary.get("select"):
        lines += _selected_part(selected)
    return "\n".join(lines).rstrip() + "\n"


def _written_part(written: Mapping[str, Any]) -> list[str]:
    counts = written["counts"]
    made = sum(counts["candidates"].values())
    lines = [
        "## Written",
        "",
        f"{counts['questions']} questions, {made} candidates: {_listed(counts['candidates'])}.",
    ]
    if counts["right"] + counts["wrong"]:
        share = counts["right"] / (counts["right"] + counts["wrong"])
        lines.append(f"Of those with a gold answer {counts['right']} are right, {counts['wrong']} not ({share:.0%}).")
    if counts["discarded"]:
        lines.append(f"Not taken in: {_listed(counts['discarded'])}.")
    if counts["requests"]:
        lines += ["", f"Teacher: `{written['teacher']}`", ""]
        lines += _table(
            ("stage", "requests", "failed", "tokens written", "characters of prompts"),
            [
                (stage, count, *(counts[name].get(stage, 0) for name in ("failed", "tokens", "prompt_characters")))
                for stage, count in counts["requests"].items()
            ],
        )
        lines += [
            "",
            f"Cut at max_new_tokens: {counts['cut']}. Not usable as JSON, kept as text: {counts['unusable']}.",
        ]
    if paths := written.get("paths"):
        lines += [
            "",
            "## Paths",
            "",
            f"{paths['distinct']} distinct paths in {paths['used']} step-keyed solutions; entropy "
            f"{paths['entropy_bits']:.2f} bits.",
        ]
        if "offered_share" in paths:
            lines.append(
                f"The bank holds {paths['in_bank']} paths. {paths['offered_share']:.0%} of the questions were offered "
                f"one; {counts['candidates'].get('bank', 0)} candidates follow one as it is."
            )
            if paths["message"]:
                lines += ["", f"**{paths['message']}**"]
        if counts["barred"]:
            lines.append(f"Right, but kept from the bank: {_listed(counts['barred'])}.")
    return [*lines, ""]


def _selected_part(selected: Mapping[str, Any]) -> list[str]:
    lines = ["## Selected", ""]
    lines += _table(
        ("stage", "candidates", "questions", "dropped, by reason"),
        [
            (each["stage"], each["candidates"], each["questions"], _listed(each["dropped"]) or "-")
            for each in selected["stages"]
        ],
    )
    kept = f"{selected['kept']} rationales of {selected['questions']} questions, {selected['characters']} characters"
    lines += ["", f"Kept: {kept}."]
    if selected["sources"]:
        lines.append(f"Sources: {_listed(selected['sources'])}.")
    if rd := selected.get("rationale_difficulty"):
        lines += ["", "## Rationale difficulty", ""]
        lines += ["log RD, in nats a token of the answer; below 0 the rationale helps.", ""]
        lines += _table(("log RD", "measured", "kept"), rd["classes"])
        if rd["leaks"] is not None:
            lines += ["", f"In {rd['leaks']:.0%} of those measured the answer still stands in what was scored."]
    return [*lines, ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells]


def _listed(counts: Mapping[str, int]) -> str:
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in by_count)


class Tally:
    """Counts of a selection while it goes on: what each stage got and dropped, and the RD of what was measured."""

    def __init__(self) -> None:
        self.stages: dict[str, Counter[str]] = {}
        self.got: dict[str, Counter[str]] = {}
        self.measured: list[float] = []
        self.leaks: list[float] = []
        self.kept = Counter[str]()
        self.score_names: set[str] = set()
        """Of the candidates that came through."""
        self.sources = Counter[str]()
        self.rd_of_kept: list[float] = []

    def enter(self, stage: str, questions: Sequence[Question]) -> None:
        """Questions that come to a stage."""
        got = self.got.setdefault(stage, Counter())
        self.stages.setdefault(stage, Counter())
        got["questions"] += len(questions)
        got["candidates"] += sum(len(question.candidates) for question in questions)

    def drop(self, stage: str, reason: str, candidate: Candidate) -> None:
        """A candidate that a stage dropped."""
        self.stages.setdefault(stage, Counter())[reason] += 1
        self._measure(candidate)

    def keep(self, question: Question) -> None:
        """A question that came through."""
        self.kept["questions"] += 1
        for each in question.candidates:
            self._measure(each)
            self.kept["rationales"] += 1
            self.kept["characters"] += len(each.text)
            self.score_names.update(each.scores)
            self.sources[each.source] += 1
            if "log_rd" in each.scores:
                self.rd_of_kept.append(each.scores["log_rd"])

    def to_json(self) -> dict[str, Any]:
        """The part `select` of the summary."""
        classes = [
            (name, count, kept)
            for (name, count), (_, kept) in zip(
                rd_histogram(self.measured), rd_histogram(self.rd_of_kept), strict=True
            )
        ]
        leaks = sum(self.leaks) / len(self.leaks) if self.leaks else None
        return {
            "stages": [
                {"stage": stage, **got, "dropped": dict(sorted(self.stages[stage].items()))}
                for stage, got in self.got.items()
            ],
            "questions": self.kept["questions"],
            "kept": self.kept["rationales"],
            "characters": self.kept["characters"],
            "sources": dict(sorted(self.sources.items())),
            "rationale_difficulty": {"classes": classes, "leaks": leaks} if self.measured else None,
        }

    def _measure(self, candidate: Candidate) -> None:
        if "log_rd" in candidate.scores:
            self.measured.append(candidate.scores["log_rd"])
        if "leaks" in candidate.scores:
            self.leaks.append(candidate.scores["leaks"])
