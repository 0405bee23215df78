"""Rows: their fields (`rows`), embedded samples (`samples`, `arithmetic`), loading, controls (`shuffle`)."""

from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.rows import Row, RowError, build_prompt, completion_text, question_of
from rlkd.data.shuffle import shuffled_steps, shuffled_teachers

__all__ = [
    "Row",
    "RowError",
    "build_prompt",
    "completion_text",
    "load_rows",
    "question_of",
    "shuffled_steps",
    "shuffled_teachers",
    "to_dataset",
]
