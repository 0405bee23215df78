"""Prompts of structure models and judge models; the wording is part of the keys under which replies are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from rlkd.engines.base import Message
from rlkd.structure import Step, Structure, render

Field = Literal["meta", "question", "answer"]
FieldQuestion = tuple[Field, str, str]
"""A field, and the two texts of which a judge model says whether they agree."""

INSTRUCTION = "List the steps of the reasoning, one a line: sub-question | calculation | result."


def fine_tuned_request(question: str, trace: str) -> list[Message]:
    """The prompt of a fine-tuned structure model; the same in training and in use."""
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Problem: {question.strip()}\n\nReasoning: {trace.strip()}"},
    ]


def instruct_request(question: str, trace: str, *, as_json: bool) -> list[Message]:
    """The prompt of an instruct model, with two few-shot examples; the reply is JSON or tagged text."""
    messages: list[Message] = [{"role": "system", "content": _INSTRUCTIONS}]
    for example_question, example_trace, structure in _EXAMPLES:
        reply = json.dumps({"steps": structure.to_list()}, ensure_ascii=False) if as_json else render(structure)
        messages.append({"role": "user", "content": _instruct_content(example_question, example_trace)})
        messages.append({"role": "assistant", "content": reply})
    messages.append({"role": "user", "content": _instruct_content(question, trace)})
    return messages


def verdict_request(question: FieldQuestion) -> list[Message]:
    """The prompt of a judge model."""
    field, first, second = question
    content = f"First: {first}\nSecond: {second}\n\n{_WORDING[field]} Answer with Yes or No."
    return [{"role": "user", "content": content}]


_WORDING: Mapping[Field, str] = {
    "meta": "Are these two steps of reasoning devoted to the same sub-problem?",
    "question": "Do these two ask for the same thing to be worked out?",
    "answer": "Do these two state the same result?",
}


def _instruct_content(question: str, trace: str) -> str:
    return f"Problem:\n{question}\n\nReasoning:\n{trace}\n\nList the steps that this reasoning takes."


_INSTRUCTIONS = """\
You read a piece of reasoning about a problem and write down the steps it takes, in order. You report, you do not \
solve: a step that is wrong in the reasoning stays wrong in your list, and a step that is not there is not added.

Each step has three parts:
- meta: the sub-problem that the step turns to, as a question, so that one sees why it comes now. It does not give \
away the result.
- question: what exactly is worked out there, for instance the calculation, without its result.
- answer: the result that the reasoning gets, as short as possible.

Take the finest steps that still have a result of their own. Leave out repeated facts of the problem. Stop when the \
problem is answered; the last answer is the final one."""

_EXAMPLES: tuple[tuple[str, str, Structure], ...] = (
    (
        "A cinema has 12 rows of 9 seats. On Friday 70 seats were taken. How many stayed empty?",
        "Let me see. The hall has 12 * 9 = 108 seats in all. 70 of these were taken, which leaves 108 - 70 = 38 "
        "empty seats.",
        Structure(
            (
                Step("How many seats does the cinema have?", "12 * 9", "108"),
                Step("How many seats stayed empty on Friday?", "108 - 70", "38"),
            )
        ),
    ),
    (
        "Solve x^2 - 5x + 6 = 0 and give the larger solution.",
        "I look for two numbers with product 6 and sum 5, and these are 2 and 3. So the polynomial is (x-2)(x-3). "
        "A product is zero when a factor is, so x = 2 or x = 3. The larger one is 3.",
        Structure(
            (
                Step("Which two numbers factor the polynomial?", "product 6 and sum 5", "2 and 3"),
                Step("What does the polynomial look like as a product?", "factor x^2 - 5x + 6", "(x-2)(x-3)"),
                Step("For which x is the product zero?", "(x-2)(x-3) = 0", "x = 2 or x = 3"),
                Step("Which solution is the larger one?", "compare 2 and 3", "3"),
            )
        ),
    ),
)
