"""The selector `correct`: rationales whose answer is the right one (MoRSD, arXiv 2509.23574, second stage)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from rlkd.answers import VERIFY_SECONDS, VerificationError, equal_pairs, extract_answer
from rlkd.engines.base import Engine, EngineError, Sampling
from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.asking import Asked
from rlkd.rationales.select.contract import NOT_MEASURED, Judgement, report_failures
from rlkd.rationales.select.rationale_difficulty import CUE, TEMPLATE, check_template, strip_answer

NO_GOLD = "the question has no right answer"
NO_ANSWER = "no answer"
WRONG = "wrong answer"
UNREADABLE_GOLD = "the right answer cannot be read"
NOT_COMPARED = "answers could not be compared"
# No answer is as long, and comparing what is takes a worker all its time. Characters.
_LONGEST_ANSWER = 500
NOT_FOLLOWED = "its steps do not lead to the answer"


class Correct:
    """Keeps what announces the right answer (`rlkd.answers`, in workers that are killed where a comparison hangs).

    A rationale that was written to a known answer (source `hinted`) always has the right one at its end. With
    `second_look`, such a one also has to lead there: that engine gets the question and the rationale without its
    answer, and must find the right answer in a few tokens. Our choice, after methods that verify rationales so.

    Args:
        second_look: spec of an engine, for `hinted` candidates; None: their own announcement is believed.
        template: the text before a rationale, with `{question}` in it.
        fallback: `last_number` takes the last number of a rationale that announces no answer (`A: 18`); it also takes
            that of one which was cut off.
        seconds: for one comparison of two answers.
        max_new_tokens: for the answer in a second look.
        deadline: seconds for one call of the engine.
    """

    __name__ = "correct"

    def __init__(
        self,
        *,
        second_look: str | Engine | None = None,
        template: str = TEMPLATE,
        fallback: Literal["none", "last_number"] = "none",
        seconds: float = VERIFY_SECONDS,
        max_new_tokens: int = 32,
        deadline: float | None = None,
    ) -> None:
        check_template(template)
        self.asked = None if second_look is None else Asked("selector 'correct'", second_look, deadline)
        self.template = template
        if fallback not in ("none", "last_number"):
            raise ValueError(f"fallback={fallback!r}: expected 'none' or 'last_number'")
        self.fallback: Literal["none", "last_number"] = fallback
        self.seconds = seconds
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop=("\n",))
        self.deadline = deadline

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine is a server that does not answer or lacks the model."""
        if self.asked is not None:
            self.asked.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        pairs = [(question, each) for question in questions for each in question.candidates]
        answers = [each.answer or extract_answer(each.text, self.fallback) for _, each in pairs]
        reasons = await self._compare([question for question, _ in pairs], answers)
        if self.asked is not None:
            hinted = [place for place, (_, each) in enumerate(pairs) if each.source == "hinted" and not reasons[place]]
            for place, reason in zip(hinted, await self._look_again([pairs[place] for place in hinted]), strict=True):
                reasons[place] = reason
        told = iter(reasons)
        return [[Judgement(next(told)) for _ in question.candidates] for question in questions]

    async def _compare(self, questions: Sequence[Question], answers: Sequence[str | None]) -> list[str | None]:
        golds = [extract_answer(question.answer or "") or (question.answer or "").strip() for question in questions]
        pairs = [(answer or "", gold) for answer, gold in zip(answers, golds, strict=True)]
        short = [(answer if len(answer) <= _LONGEST_ANSWER else "", gold) for answer, gold in pairs]
        compared = await asyncio.to_thread(equal_pairs, short, seconds=self.seconds)
        reasons: list[str | None] = []
        for (answer, gold), same in zip(pairs, compared, strict=True):
            if not gold:
                reasons.append(NO_GOLD)
            elif not answer.strip():
                reasons.append(NO_ANSWER)
            elif len(answer) > _LONGEST_ANSWER or isinstance(same, VerificationError):
                reasons.append(NOT_COMPARED)
            elif same is None:
                reasons.append(UNREADABLE_GOLD)
            else:
                reasons.append(None if same else WRONG)
        return reasons

    async def _look_again(self, pairs: Sequence[tuple[Question, Candidate]]) -> list[str | None]:
        if self.asked is None or not pairs:
            return []
        prompts = [
            (self.template.replace("{question}", question.question) + strip_answer(each.text)).rstrip() + CUE
            for question, each in pairs
        ]
        replies = await self.asked.engine.generate(list(prompts), self.sampling, deadline=self.deadline)
        causes = [str(reply) for reply in replies if isinstance(reply, EngineError)]
        report_failures(self.__name__, causes, len(pairs))
        texts = ["" if isinstance(reply, EngineError) else reply.text for reply in replies]
        answers = [extract_answer(text) or text.strip() for text in texts]
        reasons = await self._compare([question for question, _ in pairs], answers)
        return [
            NOT_MEASURED if isinstance(reply, EngineError) else None if reason is None else NOT_FOLLOWED
            for reply, reason in zip(replies, reasons, strict=True)
        ]
