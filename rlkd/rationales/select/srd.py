"""The selector `srd`: examples from easy to hard for the student, in stages (SRD, arXiv 2508.06135).

An example is a question with one rationale. The student before training answers every question, greedily. Two ranks,
1 for the easiest, say how easy an example is:

    ROUGE-L of the student's answer to the rationale, highest first
    the student's mean surprisal on the rationale, lowest first
    score = 1 / (60 + rank by ROUGE-L) + 1 / (60 + rank by surprisal)            (reciprocal-rank fusion)

In the order of the score the examples are divided into stages of equal size. Training in stage s takes all examples
of stage s and below: nested, cumulative subsets. The authors' released code is the source of all of this; that the
answer may be one of several rationales of a question, and that ties go by id, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkd.cache import Cache, cache_key
from rlkd.engines.base import Engine, EngineError, Sampling
from rlkd.rationales.records import Question
from rlkd.rationales.select.asking import Student
from rlkd.rationales.select.contract import NOT_MEASURED, Judgement, report_failures
from rlkd.rationales.select.rationale_difficulty import TEMPLATE, nlls
from rlkd.rationales.similarity import rouge_l

TOO_HARD = "too hard for the student"
FUSION = 60

# Questions of one call of the engine: what has been measured is kept after each.
_QUESTIONS = 128


def fused_ranks(rouges: Sequence[float], losses: Sequence[float], names: Sequence[str]) -> list[float]:
    """The score of each example by reciprocal-rank fusion; ranks begin with 1, and ties go by name.

    >>> [round(score, 5) for score in fused_ranks([0.9, 0.1], [2.0, 1.0], ["a", "b"])]
    [0.03252, 0.03252]
    """
    scores = [0.0] * len(names)
    for keys in ([-rouge for rouge in rouges], losses):
        order = sorted(range(len(names)), key=lambda place: (keys[place], names[place]))
        for rank, place in enumerate(order, 1):
            scores[place] += 1 / (FUSION + rank)
    return scores


def stages_of(scores: Sequence[float], names: Sequence[str], stages: int) -> list[int]:
    """The stage, 1 to `stages`, of each example: the highest scores first, in parts of one size but for 1."""
    order = sorted(range(len(names)), key=lambda place: (-scores[place], names[place]))
    found = [0] * len(names)
    for rank, place in enumerate(order):
        found[place] = 1 + rank * stages // len(names)
    return found


class SelectiveReflection:
    """Keeps the easiest share of all examples, and gives each its stage. Scores `srd` (high: easy) and `stage`.

    It ranks all candidates of all questions against each other, so that it must see them in one call.

    Args:
        student: spec of the student before training.
        stages: of the curriculum.
        keep: share of the examples that are kept, above 0 and at most 1. The paper keeps all.
        max_new_tokens: of the student's answer.
        template: the text before an answer, with `{question}` in it.
        cache: where what was measured is kept.
        deadline: seconds for one call of the engine, of 128 questions.
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
        template: str = TEMPLATE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        if stages < 1 or not 0 < keep <= 1:
            raise ValueError(f"stages={stages}, keep={keep}: expected at least 1, and a share above 0 and at most 1")
        self.student = Student("selector 'srd'", student, template, cache, deadline)
        self.stages = stages
        self.keep = keep
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop=("\nQuestion:",))

    def check_ready(self) -> None:
        """Raise `UsageError` where the student is a server that does not answer or lacks the model."""
        self.student.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        losses: list[float | EngineError] = []
        rouges: list[float | EngineError] = []
        for start in range(0, len(questions), _QUESTIONS):
            some = questions[start : start + _QUESTIONS]
            written = await self._answers([self.student.prompt(question) for question in some])
            requests = [
                (self.student.prompt(question), f" {each.text.strip()}")
                for question in some
                for each in question.candidates
            ]
            known = await nlls(self.student.engine, requests, self.student.cache, self.student.deadline)
            losses += [known[request] for request in requests]
            for question, answer in zip(some, written, strict=True):
                rouges += [
                    answer if isinstance(answer, EngineError) else rouge_l(answer, each.text)
                    for each in question.candidates
                ]
        return self._judged(questions, rouges, losses)

    def _judged(
        self,
        questions: Sequence[Question],
        rouges: Sequence[float | EngineError],
        losses: Sequence[float | EngineError],
    ) -> list[list[Judgement]]:
        # The question belongs to the name: one text may stand under two.
        names = [f"{question.id}\x1f{each.id}" for question in questions for each in question.candidates]
        causes = []
        measured: list[tuple[int, float, float]] = []
        for place, (rouge, loss) in enumerate(zip(rouges, losses, strict=True)):
            if isinstance(rouge, EngineError):
                causes.append(str(rouge))
            elif isinstance(loss, EngineError):
                causes.append(str(loss))
            else:
                measured.append((place, rouge, loss))
        report_failures(self.__name__, causes, len(names))
        known = [names[place] for place, _, _ in measured]
        scores = fused_ranks([rouge for _, rouge, _ in measured], [loss for *_, loss in measured], known)
        order = sorted(range(len(known)), key=lambda index: (-scores[index], known[index]))
        easy = order[: max(1, round(self.keep * len(order)))]
        stage = stages_of([scores[index] for index in easy], [known[index] for index in easy], self.stages)
        judged = [Judgement(NOT_MEASURED)] * len(names)
        for index, (place, _, _) in enumerate(measured):
            judged[place] = Judgement(TOO_HARD, {"srd": scores[index]})
        for index, number in zip(easy, stage, strict=True):
            judged[measured[index][0]] = Judgement(None, {"srd": scores[index], "stage": float(number)})
        told = iter(judged)
        return [[next(told) for _ in question.candidates] for question in questions]

    async def _answers(self, prompts: Sequence[str]) -> list[str | EngineError]:
        """The student's greedy answer to each prompt, from the cache where it is known."""
        engine, cache = self.student.engine, self.student.cache
        settings = (self.sampling.max_new_tokens, self.sampling.stop)
        keys = [cache_key("greedy answer", 1, engine.name, settings, prompt) for prompt in prompts]
        known: dict[str, str | EngineError] = dict(cache.get(keys)) if cache is not None else {}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        deadline = self.student.deadline
        replies = await engine.generate(list(missing.values()), self.sampling, deadline=deadline) if missing else []
        fresh = {}
        for key, reply in zip(missing, replies, strict=True):
            known[key] = reply if isinstance(reply, EngineError) else reply.text
            if not isinstance(reply, EngineError):
                fresh[key] = reply.text
        if cache is not None:
            cache.put(fresh)
        return [known[key] for key in keys]
