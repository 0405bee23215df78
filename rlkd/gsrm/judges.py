"""Judges: do a student's step and the teacher's step at the same place agree?

A judge gets aligned structures and gives the verdicts that `rlkd.gsrm.alignment` turns into a score. It may stop
after the first step whose meta parts differ, since nothing after it counts.

| name            | meta                                   | question              | answer             |
| --------------- | -------------------------------------- | --------------------- | ------------------ |
| `deterministic` | shared words, or the same calculation  | same calculation      | same number or text |
| `model`         | "same sub-problem?", yes against no    | the same              | "same result?", numbers first |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol

from rlkd.answers import number, squeezed
from rlkd.engines.base import Engine, EngineError, Message
from rlkd.gsrm.alignment import Verdict
from rlkd.structure import Step, Structure

Pair = tuple[Structure, Structure]
Field = Literal["meta", "question", "answer"]


class JudgeError(RuntimeError):
    """The judge gave no verdict on a pair of structures; this says nothing about them."""


class Judge(Protocol):
    """Anything that compares (student, teacher) structures step by step, many at once."""

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """The verdicts on each pair: one a pair of steps, ending early at most after a meta mismatch."""


class DeterministicJudge:
    """Words and numbers. Free, exact, repeatable; takes a paraphrase for another thing.

    - answer: the same number where both are numbers ("$1,200" is 1200), else the same text but for case and spaces.
    - question: the same numbers and operators where both hold a calculation, in any order; else shared words.
    - meta: shared words, or the same calculation with the same result: two steps that compute the same from the same
      serve the same purpose, in whatever words.

    Args:
        threshold: words are shared if their Jaccard index (content words, crude stems, without numbers) reaches it.
            Our choice of 0.6, measured on the Socratic sub-questions of the embedded sample: two different
            sub-questions of one problem reach it in 18 % of the pairs. No threshold separates paraphrases from
            neighbours by words alone; that is what model judges are for.
    """

    def __init__(self, threshold: float = 0.6):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a number above 0, at most 1")
        self.threshold = threshold

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`."""
        return [self._verdicts(student, teacher) for student, teacher in pairs]

    def _verdicts(self, student: Structure, teacher: Structure) -> list[Verdict]:
        verdicts = []
        for mine, theirs in zip(student.steps, teacher.steps, strict=False):
            verdict = self.compare(mine, theirs)
            verdicts.append(verdict)
            if not verdict.meta:
                break
        return verdicts

    def compare(self, mine: Step, theirs: Step) -> Verdict:
        """The verdict on one pair of steps."""
        question = _compare(mine.question, theirs.question, self._same_question)
        answer = _compare(mine.answer, theirs.answer, same_answer)
        computed = None not in (mine.question, theirs.question, mine.answer, theirs.answer)
        meta = (computed and bool(question) and bool(answer)) or self._shares_words(*purposes(mine, theirs))
        return Verdict(meta, question, answer)

    def _same_question(self, mine: str, theirs: str) -> bool:
        left, right = _calculation(mine), _calculation(theirs)
        if left is not None and right is not None:
            return left == right
        return self._shares_words(mine, theirs)

    def _shares_words(self, mine: str, theirs: str) -> bool:
        left, right = _content_words(mine), _content_words(theirs)
        if not left and not right:
            return _squeezed(mine) == _squeezed(theirs)
        return len(left & right) >= self.threshold * len(left | right)


class ModelJudge:
    """A model that is asked, and whose log-probability of "Yes" is compared with that of "No".

    Never a search for a word in generated text, and one forward pass a question. All distinct questions about meta
    parts go out in one batch, then all about the parts of those steps that are still in the chain. A verdict on a pair
    of texts is kept for the life of the judge.

    Args:
        engine: the model.
        margin: how much likelier than "no" (in nats) "yes" must be. Small models say yes too easily; raise it.
        deadline: seconds for one batch of questions.
    """

    def __init__(self, engine: Engine, *, margin: float = 0.0, deadline: float | None = 300.0):
        self.engine = engine
        self.margin = margin
        self.deadline = deadline
        self._known: dict[tuple[Field, str, str], bool] = {}

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`. A question that the engine fails to answer costs its own pair of structures only."""
        steps = [list(zip(student.steps, teacher.steps, strict=False)) for student, teacher in pairs]
        metas = [[purposes(mine, theirs) for mine, theirs in aligned] for aligned in steps]
        errors = await self._ask(("meta", *texts) for aligned in metas for texts in aligned)
        alive = []
        for aligned, texts in zip(steps, metas, strict=True):
            length = next((i for i, t in enumerate(texts) if not self._known.get(("meta", *t), True)), len(aligned))
            alive.append(aligned[:length])
        # What the same letters or the same number settle is not asked.
        asked: list[tuple[Field, str, str]] = []
        for aligned in alive:
            for mine, theirs in aligned:
                if mine.question and theirs.question:
                    asked.append(("question", mine.question, theirs.question))
                if mine.answer and theirs.answer:
                    asked.append(("answer", mine.answer, theirs.answer))
        errors |= await self._ask(asked)
        return [
            self._verdicts(aligned, texts, len(live), errors)
            for aligned, texts, live in zip(steps, metas, alive, strict=True)
        ]

    def _verdicts(
        self,
        aligned: Sequence[tuple[Step, Step]],
        metas: Sequence[tuple[str, str]],
        alive: int,
        errors: Mapping[tuple[Field, str, str], EngineError],
    ) -> list[Verdict] | JudgeError:
        verdicts = []
        for (mine, theirs), texts in zip(aligned[:alive], metas, strict=False):
            fields: list[tuple[Field, str | None, str | None]] = [
                ("meta", *texts),
                ("question", mine.question, theirs.question),
                ("answer", mine.answer, theirs.answer),
            ]
            for field, left, right in fields:
                if left and right and (error := errors.get((field, left, right))):
                    return JudgeError(str(error))
            question = _compare(mine.question, theirs.question, lambda a, b: self._known["question", a, b])
            answer = _compare(mine.answer, theirs.answer, lambda a, b: self._known["answer", a, b])
            verdicts.append(Verdict(True, question, answer))
        if alive < len(aligned):
            verdicts.append(Verdict(False, None, None))
        return verdicts

    async def _ask(self, questions: Iterable[tuple[Field, str, str]]) -> dict[tuple[Field, str, str], EngineError]:
        """Answer the questions whose answers are not known yet; the errors of those that could not be answered."""
        new = []
        for key in dict.fromkeys(questions):
            if key in self._known:
                continue
            settled = _settled(*key)
            if settled is None:
                new.append(key)
            else:
                self._known[key] = settled
        if not new:
            return {}
        replies = await self.engine.choose([self._prompt(*key) for key in new], ("Yes", "No"), deadline=self.deadline)
        errors = {}
        for key, reply in zip(new, replies, strict=True):
            if isinstance(reply, EngineError):
                errors[key] = reply
            else:
                yes, no = reply
                self._known[key] = yes - no > self.margin
        return errors

    @staticmethod
    def _prompt(field: Field, mine: str, theirs: str) -> list[Message]:
        asked = _QUESTIONS[field]
        return [{"role": "user", "content": f"First: {mine}\nSecond: {theirs}\n\n{asked} Answer with Yes or No."}]


_QUESTIONS: Mapping[Field, str] = {
    "meta": "Are these two steps of reasoning devoted to the same sub-problem?",
    "question": "Do these two ask for the same thing to be worked out?",
    "answer": "Do these two state the same result?",
}


def purposes(mine: Step, theirs: Step) -> tuple[str, str]:
    """The texts by which two steps are aligned: their meta parts; for a step without one, its question.

    Our choice (the paper has no optional fields): a teacher's structure without meta parts is still followed in order.
    """
    return _purpose(mine), _purpose(theirs)


def _purpose(step: Step) -> str:
    return step.meta or step.question or step.answer or ""


def same_answer(mine: str, theirs: str) -> bool:
    """The same number where both are plain numbers, else the same text but for case, spaces and currency."""
    left, right = number(mine), number(theirs)
    if left is not None and right is not None:
        return left == right
    return squeezed(mine) == squeezed(theirs)


def _settled(field: Field, mine: str, theirs: str) -> bool | None:
    """A verdict that needs no model: equal texts, or two numbers."""
    if field != "answer":
        return _squeezed(mine) == _squeezed(theirs) or None
    numbers = None not in (number(mine), number(theirs))
    return same_answer(mine, theirs) or (False if numbers else None)


def _compare(mine: str | None, theirs: str | None, same: Callable[[str, str], bool]) -> bool | None:
    if mine is None and theirs is None:
        return True
    if mine is None or theirs is None:
        return None
    return bool(same(mine, theirs))


_TOKENS = re.compile(r"\d+(?:,\d+)*(?:\.\d+)?|\.\d+|[-+*/^]|\w+|\S")
_OPERATORS = {"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "times": "*"}


def _calculation(text: str) -> Counter[str] | None:
    """The numbers and operators of a text in any order, or None for a text without a calculation."""
    found: Counter[str] = Counter()
    for token in _TOKENS.findall(text):
        token = _OPERATORS.get(token, token)
        if token in "-+*/^":
            found[token] += 1
        elif (value := number(token)) is not None:
            found[str(value)] += 1
    has_operator = any(operator in found for operator in "-+*/^")
    return found if has_operator and len(found) > 1 else None


_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for by with and or so then is are was were be been do does did has have "
        "had he she it they his her its their this that these those there how many much what which who "
        "total now will would if as from each per more still left",
    )
)


def _content_words(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z]+", text.lower())
    return frozenset(_stem(word) for word in words if word not in _STOP_WORDS and len(word) > 1)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


def _squeezed(text: str) -> str:
    # For words only: a sub-question may end with any mark, but the answer "5!" is not "5".
    return squeezed(text).rstrip(".?!")
