"""The selector `diverse`: one rationale of those with the same approach (MoRSD, arXiv 2509.23574, third stage)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from rlkd.embedders import DEFAULT, open_embedder
from rlkd.gsrm.alignment import Ordered
from rlkd.gsrm.decomposers import DecompositionError, RulesDecomposer
from rlkd.gsrm.judges import DeterministicJudge
from rlkd.gsrm.traces import ReasoningTrace
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import SelectorVerdict, by_question
from rlkd.rationales.select.ngrams import jaccard, ngrams
from rlkd.structure import Structure

Measure = Literal["ngram", "cosine", "structure"]
THRESHOLDS: dict[Measure, float] = {"ngram": 0.5, "cosine": 0.9, "structure": 0.75}
SAME_APPROACH = "same approach as a shorter one"

# Compared steps of a structure: the work is quadratic in them, and different structures differ before.
_STEPS = 40

# The similarity of two candidates of a question, by index.
_Similarity = Callable[[int, int], float]


class Diverse:
    """Visits the candidates of a question from the shortest to the longest and keeps those unlike all kept ones.

    The paper's measure is not known; all three are our choice. Score `nearest`: the similarity to the most similar
    kept one, 0 for the first.

    Args:
        measure: `ngram`, the Jaccard index of 3-grams; `cosine`, of embeddings; or `structure`, the F1 of the steps
            that correspond in order (`structure_similarity`): those of the candidate's own structure, else its
            sentences with a calculation. If neither of two has a step, their 3-grams are compared.
        threshold: similarity from which two have the same approach, above 0 and at most 1; None: `THRESHOLDS`.
        embedder: spec of the embedder of `cosine`.
    """

    __name__ = "diverse"

    def __init__(self, *, measure: Measure = "ngram", threshold: float | None = None, embedder: str = DEFAULT) -> None:
        if measure not in get_args(Measure):
            raise ValueError(f"measure={measure!r}: expected {', '.join(map(repr, get_args(Measure)))}")
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a number above 0, at most 1")
        self.measure: Measure = measure
        self.threshold = THRESHOLDS[measure] if threshold is None else threshold
        self.judge = DeterministicJudge()
        self.embedder = open_embedder(embedder) if measure == "cosine" else None

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        if self.embedder is not None:
            rows = self.embedder.embed([each.text for question in questions for each in question.candidates])
            vectors = by_question(rows, questions)
            return [self._judged(q, _cosine(own)) for q, own in zip(questions, vectors, strict=True)]
        return [self._judged(question, await self._similarity(question)) for question in questions]

    def _judged(self, question: Question, similarity: _Similarity) -> list[SelectorVerdict]:
        candidates = question.candidates
        verdicts = [SelectorVerdict()] * len(candidates)
        kept: list[int] = []
        for index in sorted(range(len(candidates)), key=lambda n: (len(candidates[n].text), candidates[n].id)):
            nearest = max((similarity(index, other) for other in kept), default=0.0)
            far = nearest < self.threshold
            verdicts[index] = SelectorVerdict(None if far else SAME_APPROACH, {"nearest": nearest})
            if far:
                kept.append(index)
        return verdicts

    async def _similarity(self, question: Question) -> _Similarity:
        grams = [ngrams(each.text) for each in question.candidates]
        if self.measure == "ngram":
            return lambda left, right: jaccard(grams[left], grams[right])
        structures = await _structures(question)

        def similarity(left: int, right: int) -> float:
            if not len(structures[left]) and not len(structures[right]):
                # On the scale of this measure, so that one threshold serves both.
                return min(1.0, jaccard(grams[left], grams[right]) / THRESHOLDS["ngram"] * self.threshold)
            return structure_similarity(structures[left], structures[right], self.judge)

        return similarity


def structure_similarity(left: Structure, right: Structure, judge: DeterministicJudge) -> float:
    """The share of the steps of two structures that correspond, in order: the alignment `ordered`.

    Symmetric, since F1 and the judge's verdicts are. Two structures without steps are equal (1), one with and one
    without are not (0).
    """
    if not len(left) and not len(right):
        return 1.0
    verdicts = [[judge.compare(step, other)] for step in left for other in right]
    return Ordered().score(left, right, verdicts, len(right)).value


async def _structures(question: Question) -> list[Structure]:
    traces = [ReasoningTrace(question.question, each.text) for each in question.candidates]
    structures = []
    for each, result in zip(question.candidates, await RulesDecomposer().decompose(traces), strict=True):
        whole = each.structure if each.structure is not None else result
        structures.append(Structure() if isinstance(whole, DecompositionError) else Structure(whole.steps[:_STEPS]))
    return structures


def _cosine(vectors: Sequence[Any]) -> _Similarity:
    return lambda left, right: float(vectors[left] @ vectors[right])
