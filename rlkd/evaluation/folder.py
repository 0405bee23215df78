"""The folder of an evaluation, which survives its interruption, and from which two evaluations are compared.

| file | content |
| --- | --- |
| `settings.json` | what decides a completion: model, sampling, limit, seed, and the source of the rows |
| `rows.jsonl` | of each row `id`, `question`, `answer`, and a digest of its prompt |
| `completions.jsonl` | a line per completion, appended as they finish; once scored, with its answer and scores |
| `results.json` | the figures |

A line of `completions.jsonl` has `id` (of the row), `sample` (0 is the greedy completion), `completion`, `tokens`
(without the end token) and `ended` (by itself, not truncated); `answer` and `scores` follow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rlkd.data.rows import question_of
from rlkd.errors import UsageError
from rlkd.files import append_records, atomic_file, lock_file, read_records, remove_truncated_line, write_atomically


class EvaluationError(UsageError):
    """A folder of an evaluation that cannot be used as asked: the file, what differs, and the way out."""


@dataclass(frozen=True)
class RecordedCompletion:
    """A completion of a row, number `sample` (0 is greedy), and its scores once they are known."""

    id: str
    sample: int
    completion: str
    tokens: int
    ended: bool
    answer: str | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """Its row and number."""
        return self.id, self.sample


def row_record(row: Mapping[str, Any], prompt: Any) -> dict[str, Any]:
    """The line of a row: what was asked, and what tells its prompt from any other."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
    return {"id": row["id"], "question": question_of(prompt), "answer": row.get("answer"), "prompt": digest}


class EvaluationFolder:
    """Completions of an evaluation in a folder, opened by one process at a time; use it as a context manager.

    Raises `EvaluationError` where the folder holds an evaluation with other settings or rows, naming what differs,
    and where another process has it open.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]):
        self.path = Path(path)
        lock = lock_file(self.path / ".lock")
        if lock is None:
            raise EvaluationError(f"{self.path} is in use by another process. Wait for it, or name another --out")
        self._lock = lock
        try:
            self._check(settings, rows)
        except BaseException:
            self.close()
            raise
        self.completions = self.path / "completions.jsonl"
        remove_truncated_line(self.completions)
        self.written: dict[tuple[str, int], RecordedCompletion] = {}
        if self.completions.exists():
            self.written = {each.key: each for each in read_completions(self.completions)}

    def __enter__(self) -> EvaluationFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _check(self, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        there = self.path / "settings.json"
        if there.exists():
            found = _read_json(there)
            for name in dict.fromkeys((*found, *settings)):
                if found.get(name) != settings.get(name):
                    raise EvaluationError(
                        f"{self.path} holds an evaluation with {name} {_shown(found.get(name))}, and now it is "
                        f"{_shown(settings.get(name))}. Name another --out, or set it back to continue that one"
                    )
            earlier = list(read_records(self.path / "rows.jsonl"))
            if (differs := different_row(earlier, rows)) is not None:
                raise EvaluationError(f"{self.path} holds an evaluation of other rows: {differs}. Name another --out")
            return
        with atomic_file(self.path / "rows.jsonl") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        # Last, so that a folder with settings has rows.
        write_atomically(there, json.dumps(dict(settings), indent=1) + "\n")

    def add(self, completions: Iterable[RecordedCompletion]) -> None:
        """Append completions that are not there yet; they survive a kill once this returns."""
        new = [each for each in completions if each.key not in self.written]
        plain = ("id", "sample", "completion", "tokens", "ended")
        append_records(self.completions, ({name: getattr(each, name) for name in plain} for each in new))
        self.written.update({each.key: each for each in new})

    def finish(self, scored: Sequence[RecordedCompletion], results: Mapping[str, Any]) -> None:
        """Write the scored completions, in order, in place of the file that grew, and the figures.

        Completions that were not scored, such as samples beyond those asked for, stay behind them.
        """
        kept = {each.key: each for each in scored}
        kept |= {key: each for key, each in self.written.items() if key not in kept}
        with atomic_file(self.completions) as file:
            file.writelines(json.dumps(asdict(each)) + "\n" for each in kept.values())
        self.written = kept
        write_atomically(self.path / "results.json", json.dumps(dict(results), indent=1) + "\n")


@dataclass(frozen=True)
class FinishedEvaluation:
    """A finished evaluation, as read from its folder; the completions of each row by their number."""

    path: Path
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    results: Mapping[str, Any]
    completions: Mapping[str, Mapping[int, RecordedCompletion]]


def read_evaluation(path: str | Path) -> FinishedEvaluation:
    """Read a folder, or that of a run; raises `EvaluationError` where it holds no finished evaluation."""
    folder = Path(path)
    if not (folder / "results.json").is_file() and (folder / "evaluation/results.json").is_file():
        folder = folder / "evaluation"  # of a run, by `rlkd evaluate --run`
    if not (folder / "results.json").is_file():
        state = "an unfinished evaluation" if (folder / "settings.json").is_file() else "no evaluation"
        raise EvaluationError(
            f"{folder} holds {state} (no results.json). Give the --out of a finished `rlkd evaluate`"
        )
    results = _read_json(folder / "results.json")
    samples = results["samples"]
    by_row: dict[str, dict[int, RecordedCompletion]] = {}
    for each in read_completions(folder / "completions.jsonl"):
        if each.sample <= samples:
            by_row.setdefault(each.id, {})[each.sample] = each
    rows = list(read_records(folder / "rows.jsonl"))
    return FinishedEvaluation(folder, _read_json(folder / "settings.json"), rows, results, by_row)


def different_row(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> str | None:
    """The first difference between the rows of two evaluations, in words; None if there is none."""
    first, second = ({row["id"]: row for row in rows} for rows in (one, other))
    for mine, theirs, where in ((first, second, "there"), (second, first, "here")):
        if missing := [name for name in mine if name not in theirs]:
            return (
                f"row {missing[0]!r} is {where} only ({len(missing)} such rows; {len(first)} rows there, "
                f"{len(second)} here)"
            )
    for name, row in first.items():
        for key, what in (("prompt", "prompt"), ("answer", "gold answer")):
            if row[key] != second[name][key]:
                shown = "" if key == "prompt" else f": {row[key]!r} there, {second[name][key]!r} here"
                return f"row {name!r} has another {what}{shown}"
    return None


def read_completions(path: Path) -> Iterable[RecordedCompletion]:
    """The completions in a file; raises `EvaluationError` for a line of another form."""
    names = {each.name for each in fields(RecordedCompletion)}
    try:
        return [
            RecordedCompletion(**{key: value for key, value in line.items() if key in names})
            for line in read_records(path)
        ]
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"{path} has a line that is no completion ({error}). Delete it, and its completion is generated again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except ValueError as error:
        raise EvaluationError(f"{path} cannot be read ({error}). Delete it, or name another folder") from error


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
