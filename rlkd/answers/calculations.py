"""The value of a calculation: sums, products and powers of numbers.

>>> calculated("48 + 24"), calculated("3 × $2.50"), calculated("2^3"), calculated("x + 1")
(Fraction(72, 1), Fraction(15, 2), Fraction(8, 1), None)
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

_CALCULATION = re.compile(r"[\d\s.,+\-*/×÷·−^()]+")
_LONGEST = 200
_LARGEST_POWER = 64
_MOST_BITS = 1024
_SIGNS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))


def calculated(text: str) -> Fraction | None:
    """The value of sums, products and powers of numbers, or None."""
    if len(text) > _LONGEST:
        return None
    text = _SIGN.sub(lambda found: _SIGNS[found[0]], re.sub(r"\\?[$€£¥]", "", text))
    text = re.sub(r"\*\*\{\s*(\d+)\s*\}", r"**\1", text)
    if not _CALCULATION.fullmatch(text):
        return None
    try:
        return _of_node(ast.parse(re.sub(r"(?<=\d),(?=\d{3})", "", text.strip()), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _of_node(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_of_node(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _of_node(node.left), _of_node(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
        # A tower of powers outgrows any memory.
        if isinstance(node.op, ast.Pow) and right in range(_LARGEST_POWER) and _bits(left) * right <= _MOST_BITS:
            return left ** int(right)
    raise ValueError(f"{ast.dump(node)} is no calculation with numbers")


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
