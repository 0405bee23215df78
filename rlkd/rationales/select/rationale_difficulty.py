"""Rationale difficulty: how much easier a rationale makes the right answer for one student; the selector `difficulty`.

    log RD(r) = NLL(a | x, r) - NLL(a | x)            NLL: mean surprisal of the answer's tokens, in nats

Below 0 the rationale r of the question x helps this student to the answer a, above 0 it confuses it. The name is
MoRSD's (arXiv 2509.23574), whose text we know from its abstract; the formula is our choice, the natural reading of
"the student's ability to generate the correct answer under a given rationale". The answer is removed from r first
(`strip_answer`); otherwise the rationale that states it most plainly would win. The engine scores texts of this form,
once per question without the rationale:

    <the prompt of training: chat template, system prompt, x><r, stripped>
    #### <a>

Requests of one question follow each other, so that an engine can read x once (the transformers engine does).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rlkd.answers import extract_answer
from rlkd.cache import Cache
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import SelectorVerdict, check_keep, keep_lowest, report_failures
from rlkd.rationales.select.correct import NO_GOLD
from rlkd.rationales.select.engine import CUE, WithStudent
from rlkd.rationales.select.stripping import leaks, strip_answer

HARDER = "harder for the student than the kept ones"
EASIER = "easier for the student than the kept ones"


@dataclass(frozen=True, slots=True)
class RationaleDifficulty:
    """The measurement of one rationale, in nats per token of the answer. `leaks`: see `stripping.leaks`."""

    nll: float
    nll_without: float
    leaks: bool

    @property
    def log_rd(self) -> float:
        """The logarithm of the rationale difficulty; lower is easier."""
        return self.nll - self.nll_without


class DifficultySelector(WithStudent):
    """Keeps the `keep` candidates of a question with the lowest rationale difficulty.

    Six is the paper's best number, according to a summary of it; the order of the stages is the paper's: after
    `correct` and `diverse`. Scores `log_rd`, and `leaks`: 1 if the scored text still contained the answer.

    Args:
        student, template, prompt_style, cache, deadline: see `WithStudent`; a call has about a thousand requests.
        keep: number of candidates to keep per question.
        worst: keep the highest difficulty instead: the control.
        cue: the text between rationale and answer; a space and the answer follow.
    """

    __name__ = "difficulty"

    def __init__(
        self,
        student: str | Engine,
        *,
        keep: int = 6,
        worst: bool = False,
        template: str | None = None,
        prompt_style: Mapping[str, Any] | None = None,
        cue: str = CUE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        check_keep(keep)
        super().__init__(student, template, prompt_style, cache, deadline)
        self.keep = keep
        self.worst = worst
        self.cue = cue

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        measured = await self.measure(questions)
        report_failures(self.__name__, [each for row in measured for each in row])
        return [self._judged(question, row) for question, row in zip(questions, measured, strict=True)]

    async def measure(self, questions: Sequence[Question]) -> list[list[RationaleDifficulty | EngineError | None]]:
        """The difficulty of every candidate, one list per question; the error if the engine failed.

        None for a candidate of a question without a right answer.
        """
        requests = [self.requests(question) for question in questions]
        flat = [request for some in requests for request in some]
        surprisals = iter(await self.mean_surprisals(flat))
        return [
            _difficulties(question, list(islice(surprisals, len(some))))
            for question, some in zip(questions, requests, strict=True)
        ]

    def requests(self, question: Question) -> list[tuple[str, str]]:
        """The requests for a question: (context, answer), first without a rationale, then for each candidate.

        Empty for a question without a right answer.
        """
        answer = _gold(question)
        if answer is None:
            return []
        rationales = ["", *(strip_answer(each.text) for each in question.candidates)]
        return [(self.up_to_answer(question, each, self.cue), f" {answer}") for each in rationales]

    def _judged(
        self, question: Question, measured: Sequence[RationaleDifficulty | EngineError | None]
    ) -> list[SelectorVerdict]:
        if None in measured:
            return [SelectorVerdict(NO_GOLD)] * len(measured)
        keys: list[float | None] = [None] * len(measured)
        scores: list[dict[str, float]] = [{}] * len(measured)
        for index, each in enumerate(measured):
            if isinstance(each, RationaleDifficulty):
                keys[index] = -each.log_rd if self.worst else each.log_rd
                scores[index] = {"log_rd": each.log_rd, "leaks": float(each.leaks)}
        return keep_lowest(question, keys, self.keep, EASIER if self.worst else HARDER, scores)


def _difficulties(
    question: Question, surprisals: Sequence[float | EngineError]
) -> list[RationaleDifficulty | EngineError | None]:
    gold = _gold(question)
    if gold is None:
        return [None] * len(question.candidates)
    without, *own = surprisals
    if isinstance(without, EngineError):
        return [without] * len(question.candidates)
    return [
        nll
        if isinstance(nll, EngineError)
        else RationaleDifficulty(nll, without, leaks(strip_answer(each.text), gold))
        for each, nll in zip(question.candidates, own, strict=True)
    ]


def _gold(question: Question) -> str | None:
    """The right answer itself, without its announcement; None if there is none."""
    if question.answer is None or not question.answer.strip():
        return None
    return extract_answer(question.answer) or question.answer.strip()
