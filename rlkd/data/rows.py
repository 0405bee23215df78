"""Rows: their fields, checks of each field, and conversions of prompts and completions.

A row is a problem for the student:

| field        | type                     | meaning |
| ------------ | ------------------------ | ------- |
| `id`         | str                      | unique name, for logs; by default made from the position |
| `prompt`     | list of messages, or str | the student's input; text goes in unchanged |
| `question`   | str                      | instead of `prompt`: becomes a conversation with the run's system prompt |
| `answer`     | str or None              | the gold answer; see `rlkd.data.gold` for other types |
| `rationales` | list of str              | teacher traces |
| `structures` | list (one per rationale) of lists of `{meta, question, answer}` | their steps, if known |

Any other field is passed to the rewards as a column. Rows come from an embedded sample, a file (`rlkd.data.files`), or
a dataset of the hub. The embedded samples:

| name | content | splits |
| --- | --- | --- |
| `gsm8k-sample` | GSM8K | `rl` (the same as `train`), `gsrm`, `test` |
| `mawps-sample` | easy word problems of MAWPS | `train`, `test` |
| `distillation-sample` | MAWPS and arithmetic chains that the shipped expert was not trained on | `train`, `test` |
| `warm-start`, `expert` | the training rows of the shipped adapters of these names | `train` |
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rlkd.data.gold import answer_text
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

# Of the message of a `RowError`, what differs between rows with the same fault.
_PLACE = re.compile(r"^.*?, (?:line \d+|(?:split \S+, )?row \S+?)(?: \(line \d+\))?(?=[,:])[,:] ")
_VALUE = re.compile(r" '\\u\w+' at position \d+|,? ?found \w+ .*?(?=, expected|$)|[;(].*|\. .*")


class RowError(UsageError):
    """A row is malformed; the message names its location, the field, the value found and the value expected."""

    @property
    def kind(self) -> str:
        """The message without the location and the value, the same for all rows with this fault.

        >>> RowError("rows.jsonl, line 4, field 'question': expected text, found int 5").kind
        "field 'question': expected text"
        """
        return _VALUE.sub("", _PLACE.sub("", str(self))).strip(" ,:")


def raise_it(error: RowError) -> None:
    """What readers do with a malformed row, unless they are told otherwise."""
    raise error


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
    with path.open("rb") as file:
        yield from json_lines(file, str(path), skip_unfinished=skip_unfinished)


def json_lines(
    lines: Iterable[bytes],
    name: str,
    *,
    skip_unfinished: bool = False,
    parse_float: Callable[[str], float] | None = None,
    on_error: Callable[[RowError], None] = raise_it,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`json_records` of the lines of a file called `name`; `on_error` may return, which skips the line."""
    # Bytes: only "\n" ends a line, and text that is not UTF-8 is an error of its line.
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (skip_unfinished and not line.endswith(b"\n")):
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line, parse_float=parse_float)
        except ValueError as error:
            on_error(RowError(f"{where}: not JSON ({error}); expected one object per line"))
            continue
        if isinstance(record, dict):
            yield where, record
        else:
            on_error(RowError(f"{where}: found {shown(record)}, expected a JSON object"))


def check_row(row: Row, where: str) -> Row:
    """A copy of a row with all fields checked and filled in; raises `RowError` naming `where` and the field."""
    for name in row:
        _check_characters(name, where, name)
    for name in RESERVED_COLUMNS:
        if name in row:
            rename = "{rationales: completion}" if name == "completion" else f"{{FIELD: {name}}}"
            raise RowError(
                f"{where}: the column name {name!r} is reserved by TRL; rename the column, or name the field that it "
                f"is (columns: {rename})"
            )
    prompt, question = row.get("prompt"), row.get("question")
    if prompt is None and question is None:
        raise RowError(
            f"{where}: neither 'prompt' nor 'question'; there are {', '.join(row)}. Name the column of the question: "
            f"columns: {{question: COLUMN}}"
        )
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise RowError(f"{where}, field 'question': expected text, found {shown(question)}")
    if prompt is not None:
        _check_prompt(prompt, where)
    checked = dict(row)
    try:
        checked["answer"] = answer_text(row.get("answer"), row.get("choices") or row.get("options"))
    except ValueError as error:
        raise RowError(f"{where}, field 'answer': {error}, found {shown(row['answer'])}") from error
    structures = listed(row.get("structures"), list)
    if not isinstance(structures, list):
        raise RowError(f"{where}, field 'structures': expected a list, found {shown(structures)}")
    rationales = listed(row.get("rationales"), str | None)
    if isinstance(rationales, str):
        rationales = [rationales]
    if not isinstance(rationales, list) or not all(isinstance(text, str | None) for text in rationales):
        each_one = rationales if isinstance(rationales, list) else [rationales]
        objects = any(isinstance(each, dict) for each in each_one)
        way = "; such objects are read by recipes/rationales.py (writers: [ready]) from a .jsonl file, and its "
        way += "output can be trained on"
        raise RowError(
            f"{where}, field 'rationales': expected a list of texts, found {shown(rationales)}{way * objects}"
        )
    if rationales and structures and len(structures) != len(rationales):
        raise RowError(
            f"{where}, field 'structures': {len(structures)} for {len(rationales)} rationales; expected one each"
        )
    if None in rationales:
        # A null is no trace; its structure goes with it.
        structures = [steps for steps, text in zip(structures, rationales, strict=False) if text is not None]
        rationales = [text for text in rationales if text is not None]
    checked["rationales"] = rationales
    try:
        checked["structures"] = [Structure.from_list(steps).to_list() for steps in structures]
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}, field 'structures': {error}") from error
    name = checked.pop("id", None)
    if name is not None and name == name and str(name).strip():  # NaN is the null of a column of floats
        checked["id"] = str(name)
    for field, value in checked.items():
        _check_characters(value, where, field)
    return checked


def listed(value: Any, items: Any) -> Any:
    """A list of such `items` that a table holds as a JSON text, and an empty list for nothing; else the value."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            parsed = json.loads(value)
            return parsed if all(isinstance(item, items) for item in parsed) else value
    return value if value or value == 0 else []  # False and 0 are flags


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, str) and prompt.strip():
        return
    if not isinstance(prompt, list) or not prompt:
        raise RowError(f"{where}, field 'prompt': expected text or a list of messages, found {shown(prompt)}")
    for message in prompt:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise RowError(f"{where}, field 'prompt': expected messages with role and content, found {shown(message)}")
        if not _has_content(message):
            raise RowError(f"{where}, field 'prompt': a message without content, found {shown(message)}")
    if not any(message["role"] == "user" for message in prompt):
        raise RowError(f"{where}, field 'prompt': none of its {len(prompt)} messages has the role 'user'")


def _has_content(message: Mapping[str, Any]) -> bool:
    """Whether a message says something; calls of tools and the outputs of tools may be without text."""
    content = message["content"]
    if isinstance(content, list):
        return any(isinstance(part, str | dict) and _part_has_content(part) for part in content)
    if message["role"] == "assistant" and message.get("tool_calls"):
        return content is None or isinstance(content, str)
    if message["role"] == "user":
        return isinstance(content, str) and bool(content.strip())
    return isinstance(content, str)


def _part_has_content(part: str | Mapping[str, Any]) -> bool:
    if isinstance(part, str):
        return bool(part.strip())
    return part.get("type", "text") != "text" or bool(str(part.get("text") or "").strip())


def _check_characters(value: Any, where: str, field: str) -> None:
    """Raise `RowError` for a text that cannot be written as UTF-8, such as half of a surrogate pair."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{where}, field {field!r}: the character {value[error.start]!r} at position {error.start} is half of "
                f"a pair, no character of its own"
            ) from error
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_characters(key, where, field)
            _check_characters(inner, where, field)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_characters(inner, where, field)


def shown(value: Any) -> str:
    """A value with its type, shortened, for error messages."""
    text = json.dumps(value, default=str)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
