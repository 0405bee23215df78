"""The prompts of contrastive decoding: towards one answer of a question, away from another (SCOTT, arXiv 2305.01879).

    >>> towards, away = contrasted_prompts(Question("q1", "How many are 3 and 4?", "7"), seed=1)
    >>> [prompt[-1]["content"].splitlines()[-1][:26] for prompt in (towards, away)]
    ['The result is known to be ', 'The result is known to be ']

The writer `contrast` decodes towards the gold answer and away from a wrong one, so that the rationale is one for this
answer; `counterfactual` the other way round, for rationales that lead to the wrong one.
"""

from __future__ import annotations

import random
from fractions import Fraction

from rlkd.answers import extract_answer, number
from rlkd.engines.base import Message
from rlkd.rationales.records import Question
from rlkd.rationales.write.prompts import free_prompt, hinted_prompt

# By how much a wrong answer differs from the gold one.
_ERRORS = (-3, -2, -1, 1, 2, 3)


def contrasted_prompts(
    question: Question, seed: int, *, counterfactual: bool = False, empty: bool = False
) -> tuple[list[Message], list[Message]] | None:
    """The prompts towards and away; None for a question without a gold answer.

    With `empty`, the prompt away shows no answer. Where the gold answer is no number, there is no other answer
    (`other_answer`): the prompt away then shows none either, and `counterfactual` has no prompts.
    """
    if question.answer is None or not question.answer.strip():
        return None
    gold = extract_answer(question.answer) or question.answer.strip()
    plain, other = free_prompt(question.question), other_answer(question.id, gold, seed)
    right = hinted_prompt(plain, gold)
    if other is None:
        return None if counterfactual else (right, plain)
    wrong = hinted_prompt(plain, other)
    towards, away = (wrong, right) if counterfactual else (right, wrong)
    return towards, plain if empty else away


def other_answer(question_id: str, gold: str, seed: int) -> str | None:
    """A wrong answer near a number: 1 to 3 more or less, never below 0 where it is not; None for another answer.

    >>> other_answer("q1", "7", seed=1) in {"4", "5", "6", "8", "9", "10"}
    True
    """
    found = number(gold)
    if found is None:
        return None
    value, error = Fraction(found), random.Random(f"{seed} other answer {question_id}").choice(_ERRORS)
    if value >= 0 > value + error:
        error = -error
    changed = value + error
    return str(changed.numerator) if changed.denominator == 1 else f"{float(changed):g}"
