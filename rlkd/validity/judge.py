"""Validity by a judge: a prompted model's grade of one step, 0 to 10, divided by 10."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rlkd.data.rows import question_of
from rlkd.engines.base import EngineError, Message, Sampling
from rlkd.validity.contract import Scale, StepQuestion, warn_of_failed_steps
from rlkd.validity.engine import EngineScorer
from rlkd.validity.templates import compiled, render

TEMPLATE = """\
You grade one step of a solution, and nothing but that step.

Problem:
{{ problem }}

Solution so far:
{{ prefix or "(nothing yet)" }}

Next step:
{{ step }}

Does this step follow from the problem and the solution so far, is what it states true, and does it bring the solution
nearer to the answer? Wording, length and style do not count. If the solution so far holds an error, grade the step by
what it builds on it.

10: correct and useful. 5: correct, but leads nowhere. 0: wrong.
Reply with a JSON object that holds the grade as a whole number and nothing else, such as {"grade": 7}."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": list(range(11))}},
    "required": ["grade"],
    "additionalProperties": False,
}

_BARE = re.compile(r"\s*(\d{1,2})\s*(?:/\s*10)?\s*\.?\s*")
_OBJECT = re.compile(r"\{[^{}]*\}")


class JudgeScorer(EngineScorer):
    """The scorer `judge`: a model grades one candidate per call, so that the two proposals never appear together.

    Greedy, and guided by a JSON schema where the engine supports it (`Engine.guided`). A reply without a grade is a
    failure on that step, not a 0.

    Args:
        engine: spec of the model. Small models grade at random: measure yours first
            (`benchmarks/studies/validity_scorers.py`).
        template: jinja2 text of the user message, with `problem`, `prefix`, `step`, `answer` and `columns`. It must
            request {"grade": 0 to 10}. By default `TEMPLATE`.
        max_new_tokens: limit of the reply.
        deadline: seconds for one call.

    Raises ValueError for a template that does not render.
    """

    __name__ = "judge"
    scale: Scale = "probability"

    def __init__(
        self,
        engine: str,
        *,
        template: str | None = None,
        max_new_tokens: int = 32,
        deadline: float | None = 300.0,
    ) -> None:
        self.template = TEMPLATE if template is None else template
        compiled(self.template)
        self.sampling = Sampling(max_new_tokens, json_schema=SCHEMA)
        super().__init__(engine, deadline, new_tokens=max_new_tokens)

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | None]:
        """As `ValidityScorer`."""
        prompts: list[Any] = [self.prompt(question) for question in questions]
        replies = await self.engine.generate(prompts, self.sampling, deadline=self.deadline)
        values: list[float | None] = []
        causes = []
        for reply in replies:
            value = None if isinstance(reply, EngineError) else grade(reply.text)
            if value is None:
                causes.append(str(reply) if isinstance(reply, EngineError) else f"no grade in {reply.text[:80]!r}")
            values.append(None if value is None else value / 10)
        warn_of_failed_steps(self.__name__, causes, len(questions))
        return values

    def prompt(self, question: StepQuestion) -> list[Message]:
        """The conversation that requests the grade of a step."""
        return [{"role": "user", "content": render(self.template, question, question_of(question.prompt))}]


def grade(reply: str) -> int | None:
    """The grade in a reply: that of its first JSON object with one, or a bare number; else None.

    >>> grade('{"grade": 7}'), grade("8/10"), grade("I would say 7 or 8."), grade('{"grade": 12}')
    (7, 8, None, None)
    """
    bare = _BARE.fullmatch(reply)
    value: Any = int(bare[1]) if bare else None
    if value is None:
        for text in _OBJECT.findall(reply):
            try:
                value = json.loads(text).get("grade")
            except ValueError:
                continue
            break
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10:
        return None
    return value
