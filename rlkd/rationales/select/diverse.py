"""The selector `diverse`: one rationale of those that go the same way (MoRSD, arXiv 2509.23574, third stage)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

from rlkd.gsrm.decomposers import DecompositionError, RulesDecomposer
from rlkd.gsrm.judges import DeterministicJudge
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import Judgement
from rlkd.rationales.similarity import ngrams, share_of_ngrams, structure_similarity
from rlkd.structure import Structure

Measure = Literal["ngram", "cosine", "structure"]
THRESHOLDS: dict[Measure, float] = {"ngram": 0.5, "cosine": 0.9, "structure": 0.75}
SAME_WAY = "goes the way of a shorter one"

# Steps of a structure that are compared: the work is quadratic in them, and what differs does so before.
_STEPS = 40


class Diverse:
    """Goes through the candidates of a question from the shortest to the longest and keeps what is unlike all kept.

    The paper's measure is not known; all three are our choice:

    - `ngram`: Jaccard index of the sets of 3-grams of words, numbers and signs, below 0.5;
    - `cosine`: of embeddings (`rlkd.embedders`), below 0.9;
    - `structure`: F1 of the steps that correspond in order (`rlkd.rationales.similarity.structure_similarity`), below
      0.75. The steps are the candidate's own where it has a structure, else its sentences with a calculation. Where
      neither of two has a step, their 3-grams are compared, by the threshold of those.

    Score `nearest`: the similarity to the most similar kept one, 0 for the first.

    Args:
        measure: one of the three.
        threshold: similarity from which on two go the same way, above 0 and at most 1; None for the one above.
        embedder: spec of the embedder of `cosine`.
    """

    __name__ = "diverse"

    def __init__(
        self, *, measure: Measure = "ngram", threshold: float | None = None, embedder: str = "hashed-ngrams"
    ) -> None:
        if measure not in get_args(Measure):
            raise ValueError(f"measure={measure!r}: expected {', '.join(map(repr, get_args(Measure)))}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a number above 0, at most 1")
        self.measure: Measure = measure
        self.threshold = THRESHOLDS[measure] if threshold is None else threshold
        self.judge = DeterministicJudge()
        self.embedder: Any = None
        if measure == "cosine":
            from rlkd.embedders import open_embedder

            self.embedder = open_embedder(embedder)

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        alike = await self._measured(questions)
        return [self._judged(question, same) for question, same in zip(questions, alike, strict=True)]

    def _judged(self, question: Question, same: Callable[[int, int], float]) -> list[Judgement]:
        order = sorted(range(len(question.candidates)), key=lambda place: _size(question, place))
        judgements = [Judgement()] * len(order)
        kept: list[int] = []
        for place in order:
            nearest = max((same(place, other) for other in kept), default=0.0)
            far = nearest < self.threshold
            judgements[place] = Judgement(None if far else SAME_WAY, {"nearest": nearest})
            if far:
                kept.append(place)
        return judgements

    async def _measured(self, questions: Sequence[Question]) -> list[Callable[[int, int], float]]:
        """For each question, a function from the places of two candidates to their similarity."""
        if self.measure == "cosine":
            vectors = self.embedder.embed([each.text for question in questions for each in question.candidates])
            found: list[Callable[[int, int], float]] = []
            start = 0
            for question in questions:
                found.append(partial(_cosine, vectors[start : start + len(question.candidates)]))
                start += len(question.candidates)
            return found
        grams = [[ngrams(each.text) for each in question.candidates] for question in questions]
        if self.measure == "ngram":
            return [partial(_shared, own) for own in grams]
        structures = [await _structures(question) for question in questions]
        return [partial(self._structural, own, words) for own, words in zip(structures, grams, strict=True)]

    def _structural(
        self, structures: Sequence[Structure], grams: Sequence[frozenset[tuple[str, ...]]], left: int, right: int
    ) -> float:
        mine, theirs = structures[left], structures[right]
        if not len(mine) and not len(theirs):
            # On the scale of this measure, so that one threshold serves.
            return min(1.0, _shared(grams, left, right) / THRESHOLDS["ngram"] * self.threshold)
        return structure_similarity(mine, theirs, self.judge)


async def _structures(question: Question) -> list[Structure]:
    read = await RulesDecomposer().decompose(
        [ReasoningTrace(question.question, each.text) for each in question.candidates]
    )
    structures = []
    for each, found in zip(question.candidates, read, strict=True):
        whole = each.structure if each.structure is not None else found
        structures.append(Structure() if isinstance(whole, DecompositionError) else Structure(whole.steps[:_STEPS]))
    return structures


def _shared(grams: Sequence[frozenset[tuple[str, ...]]], left: int, right: int) -> float:
    return share_of_ngrams(grams[left], grams[right])


def _cosine(vectors: Any, left: int, right: int) -> float:
    return float(vectors[left] @ vectors[right])


def _size(question: Question, place: int) -> tuple[int, str]:
    each = question.candidates[place]
    return len(each.text), each.id
