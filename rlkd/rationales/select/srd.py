"""The selector `srd`: examples from easy to hard for the student, in stages (SRD, arXiv 2508.06135).

An example is a question with one rationale. The student before training answers every question, greedily. Two ranks,
1 for the easiest, measure how easy an example is:

    ROUGE-L of the student's answer to the rationale, highest first
    the student's mean surprisal on the rationale, lowest first
    score = 1 / (60 + rank by ROUGE-L) + 1 / (60 + rank by surprisal)            (reciprocal-rank fusion)

In the order of the score the examples are divided into stages of equal size. The source is the authors' released code;
that a question may have several rationales, and that ties are broken by id, is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import LCSseq

from rlkd.cache import Cache
from rlkd.engines.base import Engine, EngineError, Sampling
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import NOT_MEASURED, SelectorVerdict, by_question, report_failures
from rlkd.rationales.select.engine import WithStudent
from rlkd.rationales.select.ngrams import pieces

TOO_HARD = "too hard for the student"
FUSION = 60

# Pieces of a text that ROUGE-L compares.
_MAX_PIECES = 4096


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L of two texts: F1 of the longest common subsequence of their pieces; 0 if either has none.

    Pieces after the first 4,096 of a text are ignored.

    >>> rouge_l("3 + 4 = 7", "so 3 + 4 = 8")
    0.7272727272727273
    """
    left, right = pieces(answer)[:_MAX_PIECES], pieces(reference)[:_MAX_PIECES]
    return 2 * LCSseq.similarity(left, right) / (len(left) + len(right)) if left and right else 0.0


def fused_ranks(rouges: Sequence[float], losses: Sequence[float], names: Sequence[str]) -> list[float]:
    """The score of each example by reciprocal-rank fusion; ranks begin with 1, and ties are broken by name.

    >>> [round(score, 5) for score in fused_ranks([0.9, 0.1], [2.0, 1.0], ["a", "b"])]
    [0.03252, 0.03252]
    """
    scores = [0.0] * len(names)
    for keys in ([-rouge for rouge in rouges], losses):
        order = sorted(range(len(names)), key=lambda index: (keys[index], names[index]))
        for rank, index in enumerate(order, 1):
            scores[index] += 1 / (FUSION + rank)
    return scores


def stages_of(scores: Sequence[float], names: Sequence[str], stages: int) -> list[int]:
    """The stage, 1 to `stages`, of each example: highest scores first, in parts whose sizes differ by at most 1."""
    order = sorted(range(len(names)), key=lambda index: (-scores[index], names[index]))
    result = [0] * len(names)
    for rank, index in enumerate(order):
        result[index] = 1 + rank * stages // len(names)
    return result


class SelectiveReflection(WithStudent):
    """Keeps the easiest share of all examples, and gives each its stage. Scores `srd` (high: easy) and `stage`.

    It ranks all candidates of all questions against each other, so it must see them in one call.

    Args:
        student, template, prompt_style, cache, deadline: see `WithStudent`; a call has 128 answers or about a thousand
            rationales.
        stages: number of stages of the curriculum.
        keep: share of the examples to keep, above 0 and at most 1. The paper keeps all.
        max_new_tokens: of the student's answer.
    """

    __name__ = "srd"
    whole_set = True

    def __init__(
        self,
        student: str | Engine,
        *,
        stages: int = 3,
        keep: float = 1.0,
        max_new_tokens: int = 256,
        template: str | None = None,
        prompt_style: Mapping[str, Any] | None = None,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        if stages < 1 or not 0 < keep <= 1:
            raise ValueError(f"stages={stages}, keep={keep}: expected at least 1, and a share above 0 and at most 1")
        super().__init__(student, template, prompt_style, cache, deadline)
        self.stages = stages
        self.keep = keep
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop=("\nQuestion:",))

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        prompts = [self.prompt(question) for question in questions]
        settings = (self.sampling.max_new_tokens, self.sampling.stop)
        answers = await self.cached("greedy answer", prompts, self._answers, 128, lambda prompt: (settings, prompt))
        requests, rouges = [], []
        for question, prompt, answer in zip(questions, prompts, answers, strict=True):
            for each in question.candidates:
                requests.append((prompt, self.continuation(each.text)))
                rouges.append(answer if isinstance(answer, EngineError) else rouge_l(answer, each.text))
        losses = await self.mean_surprisals(requests)
        # Ids are unique within a question.
        names = [f"{question.id}\x1f{each.id}" for question in questions for each in question.candidates]
        return by_question(self._judged(names, rouges, losses), questions)

    def _judged(
        self, names: Sequence[str], rouges: Sequence[float | EngineError], losses: Sequence[float | EngineError]
    ) -> list[SelectorVerdict]:
        pairs = list(zip(rouges, losses, strict=True))
        measured = [
            (index, rouge, loss)
            for index, (rouge, loss) in enumerate(pairs)
            if not isinstance(rouge, EngineError) and not isinstance(loss, EngineError)
        ]
        report_failures(self.__name__, [rouge if isinstance(rouge, EngineError) else loss for rouge, loss in pairs])
        known = [names[index] for index, _, _ in measured]
        scores = fused_ranks([rouge for _, rouge, _ in measured], [loss for *_, loss in measured], known)
        order = sorted(range(len(known)), key=lambda rank: (-scores[rank], known[rank]))
        easy = order[: max(1, round(self.keep * len(order)))]
        stages = stages_of([scores[each] for each in easy], [known[each] for each in easy], self.stages)
        verdicts = [SelectorVerdict(NOT_MEASURED)] * len(names)
        for (index, _, _), score in zip(measured, scores, strict=True):
            verdicts[index] = SelectorVerdict(TOO_HARD, {"srd": score})
        for each, stage in zip(easy, stages, strict=True):
            verdicts[measured[each][0]] = SelectorVerdict(None, {"srd": scores[each], "stage": float(stage)})
        return verdicts

    async def _answers(self, prompts: list[str]) -> list[str | EngineError]:
        """The student's greedy answer to each prompt."""
        replies = await self.engine.generate(prompts, self.sampling, deadline=self.deadline)
        return [reply if isinstance(reply, EngineError) else reply.text for reply in replies]
