r"""Final answers: find them behind thoughts (`thoughts`, `announcements`), read numbers (`numbers`), `comparison`.

>>> extract_answer("48/2 = 24 in May, so 72 in all.\n#### 72")
'72'
>>> is_correct(r"... so it is \boxed{1{,}000}", "1000")
True
"""

from rlkd.answers.announcements import Fallback, announcement, answer_and_gold, extract_answer
from rlkd.answers.comparison import (
    VERIFY_SECONDS,
    VerificationError,
    accuracy,
    are_correct,
    compare_in_workers,
    compare_or_blame,
    comparison_pool,
    equal,
    equal_pairs,
    is_correct,
)
from rlkd.answers.numbers import number, numbers, squeezed
from rlkd.answers.symbolic import math_verify, read_by_math_verify
from rlkd.answers.thoughts import after_thought, ends_in_thought

__all__ = [
    "VERIFY_SECONDS",
    "Fallback",
    "VerificationError",
    "accuracy",
    "after_thought",
    "announcement",
    "answer_and_gold",
    "are_correct",
    "compare_in_workers",
    "compare_or_blame",
    "comparison_pool",
    "ends_in_thought",
    "equal",
    "equal_pairs",
    "extract_answer",
    "is_correct",
    "math_verify",
    "number",
    "numbers",
    "read_by_math_verify",
    "squeezed",
]
