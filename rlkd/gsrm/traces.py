"""A reasoning trace, as decomposers take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlkd.data.rows import question_of


@dataclass(frozen=True, slots=True)
class ReasoningTrace:
    """A reasoning trace and its problem.

    `teacher`: students are compared with its structure. So it must be whole (a truncated teacher would make every
    student look better), and its structure is worth storing, as the trace comes again every epoch and every run.
    """

    question: str
    text: str
    teacher: bool = False


def reasoning_part(text: str) -> str:
    """The reasoning of a completion: the text before a closing think tag, without the answer block.

    RLKD (arXiv 2505.16142) decomposes the text before `</think>`; a completion without that tag is reasoning as a
    whole, up to an `<answer>` tag.
    """
    before, closing, _ = text.partition("</think>")
    reasoning = before if closing else text.partition("<answer>")[0]
    return reasoning.strip().removeprefix("<think>").strip()


def question_in(row: Mapping[str, Any]) -> str:
    """The problem of a row, which has it as `question` or in its `prompt`."""
    return row.get("question") or question_of(row["prompt"])
