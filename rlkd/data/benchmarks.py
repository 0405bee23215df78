"""Public test sets by name: where each is on the hub, which of its columns are ours, and how its answers compare.

| name | dataset | answers | rows |
| --- | --- | --- | --- |
| `gsm8k` | openai/gsm8k, test | exact | 1,319 |
| `math500` | HuggingFaceH4/MATH-500 | exact | 500 |
| `aime24`, `aime25` | HuggingFaceH4/aime_2024, math-ai/aime25 | exact | 30 each |
| `mawps` | MU-NLPC/Calc-mawps, test | exact | 520 |
| `strategyqa` | ChilleD/StrategyQA, test | boolean | 687 |
| `commonsenseqa` | tau/commonsense_qa, validation (its test split has no answers) | choice | 1,221 |
| `gpqa_diamond` | Idavidrein/gpqa, gpqa_diamond (gated; its only split is called train) | choice | 198 |

Each is read at a pinned revision, so that two evaluations of one name have the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlkd.data.loading import load_rows
from rlkd.data.rows import Row, RowError
from rlkd.data.samples import EASY_SAMPLE, SAMPLE
from rlkd.errors import UsageError

AnswerKind = Literal["exact", "choice", "boolean"]
"""How answers compare: as mathematics and words (`rlkd.answers`), as letters of options, as yes and no."""


@dataclass(frozen=True)
class Benchmark:
    """A test set of the hub.

    `columns`: our field -> its column. `options`: the columns of a question's options, the right one first. `sample`:
    an embedded sample of the same kind. `gated`: the hub asks for consent to its conditions.
    """

    hub_id: str
    revision: str
    split: str = "test"
    config: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    answers: AnswerKind = "exact"
    sample: str | None = None
    options: tuple[str, ...] = ()
    gated: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark(
        "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee", config="main", sample=f"{SAMPLE} (200 rows of it)"
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        columns={"id": "unique_id", "question": "problem"},
    ),
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024",
        "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        split="train",
        columns={"question": "problem"},
    ),
    "aime25": Benchmark("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", columns={"question": "problem"}),
    "mawps": Benchmark(
        "MU-NLPC/Calc-mawps",
        "38c10053efeafd20ab6ff4e08c3ec17de26c19b7",
        columns={"answer": "result"},
        sample=f"{EASY_SAMPLE} (142 rows)",
    ),
    "strategyqa": Benchmark(
        "ChilleD/StrategyQA",
        "705562638fe1d8ca6bb98c66fc8f94d45fda8c83",
        columns={"id": "qid"},
        answers="boolean",
    ),
    "commonsenseqa": Benchmark(
        "tau/commonsense_qa",
        "94630fe30dad47192a8546eb75f094926d47e155",
        split="validation",
        columns={"answer": "answerKey"},
        answers="choice",
    ),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa",
        "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
        split="train",
        config="gpqa_diamond",
        columns={"id": "Record ID", "question": "Question"},
        answers="choice",
        options=("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
        gated=True,
    ),
}


def benchmark_rows(name: str) -> list[Row]:
    """The rows of a benchmark; a question with options shows them, one a line.

    Raises `UsageError` where the hub has no answer, with the dataset's name and what can be read instead.
    """
    found = BENCHMARKS[name]
    try:
        rows = load_rows(
            found.hub_id,
            split=found.split,
            config=found.config,
            columns=found.columns,
            wrong_rationales="unchecked",
            revision=found.revision,
        )
    except RowError:
        raise
    except UsageError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        sample = f"the embedded {found.sample}, or " if found.sample else ""
        columns = f" with --columns '{_shown(found.columns)}'" if found.columns and not found.options else ""
        gated = " It is gated: accept its conditions on its page, and log in with `hf auth login`." * found.gated
        raise UsageError(
            f"benchmark {name!r} is the hub's {found.hub_id} (split {found.split}), which cannot be read: {reason}."
            f"{gated} Without the hub: {sample}a file of its rows (--dataset_name rows.jsonl{columns})"
        ) from error
    return [_with_options(_mixed(row, found.options) if found.options else row) for row in rows]


def _shown(columns: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'"{ours}": "{theirs}"' for ours, theirs in columns.items()) + "}"


def _mixed(row: Row, columns: tuple[str, ...]) -> Row:
    """A row whose options are columns, with the letter of the right one, the first column, as its answer.

    The order of the options is made from the row's id and their texts, so that it is the same everywhere and the right
    letter is not known from the column.
    """
    texts = [str(row[column]).strip() for column in columns]
    order = sorted(texts, key=lambda text: hashlib.sha256(f"{row['id']}\n{text}".encode()).digest())
    letters = [chr(ord("A") + place) for place in range(len(order))]
    kept = {key: value for key, value in row.items() if key not in columns}
    return kept | {"answer": letters[order.index(texts[0])], "choices": {"label": letters, "text": order}}


def _with_options(row: Row) -> Row:
    choices: Any = row.get("choices")
    if not isinstance(choices, Mapping):
        return row
    options = [f"{letter}. {text}" for letter, text in zip(choices["label"], choices["text"], strict=True)]
    return row | {"question": "\n".join([row["question"], *options])}
