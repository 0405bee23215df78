"""Judges: whether the fields of a student's step and a teacher's step agree.

A judge gets pairs of structures and returns verdicts on their aligned steps, from which `rlkd.gsrm.alignment` computes
a score. It may stop after the first step whose meta parts differ.

`docs/judges.md` compares the built-in judges and has their error rates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from rlkd.answers import number, squeezed
from rlkd.engines.base import Engine, EngineError
from rlkd.engines.choice_mass import check_choice_mass
from rlkd.engines.embeddings import SentenceEncoder
from rlkd.gsrm.alignment import Pair, Verdict
from rlkd.gsrm.calculations import calculation
from rlkd.gsrm.prompts import Field, FieldQuestion, verdict_request
from rlkd.gsrm.stores import VerdictStore
from rlkd.gsrm.words import name_different_things, same_letters, share_of_words
from rlkd.structure import Step, Structure

BUILT_IN = {
    "deterministic": "rlkd.gsrm.judges.DeterministicJudge",
    "embedding": "rlkd.gsrm.judges.EmbeddingJudge",
    "model": "rlkd.gsrm.judges.ModelJudge",
}

# Replies of a judge model that stay in memory; a long run has millions.
REMEMBERED = 2**16

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class JudgeError(RuntimeError):
    """The judge gave no verdict on a pair of structures; this says nothing about them."""


class Judge(Protocol):
    """Compares pairs of structures (student, teacher) step by step, many at once.

    Optional attributes: `costly` (true where a verdict costs too much to compare every step with every other by
    default), `threshold`, and `thresholds`, the values among which `rlkd gsrm judges --fit` chooses.
    """

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """The verdicts on each pair: one per pair of steps, ending early at most after a meta mismatch."""


class DeterministicJudge:
    """Words and numbers. Free, exact, repeatable, without a model.

    - answer: the same number where both are numbers ("$1,200" is 1200), else the same text but for case and spaces.
    - question: the same calculation in any notation (`rlkd.gsrm.calculations`); else shared words and equal numbers.
    - meta: the evidence of the calculations (`purpose_by_evidence`), else shared words.

    `threshold`: least Jaccard index (`rlkd.gsrm.words`) of texts that share their words. Our choice of 0.8, fitted on
    half of the labelled pairs.
    """

    thresholds = tuple(round(0.3 + 0.05 * i, 2) for i in range(15))

    def __init__(self, threshold: float = 0.8):
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a number above 0, at most 1")
        self.threshold = threshold

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`."""
        return [_until_break(student, teacher, self.compare) for student, teacher in pairs]

    def compare(self, student: Step, teacher: Step) -> Verdict:
        """The verdict on one pair of steps."""
        meta = purpose_by_evidence(student, teacher)
        if meta is None:
            meta = share_of_words(student.purpose, teacher.purpose) >= self.threshold
        question = _compare(student.question, teacher.question, self.same_question)
        return Verdict(meta, question, _compare(student.answer, teacher.answer, same_answer))

    def same_question(self, student: str, teacher: str) -> bool:
        """Whether two questions agree."""
        return _same_question(student, teacher, lambda *texts: share_of_words(*texts) >= self.threshold)


class EmbeddingJudge:
    """Sentence embeddings for the sub-questions; calculations and results exactly, since embeddings cannot count.

    - meta: the evidence of the calculations (`purpose_by_evidence`); else the cosine of the two texts.
    - question and answer: as `DeterministicJudge`, with the cosine in place of shared words.

    Args:
        embedding_model: folder or hub id of a sentence encoder (`rlkd.engines.embeddings`).
        threshold: least cosine of texts that mean the same. It belongs to the model: fit it for another one
            (`rlkd gsrm judges --judge embedding --embedding-model NAME --fit`).
        device: device of the model; by default cuda, else mps, else cpu.
    """

    thresholds = tuple(round(0.6 + 0.01 * i, 2) for i in range(40))

    def __init__(self, embedding_model: str = MINILM, threshold: float = 0.93, *, device: str | None = None):
        if not -1 < threshold <= 1:
            raise ValueError(f"threshold {threshold}: expected a cosine above -1, at most 1")
        self.threshold = threshold
        self.encoder = SentenceEncoder(embedding_model, device=device)

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`. The texts of a batch are embedded in one call; if it fails, so do the pairs that need it."""
        needed: dict[tuple[str, str], None] = {}
        for student, teacher in pairs:
            for own, other in zip(student.steps, teacher.steps, strict=False):
                meta = purpose_by_evidence(own, other)
                if meta is False:
                    break
                if meta is None:
                    needed[own.purpose, other.purpose] = None
                if own.question and other.question and same_calculation(own.question, other.question) is None:
                    needed[own.question, other.question] = None
        cosines: dict[tuple[str, str], float] = {}
        failure = ""
        try:
            vectors = await self.encoder.encode([text for texts in needed for text in texts])
            cosines = dict(zip(needed, (vectors[0::2] * vectors[1::2]).sum(1).tolist(), strict=True))
        except EngineError as error:
            failure = str(error)

        def similar(student: str, teacher: str) -> bool:
            if (student, teacher) not in cosines:
                raise JudgeError(failure)
            return cosines[student, teacher] >= self.threshold

        def compare(student: Step, teacher: Step) -> Verdict:
            meta = purpose_by_evidence(student, teacher)
            if not (similar(student.purpose, teacher.purpose) if meta is None else meta):
                return Verdict(False, None, None)
            question = _compare(student.question, teacher.question, partial(_same_question, similar=similar))
            return Verdict(True, question, _compare(student.answer, teacher.answer, same_answer))

        return [_until_break(student, teacher, compare) for student, teacher in pairs]


class ModelJudge:
    """A model whose log-probability of "Yes" is compared with that of "No": one forward pass per question.

    All distinct questions of a batch, on all fields of all aligned steps, go out in one call: a second call, for the
    steps after the meta parts, would make every batch wait twice. Equal texts, equal calculations and two numbers need
    no model, and no question is sent twice.

    Args:
        threshold: log-odds of "Yes" against "No", in nats, above which two texts agree. Small models say yes too
            easily; raise it.
        deadline: seconds for one batch of questions.
        store: file that stores replies across runs (`rlkd.gsrm.stores`); failures are not stored.
    """

    costly = True
    thresholds = tuple(0.125 * i for i in range(-40, 81))

    def __init__(
        self, engine: Engine, threshold: float = 0.0, *, deadline: float | None = 300.0, store: Path | None = None
    ):
        self.engine = engine
        self.threshold = threshold
        self.deadline = deadline
        self.store = VerdictStore(store) if store is not None else None
        self._log_odds: dict[FieldQuestion, float] = {}

    def check_ready(self) -> None:
        """Raise `UsageError` where the model does not answer a question with Yes or No."""
        example = verdict_request(("answer", "all in all 72", "altogether 72"))
        check_choice_mass(self.engine, example, ("Yes", "No"), "judge 'model'", self.deadline)

    async def judge(self, pairs: Sequence[Pair]) -> list[list[Verdict] | JudgeError]:
        """See `Judge`."""
        questions = [
            [_questions(own, other) for own, other in zip(student.steps, teacher.steps, strict=False)]
            for student, teacher in pairs
        ]
        if len(self._log_odds) > REMEMBERED:  # the newest half stays; a call in progress has the old ones
            self._log_odds = dict(list(self._log_odds.items())[len(self._log_odds) // 2 :])
        known = self._log_odds
        if self.store is not None:
            every = (question for steps in questions for step in steps for question in step)
            known |= self.store.get(self.engine.name, (q for q in every if q not in known))
        new: dict[FieldQuestion, None] = {}
        for steps in questions:
            for step in steps:
                if step and step[0][0] == "meta" and known.get(step[0], math.inf) <= self.threshold:
                    break  # known to end the chain before anything is sent
                new |= dict.fromkeys(question for question in step if question not in known)
        errors = await self._send(list(new), known) if new else {}

        def same(field: Field, student: str, teacher: str) -> bool:
            settled = _settled(field, student, teacher)
            if settled is not None:
                return settled
            question = model_question(field, student, teacher)
            if question in errors:
                raise JudgeError(errors[question])
            return known[question] > self.threshold

        def compare(student: Step, teacher: Step) -> Verdict:
            if not same("meta", student.purpose, teacher.purpose):
                return Verdict(False, None, None)
            question = _compare(student.question, teacher.question, partial(same, "question"))
            return Verdict(True, question, _compare(student.answer, teacher.answer, partial(same, "answer")))

        return [_until_break(student, teacher, compare) for student, teacher in pairs]

    async def _send(
        self, questions: Sequence[FieldQuestion], known: dict[FieldQuestion, float]
    ) -> dict[FieldQuestion, str]:
        """Add the replies to these questions to `known`, by one call; returns the causes of those that failed."""
        replies = await self.engine.choose(
            [verdict_request(question) for question in questions], ("Yes", "No"), deadline=self.deadline
        )
        errors: dict[FieldQuestion, str] = {}
        new: dict[FieldQuestion, float] = {}
        for question, reply in zip(questions, replies, strict=True):
            if isinstance(reply, EngineError):
                errors[question] = str(reply)
            elif math.isnan(log_odds := reply[0] - reply[1]):
                yes, no = reply
                errors[question] = f"{self.engine.name}: no comparable log-probabilities of Yes ({yes}) and No ({no})"
            else:
                new[question] = log_odds
        known |= new
        if self.store is not None:
            self.store.put(self.engine.name, new)
        return errors


def model_question(field: Field, student: str, teacher: str) -> FieldQuestion:
    """The question to a judge model about two texts, in alphabetical order as it has no direction (our choice)."""
    return (field, student, teacher) if student <= teacher else (field, teacher, student)


def _questions(student: Step, teacher: Step) -> list[FieldQuestion]:
    """The questions to a judge model about two steps, meta first."""
    parts: list[tuple[Field, str | None, str | None]] = [
        ("meta", student.purpose, teacher.purpose),
        ("question", student.question, teacher.question),
        ("answer", student.answer, teacher.answer),
    ]
    return [
        model_question(field, left, right)
        for field, left, right in parts
        if left and right and _settled(field, left, right) is None
    ]


def _settled(field: Field, student: str, teacher: str) -> bool | None:
    """A verdict that needs no model: equal texts, one calculation in two notations, or two numbers."""
    if field == "meta":
        return same_letters(student, teacher) or None
    if field == "question":
        return same_letters(student, teacher) or same_calculation(student, teacher) or None
    numbers = None not in (number(student), number(teacher))
    return same_answer(student, teacher) or (False if numbers else None)


def purpose_by_evidence(student: Step, teacher: Step) -> bool | None:
    """Whether two steps pursue the same sub-problem, by names and calculations alone; None where these do not tell.

    Our choice, in this order:

    1. equal texts, or the same calculation with the same result: yes;
    2. each names something that the other does not (Monday and Tuesday, week 1 and week 2): no;
    3. the same calculation, or the same with its two sides exchanged, whatever the results: yes;
    4. the result of one is an operand of the other, which is then a later step: no.
    """
    left_text, right_text = student.purpose, teacher.purpose
    if same_letters(left_text, right_text) or _does_the_same(student, teacher):
        return True
    if name_different_things(left_text, right_text):
        return False
    if student.question is None or teacher.question is None:
        return None
    left, right = calculation(student.question), calculation(teacher.question)
    if left is None or right is None:
        return True if same_calculation(student.question, teacher.question) else None
    exchanged = left.operands == right.operands and (left.value == -right.value or left.value * right.value == 1)
    if left == right or exchanged:
        return True
    results = [None if step.answer is None else number(step.answer) for step in (student, teacher)]
    if results[0] != results[1] and (
        results[0] in right.operands - left.operands or results[1] in left.operands - right.operands
    ):
        return False
    return None


def _does_the_same(student: Step, teacher: Step) -> bool:
    fields = (student.question, teacher.question, student.answer, teacher.answer)
    if any(field is None for field in fields):
        return False
    question, other, answer, other_answer = map(str, fields)
    return bool(same_calculation(question, other)) and same_answer(answer, other_answer)


def same_calculation(student: str, teacher: str) -> bool | None:
    """Whether two texts work out the same; None where one of them is no calculation.

    What `calculation` cannot read (variables, equations) is the same if it has the same numbers, operators and single
    letters in any order.
    """
    left, right = calculation(student), calculation(teacher)
    if left is not None and right is not None:
        return left == right
    signs = _signs(student), _signs(teacher)
    return None if None in signs else signs[0] == signs[1]


def _same_question(student: str, teacher: str, similar: Callable[[str, str], bool]) -> bool:
    same = same_calculation(student, teacher)
    return similar(student, teacher) and _numbers(student) == _numbers(teacher) if same is None else same


def same_answer(student: str, teacher: str) -> bool:
    """The same number where both are plain numbers, else the same text but for case, spaces and currency."""
    left, right = number(student), number(teacher)
    if left is not None and right is not None:
        return left == right
    return squeezed(student) == squeezed(teacher)


def _compare(student: str | None, teacher: str | None, same: Callable[[str, str], bool]) -> bool | None:
    if student is None and teacher is None:
        return True
    if student is None or teacher is None:
        return None
    return bool(same(student, teacher))


def _until_break(
    student: Structure, teacher: Structure, compare: Callable[[Step, Step], Verdict]
) -> list[Verdict] | JudgeError:
    """The verdicts on aligned steps up to the first meta mismatch, or an error that `compare` raises before it."""
    verdicts = []
    for own, other in zip(student.steps, teacher.steps, strict=False):
        try:
            verdicts.append(compare(own, other))
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
