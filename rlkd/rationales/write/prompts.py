"""Prompts for the teacher, and the reader of its step-keyed replies. The wording is ours.

A *step-keyed* reply is a JSON object with the route (category, intents, difficulty, budget, path) and the rationale,
one text for each named step, as in D-RPC (arXiv 2605.07139). The gold answer is in `hinted_prompt` only.

    >>> reply = read_reply('Sure! {"path": ["AddParts"], "rationale": {"AddParts": "3 + 4 = 7"}, "answer": 7/1}')
    >>> print(reply.text())
    AddParts: 3 + 4 = 7
    #### 7/1
    >>> reply.structure()[0].meta
    'Add Parts'

Missing parts of a reply are None or empty; a reply that cannot be read at all is None, and its text is kept as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkd.engines.base import Message
from rlkd.structure import Structure, from_step_keyed, repair_backslashes

if TYPE_CHECKING:
    from rlkd.rationales.bank.routing import Route

FREE = (
    "Solve the problem so that a student can learn from it: short lines, one step a line, every calculation written "
    'out as in "12 * 4 = 48". The last line is "#### " and the result, without a unit.'
)

PROGRAM = (
    "Write a Python program that works out the result from what the problem says: one step a line, each value "
    "with a name that says what it is. It reads no input, and prints the result alone, without a unit. Reply with one "
    "block of code, ```python, and nothing else."
)

STEPS = """\
Solve the problem so that a student can learn from it. Plan first, then solve along the plan. Reply with one JSON \
object and nothing else. Its keys:
"category": the kind of problem, one or two words
"intents": a list with what is to be found, at most four words each
"difficulty": 1, 2 or 3
"budget": 2 for difficulty 1, else 3
"path": the names of the steps in their order, not more than the budget
"rationale": an object with each step of the path once, in the same order: its name and what is done in it
"answer": the result alone, without a unit

The name of a step says what kind of thing is done, so that it would fit other problems too: words in TitleCase, \
letters only, such as FindUnitPrice. Nothing of this problem's story stands in it, and it is never StepOne. The text \
of a step is one string; it really does the step, with every calculation written out. A long step has parts, (a), (b) \
and so on, which do not count towards the budget."""

HINT = (
    "The result is known to be {answer}. Show the way that leads there from what the problem says; do not mention "
    "that the result was known."
)

# The few-shot example. Ours: a problem that is in none of the data sets.
EXAMPLE = (
    "A pen costs 3 dollars, and a book costs 4 times as much. How many dollars do 2 books and a pen cost?",
    {
        "category": "shopping",
        "intents": ["total cost"],
        "difficulty": 1,
        "budget": 2,
        "path": ["FindUnitPrice", "AddCosts"],
        "rationale": {
            "FindUnitPrice": "A book costs 3 * 4 = 12 dollars.",
            "AddCosts": "(a) Two books cost 2 * 12 = 24 dollars. (b) With the pen that is 24 + 3 = 27 dollars.",
        },
        "answer": "27",
    },
)

_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"type": "string"},
        "intents": _TEXTS,
        "difficulty": {"type": "integer", "minimum": 1, "maximum": 3},
        "budget": {"type": "integer", "minimum": 1, "maximum": 3},  # 1: a plan may have one step
        "path": _TEXTS,
        "rationale": {"type": "object", "additionalProperties": {"type": "string"}},
        "answer": {"type": "string"},
    },
    "required": ["category", "intents", "difficulty", "budget", "path", "rationale", "answer"],
    "additionalProperties": False,
}
"""The schema of a step-keyed reply, for engines that guide their decoding."""


@dataclass(frozen=True)
class StepReply:
    """A step-keyed reply. `steps` are (name, text) in order; `path` are their names."""

    steps: tuple[tuple[str, str], ...]
    answer: str | None = None
    category: str | None = None
    intents: tuple[str, ...] = ()
    difficulty: int | None = None
    budget: int | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the written steps; the path that the route announces does not count (our choice)."""
        return tuple(name for name, _ in self.steps)

    def text(self) -> str:
        """The rationale as a student is trained on it: one line per step, then the answer."""
        lines = [f"{name}: {text}" for name, text in self.steps]
        return "\n".join([*lines, f"#### {self.answer}"] if self.answer else lines)

    def structure(self) -> Structure:
        """The structure: step names as sub-questions, calculation and result from the text."""
        return from_step_keyed(dict(self.steps))


def free_prompt(question: str) -> list[Message]:
    """The request for a rationale in free form."""
    return [{"role": "system", "content": FREE}, {"role": "user", "content": question}]


def program_prompt(question: str) -> list[Message]:
    """The request for a program as the rationale (PaD, arXiv 2305.13888)."""
    return [{"role": "system", "content": PROGRAM}, {"role": "user", "content": question}]


def step_prompt(question: str, plan: Route | None = None) -> list[Message]:
    """The request for a step-keyed rationale; with a plan, along one of its paths or a careful revision of it.

    Both requests are equal except for the plan, so that a comparison of the two measures the bank and nothing else.
    """
    shown_question, shown_reply = EXAMPLE
    return [
        {"role": "system", "content": STEPS},
        {"role": "user", "content": shown_question},
        {"role": "assistant", "content": json.dumps(shown_reply, ensure_ascii=False)},
        {"role": "user", "content": question if plan is None else f"{question}\n\n{plan_text(plan)}"},
    ]


def plan_text(plan: Route) -> str:
    """The text of a plan: the place of the question in the bank, and the paths that worked there."""
    paths = [f"{number}. {' -> '.join(path)}" for number, path in enumerate(plan.paths, start=1)]
    return "\n".join(
        [
            "Problems like this one were solved so:",
            f"category: {plan.category}",
            f"intents: {plan.intent}",
            f"difficulty: {plan.difficulty}",
            f"budget: {plan.budget}",
            "paths:",
            *paths,
            "Take the path that fits best, as it is, if it leads to the result. If none does, change as little of one "
            "as is needed and stay within the budget. Keep category, intents, difficulty and budget as they are here.",
        ]
    )


def read_plan(content: str) -> tuple[str, list[tuple[str, ...]]]:
    """The question in the last message of a request, and the paths of its plan; for a teacher that is a program.

    >>> read_plan("How many?\n\nProblems like this one were solved so:\npaths:\n1. AddSizes -> MultiplySum")
    ('How many?', [('AddSizes', 'MultiplySum')])
    """
    question, _, plan = content.partition("\n\n")
    return question, [tuple(path.split(" -> ")) for path in re.findall(r"^\d+\. (.+)$", plan, re.MULTILINE)]


def hinted_prompt(prompt: Sequence[Message], answer: str) -> list[Message]:
    """The same request with the gold answer as a hint."""
    *before, last = prompt
    return [*before, {**last, "content": f"{last['content']}\n\n{HINT.format(answer=answer)}"}]


def read_reply(text: str) -> StepReply | None:
    """Read a step-keyed reply; None if nothing in it is usable. Takes time linear in the text.

    Tolerated: words and fences around the object (the outermost braces count), thoughts before a closing think tag,
    bare fractions, extra commas, LaTeX backslashes, raw newlines in strings, a rationale as an escaped string or
    as a list of steps, texts that are numbers or objects of parts. A step without a name or text is left out.
    """
    reply = read_object(text) or {}
    rationale = reply.get("rationale")
    if isinstance(rationale, str):
        rationale = read_object(rationale)
    intents = reply.get("intents", reply.get("intent"))
    try:
        steps = tuple(_steps(rationale))
        known: dict[str, Any] = {
            "answer": _line(reply.get("answer", reply.get("ans"))) or None,
            "category": _line(reply.get("category")) or None,
            "intents": tuple(filter(None, map(_line, intents if isinstance(intents, list) else [intents]))),
            "difficulty": _whole(reply.get("difficulty")),
            "budget": _whole(reply.get("budget")),
        }
    except RecursionError:  # nested hundreds of levels deep
        return None
    return StepReply(steps, **known) if steps else None


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object between the outermost braces of a text, numbers as they are written; None if there is none.

    >>> read_object('the answer: {"answer": 3/4,}')
    {'answer': '3/4'}
    """
    text = text.rpartition("</think>")[2]
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    source = _REPAIRED.sub(_repaired, repair_backslashes(text[start : end + 1]))
    try:
        value = json.loads(source, strict=False, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# Strings are matched whole, so that nothing inside one is changed; an unclosed one reaches to the end.
_REPAIRED = re.compile(
    r'"(?>(?:[^"\\]|\\.)*)(?:"|\\?\Z)'
    r"|(?P<fraction>(?<![\w.])-?\d+(?:\.\d+)?\s?/\s?-?\d+(?:\.\d+)?(?![\w.]))"
    r"|(?P<comma>,(?=\s*+[}\]]))",
    re.DOTALL,
)


def _repaired(match: re.Match[str]) -> str:
    if match["fraction"]:
        return f'"{match["fraction"]}"'
    return "" if match["comma"] else match[0]


def _steps(rationale: Any) -> list[tuple[str, str]]:
    """(name, text) of each step, each name once, from an object or a list of objects."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(rationale, Mapping):
        pairs = list(rationale.items())
    elif isinstance(rationale, list):
        for item in rationale:
            if isinstance(item, Mapping) and len(item) == 1:
                pairs += item.items()
            elif isinstance(item, Mapping) and len(item) == 2:
                pairs.append(tuple(item.values()))
    steps: dict[str, str] = {}
    for name, text in pairs:
        plain = _line(name).rstrip(":").strip()
        line = _line(text)
        if plain and line:
            steps.setdefault(plain, line)
    return list(steps.items())


def _line(value: Any) -> str:
    """A value as one line of text: parts of an object or a list one after the other; empty for anything else."""
    if isinstance(value, Mapping):
        value = " ".join(f"{key}: {_line(part)}" for key, part in value.items())
    elif isinstance(value, list):
        value = " ".join(map(_line, value))
    return " ".join(value.split()) if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    text = _line(value)
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) else None
