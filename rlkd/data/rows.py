"""Rows: their fields, checks of each field, and conversions of prompts and completions.

A row is a problem for the student:

| field        | type                     | meaning |
| ------------ | ------------------------ | ------- |
| `id`         | str                      | unique name, for logs; by default made from the position |
| `prompt`     | list of messages, or str | the student's input; text goes in unchanged |
| `question`   | str                      | instead of `prompt`: becomes a conversation with the run's system prompt |
| `answer`     | str or None              | the gold answer |
| `rationales` | list of str              | teacher traces |
| `structures` | list (one per rationale) of lists of `{meta, question, answer}` | their steps, if known |

Any other field is passed to the rewards as a column. Rows come from an embedded sample, a `.jsonl` or `.parquet` file,
or a dataset of the hub. The embedded samples:

| name | content | splits |
| --- | --- | --- |
| `gsm8k-sample` | GSM8K | `rl` (the same as `train`), `gsrm`, `test` |
| `mawps-sample` | easy word problems of MAWPS | `train`, `test` |
| `distillation-sample` | MAWPS and arithmetic chains that the shipped expert was not trained on | `train`, `test` |
| `warm-start`, `expert` | the training rows of the shipped adapters of these names | `train` |
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from rlkd.errors import UsageError
from rlkd.structure import Structure

FIELDS = ("id", "prompt", "question", "answer", "rationales", "structures")
# TRL's arguments of a reward besides the columns of the data.
TRL_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)
# Column names that would collide; TRL drops a column called "completion".
RESERVED_COLUMNS = (*TRL_ARGUMENTS, "completion")

Row = dict[str, Any]


class RowError(UsageError):
    """A row is malformed; the message names its location, the field, the value found and the value expected."""


def split_half(question: str) -> Literal["gsrm", "rl"]:
    """The half of the training data that a question belongs to: structure-model training or reinforcement learning.

    A hash of the question's words decides, so a structure model never judges a question it was trained on. Our choice:
    it needs no list and gives the same half for the same question in any file.
    """
    digest = hashlib.sha256(" ".join(question.split()).lower().encode()).digest()
    return "gsrm" if digest[0] % 2 else "rl"


def build_prompt(
    question: str, system_prompt: str | None = None, examples: Iterable[tuple[str, str]] = ()
) -> list[dict[str, str]]:
    """A conversation that ends with the question."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for shown_question, shown_answer in examples:
        messages.append({"role": "user", "content": shown_question})
        messages.append({"role": "assistant", "content": shown_answer})
    return [*messages, {"role": "user", "content": question}]


def question_of(prompt: str | list[dict[str, str]]) -> str:
    """The question in a prompt: the last user message of a conversation, or the text itself."""
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in reversed(prompt) if m.get("role") == "user"), "")


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion in either of TRL's forms: text, or a list of messages.

    Includes the assistant's messages and messages without a role, as in TRL's examples, but not those of tools.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(str(m.get("content") or "") for m in completion if m.get("role", "assistant") == "assistant")


def json_records(path: Path, *, skip_unfinished: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its location for error messages.

    `skip_unfinished`: ignore a last line without a line end. Raises `RowError` that names the line.
    """
    # Bytes: only "\n" ends a line, and text that is not UTF-8 is an error of its line.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or (skip_unfinished and not line.endswith(b"\n")):
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RowError(f"{where}: not JSON ({error}); expected one object per line") from error
            if not isinstance(record, dict):
                raise RowError(f"{where}: found {shown(record)}, expected a JSON object")
            yield where, record


def check_row(row: Row, where: str) -> Row:
    """A copy of a row with all fields checked and filled in; raises `RowError` naming `where` and the field."""
    for name in RESERVED_COLUMNS:
        if name in row:
            raise RowError(f"{where}: the column name {name!r} is reserved by TRL; rename the column")
    prompt, question = row.get("prompt"), row.get("question")
    if prompt is None and question is None:
        raise RowError(f"{where}: neither 'prompt' nor 'question'; there are {', '.join(row)}")
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise RowError(f"{where}, field 'question': expected text, found {shown(question)}")
    if prompt is not None:
        _check_prompt(prompt, where)
    checked = dict(row)
    answer = row.get("answer")
    not_finite = isinstance(answer, float) and not math.isfinite(answer)
    if not_finite or isinstance(answer, bool) or not isinstance(answer, (str, int, float, type(None))):
        raise RowError(f"{where}, field 'answer': expected text or a number, found {shown(answer)}")
    checked["answer"] = None if answer is None else str(answer)
    rationales = row.get("rationales") or []
    if isinstance(rationales, str):
        rationales = [rationales]
    if not isinstance(rationales, list) or not all(isinstance(text, str) for text in rationales):
        raise RowError(f"{where}, field 'rationales': expected a list of texts, found {shown(rationales)}")
    checked["rationales"] = rationales
    structures = row.get("structures") or []
    if not isinstance(structures, list):
        raise RowError(f"{where}, field 'structures': expected a list, found {shown(structures)}")
    if rationales and structures and len(structures) != len(rationales):
        raise RowError(
            f"{where}, field 'structures': {len(structures)} for {len(rationales)} rationales; expected one each"
        )
    try:
        checked["structures"] = [Structure.from_list(steps).to_list() for steps in structures]
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}, field 'structures': {error}") from error
    if checked.pop("id", None) is not None:
        checked["id"] = str(row["id"])
    return checked


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, str) and prompt:
        return
    if isinstance(prompt, list) and prompt:
        for message in prompt:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise RowError(f"{where}, field 'prompt': expected messages with role and content: {shown(message)}")
        return
    raise RowError(f"{where}, field 'prompt': expected text or a list of messages, found {shown(prompt)}")


def shown(value: Any) -> str:
    """A value with its type, shortened, for error messages."""
    text = json.dumps(value, default=str)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
