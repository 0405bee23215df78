"""Privileged context: what the teacher's prompt says and the student's does not.

    the row:              prompt "3 pens cost 6. One pen?", rationales ["6 / 3 = 2"]
    the student reads:    3 pens cost 6. One pen?
    the teacher reads:    3 pens cost 6. One pen? ... This is known about the solution: 6 / 3 = 2 ...
    both score:           the same completion tokens

TRL makes the student's prompt from the row's `prompt` alone. The teacher's prompt travels in the batch as tensors of
its own (`teacher_prompt_ids`, `teacher_prompt_mask`), so context cannot reach the student.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlkd.errors import UsageError
from rlkd.rendering import prompt_ids
from rlkd.teachers.traces import trace_text, usable_traces
from trainers.common.prompts import PromptCheck
from trainers.teachers.column import has_column
from trainers.teachers.draws import draw

if TYPE_CHECKING:
    from rlkd.engines import Prompt

logger = logging.getLogger(__name__)

_PLACES = re.compile(r"\{(prompt|context)\}")


@dataclass(frozen=True)
class TeacherContext:
    """Makes the teacher's prompts of rows.

    `column`: column with the context, a text or a list of texts of which each step draws one. `template`: the last
    user message (or the prompt that is a text) as the teacher reads it, with `{prompt}` and `{context}`. `foreign`:
    a dataset whose rows lend their context to others, the control; None for the row's own.
    """

    column: str
    template: str
    seed: int = 0
    foreign: Any = None

    def prompt(self, row: Mapping[str, Any], step: int) -> Prompt:
        """The teacher's prompt of a row at this step; raises `UsageError` for a row without context."""
        own = json.dumps(row["prompt"])
        random = draw(self.seed, step, "context", str(row.get("id")), own)
        lender = row
        if self.foreign is not None:
            lender = self.foreign[random.randrange(len(self.foreign))]
            while json.dumps(lender["prompt"]) == own:
                lender = self.foreign[random.randrange(len(self.foreign))]
        texts = self.texts(lender)
        if not texts:
            raise UsageError(f"row {lender.get('id')!r} has no text in {self.column!r} (teacher_context)")
        return self._filled(row["prompt"], random.choice(texts))

    def longest(self, rows: Iterable[Mapping[str, Any]], size: Callable[[str], int]) -> list[Prompt]:
        """The teacher's prompt of each row with the longest text that it may hold: the row's own, or of any lender."""
        if self.foreign is None:
            return [self._filled(row["prompt"], _longest(self.texts(row), size)) for row in rows]
        longest = _longest([text for lender in self.foreign for text in self.texts(lender)], size)
        return [self._filled(row["prompt"], longest) for row in rows]

    def texts(self, row: Mapping[str, Any]) -> list[str]:
        """The contexts of a row that are not blank; rationales as a student would write them."""
        value = row.get(self.column)
        texts = usable_traces(value if isinstance(value, str | list | None) else str(value))
        return [trace_text(text, row.get("answer")) for text in texts] if self.column == "rationales" else texts

    def check(self, dataset: Any, part: str) -> None:
        """Raise `UsageError` for a dataset without the column, or with rows that have no text there."""
        if not has_column(dataset, part, self.column, "teacher_context"):
            return
        if not hasattr(dataset, "__len__"):
            if self.foreign is not None:
                raise UsageError("foreign_context draws from all rows, and a stream has no length. Load the rows")
            return
        without = [index for index, row in enumerate(dataset) if not self.texts(row)]
        if without:
            raise UsageError(
                f"{part}: {len(without)} of {len(dataset)} rows have no text in {self.column!r} (teacher_context), "
                f"the first is row {without[0]}. Leave these rows out, or name another column"
            )
        if self.foreign is not None and len({json.dumps(prompt) for prompt in dataset["prompt"]}) < 2:
            raise UsageError(f"foreign_context: {part} has one prompt only; expected at least two")

    def fitted(self, fit: PromptCheck, dataset: Any, part: str) -> Any:
        """The dataset, without rows whose teacher prompt has no room in the context if these are to be left out.

        Raises `UsageError` where one does not fit.
        """
        if dataset is None or not hasattr(dataset, "__len__"):
            return dataset
        if self.template == "{prompt}":
            prompts = list(dataset["prompt"])
        else:
            prompts = self.longest(dataset, fit.size)
        long = fit.too_long(prompts) if prompts else {}
        if fit.leave_out and 0 < len(long) < len(dataset):
            logger.warning("%s: left out %d rows whose prompt with context does not fit", part, len(long))
            return dataset.select([index for index in range(len(dataset)) if index not in long])
        fit.check_lengths(prompts, f"{part} with teacher_context")
        return dataset

    def fitted_lenders(self, fit: PromptCheck, dataset: Any, part: str) -> tuple[TeacherContext, Any]:
        """The rows of a training set that fit, and the context whose foreign texts are those of these rows only.

        With foreign contexts a row has to fit with its own text, so that this can be lent, and with the longest one.
        """
        if self.foreign is None:
            return self, self.fitted(fit, dataset, part)
        kept = replace(self, foreign=None).fitted(fit, dataset, part)
        kept = replace(self, foreign=kept).fitted(fit, kept, part)
        lenders = replace(self, foreign=kept)
        lenders.check(kept, part)
        return lenders, kept

    def _filled(self, prompt: Prompt, context: str) -> Prompt:
        if isinstance(prompt, str):
            return self._text(prompt, context)
        last = prompt[-1] if prompt else {}
        if last.get("role") != "user":
            raise UsageError(
                f"teacher_context changes the last message of a prompt, which must be the user's; found "
                f"{last.get('role')!r}"
            )
        content: Any = last["content"]
        if not isinstance(content, str):
            content = "".join(str(part.get("text", "")) for part in content)
        return [*prompt[:-1], {**last, "content": self._text(content, context)}]

    def _text(self, prompt: str, context: str) -> str:
        values = {"prompt": prompt, "context": context}
        return _PLACES.sub(lambda found: values[found[1]], self.template)


def _longest(texts: Sequence[str], size: Callable[[str], int]) -> str:
    return max(texts, key=size) if len(texts) > 1 else "".join(texts)


def teacher_prompts(
    context: TeacherContext | None,
    rows: Sequence[Mapping[str, Any]],
    step: int,
    tokenizer: Any,
    template: Mapping[str, Any] | None,
) -> list[list[int]]:
    """The ids of the teacher's prompts of these rows, rendered as the student's are."""
    prompts = [row["prompt"] if context is None else context.prompt(row, step) for row in rows]
    return [prompt_ids(tokenizer, prompt, template) for prompt in prompts]
