"""The data of the stages: questions, each with its candidate rationales, whose texts no stage changes.

A line of the files between the stages is `Question.to_json`:

    >>> question = Question("q1", "How many are 3 and 4?", "7", (candidate("q1", "3 + 4 = 7\\n#### 7", "ready"),))
    >>> Question.from_json(question.to_json()) == question
    True
    >>> question.candidates[0].answer
    '7'
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rlkd.answers import extract_answer
from rlkd.structure import Structure

# Sources of candidates, unless the data name others.
SOURCES = ("bank", "generated", "hinted", "contrast", "counterfactual", "program", "student", "ready")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One rationale.

    `id` is a digest of its question, source and text. `text` is the training text, answer line included. `source` is
    `bank` (written along a path of the bank, unchanged), `generated` (written freely, or along a path that the teacher
    revised), `hinted` (the teacher was shown the answer), `contrast` and `counterfactual` (decoded towards the answer,
    or towards a wrong one), `program` (a program), `student` (by the student itself), `ready` (from the rows), or a
    name from the data. `answer` is the answer that the text announces. `path` holds its step names if it is
    step-keyed; `tokens` is the number of tokens that the teacher wrote, if known.
    """

    id: str
    text: str
    source: str
    answer: str | None = None
    path: tuple[str, ...] = ()
    structure: Structure | None = None
    tokens: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    def with_scores(self, scores: Mapping[str, float]) -> Candidate:
        """The candidate with further scores; a score of the same name is replaced."""
        return replace(self, scores={**self.scores, **scores}) if scores else self

    def to_json(self) -> dict[str, Any]:
        """The candidate as JSON; `from_json` is the inverse."""
        structure = None if self.structure is None else self.structure.to_list()
        changed = {"path": list(self.path), "structure": structure, "scores": dict(self.scores)}
        return {each.name: getattr(self, each.name) for each in fields(self)} | changed

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Candidate:
        """The inverse of `to_json`; raises TypeError or ValueError for any other record."""
        structure = record.get("structure")
        structure = None if structure is None else Structure.from_list(structure)
        return cls(**{**record, "path": tuple(record.get("path") or ()), "structure": structure})


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its candidates. `answer` is the gold one, or None; `columns` pass through to the output."""

    id: str
    question: str
    answer: str | None = None
    candidates: tuple[Candidate, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The question as JSON; `from_json` is the inverse."""
        changed = {"candidates": [each.to_json() for each in self.candidates], "columns": dict(self.columns)}
        return {each.name: getattr(self, each.name) for each in fields(self)} | changed

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Question:
        """The inverse of `to_json`; raises TypeError or ValueError for any other record."""
        candidates = tuple(map(Candidate.from_json, record.get("candidates") or ()))
        return cls(**{**record, "candidates": candidates})


@dataclass(frozen=True, slots=True)
class DroppedCandidate:
    """A candidate that a stage dropped (`write`, a selector, the limits), with all its scores."""

    question_id: str
    stage: str
    reason: str
    candidate: Candidate


def storable(text: str) -> str:
    """A text without lone surrogates, which models write and files cannot hold."""
    return text.encode("utf-8", "replace").decode()


def candidate(question_id: str, text: str, source: str, **known: Any) -> Candidate:
    """A new candidate, with its id and the answer that its text announces."""
    digest = hashlib.sha256("\x1f".join((question_id, source, text)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Candidate(digest, text, source, **{"answer": extract_answer(text), **known})
