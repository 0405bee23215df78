"""Rows: what they hold, where they come from, and what is wrong with the one that does not fit.

A row is a problem for the student with what is known about it:

| field        | type                     | meaning |
| ------------ | ------------------------ | ------- |
| `id`         | str                      | unique name, for logs; made from the position where absent |
| `prompt`     | list of messages, or str | what the student is shown; text goes in as it is |
| `question`   | str                      | instead of `prompt`: becomes a conversation, with the run's system prompt |
| `answer`     | str or None              | the gold answer |
| `rationales` | list of str              | teacher traces |
| `structures` | list (one a rationale) of lists of `{meta, question, answer}` | their steps, where known |

Any other field passes through to the rewards, which see it as a column. Rows come from an embedded sample, a `.jsonl`
or `.parquet` file, or a dataset of the hub. The embedded samples:

| name | what | splits |
| --- | --- | --- |
| `gsm8k-sample` | GSM8K | `rl` (the same as `train`), `gsrm`, `test` |
| `mawps-sample` | easy word problems of MAWPS | `train`, `test` |
| `distillation-sample` | MAWPS and arithmetic chains beside those that made the shipped expert | `train`, `test` |
| `warm-start`, `expert` | what the shipped adapters of these names were trained on | `train` |
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlkd.errors import UsageError
from rlkd.structure import Structure, from_gsm8k_socratic

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SAMPLE = "gsm8k-sample"
EASY_SAMPLE = "mawps-sample"
DISTILLATION_SAMPLE = "distillation-sample"
WARM_START = "warm-start"
EXPERT = "expert"
SAMPLES = (SAMPLE, EASY_SAMPLE, DISTILLATION_SAMPLE, WARM_START, EXPERT)
FIELDS = ("id", "prompt", "question", "answer", "rationales", "structures")
# What TRL passes to a reward beside the columns of the data.
TRL_ARGUMENTS = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)
# A column of such a name would collide; TRL swallows one called "completion".
RESERVED_COLUMNS = (*TRL_ARGUMENTS, "completion")
# The rows that serve as worked examples in prompts: short, typical, and from the half that RL never trains on.
WORKED_EXAMPLES = ("gsm8k-train-5487", "gsm8k-train-3269")

Row = dict[str, Any]


class RowError(UsageError):
    """A row does not fit; the message names the place, the field, what was found and what is expected."""


def split_half(question: str) -> Literal["gsrm", "rl"]:
    """Which half of the training data a question belongs to: structure-model training, or reinforcement learning.

    A hash of the question's words decides (our choice: it needs no list, and holds for the same question in any
    file), so a structure model never judges a question it was trained on.
    """
    digest = hashlib.sha256(" ".join(question.split()).lower().encode()).digest()
    return "gsrm" if digest[0] % 2 else "rl"


def sample_rows(part: Literal["rl", "gsrm", "test"]) -> list[Row]:
    """Rows of the embedded GSM8K sample: `question`, `answer`, one rationale and its structure each.

    The rationale is the plain worked solution, the structure its Socratic steps (see `assets/PROVENANCE.md`).
    """
    if part not in ("rl", "gsrm", "test"):
        raise UsageError(f"part {part!r}: expected 'rl', 'gsrm' or 'test'")
    name = "gsm8k_test.jsonl" if part == "test" else "gsm8k_train.jsonl"
    rows = []
    # Not str.splitlines: some texts hold characters that it takes for line ends.
    for line in files("rlkd.assets").joinpath(name).read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        record = json.loads(line)
        if part != "test" and split_half(record["question"]) != part:
            continue
        solution, _, answer = record["socratic"].rpartition("\n#### ")
        rows.append(
            {
                "id": record["id"],
                "question": record["question"],
                "answer": answer.strip(),
                "rationales": ["\n".join(step.split(" ** ", 1)[-1] for step in solution.split("\n"))],
                "structures": [from_gsm8k_socratic(record["socratic"]).to_list()],
            }
        )
    return rows


def worked_examples(count: int) -> list[tuple[str, str]]:
    """`count` (question, solution) pairs to put before a question, in the form in which the student should answer."""
    if not 0 <= count <= len(WORKED_EXAMPLES):
        raise UsageError(
            f"worked_examples={count}: there are {len(WORKED_EXAMPLES)}; give 0 to {len(WORKED_EXAMPLES)}"
        )
    from rlkd.steps import strip_calculator_marks

    by_id = {row["id"]: row for row in sample_rows("gsrm")}
    chosen = [by_id[name] for name in WORKED_EXAMPLES[:count]]
    return [
        (row["question"], f"{strip_calculator_marks(row['rationales'][0])}\n#### {row['answer']}") for row in chosen
    ]


def load_rows(
    source: str,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    max_rationales: int | None = None,
) -> list[Row]:
    """Load and check rows.

    Args:
        source: an embedded sample, a `.jsonl`/`.json`/`.parquet` file, or a dataset name on the hub.
        split: one of the sample's (see above); of a hub dataset its split; a file has none.
        config: configuration name of a hub dataset.
        columns: our field -> their column, e.g. `{question: problem, rationales: generations}`. Beside the fields
            above, `correct` names a list of flags, one a rationale: rationales flagged false are
            dropped, and so are rows that then have none.
        max_rationales: keep the first so many rationales of a row (the RLKD paper: 1).

    Raises `RowError` for a row that does not fit, `UsageError` for a source that does not exist or has no rows.
    """
    rows: list[Row] = []
    without = 0
    for place, record in _records(source, split, config):
        row = _check(_rename(record, columns or {}, place), place)
        if "correct" in (columns or {}) and not row["rationales"]:
            without += 1
            continue
        row.setdefault("id", f"{Path(source).stem}-{len(rows)}")
        if max_rationales is not None:
            row["rationales"] = row["rationales"][:max_rationales]
            row["structures"] = row["structures"][:max_rationales]
        rows.append(row)
    if without:
        logger.warning("%s: left out %d rows without a rationale that is flagged correct", source, without)
    if not rows:
        raise UsageError(f"{source} (split {split!r}) has no rows")
    _check_unique_ids(rows, source)
    return rows


def shuffled_teachers(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows, each with the `rationales` and `structures` of another row; question and answer stay.

    The control for "does the teacher's reasoning help, or would any text of that form?" (our choice). No row keeps its
    own teacher, and no teacher is used twice. A teacher comes from a row with equally many steps, so that length is
    no difference between the runs; where a number of steps occurs once, from a row with nearly as many. Equal seeds
    give equal results, whatever the order of the rows.

    Rows without a teacher stay as they are. Raises `UsageError` where fewer than two rows have one.
    """
    teaching = sorted((row for row in rows if _teacher_steps(row)), key=lambda row: row["id"])
    if len(teaching) < 2:
        raise UsageError(
            f"teachers cannot be shuffled: {len(teaching)} of {len(rows)} rows have rationales or structures, and two "
            f"are the least"
        )
    random.Random(seed).shuffle(teaching)
    teaching.sort(key=_teacher_steps)
    groups: list[list[Row]] = []
    for row in teaching:
        if groups and (_teacher_steps(row) == _teacher_steps(groups[-1][-1]) or len(groups[-1]) == 1):
            groups[-1].append(row)
        else:
            groups.append([row])
    if len(groups[-1]) == 1:
        last = groups.pop()
        groups[-1] += last
    giver = {row["id"]: group[i - 1] for group in groups for i, row in enumerate(group)}
    return [
        row | {name: giver[row["id"]][name] for name in ("rationales", "structures")} if row["id"] in giver else row
        for row in rows
    ]


def _teacher_steps(row: Row) -> int:
    """Steps of a row's first teacher trace: those of its structure, else its lines. 0: it has none."""
    if row["structures"]:
        return max(1, len(row["structures"][0]))
    return max(1, len(list(filter(str.strip, row["rationales"][0].split("\n"))))) if row["rationales"] else 0


def to_dataset(rows: Sequence[Row], *, system_prompt: str | None = None, examples: int = 0) -> Dataset:
    """Make the `datasets.Dataset` that trainers take, with a `prompt` made from `question` where there is none.

    `system_prompt` and `examples` (worked examples, as turns of the conversation) apply to rows with a `question`;
    a row's own `prompt` stays as it is. Every row gets the same keys, because TRL reads them off the first one.
    """
    import pyarrow
    from datasets import Dataset

    shown = worked_examples(examples)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    made = []
    # A column holds texts or conversations, not both.
    form = type(rows[0].get("prompt") or []) if rows else list
    for row in rows:
        if not isinstance(row.get("prompt") or [], form):
            raise RowError(
                f"row {row.get('id')!r}, field 'prompt': found {_shown(row.get('prompt'))}, but the first row has a "
                f"{'text' if form is str else 'list of messages'}; all prompts must be of one kind"
            )
        prompt = row.get("prompt") or build_prompt(row["question"], system_prompt, shown)
        made.append({"prompt": prompt, **{key: row.get(key) for key in keys if key != "prompt"}})
    try:
        return Dataset.from_list(made)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise RowError(f"the rows do not fit one table, a field has values of different kinds: {error}") from error


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
    """The problem itself: the last user message of a conversation, or the text."""
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in reversed(prompt) if m.get("role") == "user"), "")


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion in either of TRL's forms (text, or a list of messages).

    What tools said is not the completion's; a message without a role, as in TRL's examples, is.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(str(m.get("content") or "") for m in completion if m.get("role", "assistant") == "assistant")


def _records(source: str, split: str, config: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if source == SAMPLE:
        for row in sample_rows("rl" if split == "train" else split):  # type: ignore[arg-type]
            yield f"{SAMPLE}, row {row['id']}", row
        return
    if source in SAMPLES:
        for row in _easy_rows(source, split):
            yield f"{source}, row {row['id']}", row
        return
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json", ".parquet"):
        if not path.is_file():
            raise UsageError(f"there is no file {path.absolute()}")
        yield from _file_records(path)
        return
    import datasets

    try:
        loaded = datasets.load_dataset(source, config, split=split)
    except Exception as error:
        raise UsageError(
            f"dataset {source!r} (config {config!r}, split {split!r}) cannot be loaded: {error}. "
            f"Give a dataset of the hub, a .jsonl or .parquet file, or one of {', '.join(SAMPLES)}."
        ) from error
    for position, record in enumerate(loaded):
        yield f"{source}, split {split}, row {position}", record


def _easy_rows(source: str, split: str) -> list[Row]:
    from rlkd.warm_start import distillation_rows, expert_rows, mawps_rows, warm_start_rows

    if source in (WARM_START, EXPERT):
        if split != "train":
            raise UsageError(f"{source}, split {split!r}: expected 'train'; measure on {SAMPLE} or {EASY_SAMPLE}")
        return warm_start_rows() if source == WARM_START else expert_rows()
    return (mawps_rows if source == EASY_SAMPLE else distillation_rows)(split)  # type: ignore[arg-type]


def _file_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for position, record in enumerate(pyarrow.parquet.read_table(path).to_pylist()):
            yield f"{path}, row {position}", record
        return
    yield from json_records(path)


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place for errors; raises `RowError` naming the line."""
    # Bytes: lines end at "\n" alone, and text that is not UTF-8 is an error of its line.
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise RowError(f"{place}: not JSON ({error}); expected one object a line") from error
            if not isinstance(record, dict):
                raise RowError(f"{place}: found {_shown(record)}, expected a JSON object")
            yield place, record


def _rename(record: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Row:
    unknown = set(columns) - {*FIELDS, "correct"}
    if unknown:
        known = ", ".join((*FIELDS, "correct"))
        raise UsageError(f"columns: {sorted(unknown)[0]!r} is no field of a row. Fields: {known}.")
    for field, column in columns.items():
        if column not in record:
            raise RowError(f"{place}: no column {column!r} (for {field!r}); there are {', '.join(record)}")
    renamed = {field: record[column] for field, column in columns.items()}
    taken = set(columns.values())
    row = {key: value for key, value in record.items() if key not in taken and key not in renamed} | renamed
    flags = row.pop("correct", None) if "correct" in columns else None
    if flags is not None:
        traces = row.get("rationales") or []
        if not isinstance(flags, list) or len(flags) != len(traces):
            raise RowError(f"{place}, field 'correct': expected {len(traces)} flags, found {_shown(flags)}")
        for name in ("rationales", "structures"):
            if isinstance(row.get(name), list) and len(row[name]) == len(flags):
                row[name] = [value for value, flag in zip(row[name], flags, strict=True) if flag]
    return row


def _check(row: Row, place: str) -> Row:
    for name in RESERVED_COLUMNS:
        if name in row:
            raise RowError(f"{place}: the column name {name!r} is reserved by TRL; rename the column")
    prompt, question = row.get("prompt"), row.get("question")
    if prompt is None and question is None:
        raise RowError(f"{place}: neither 'prompt' nor 'question'; there are {', '.join(row)}")
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise RowError(f"{place}, field 'question': expected text, found {_shown(question)}")
    if prompt is not None:
        _check_prompt(prompt, place)
    checked = dict(row)
    answer = row.get("answer")
    unreal = isinstance(answer, float) and not math.isfinite(answer)
    if unreal or isinstance(answer, bool) or not isinstance(answer, (str, int, float, type(None))):
        raise RowError(f"{place}, field 'answer': expected text or a number, found {_shown(answer)}")
    checked["answer"] = None if answer is None else str(answer)
    rationales = row.get("rationales") or []
    if isinstance(rationales, str):
        rationales = [rationales]
    if not isinstance(rationales, list) or not all(isinstance(text, str) for text in rationales):
        raise RowError(f"{place}, field 'rationales': expected a list of texts, found {_shown(rationales)}")
    checked["rationales"] = rationales
    structures = row.get("structures") or []
    if not isinstance(structures, list):
        raise RowError(f"{place}, field 'structures': expected a list, found {_shown(structures)}")
    if rationales and structures and len(structures) != len(rationales):
        raise RowError(
            f"{place}, field 'structures': {len(structures)} for {len(rationales)} rationales; expected one each"
        )
    try:
        checked["structures"] = [Structure.from_list(steps).to_list() for steps in structures]
    except (TypeError, ValueError) as error:
        raise RowError(f"{place}, field 'structures': {error}") from error
    if checked.pop("id", None) is not None:
        checked["id"] = str(row["id"])
    return checked


def _check_prompt(prompt: Any, place: str) -> None:
    if isinstance(prompt, str) and prompt:
        return
    if isinstance(prompt, list) and prompt:
        for message in prompt:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise RowError(f"{place}, field 'prompt': expected messages with role and content: {_shown(message)}")
        return
    raise RowError(f"{place}, field 'prompt': expected text or a list of messages, found {_shown(prompt)}")


def _check_unique_ids(rows: Sequence[Row], source: str) -> None:
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise RowError(f"{source}: the id {row['id']!r} stands twice; ids must be unique")
        seen.add(row["id"])


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
