"""The data keys of the recipes: where rows come from, how they become prompts, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlkd.data.files import KINDS
from rlkd.data.loading import WrongRationales, load_rows
from rlkd.data.pass_rates import PASS_RATE, check_bounds, rows_between
from rlkd.data.rows import Row
from rlkd.data.samples import SAMPLE, SAMPLES
from rlkd.data.sources import source_name
from trainers.common.gold import check_held_out

SOURCES = (
    f"{', '.join(SAMPLES)}; files or patterns of files ({', '.join(KINDS)}); a folder of save_to_disk; or a dataset "
    f"of the hub; several are read one behind the other"
)


@dataclass
class RowArguments:
    """The source of the rows."""

    # transformers' parser drops a plain default of what may be a list.
    dataset_name: list[str] | str = field(default_factory=lambda: SAMPLE, metadata={"help": SOURCES})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub dataset"})
    dataset_train_split: str = field(default="train", metadata={"help": "split to train on"})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "our field -> column of the data, e.g. {question: problem}"}
    )
    other_columns: list[str] | None = field(
        default=None, metadata={"help": "columns to read besides those of the fields, for rewards; default: all"}
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "rows to train on, the first ones; reading ends with the last of them"}
    )
    max_rationales: int | None = field(default=None, metadata={"help": "teacher traces per row, at most"})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "leave out malformed rows, count them and show the first three"}
    )
    join_questions: bool = field(
        default=False,
        metadata={"help": "join training rows with the same question and answer into one row with all their traces"},
    )
    dry_run: str | None = field(
        default=None,
        metadata={
            "help": "check everything and print what the run would do, without weights; probe: also run one step"
        },
    )

    @property
    def source_name(self) -> str:
        """The source of the rows to train on, in messages."""
        return source_name(self.dataset_name)

    def train_rows(self) -> Sequence[Row]:
        """The rows to train on, with all their rationales."""
        return self._train_rows("unchecked")

    def _train_rows(
        self, wrong_rationales: WrongRationales, *further_columns: str, per_rationale: Sequence[str] = ()
    ) -> Sequence[Row]:
        reading = self._reading
        if self.other_columns is not None:
            reading["other_columns"] = [*self.other_columns, *further_columns]
        return load_rows(
            self.dataset_name,
            split=self.dataset_train_split,
            max_rows=self.max_rows,
            max_rationales=self.max_rationales,
            wrong_rationales=wrong_rationales,
            join_questions=self.join_questions,
            per_rationale=per_rationale,
            **reading,
        )

    @property
    def _reading(self) -> dict[str, Any]:
        """Arguments of `load_rows` for rows to train on and to evaluate on."""
        return {
            "config": self.dataset_config,
            "columns": self.columns,
            "other_columns": self.other_columns,
            "skip_bad_rows": self.skip_bad_rows,
        }


@dataclass
class TraceArguments(RowArguments):
    """The source of rows whose rationales a student learns from."""

    wrong_rationales: Literal["drop", "keep"] = field(
        default="drop", metadata={"help": "what to do with teacher traces whose answer differs from the row's"}
    )

    keep_pass_rate: list[float] | None = field(
        default=None,
        metadata={"help": "lowest and highest pass_rate (column) of a row to train on, e.g. 0.1 0.9; default: all"},
    )

    def train_rows(self, *further_columns: str) -> Sequence[Row]:
        """The rows to train on; how many of their rationales are right, and rows of that difficulty, is logged.

        `further_columns` are read beside `other_columns`.
        """
        if self.keep_pass_rate is None:
            return self._train_rows(self.wrong_rationales, *further_columns)
        low, high = check_bounds(self.keep_pass_rate)
        rows = self._train_rows(self.wrong_rationales, PASS_RATE, *further_columns)
        return rows_between(rows, low, high, source=self.source_name)


@dataclass
class PromptArguments(TraceArguments):
    """The source of the rows, and how they become prompts."""

    system_prompt: str | None = field(default=None, metadata={"help": "text before every question"})
    few_shot_examples: int = field(default=0, metadata={"help": "GSM8K examples (0 to 2) before a question"})

    @property
    def prompt_style(self) -> dict[str, Any]:
        """How a question becomes a prompt: arguments of `rlkd.data.loading.to_dataset`."""
        return {"system_prompt": self.system_prompt, "examples": self.few_shot_examples}


@dataclass
class DataArguments(PromptArguments):
    """The source of the rows, how they become prompts, and the rows to evaluate on."""

    dataset_test_name: str | None = field(
        default=None, metadata={"help": "dataset of the test rows; default: dataset_name"}
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata={"help": "split to evaluate on; default: test where dataset_test_name is given, else no evaluation"},
    )
    eval_rows: int = field(default=24, metadata={"help": "test rows to evaluate on before and after; 0: skip"})
    eval_samples: int = field(
        default=0, metadata={"help": "completions per test row to sample besides the greedy one; 0: none"}
    )
    eval_every: int = field(
        default=0, metadata={"help": "optimizer steps between two evaluations; 0: before and after only"}
    )

    @property
    def test_split(self) -> str | None:
        """The split to evaluate on; None: no evaluation."""
        if self.dataset_test_split is None and self.dataset_test_name:
            return "test"
        return self.dataset_test_split or None

    def test_rows(self) -> Sequence[Row]:
        """The first `eval_rows` rows of the test split; none without such a split.

        Raises `UsageError` where no answer of theirs can be read.
        """
        if not self.test_split or not self.eval_rows:
            return []
        rows = load_rows(
            self.dataset_test_name or self.dataset_name,
            split=self.test_split,
            max_rows=self.eval_rows,
            wrong_rationales="unchecked",
            **self._reading,
        )
        check_held_out(rows)
        return rows
