"""Scores samples with a reward, without a model.

>>> from rewards.testing.runner import samples_from
>>> samples = samples_from("gsm8k-sample", rows=1)
>>> samples.names[:3]
['gsm8k-train-39 (as written)', 'gsm8k-train-39 (duplicate)', 'gsm8k-train-39 (first half)']
"""

from __future__ import annotations

import contextlib
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from rewards.build import build_reward
from rewards.contract import Outcome, RewardError
from rlkd.answers import number
from rlkd.data.rows import TRL_ARGUMENTS, Row, RowError, build_prompt, check_row, completion_text, shown
from rlkd.data.samples import SAMPLE
from rlkd.data.sources import records
from rlkd.errors import UsageError
from rlkd.steps import strip_calculator_marks

FIELDS = ("completion", "completions")
"""Fields of a row with completions: a text or a conversation, or a list of these."""

ENOUGH = 20
"""Number of samples after which no more rows are taken by default."""

Progress = Callable[[str], object]
"""Takes a line before each pass over the samples."""


def silent(line: str) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Samples:
    """Completions to score, with the columns that TRL passes to a reward.

    `batch`: column -> one value per sample; one column is `completions`. `names` of the samples and `origin`, their
    source, are for messages. `made`: whether completions were made from the rows' answers, so that some are right.
    """

    batch: Mapping[str, Sequence[Any]]
    names: Sequence[str] = ()
    origin: str = ""
    made: bool = False

    def __post_init__(self) -> None:
        if "completions" not in self.batch:
            raise UsageError(f"samples need the column 'completions'; there are {', '.join(self.batch) or 'none'}")
        for column, values in self.batch.items():
            if len(values) != len(self):
                raise UsageError(f"column {column!r} has {len(values)} values for {len(self)} completions")
        if not self.names:
            object.__setattr__(self, "names", [f"sample {i}" for i in range(len(self))])

    def __len__(self) -> int:
        return len(self.batch["completions"])

    @property
    def columns(self) -> list[str]:
        """The columns of the data, without TRL's own."""
        return [name for name in self.batch if name not in TRL_ARGUMENTS]

    def select(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """The batch of some samples, in the given order."""
        return {name: [values[i] for i in indices] for name, values in self.batch.items()}


def samples_from(
    source: str = SAMPLE, *, split: str = "train", field: str | None = None, rows: int | None = None
) -> Samples:
    """Samples from rows (see `rlkd.data.rows`) or from the rollouts of a run.

    A row's completions are in its field `completion` or `completions`, or in `field`. If the first row has none, they
    are made from each row's own rationale and answer: as written, a duplicate, the first half, with another answer,
    and empty. `completion_ids` has one id per word or punctuation mark, since there is no tokenizer.

    Args:
        rows: number of rows. Default: enough for 20 samples.

    Raises `UsageError` for a source without rows, completions or material for completions.
    """
    chosen: list[tuple[Row, list[tuple[str, Any]]]] = []
    made: bool | None = None
    for row, written in _rows(source, split, field):
        made = written is None if made is None else made
        if made:
            labelled = list(_variants(row))
        else:
            labelled = [(f"{i}" if len(written or ()) > 1 else "", text) for i, text in enumerate(written or ())]
        if labelled:
            chosen.append((row, labelled))
        count = sum(len(completions) for _, completions in chosen)
        if len(chosen) == rows or (rows is None and count >= ENOUGH):
            break
    if not chosen:
        missing = f"no field {field!r}" if field else "no completions"
        raise UsageError(
            f"{source}: nothing to score. The first row has {missing}, and no row has rationales or an answer to make "
            f"completions from. Fields with completions: {', '.join(FIELDS)}, or another one by --completions FIELD."
        )
    columns = list(dict.fromkeys(name for row, _ in chosen for name in row if name != "prompt"))
    names: list[str] = []
    batch: dict[str, list[Any]] = {name: [] for name in ("prompts", "completions", "completion_ids", *columns)}
    for row, labelled in chosen:
        prompt = row.get("prompt") or build_prompt(row["question"])
        for label, completion in labelled:
            as_turn = isinstance(completion, str) and not isinstance(prompt, str)
            names.append(f"{row['id']} ({label})" if label else row["id"])
            batch["prompts"].append(prompt)
            batch["completions"].append([{"role": "assistant", "content": completion}] if as_turn else completion)
            batch["completion_ids"].append(_ids(completion_text(completion)))
            for name in columns:
                batch[name].append(row.get(name))
    source_of_completions = (
        "completions made from each row's rationale and answer: as written, a duplicate, the first half, with another "
        "answer, empty"
        if made
        else "completions as given"
    )
    plural = f"{len(chosen)} row{'s' * (len(chosen) > 1)}"
    origin = f"{len(names)} samples of {plural} of {source} ({source_of_completions})"
    return Samples(batch, names, origin, made=bool(made))


@dataclass(frozen=True)
class ScoredSamples:
    """Outcomes of samples (none if the reward is `broken`, which says how), and their cost.

    `seconds`: for all samples, from an empty cache; with a second run, after workers and models have started.
    `seconds_second_run`: None where there was one run only. `distinct`: number of different inputs; None for a reward
    of whole batches. `cache_hits`: of the second run.
    """

    outcomes: list[Outcome]
    seconds: float = 0.0
    seconds_second_run: float | None = None
    distinct: int | None = None
    cache_hits: int = 0
    broken: str | None = None


def score_samples(
    spec: str,
    samples: Samples,
    arguments: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    once: bool = False,
    progress: Progress = silent,
) -> ScoredSamples:
    """Score samples twice, as a run does, with a temporary cache.

    `once`: score them in one run, and nothing else; then times include the start of workers and models. `progress`
    gets a line before each run. Raises `RewardError` if the reward cannot be built or needs a missing column.
    """
    with TemporaryDirectory(prefix="rlkd-rewards-") as folder:
        runs = []
        for what in ("scores",) if once else ("scores", "scores, second run"):
            reward = build_reward(spec, arguments, options, cache=Path(folder) / "rewards.sqlite")
            reward.check_columns(samples.columns)
            try:
                reward.check_ready()
                if not once:
                    _warm_up(reward, samples)
                progress(f"{what}: {len(samples)} samples")
                started = time.perf_counter()
                try:
                    outcomes = reward.score(**samples.batch, **trl_extras())
                except RewardError as error:
                    return ScoredSamples([], broken=str(error))
                runs.append((outcomes, time.perf_counter() - started))
            finally:
                reward.close()
        outcomes, seconds = runs[0]
        repeated, seconds_second_run = runs[1] if not once else ([], None)
        return ScoredSamples(
            outcomes,
            seconds,
            seconds_second_run,
            distinct=sum(o.reused is None for o in outcomes) if reward.options.per_sample else None,
            cache_hits=sum(o.reused == "cache" for o in repeated),
        )


def _warm_up(reward: Any, samples: Samples) -> None:
    """Score one completion that is none of the samples, so that workers and models have started."""
    if not len(samples):
        return
    batch = samples.select([0])
    completion = batch["completions"][0]
    text = "Only to start."
    batch["completions"] = [text if isinstance(completion, str) else [{"role": "assistant", "content": text}]]
    with contextlib.suppress(RewardError):  # the samples show it
        reward.score(**batch, **trl_extras())


def trl_extras() -> dict[str, Any]:
    """TRL's arguments besides the columns: the trainer's state, and two loggers (which drop everything here)."""
    return {
        "trainer_state": SimpleNamespace(global_step=0, max_steps=1, epoch=0.0),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def _rows(source: str, split: str, field: str | None) -> Iterator[tuple[Row, list[Any] | None]]:
    """Checked rows with their completions, None for a row without. Ids may repeat, as in rollouts."""
    for where, made, record in records(source, split):
        names = [name for name in ([field] if field else FIELDS) if record.get(name) is not None]
        written = [text for name in names for text in _completions(record[name], where, name)] if names else None
        row = check_row({name: value for name, value in record.items() if name not in (*FIELDS, field)}, where)
        yield {"id": made, **row}, written


def _completions(value: Any, where: str, field: str) -> list[Any]:
    if isinstance(value, str) or _is_conversation(value):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) or _is_conversation(item) for item in value):
        return value
    raise RowError(
        f"{where}, field {field!r}: found {shown(value)}, expected a text, a list of messages with role and "
        f"content, or a list of these"
    )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def _variants(row: Row) -> Iterator[tuple[str, str]]:
    """Right and broken completions made from a row's first rationale and its answer; none for a row without either."""
    answer = row["answer"]
    reasoning = strip_calculator_marks(row["rationales"][0]) if row["rationales"] else ""
    if not reasoning and answer is None:
        return
    text = reasoning if answer is None else f"{reasoning}\n#### {answer}".strip()
    yield "as written", text
    yield "duplicate", text  # groups of rollouts contain equal completions too
    yield "first half", text[: len(text) // 2]
    if answer is not None:
        value = number(answer)
        other = f"not {answer}" if value is None else str(value + 1)
        yield "other answer", f"{reasoning}\n#### {other}".strip()
    yield "empty", ""


def _ids(text: str) -> list[int]:
    # Equal words have equal ids, in every process.
    return [zlib.crc32(word.encode()) % 50_000 for word in re.findall(r"\w+|[^\w\s]", text)]
