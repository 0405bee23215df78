"""The selector `correct`: rationales whose answer is right (MoRSD, arXiv 2509.23574, second stage)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from rlkd.answers import VERIFY_SECONDS, VerificationError, equal_pairs, extract_answer
from rlkd.engines.base import Engine, EngineError, Sampling
from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.contract import NOT_MEASURED, SelectorVerdict, by_question, report_failures
from rlkd.rationales.select.engine import CUE, TEMPLATE, WithEngine, check_template, prompt_text
from rlkd.rationales.select.stripping import strip_answer

NO_GOLD = "the question has no right answer"
NO_ANSWER = "no answer"
WRONG = "wrong answer"
UNREADABLE_GOLD = "the right answer cannot be read"
NOT_COMPARED = "answers could not be compared"
# A longer text is not an answer, and comparing it takes a worker all its time. Characters.
MAX_ANSWER = 500
# Sources of rationales that were written to a known answer.
KNOWN_ANSWER = ("hinted", "contrast")
NOT_FOLLOWED = "its steps do not lead to the answer"


class _SecondLook(WithEngine):
    __name__ = "correct"


class Correct:
    """Keeps rationales that announce the right answer (`rlkd.answers`, in workers that are killed if they hang).

    Args:
        second_look: spec of an engine that gets question and rationale of a `hinted` or `contrast` candidate, without
            its answer, and must find the right one (our choice); None: their announced answer is trusted.
        template: the text before a rationale, with `{question}` in it.
        fallback: `last_number` takes the last number of a rationale that announces no answer (`A: 18`), also of a
            truncated one.
        seconds: time limit for one comparison of two answers.
        max_new_tokens: of the answer in a second look.
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
        if fallback not in ("none", "last_number"):
            raise ValueError(f"fallback={fallback!r}: expected 'none' or 'last_number'")
        self.second_look = None if second_look is None else _SecondLook(second_look, deadline=deadline)
        self.template = template
        self.fallback: Literal["none", "last_number"] = fallback
        self.seconds = seconds
        self.sampling = Sampling(max_new_tokens=max_new_tokens, stop=("\n",))

    def check_ready(self) -> None:
        """Raise `UsageError` if the engine is a server that does not answer or lacks the model."""
        if self.second_look is not None:
            self.second_look.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        pairs = [(question, each) for question in questions for each in question.candidates]
        answers = [each.answer or extract_answer(each.text, self.fallback) for _, each in pairs]
        reasons = await self.compare([question for question, _ in pairs], answers)
        if self.second_look is not None:
            hinted = [n for n, (_, each) in enumerate(pairs) if each.source in KNOWN_ANSWER and not reasons[n]]
            second = await self._look_again(self.second_look, [pairs[n] for n in hinted]) if hinted else []
            for n, reason in zip(hinted, second, strict=True):
                reasons[n] = reason
        return by_question(map(SelectorVerdict, reasons), questions)

    async def compare(self, questions: Sequence[Question], answers: Sequence[str | None]) -> list[str | None]:
        """Why each answer is not the right one of its question; None where it is."""
        golds = [extract_answer(question.answer or "") or (question.answer or "").strip() for question in questions]
        pairs = [(answer or "", gold) for answer, gold in zip(answers, golds, strict=True)]
        short = [(answer if len(answer) <= MAX_ANSWER else "", gold) for answer, gold in pairs]
        compared = await asyncio.to_thread(equal_pairs, short, seconds=self.seconds)
        return [_reason(*pair, same) for pair, same in zip(pairs, compared, strict=True)]

    async def _look_again(
        self, second_look: WithEngine, pairs: Sequence[tuple[Question, Candidate]]
    ) -> list[str | None]:
        prompts = [prompt_text(self.template, question, strip_answer(each.text), CUE) for question, each in pairs]
        replies = await second_look.engine.generate(prompts, self.sampling, deadline=second_look.deadline)
        report_failures(self.__name__, replies)
        texts = ["" if isinstance(reply, EngineError) else reply.text for reply in replies]
        answers = [extract_answer(text) or text.strip() for text in texts]
        reasons = await self.compare([question for question, _ in pairs], answers)
        return [
            NOT_MEASURED if isinstance(reply, EngineError) else None if reason is None else NOT_FOLLOWED
            for reply, reason in zip(replies, reasons, strict=True)
        ]


def _reason(answer: str, gold: str, same: bool | VerificationError | None) -> str | None:
    if not gold:
        return NO_GOLD
    if not answer.strip():
        return NO_ANSWER
    if len(answer) > MAX_ANSWER or isinstance(same, VerificationError):
        return NOT_COMPARED
    if same is None:
        return UNREADABLE_GOLD
    return None if same else WRONG
