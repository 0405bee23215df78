"""Prompts of structure models and judge models; the wording is part of the keys under which replies are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from rlkd.engines.base import Message
from rlkd.structure import Step, Structure, render

Field = Literal["meta", "question", "answer"]
Domain = Literal["math", "code", "puzzle", "science"]
"""The domains of RLKD (arXiv 2505.16142), each with few-shot examples of its own; the examples are ours."""
FieldQuestion = tuple[Field, str, str]
"""A field, and the two texts of which a judge model says whether they agree."""

INSTRUCTION = "List the steps of the reasoning, one a line: sub-question | calculation | result."


def domain_of(name: Any) -> Domain:
    """The domain that a row names in its column `domain`: `math` without one, `science` for a name of no domain.

    >>> domain_of("Code"), domain_of("biology"), domain_of(None)
    ('code', 'science', 'math')
    """
    word = str(name or "math").strip().lower()
    return next((domain for domain in get_args(Domain) if domain == word), "science")


def fine_tuned_request(question: str, trace: str) -> list[Message]:
    """The prompt of a fine-tuned structure model; the same in training and in use."""
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Problem: {question.strip()}\n\nReasoning: {trace.strip()}"},
    ]


def instruct_request(question: str, trace: str, *, as_json: bool, domain: Domain = "math") -> list[Message]:
    """The prompt of an instruct model, with two few-shot examples of a domain; the reply is JSON or tagged text."""
    messages: list[Message] = [{"role": "system", "content": _INSTRUCTIONS}]
    for example_question, example_trace, structure in _EXAMPLES[domain]:
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

_Example = tuple[str, str, Structure]
"""A problem, a trace about it, and the trace's steps."""

_EXAMPLES: Mapping[Domain, tuple[_Example, ...]] = {
    "math": (
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
    ),
    "code": (
        (
            "Write a function that returns the largest gap between two neighbours of a list once it is sorted, and 0 "
            "for a list with fewer than two numbers.",
            "Short lists first: with fewer than two numbers there is no gap, so return 0. Otherwise I sort, and walk "
            "over neighbours; max(b - a for a, b in zip(s, s[1:])) is what we want. Sorting takes n log n "
            "time, fine.\n"
            "def gap(numbers):\n    s = sorted(numbers)\n    return max((b - a for a, b in zip(s, s[1:])), default=0)",
            Structure(
                (
                    Step("What happens to lists that have no gap?", "fewer than two numbers", "return 0"),
                    Step("How do neighbours come to stand side by side?", "order of the list", "sort it"),
                    Step(
                        "How is the largest gap of the sorted list found?",
                        "neighbours a, b of the sorted list s",
                        "max(b - a for a, b in zip(s, s[1:]))",
                    ),
                    Step("Is it fast enough?", "cost of sorting", "n log n"),
                    Step("How does the whole function look?", "sort, pair neighbours, default 0", "def gap(numbers)"),
                )
            ),
        ),
        (
            "Given a string of brackets ( and ), print YES if it is balanced and NO otherwise.",
            "Count the open ones. Each ( adds 1, each ) takes 1 away. If the count falls below 0 a bracket closes "
            "nothing, so NO. At the end the count must be 0, else NO as well; otherwise YES.",
            Structure(
                (
                    Step(
                        "What has to be kept along the string?", "brackets still open", "a count: +1 for (, -1 for )"
                    ),
                    Step("When does a bracket close nothing?", "count below 0", "NO"),
                    Step("What must hold at the end?", "count 0", "YES, else NO"),
                )
            ),
        ),
    ),
    "puzzle": (
        (
            "Ada, Ben and Cora sit in a row. Ada is not at an end. Ben sits left of Cora. Who sits on the left?",
            "Ada is not at an end, so she is in the middle. Ben and Cora have the ends. Ben is left of Cora, so Ben "
            "has the left end.",
            Structure(
                (
                    Step("Where does Ada sit?", "three seats, not at an end", "the middle"),
                    Step("Which seats are left for the others?", "all but the middle", "the two ends"),
                    Step("Which end does Ben have?", "Ben is left of Cora", "the left end"),
                )
            ),
        ),
        (
            "One of two doors hides a prize. Door 1 says: the prize is here. Door 2 says: exactly one of us two is "
            "true. Which door hides the prize, if door 2 is false?",
            "Door 2 is false, so it is not the case that exactly one is true. As door 2 itself is false, door 1 "
            "cannot be true, or exactly one would be. So door 1 is false and the prize is not there. It is "
            "behind door 2.",
            Structure(
                (
                    Step("What follows from door 2 being false?", "not exactly one is true", "both or neither"),
                    Step("Can door 1 be true?", "door 2 is false, so both cannot be", "no"),
                    Step("Where is the prize?", "it is not behind door 1", "behind door 2"),
                )
            ),
        ),
    ),
    "science": (
        (
            "A ball is dropped from 20 m. How fast is it when it hits the ground? Take g = 10 m/s^2 and no air.",
            "Energy is conserved: m g h = m v^2 / 2. The mass cancels, v^2 = 2 g h = 2 * 10 * 20 = 400. So v = 20 "
            "m/s.",
            Structure(
                (
                    Step("Which law connects height and speed?", "energy is conserved", "m g h = m v^2 / 2"),
                    Step("What is the square of the speed?", "2 * 10 * 20", "400"),
                    Step("How fast is the ball?", "square root of 400", "20 m/s"),
                )
            ),
        ),
        (
            "Two plants with the genotype Aa are crossed; A is dominant. Which share of the offspring shows the "
            "recessive trait?",
            "Each parent gives A or a with equal chance. The offspring are AA, Aa, aA and aa, a quarter each. Only aa "
            "shows the recessive trait, so it is 1/4.",
            Structure(
                (
                    Step("What does each parent pass on?", "genotype Aa", "A or a, equally likely"),
                    Step("Which genotypes come out?", "Aa x Aa", "AA, Aa, aA and aa, a quarter each"),
                    Step("Which of them shows the recessive trait?", "A is dominant", "aa"),
                    Step("Which share is that?", "aa among four", "1/4"),
                )
            ),
        ),
    ),
}
