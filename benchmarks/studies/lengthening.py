"""Makes a short trace long in the ways in which the traces of reasoning models are long.

Each function takes the steps of a right trace and a target length, and returns about that many steps; the last one is
always the step with the final answer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from rlkd.answers import number
from rlkd.gsrm.calculations import canonical_calculation
from rlkd.structure import Step

Steps = list[Step]


@dataclass(frozen=True)
class Material:
    """What a trace is lengthened with: steps of a wrong solution of the problem, and texts without a calculation."""

    attempt: Sequence[Step]
    restatements: Sequence[str]


def verified(path: Sequence[Step], length: int, material: Material) -> Steps:
    """All calculations again as checks, round after round."""
    missing = max(0, length - len(path))
    rounds = list(path) * (missing // len(path) + 1)
    return [*path, *rounds[len(rounds) - missing :]]


def abandoned(path: Sequence[Step], length: int, material: Material) -> Steps:
    """Before the right steps those of a wrong solution, again and again; from the second time with other results."""
    missing = max(0, length - len(path))
    steps = list(material.attempt)
    attempts = [_slipped(steps[i % len(steps)], i // len(steps)) for i in range(missing)]
    return [*attempts, *path]


def restated(path: Sequence[Step], length: int, material: Material) -> Steps:
    """Before each step, sub-questions and sentences of the problem without a calculation."""
    missing = max(0, length - len(path))
    texts = [material.restatements[i % len(material.restatements)] for i in range(missing)]
    steps: Steps = []
    for index, step in enumerate(path):
        start, stop = (len(texts) * place // len(path) for place in (index, index + 1))
        steps += [*(Step(meta=text) for text in texts[start:stop]), step]
    return steps


def finer(path: Sequence[Step], length: int, material: Material) -> Steps:
    """Calculations in smaller ones: `16-3-4` becomes `16-3` and `13-4`, `9*5` becomes `9*2`, `9*3` and `18+27`.

    Ends early where nothing is left to split: numbers of GSM8K are small.
    """
    steps = list(path)
    while len(steps) < length:
        before = len(steps)
        for index in reversed(range(before)):
            if len(steps) < length and (parts := smaller(steps[index])):
                steps[index : index + 1] = parts
        if len(steps) == before:
            break
    return steps


def worked_out(path: Sequence[Step], length: int, material: Material) -> Steps:
    """Before each calculation the smaller ones of `finer`; the calculation itself stays."""
    steps: Steps = []
    for index, step in enumerate(path):
        left = len(path) - index
        share = (length - len(steps) - left) // left
        parts = finer([step], share, material)
        steps += [*(parts if len(parts) > 1 else ()), step]
    return steps


def mixed(path: Sequence[Step], length: int, material: Material) -> Steps:
    """A quarter of the surplus each: abandoned attempts, then restated and worked-out steps, then checks."""
    quarter = max(0, length - len(path)) // 4
    core = worked_out(path, len(path) + quarter, material)
    spoken = restated(core, len(core) + quarter, material)
    checks = verified(path, len(path) + quarter, material)[len(path) :]
    return abandoned([*spoken, *checks], length, material)


WAYS = {
    "checks": verified,
    "restated": restated,
    "worked out": worked_out,
    "abandoned": abandoned,
    "mixed": mixed,
    "finer": finer,
}


def _slipped(step: Step, by: int) -> Step:
    """The step with its result off by a whole number."""
    value = None if step.answer is None else number(step.answer)
    if not by or value is None or (text := _text(value + by)) is None:
        return step
    return replace(step, answer=text)


# Smaller calculations


def smaller(step: Step) -> Steps | None:
    """Two steps or more that lead to the same result; None for a step that cannot be split."""
    value = None if step.answer is None else number(step.answer)
    plain = canonical_calculation(step.question)
    if value is None or plain is None or not _ARITHMETIC.fullmatch(plain):
        return None
    try:
        tree = ast.parse(plain.lstrip("+"), mode="eval").body
        parts: list[tuple[str, Fraction]] = []
        if _evaluated(tree, parts) != value or not parts:
            return None
        if len(parts) == 1:
            parts = _halved(tree, value)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    if len(parts) < 2:
        return None
    texts = [(question, _text(result)) for question, result in parts]
    if any(result is None for _, result in texts):
        return None
    return [Step(f"{question} = {result}", question, result) for question, result in texts]


_ARITHMETIC = re.compile(r"[\d.+\-*/()]+")
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _evaluated(node: ast.AST, parts: list[tuple[str, Fraction]]) -> Fraction:
    """The value of a tree; its binary operations, with their results, are added to `parts` in order."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if not isinstance(node, ast.BinOp) or type(node.op) not in _SIGNS:
        raise ValueError
    left, right = _evaluated(node.left, parts), _evaluated(node.right, parts)
    sign = _SIGNS[type(node.op)]
    value = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
    value = left / right if value is None else value
    parts.append((_written(left, sign, right), value))
    return value


def _halved(node: ast.AST, value: Fraction) -> list[tuple[str, Fraction]]:
    """One operation in two or three with about half of its second number, or of its result for a division."""
    assert isinstance(node, ast.BinOp)
    left, right = _evaluated(node.left, []), _evaluated(node.right, [])
    sign = _SIGNS[type(node.op)]
    if sign == "*" and (right.denominator > 1 or right < 3):
        left, right = right, left
    whole = value if sign == "/" else right
    if whole.denominator > 1 or whole < (2 if sign in "+-" else 3):
        return []
    first, second = Fraction(whole // 2), whole - whole // 2
    if sign in "+-":
        middle = left + first if sign == "+" else left - first
        return [(_written(left, sign, first), middle), (_written(middle, sign, second), value)]
    if sign == "*":
        one, other = (left, first), (left, second)
        products = [(_written(*(pair[0], "*", pair[1])), pair[0] * pair[1]) for pair in (one, other) if pair[1] > 1]
        return [*products, (_written(left * first, "+", left * second), value)]
    quotients = [(_written(share * right, "/", right), share) for share in (first, second)]
    return [*quotients, (_written(first, "+", second), value)]


def _written(left: Fraction, sign: str, right: Fraction) -> str:
    shown = [_text(each) for each in (left, right)]
    if None in shown:
        raise ValueError
    return f"{shown[0]}{sign}{shown[1]}"


def _text(value: Fraction) -> str | None:
    """A whole number or a short decimal; None for a value that is neither."""
    text = f"{float(value):.6f}".rstrip("0").rstrip(".") if value.denominator > 1 else str(value.numerator)
    return text if Fraction(text) == value and value >= 0 else None
