"""Judges: do a student's step and the teacher's step at the same place agree?

A judge gets aligned structures and gives the verdicts that `rlkd.gsrm.alignment` turns into a score. It may stop
after the first step whose meta parts differ, since nothing after it counts.

| name            | meta                                       | question              | answer              |
| --------------- | ------------------------------------------ | --------------------- | ------------------- |
| `deterministic` | evidence of the calculation, else words    | same calculation      | same number or text |
| `embedding`     | evidence of the calculation, else a cosine | same calculation      | same number or text |
| `model`         | "same sub-problem?", yes against no        | calculation, else asked | number, else asked |

How often each of them errs, on labelled pairs of steps: `docs/judges.md`, `rlkd gsrm judges`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from rlkd.answers import number, squeezed
from rlkd.engines.base import Engine, EngineError, Message
from rlkd.engines.embeddings import SentenceEncoder
from rlkd.gsrm.alignment import Verdict
from rlkd.gsrm.calculations import calculation
from rlkd.gsrm.stores import VerdictStore, verdict_key
from rlkd.gsrm.words import name_different_things, same_letters, share_of_words
from rlkd.structure import Step, Structure

Pair = tuple[Structure, Structure]
Field = Literal["meta", "question", "answer"]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class JudgeError(RuntimeError):
    """The judge gave no verdict on a pair of structures; this says nothing about them."""


class Judge(Protocol):
    """Anything that compares (student, teacher) structures step by step, many at once."""

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """The verdicts on each pair: one a pair of steps, ending early at most after a meta mismatch."""


class DeterministicJudge:
    """Words and numbers. Free, exact, repeatable, and in need of no model.

    - answer: the same number where both are numbers ("$1,200" is 1200), else the same text but for case and spaces.
    - question: the same calculation, however it is written (`rlkd.gsrm.calculations`); else shared words and the same
      numbers.
    - meta: what the calculations say of it (`purpose_by_evidence`), else shared words.

    Args:
        threshold: words are shared if their Jaccard index (`rlkd.gsrm.words`) reaches it. Our choice of 0.8, fitted on
            half of the labelled pairs. Words alone cannot separate paraphrases from neighbouring steps; here they
            decide only where the calculations say nothing.
    """

    def __init__(self, threshold: float = 0.8):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a number above 0, at most 1")
        self.threshold = threshold

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`."""
        return [_until_break(student, teacher, self.compare) for student, teacher in pairs]

    def compare(self, mine: Step, theirs: Step) -> Verdict:
        """The verdict on one pair of steps."""
        meta = purpose_by_evidence(mine, theirs)
        if meta is None:
            meta = share_of_words(*purposes(mine, theirs)) >= self.threshold
        question = _compare(mine.question, theirs.question, self._same_question)
        return Verdict(meta, question, _compare(mine.answer, theirs.answer, same_answer))

    def _same_question(self, mine: str, theirs: str) -> bool:
        same = same_calculation(mine, theirs)
        if same is None:
            same = share_of_words(mine, theirs) >= self.threshold and _numbers(mine) == _numbers(theirs)
        return same


class EmbeddingJudge:
    """Sentence embeddings for the sub-questions; calculations and results exactly, since embeddings cannot count.

    - meta: what the calculations say of it (`purpose_by_evidence`); else the cosine of the two texts.
    - question and answer: as `DeterministicJudge`, with the cosine in place of shared words.

    Args:
        model: folder or hub id of a sentence encoder (`rlkd.engines.embeddings`).
        threshold: the least cosine of texts that mean the same. It belongs to the model: fit it anew for another one
            (`rlkd gsrm judges --judge embedding --embedding-model NAME --threshold X`).
        device: where the model runs; by default cuda, else mps, else cpu.
    """

    def __init__(self, model: str = MINILM, threshold: float = 0.93, *, device: str | None = None):
        if not -1 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a cosine above -1, at most 1")
        self.threshold = threshold
        self.encoder = SentenceEncoder(model, device=device)

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`. The texts of a batch are embedded in one call; where it fails, the pairs that need it do."""
        compared: dict[tuple[str, str], None] = {}
        for student, teacher in pairs:
            for mine, theirs in zip(student.steps, teacher.steps, strict=False):
                meta = purpose_by_evidence(mine, theirs)
                if meta is False:
                    break
                if meta is None:
                    compared[purposes(mine, theirs)] = None
                if mine.question and theirs.question and same_calculation(mine.question, theirs.question) is None:
                    compared[mine.question, theirs.question] = None
        cosines: dict[tuple[str, str], float] = {}
        failure = ""
        try:
            vectors = await self.encoder.encode([text for texts in compared for text in texts])
            cosines = dict(zip(compared, (vectors[0::2] * vectors[1::2]).sum(1).tolist(), strict=True))
        except EngineError as error:
            failure = str(error)

        def similar(mine: str, theirs: str) -> bool:
            if (mine, theirs) not in cosines:
                raise JudgeError(failure)
            return cosines[mine, theirs] >= self.threshold

        def same_question(mine: str, theirs: str) -> bool:
            same = same_calculation(mine, theirs)
            return similar(mine, theirs) and _numbers(mine) == _numbers(theirs) if same is None else same

        def compare(mine: Step, theirs: Step) -> Verdict:
            meta = purpose_by_evidence(mine, theirs)
            if not (similar(*purposes(mine, theirs)) if meta is None else meta):
                return Verdict(False, None, None)
            question = _compare(mine.question, theirs.question, same_question)
            return Verdict(True, question, _compare(mine.answer, theirs.answer, same_answer))

        return [_until_break(student, teacher, compare) for student, teacher in pairs]


class ModelJudge:
    """A model that is asked, and whose log-probability of "Yes" is compared with that of "No".

    Never a search for a word in generated text, and one forward pass a question. All distinct questions of a batch, on
    all parts of all aligned steps, go out in one call: those about steps after a break are wasted then, but a second
    call would make every batch wait twice. Not asked is what equal letters, equal calculations or two numbers settle,
    and what has been answered before: answers are kept for the life of the judge, and in the `store` beyond it.

    A question names its two texts in alphabetical order (our choice): "the same?" has no direction, so a verdict
    cannot depend on who is the student or on which pair of a batch came first, and is asked once for both.

    Args:
        engine: the model.
        margin: how much likelier than "no" (in nats) "yes" must be. Small models say yes too easily; raise it.
        deadline: seconds for one batch of questions.
        store: a file that keeps the answers across runs (`rlkd.gsrm.stores`). Failures are not kept.
    """

    def __init__(
        self, engine: Engine, *, margin: float = 0.0, deadline: float | None = 300.0, store: Path | None = None
    ):
        self.engine = engine
        self.margin = margin
        self.deadline = deadline
        self.store = VerdictStore(store) if store is not None else None
        self._log_odds: dict[_Question, float] = {}

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`. A question that the engine fails to answer costs its own pair of structures only."""
        questions = [
            [_questions(mine, theirs) for mine, theirs in zip(student.steps, teacher.steps, strict=False)]
            for student, teacher in pairs
        ]
        self._recall(question for steps in questions for step in steps for question in step)
        asked: dict[_Question, None] = {}
        for steps in questions:
            for step in steps:
                if step and step[0][0] == "meta" and self._log_odds.get(step[0], math.inf) <= self.margin:
                    break  # known to be the end of the chain before anything is asked
                asked |= dict.fromkeys(question for question in step if question not in self._log_odds)
        errors = await self._ask(list(asked)) if asked else {}

        def same(field: Field, mine: str, theirs: str) -> bool:
            settled = _settled(field, mine, theirs)
            if settled is not None:
                return settled
            question = _question(field, mine, theirs)
            if question in errors:
                raise JudgeError(errors[question])
            return self._log_odds[question] > self.margin

        def compare(mine: Step, theirs: Step) -> Verdict:
            if not same("meta", *purposes(mine, theirs)):
                return Verdict(False, None, None)
            question = _compare(mine.question, theirs.question, partial(same, "question"))
            return Verdict(True, question, _compare(mine.answer, theirs.answer, partial(same, "answer")))

        return [_until_break(student, teacher, compare) for student, teacher in pairs]

    def _recall(self, questions: Iterable[_Question]) -> None:
        """Take over what the store knows of these questions."""
        if self.store is None:
            return
        keys = {verdict_key(self.engine.name, _prompt(*q)): q for q in questions if q not in self._log_odds}
        for key, log_odds in self.store.get(list(keys)).items():
            self._log_odds[keys[key]] = log_odds

    async def _ask(self, questions: Sequence[_Question]) -> dict[_Question, str]:
        """Have the questions answered, in one call; why those failed that did."""
        prompts = [_prompt(*question) for question in questions]
        replies = await self.engine.choose(prompts, ("Yes", "No"), deadline=self.deadline)
        errors: dict[_Question, str] = {}
        kept: dict[str, float] = {}
        for question, prompt, reply in zip(questions, prompts, replies, strict=True):
            if isinstance(reply, EngineError):
                errors[question] = str(reply)
                continue
            yes, no = reply
            if math.isnan(yes - no):
                errors[question] = f"{self.engine.name}: no comparable log-probabilities of Yes ({yes}) and No ({no})"
                continue
            self._log_odds[question] = kept[verdict_key(self.engine.name, prompt)] = yes - no
        if self.store is not None:
            self.store.put(kept)
        return errors


_Question = tuple[Field, str, str]

_WORDING: Mapping[Field, str] = {
    "meta": "Are these two steps of reasoning devoted to the same sub-problem?",
    "question": "Do these two ask for the same thing to be worked out?",
    "answer": "Do these two state the same result?",
}


def _question(field: Field, mine: str, theirs: str) -> _Question:
    return (field, mine, theirs) if mine <= theirs else (field, theirs, mine)


def _questions(mine: Step, theirs: Step) -> list[_Question]:
    """What has to be asked about two steps, meta first."""
    parts: list[tuple[Field, str | None, str | None]] = [
        ("meta", *purposes(mine, theirs)),
        ("question", mine.question, theirs.question),
        ("answer", mine.answer, theirs.answer),
    ]
    return [
        _question(field, left, right)
        for field, left, right in parts
        if left and right and _settled(field, left, right) is None
    ]


def _prompt(field: Field, first: str, second: str) -> list[Message]:
    content = f"First: {first}\nSecond: {second}\n\n{_WORDING[field]} Answer with Yes or No."
    return [{"role": "user", "content": content}]


def _settled(field: Field, mine: str, theirs: str) -> bool | None:
    """A verdict that needs no model: equal texts, one calculation in two ways of writing, or two numbers."""
    if field == "meta":
        return same_letters(mine, theirs) or None
    if field == "question":
        return same_letters(mine, theirs) or same_calculation(mine, theirs) or None
    numbers = None not in (number(mine), number(theirs))
    return same_answer(mine, theirs) or (False if numbers else None)


def purposes(mine: Step, theirs: Step) -> tuple[str, str]:
    """The texts by which two steps are aligned: their meta parts; for a step without one, its question.

    Our choice (the paper has no optional fields): a teacher's structure without meta parts is still followed in order.
    """
    return _purpose(mine), _purpose(theirs)


def _purpose(step: Step) -> str:
    return step.meta or step.question or step.answer or ""


def purpose_by_evidence(mine: Step, theirs: Step) -> bool | None:
    """Whether two steps pursue the same sub-problem, as far as names and calculations tell; None where they do not.

    Our choice, in this order:

    1. equal texts, or the same calculation with the same result: yes;
    2. each names something that the other does not (Monday and Tuesday, week 1 and week 2): no;
    3. the same calculation, or the same with its two sides exchanged, whatever comes out: yes;
    4. the result of one is an operand of the other, which is then a later step: no.

    That the first rule stands before the second costs the few pairs in which one calculation serves two things, and
    saves the many in which a structure model words a sub-question badly (`docs/judges.md` has both figures).
    """
    left_text, right_text = purposes(mine, theirs)
    if same_letters(left_text, right_text) or _does_the_same(mine, theirs):
        return True
    if name_different_things(left_text, right_text):
        return False
    if mine.question is None or theirs.question is None:
        return None
    left, right = calculation(mine.question), calculation(theirs.question)
    if left is None or right is None:
        return True if same_calculation(mine.question, theirs.question) else None
    exchanged = left.operands == right.operands and (left.value == -right.value or left.value * right.value == 1)
    if left == right or exchanged:
        return True
    results = [None if step.answer is None else number(step.answer) for step in (mine, theirs)]
    if results[0] != results[1] and (
        results[0] in right.operands - left.operands or results[1] in left.operands - right.operands
    ):
        return False
    return None


def _does_the_same(mine: Step, theirs: Step) -> bool:
    fields = (mine.question, theirs.question, mine.answer, theirs.answer)
    if any(field is None for field in fields):
        return False
    question, other, answer, other_answer = map(str, fields)
    return bool(same_calculation(question, other)) and same_answer(answer, other_answer)


def same_calculation(mine: str, theirs: str) -> bool | None:
    """Whether two texts work out the same; None where one of them is no calculation.

    What `calculation` cannot read (variables, equations) is the same if it has the same numbers, operators and single
    letters in any order.
    """
    left, right = calculation(mine), calculation(theirs)
    if left is not None and right is not None:
        return left == right
    signs = _signs(mine), _signs(theirs)
    return None if None in signs else signs[0] == signs[1]


def same_answer(mine: str, theirs: str) -> bool:
    """The same number where both are plain numbers, else the same text but for case, spaces and currency."""
    left, right = number(mine), number(theirs)
    if left is not None and right is not None:
        return left == right
    return squeezed(mine) == squeezed(theirs)


def _compare(mine: str | None, theirs: str | None, same: Callable[[str, str], bool]) -> bool | None:
    if mine is None and theirs is None:
        return True
    if mine is None or theirs is None:
        return None
    return bool(same(mine, theirs))


def _until_break(
    student: Structure, teacher: Structure, compare: Callable[[Step, Step], Verdict]
) -> list[Verdict] | JudgeError:
    """The verdicts on aligned steps up to the first meta mismatch; the error, where `compare` raises one before."""
    verdicts = []
    for mine, theirs in zip(student.steps, teacher.steps, strict=False):
        try:
            verdicts.append(compare(mine, theirs))
        except JudgeError as error:
            return error
        if not verdicts[-1].meta:
            break
    return verdicts


_TOKENS = re.compile(r"\d+(?:,\d+)*(?:\.\d+)?|\.\d+|[-+*/^]|\w+|\S")
_OPERATORS = {"x": "*", "X": "*", "×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "times": "*"}


def _signs(text: str) -> Counter[str] | None:
    """The numbers, operators and variables of a text in any order, or None for a text without a calculation."""
    found: Counter[str] = Counter()
    for token in _TOKENS.findall(text):
        token = _OPERATORS.get(token, token)
        if token in "-+*/^" or (len(token) == 1 and token.isalpha()):
            found[token] += 1
        elif (value := number(token)) is not None:
            found[str(value)] += 1
    has_operator = any(operator in found for operator in "-+*/^")
    return found if has_operator and len(found) > 1 else None


def _numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:\.\d+)?", text.replace(",", "")))
