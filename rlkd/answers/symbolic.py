r"""Compare mathematics by Math-Verify, which runs in worker processes (`rlkd.answers.comparison`).

Four things differ from `math_verify.verify`: a text is read as a whole or not at all, units are taken off by
`rlkd.answers.units`, it does not matter which side is gold, and numbers are compared exactly, without rounding.
"""

from __future__ import annotations

import logging
import re
from functools import cache, lru_cache
from typing import Any

from rlkd.answers.directions import opposed
from rlkd.answers.notation import plain
from rlkd.answers.numbers import read_quantity
from rlkd.answers.units import NO_UNIT, Unit, read_unit

# Names of functions and constants, and words between values. Other words are no mathematics.
_NAMES = frozenset(
    re.findall(
        r"\w+",
        """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt pi inf infinity mod gcd lcm
        max min lim det and or theta alpha beta gamma lambda phi""",
    )
)
# Of these, letters alone are a value; "max" alone is a word.
_VALUES_ALONE = frozenset(["pi", "inf", "infinity", "infty", "theta", "alpha", "beta", "gamma", "lambda", "phi"])
_LETTERS = re.compile(r"[^\W\d_]+")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}(?:\{[clr|]*\})?|\\operatorname\*?\s*\{\w+\}|\\[A-Za-z]+")
# With these, capital letters are names in geometry: AB = 4.
_VALUES = re.compile(r"[\d=\\]")
_BEFORE_WORD = re.compile(r"(?<=[\w)}\]]) (?=[^\W\d_])")
_LONGEST_UNIT = 100
_DATE = re.compile(r"\d{4}[-/]\d\d?[-/]\d\d?|\d\d?[-/]\d\d?[-/]\d{4}")
_MONEY = re.compile(r"^([-+]?)\s*[$€£¥₹]\s*")
_NAMED = re.compile(
    r"(?<![A-Za-z\\])(pi|infinity|infty|theta|alpha|beta|gamma|lambda|phi|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp)(?![A-Za-z])"
)
_FACTOR = re.compile(r"(?<![\w.^])(\d+)\s*\(\s*(\d+)\s*/\s*(\d+)\s*\)")
_DIGITS = 60
"""Significant digits in which two numbers must agree."""


def is_words(text: str) -> bool:
    """Whether a text is words, not mathematics: compared as a text.

    >>> is_words("5 squared"), is_words("2ab"), is_words(r"\\sin 2x")
    (True, False, False)
    """
    text = _split_unit(plain(text))[0]
    if _DATE.fullmatch(text):
        return True
    found = [
        letters
        for letters in _LETTERS.findall(_COMMAND.sub(" ", text))
        if len(letters) > 1 and letters.lower() not in _NAMES and not (letters.isupper() and _VALUES.search(text))
    ]
    return len(found) > 1 or any(len(letters) > 3 for letters in found) or is_one_word(text)


def is_one_word(text: str) -> bool:
    """Whether a text consists of letters alone, which may be a product: ABC, xy."""
    word = plain(text)
    return len(word) > 1 and word.isalpha() and word.lower() not in _VALUES_ALONE


@cache
def math_verify() -> Any:
    """The module math_verify, without its warnings that time limits are off: workers have their own."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.math_normalization"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return math_verify


def read_by_math_verify(text: str, **options: Any) -> list[Any]:
    """The expressions that math-verify parses from a text; none if it cannot be read."""
    try:
        return list(math_verify().parse(text, parsing_timeout=None, raise_on_error=True, **options))
    except MemoryError:  # math-verify would treat this as unreadable
        raise
    except Exception:
        return []


def compared(answer: str, gold: str) -> bool | None:
    """Whether two mathematical texts have the same value; None if `gold` cannot be read.

    Has no time limit of its own. Raises only for what `gold` does: a comparison that the answer breaks is False.
    """
    right = read(gold)
    if right is None:
        return None
    try:
        left = read(answer)
        return left is not None and _same_unit(left[1], right[1]) and _equal(left[0], right[0], answer, gold)
    except MemoryError:
        raise
    except Exception:
        sound(gold)
        return False


def sound(gold: str) -> bool:
    """Whether a gold answer can be read; raises, or hangs, if it cannot be compared with itself and with 1."""
    import sympy

    expression = read(gold)
    if expression is None:
        return False
    _equal(expression[0], expression[0], gold, gold)
    _equal(sympy.Integer(1), expression[0], "1", gold)
    return True


@lru_cache(maxsize=1024)
def read(text: str) -> tuple[Any, Unit] | None:
    """The sympy expression and the unit of a whole text, or None."""
    body, unit = _split_unit(plain(text))
    # Math-Verify leaves out quotes: "f'(x)" would be "f(x)".
    if not body or re.search("['\"]", body) or (is_words(body) and not is_one_word(body)):
        return None
    try:
        # Brackets multiply: "1(1/4)" is no mixed number.
        body = _FACTOR.sub(r"\1 \\cdot \\frac{\2}{\3}", body)
        expression = _with_both_signs(_NAMED.sub(r"\\\1 ", body).replace(r"\infinity", r"\infty"))
    except MemoryError:
        raise
    except Exception:
        return None
    return None if _has_no_value(expression) else (expression, unit)


def _has_no_value(expression: Any) -> bool:
    """Whether an expression is a division by zero."""
    import sympy

    if expression is None or expression in (sympy.zoo, sympy.nan):
        return True
    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return False
    divisors = (power.base for power in expression.atoms(sympy.Pow) if power.exp.is_negative)
    return any(divisor.is_zero or divisor.doit().is_zero for divisor in divisors)


def _split_unit(text: str) -> tuple[str, Unit]:
    """An expression without currency sign and unit, and the unit: "12\\pi cm^2"."""
    text = _MONEY.sub(r"\1", text)
    if text.endswith("°"):
        return text[:-1], Unit(read_unit("°", attached=False).kinds)  # type: ignore[union-attr]
    if text.endswith("%"):
        text = text[:-1] + r"\%"
    for space in _BEFORE_WORD.finditer(text, max(0, len(text) - _LONGEST_UNIT)):
        body, tail = text[: space.start()], text[space.end() :]
        unit = read_unit(tail, attached=False)
        if unit is not None and (unit.kinds or unit.words) and re.search(r"[\d\\]", body):
            return body, unit
    return text, NO_UNIT


def _same_unit(left: Unit, right: Unit) -> bool:
    if opposed(left.directions, right.directions):
        return False
    if not (left.kinds and right.kinds):
        return True
    return any(factor == right.kinds.get(kind) for kind, factor in left.kinds.items())


def _with_both_signs(text: str) -> Any:
    r"""The expression of a text; the set of two values where `\pm` stands inside a fraction or brackets."""
    from latex2sympy2_extended.sets import FiniteSet

    try:
        return _parsed(text)
    except MemoryError:
        raise
    except Exception:
        if r"\pm" not in text:
            raise
        upper = _parsed(text.replace(r"\pm", "+").replace(r"\mp", "-"))
        lower = _parsed(text.replace(r"\pm", "-").replace(r"\mp", "+"))
        return FiniteSet(upper, lower)


def _parsed(text: str) -> Any:
    """The sympy expression of a whole LaTeX text, as math-verify reads it; raises if it stops before the end."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from math_verify.parser import get_last_eq

    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    text = normalize_latex(text, rules)

    def convert(part: str) -> Any:
        rules = ConversionConfig(lowercase_symbols=False)
        return _whole_texts()(is_real=not should_treat_as_complex(part), config=rules).parse(part)

    try:
        return convert(text)
    except MemoryError:
        raise
    except Exception:
        last = get_last_eq(text)
        if last == text:
            raise
        return convert(last)


@cache
def _whole_texts() -> Any:
    """latex2sympy's converter, but for texts that it would read in part only."""
    # Checked with latex2sympy2_extended 1.11: `parse` asks `create_parser` for a parser and calls its `math` once.
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

    class Whole(_Latex2Sympy):
        def create_parser(self, latex_str: str) -> Any:
            parser = super().create_parser(latex_str)
            math = parser.math

            def whole() -> Any:
                tree = math()
                if parser.getCurrentToken().type != -1:  # end of text
                    raise ValueError(f"read only a part of {latex_str!r}")
                return tree

            parser.math = whole
            return parser

    return Whole


def _equal(left: Any, right: Any, left_text: str, right_text: str) -> bool:
    """Whether two expressions are equal, whichever is gold."""
    import sympy

    left, right = _unnamed(left, right), _unnamed(right, left)
    if left is None or right is None:
        return False
    for text, value in ((left_text, right), (right_text, left)):
        decimal = read_quantity(text)
        if decimal is not None and isinstance(value, sympy.Expr) and value.is_irrational and value.is_number:
            close = decimal.decimals >= 6 and abs(_exact(value - sympy.Rational(decimal.value))) * 2 <= sympy.Rational(
                1, 10**decimal.decimals
            )
            return bool(close)
    verify = math_verify().verify
    options = {"timeout_seconds": None, "raise_on_error": True, "allow_set_relation_comp": True}
    if not (verify(right, left, **options) and verify(left, right, **options)):
        return False
    return _agree(left, right)


def _unnamed(side: Any, other: Any) -> Any:
    """The value of "x = 5" where the other side is no equation; None for an equation that gives no value."""
    from math_verify.grader import is_assignment_relation, is_equation, take_first_relation, take_last_relation

    if not is_equation(side) or is_equation(other):
        return side
    first, last = take_first_relation(side).lhs, take_last_relation(side).rhs
    if is_assignment_relation(side):
        return last
    if not (first.free_symbols or last.free_symbols):
        # A calculation: "48 + 24 = 72", but not "71 = 72".
        return last if (first - last).doit().is_zero else None
    return first if first.is_number and last.is_Symbol else None


def _exact(expression: Any) -> Any:
    return expression.evalf(_DIGITS, maxn=4 * _DIGITS)


def _agree(left: Any, right: Any) -> bool:
    """Whether equal expressions agree in all digits, too: math-verify takes numbers below 1e-15 for 0."""
    import sympy

    for kind in (sympy.Tuple, sympy.Interval, sympy.Eq):
        if isinstance(left, kind) and isinstance(right, kind) and len(left.args) == len(right.args):
            return kind is sympy.Eq or all(_agree(*pair) for pair in zip(left.args, right.args, strict=True))
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return True
    left, right = _rational(left), _rational(right)
    names = sorted((left.free_symbols | right.free_symbols), key=str)
    # Any point will do for expressions that are equal but for rounding. A logarithm or root may need a larger one.
    for start in (7, 97):
        point = {name: sympy.Rational(start + 3 * place, 5) for place, name in enumerate(names)}
        if _agree_in_digits(left.subs(point), right.subs(point)):
            return True
    return False


def _agree_in_digits(left: Any, right: Any) -> bool:
    import sympy

    first, second = _exact(left.doit()), _exact(right.doit())
    if not (first.is_number and second.is_number and first.is_finite and second.is_finite):
        return True
    if first.is_zero or second.is_zero:
        other = second if first.is_zero else first
        # A Float without a certain digit is a sum that cancels out.
        return bool(other.is_zero) or (isinstance(other, sympy.Float) and other._prec < 10)
    return bool(abs(first - second) <= abs(first) * sympy.Rational(1, 10 ** (_DIGITS - 10)))


def _rational(expression: Any) -> Any:
    import sympy

    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})
