"""Prompts of scorers as jinja2 templates (sandboxed), which a config can replace.

A template has `problem` (the last user message), `prefix`, `step`, `answer` and `columns`.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlkd.validity.contract import StepQuestion, ValidityError

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_EXAMPLE = StepQuestion(prompt="2 + 3 * 4?", prefix="3 * 4 = 12. ", step="12 + 2 = 14.", answer="14")


@lru_cache(maxsize=64)
def compiled(template: str) -> Template:
    """The template, rendered once on an example. Raises `ValidityError` where that fails."""
    try:
        made = _ENVIRONMENT.from_string(template)
        _rendered(made, _EXAMPLE, str(_EXAMPLE.prompt))
    except (TemplateError, TypeError, ValueError) as error:
        # Only the data have the columns, so a missing one is not an error here.
        if "columns" in template and "has no attribute" in str(error):
            return made
        raise ValidityError(
            f"the template {template[:60]!r}... does not render: {error}. It has the variables problem, prefix, step, "
            f"answer and columns."
        ) from error
    return made


def rendered_example(template: str) -> str | None:
    """The template filled in for an example; None where it needs columns of the data."""
    try:
        return _rendered(compiled(template), _EXAMPLE, str(_EXAMPLE.prompt))
    except TemplateError:
        return None


def render(template: str, question: StepQuestion, problem: str) -> str:
    """The template filled in for a question. Raises `ValidityError` for a column that the data lack."""
    try:
        return _rendered(compiled(template), question, problem)
    except TemplateError as error:
        raise ValidityError(
            f"the template {template[:60]!r}... does not render: {error}. The row has the columns "
            f"{', '.join(question.columns) or '(none)'}."
        ) from error


def _rendered(template: Template, question: StepQuestion, problem: str) -> str:
    return template.render(
        problem=problem,
        prefix=question.prefix,
        step=question.step,
        answer=question.answer,
        columns=question.columns,
    )
