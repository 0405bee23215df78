"""The arguments of `rlkd evaluate`: keys of the training recipes, from a config, a run, and the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rewards import Reward
from rewards.build import short_name
from rewards.metrics import ACCURACY, metric_rewards
from rlkd.data.benchmarks import BENCHMARKS, AnswerKind, benchmark_rows
from rlkd.data.loading import load_rows
from rlkd.data.rows import Row
from rlkd.data.samples import SAMPLES
from rlkd.engines import Engine, Sampling, is_engine_spec, open_engine, require_identity
from rlkd.engines.tokens import template_arguments
from rlkd.errors import UsageError
from rlkd.evaluation.completing import Plan
from rlkd.registry import suggestion
from trainers.common.evaluation_settings import settings_of_config, settings_of_run
from trainers.common.reward_settings import read_cache


@dataclass
class EvaluateScriptArguments:
    """Model, rows, sampling, metrics and output."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "model: a folder (also of an adapter), a hub id, or an embedded model"}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "of a training config: main, since engines read no other revision of the hub"}
    )
    engine: str | None = field(
        default=None,
        metadata={
            "help": "engine in place of transformers: vllm (for model_name_or_path), or a spec that names its model, "
            "such as http://HOST:PORT/v1#MODEL (docs/engines.md)"
        },
    )
    run: str | None = field(
        default=None,
        metadata={"help": "output_dir of a finished run: its model, with the settings that its training evaluates by"},
    )

    dataset_name: list[str] | str | None = field(
        default=None,
        metadata={
            "help": f"rows: {', '.join((*BENCHMARKS, *SAMPLES))}, a file, or a dataset of the hub (docs/data.md)"
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub dataset"})
    dataset_test_name: list[str] | str | None = field(
        default=None, metadata={"help": "rows where dataset_name is that of the training, as in a training config"}
    )
    dataset_test_split: str | None = field(default=None, metadata={"help": "split to evaluate on; default: test"})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "our field -> column of the data, e.g. {question: problem}"}
    )
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "leave out malformed rows, count them and show the first three"}
    )
    eval_rows: int | None = field(default=None, metadata={"help": "first rows of the split; default: all"})
    system_prompt: str | None = field(default=None, metadata={"help": "text before every question"})
    few_shot_examples: int = field(default=0, metadata={"help": "GSM8K examples (0 to 2) before a question"})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'arguments of the chat template, e.g. {"enable_thinking": false}'}
    )

    greedy: bool = field(default=True, metadata={"help": "one greedy completion per row"})
    eval_samples: int = field(default=0, metadata={"help": "sampled completions per row", "aliases": ["--samples"]})
    temperature: float = field(default=1.0, metadata={"help": "temperature of the samples"})
    top_p: float = field(default=1.0, metadata={"help": "top_p of the samples"})
    max_completion_length: int = field(default=512, metadata={"help": "maximum tokens of a completion"})
    seed: int = field(default=42, metadata={"help": "seed of the samples"})
    batch: int = field(default=16, metadata={"help": "rows per call of a transformers engine; more for a large GPU"})
    concurrency: int = field(default=32, metadata={"help": "parallel requests to vLLM, and to each server"})
    deadline: float = field(default=600.0, metadata={"help": "seconds for a request to a server"})

    metrics: list[str] = field(
        default_factory=lambda: [ACCURACY],
        metadata={"help": f"{ACCURACY}, and rewards by name, dotted path, or path/to/file.py:name"},
    )
    answers: Literal["exact", "choice", "boolean"] | None = field(
        default=None, metadata={"help": "how answers compare: exact (default), choice (letters) or boolean (yes, no)"}
    )
    reward_kwargs: dict[str, dict[str, Any]] | str | None = field(
        default=None, metadata={"help": "parameters of rewards: {name: {parameter: value}}"}
    )
    reward_options: dict[str, dict[str, Any]] | str | None = field(
        default=None, metadata={"help": "options of rewards: {name: {option: value}}"}
    )
    reward_cache: str = field(default="on", metadata={"help": "cache of scores: on, off, or a file"})
    reward_funcs: list[str] | None = field(
        default=None, metadata={"help": "rewards of a training config, whose reward_kwargs may stand in the file"}
    )

    check_contamination: str | None = field(
        default=None, metadata={"help": "training rows (file, sample, hub) to compare with the test questions"}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "split of check_contamination and of pass_rates"}
    )

    pass_rates: str | None = field(
        default=None,
        metadata={
            "help": "file (.jsonl) for the rows of the training split (dataset_name, dataset_train_split, max_rows), "
            "each with pass_rate, its share of right samples"
        },
    )
    max_rows: int | None = field(default=None, metadata={"help": "first rows of pass_rates; default: all"})

    out: str | None = field(default=None, metadata={"help": "output folder; with run: RUN/evaluation"})
    dry_run: bool = field(
        default=False, metadata={"help": "check everything and print what would be evaluated, without weights"}
    )

    def __post_init__(self) -> None:
        for name in ("columns", "chat_template_kwargs", "reward_kwargs", "reward_options"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    setattr(self, name, json.loads(value))
                except ValueError as error:
                    raise UsageError(f"{name}: {value!r} is not JSON ({error})") from error
        if self.pass_rates is not None:
            self._check_pass_rates()
        if self.eval_samples < 0 or not (self.greedy or self.eval_samples):
            raise UsageError(f"eval_samples {self.eval_samples}: expected at least {0 if self.greedy else 1}")
        if self.eval_samples and self.temperature == 0:
            raise UsageError(
                f"eval_samples {self.eval_samples} at temperature 0: all would be the greedy completion. Give a "
                f"--temperature above 0, or no samples"
            )
        if self.eval_rows is not None and self.eval_rows < 1:
            raise UsageError(f"eval_rows {self.eval_rows}: expected at least 1, or none for all")
        if self.answers not in (None, "exact", "choice", "boolean"):
            raise UsageError(f"answers {self.answers!r}: expected exact, choice or boolean")
        if min(self.batch, self.concurrency) < 1:
            raise UsageError(f"batch {self.batch}, concurrency {self.concurrency}: expected at least 1")
        if isinstance(self.metrics, str):  # in a YAML
            self.metrics = [self.metrics]
        if not self.metrics:
            raise UsageError(f"metrics is empty: expected {ACCURACY}, or rewards (`rlkd rewards list`)")

    def _check_pass_rates(self) -> None:
        if self.eval_samples < 1:
            raise UsageError("pass_rates: without samples there is no rate. Give their number: --samples 8")
        if ACCURACY not in self.metrics:
            raise UsageError(f"pass_rates: a rate is one of right answers; add {ACCURACY} to metrics {self.metrics}")
        if not str(self.pass_rates).endswith(".jsonl"):
            raise UsageError(f"pass_rates {self.pass_rates}: expected a file name that ends with .jsonl")
        if self.check_contamination:
            raise UsageError("pass_rates are those of training rows, which check_contamination reads. Run them apart")
        if not self.evaluates:
            raise UsageError("pass_rates: no model to measure. Name it: --model_name_or_path MODEL, or --engine SPEC")
        # The rows to measure are those to train on, whatever a training config evaluates on.
        self.dataset_test_name, self.dataset_test_split = self.dataset_name, self.dataset_train_split
        self.eval_rows = self.max_rows

    @property
    def evaluates(self) -> bool:
        """Whether there is a model to evaluate."""
        return bool(self.model_name_or_path or self.engine)

    def test_rows(self) -> tuple[Sequence[Row], AnswerKind]:
        """The rows, and how their answers compare; raises `UsageError` where none are named, or cannot be read."""
        name = self.dataset_test_name or self.dataset_name
        if name is None:
            raise UsageError(
                f"no rows to evaluate on: --dataset_name NAME ({', '.join(BENCHMARKS)}; embedded: "
                f"{', '.join(SAMPLES)}; a file; or a dataset of the hub)"
            )
        benchmark = name if isinstance(name, str) and name in BENCHMARKS else None
        kind = self.answers or (BENCHMARKS[benchmark].answers if benchmark else "exact")
        if benchmark:
            return benchmark_rows(benchmark)[: self.eval_rows], kind
        rows = load_rows(
            name,
            split=self.dataset_test_split or "test",
            config=self.dataset_config,
            columns=self.columns,  # type: ignore[arg-type]
            max_rows=self.eval_rows,
            wrong_rationales="unchecked",
            skip_bad_rows=self.skip_bad_rows,
        )
        return rows, kind

    def train_rows(self) -> Sequence[Row]:
        """The rows of `check_contamination`.

        `columns` are theirs too; `dataset_config` is theirs if they are of the same dataset as the test rows. Where
        the test rows are a benchmark's, both are those of the training rows alone.
        """
        assert self.check_contamination is not None
        name = self.dataset_test_name or self.dataset_name
        return load_rows(
            self.check_contamination,
            split=self.dataset_train_split,
            config=self.dataset_config if name in [*BENCHMARKS, self.check_contamination] else None,
            columns=self.columns,  # type: ignore[arg-type]
            wrong_rationales="unchecked",
            skip_bad_rows=self.skip_bad_rows,
        )

    def open_engine(self) -> Engine:
        """The engine of the model; nothing is loaded yet."""
        is_hub_id = self.model_name_or_path is not None and not Path(self.model_name_or_path).expanduser().exists()
        if (
            is_hub_id
            and self.model_revision not in (None, "main")
            and not (self.engine and is_engine_spec(self.engine))
        ):
            raise UsageError(
                f"model_revision {self.model_revision}: engines read the main revision of {self.model_name_or_path}. "
                f"Download the other one (hf download {self.model_name_or_path} --revision {self.model_revision} "
                f"--local-dir FOLDER) and evaluate it: --model_name_or_path FOLDER"
            )
        spec = self.engine or f"transformers:{self.model_name_or_path}"
        if self.engine and not is_engine_spec(self.engine):
            if self.model_name_or_path is None:
                raise UsageError(f"--engine {self.engine} needs the model: --model_name_or_path MODEL")
            spec = f"{self.engine}:{self.model_name_or_path}"
        template = template_arguments(self.chat_template_kwargs)
        options = {"chat_template_kwargs": template} if template else {}
        served = {"concurrency": self.concurrency, "timeout": self.deadline / 2}
        try:
            return require_identity(open_engine(spec, defaults=served, **options), "engine", spec)
        except ValueError as error:
            raise error if isinstance(error, UsageError) else UsageError(f"engine {spec}: {error}") from error

    def plan(self) -> Plan:
        """What to generate."""
        try:
            sampling = Sampling(self.max_completion_length, self.temperature, self.top_p)
        except ValueError as error:
            raise UsageError(str(error).replace("max_new_tokens", "max_completion_length")) from error
        further = (self.seed, self.batch, self.concurrency, self.deadline)
        return Plan(sampling, self.eval_samples, self.greedy, *further)

    def build_metrics(self, answers: AnswerKind) -> list[Reward]:
        """The metrics as rewards; parameters of rewards that only the training has are left out."""
        unused = set(map(short_name, self.reward_funcs or ())) - set(map(short_name, self.metrics))
        given: list[Any] = [self.reward_kwargs or {}, self.reward_options or {}]
        own = [{name: value for name, value in each.items() if name not in unused} for each in given]
        return metric_rewards(self.metrics, answers, *own, cache=read_cache(self.reward_cache))

    def recorded(self, engine: Engine) -> dict[str, Any]:
        """What decides a completion, for `settings.json`; a server that has moved is the same model."""
        names = ("dataset_config", "system_prompt", "few_shot_examples", "chat_template_kwargs")
        drawn = ("max_completion_length", "temperature", "top_p", "seed")
        batch = {"batch": self.batch} if engine.concurrency == 1 and not engine.is_remote else {}
        rows = {"dataset": self.dataset_test_name or self.dataset_name, "split": self.dataset_test_split or "test"}
        model = {"model": engine.identity or engine.name}
        return model | rows | {name: getattr(self, name) for name in (*names, *drawn)} | batch


def parse(arguments: Sequence[str]) -> EvaluateScriptArguments:
    """The arguments: the command line over a run's settings over a config. Raises `UsageError`."""
    from transformers import HfArgumentParser

    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    files.add_argument("--run", type=Path)
    given, rest = files.parse_known_args(arguments)
    known = {each.name for each in fields(EvaluateScriptArguments)}
    settings = settings_of_config(given.config, known) if given.config else {}
    if given.run:
        settings |= settings_of_run(given.run) | {"run": str(given.run)}
        settings.setdefault("out", str(given.run / "evaluation"))
    parser = HfArgumentParser(
        [EvaluateScriptArguments],  # type: ignore[list-item]
        prog="rlkd evaluate",
        usage="rlkd evaluate [--config FILE] [--run RUN] [arguments ...]     or: rlkd evaluate compare A B",
        description="Evaluate a model on test rows (docs/evaluate.md). --config FILE: a YAML of these keys, or the "
        "config of a training recipe.",
        allow_abbrev=False,
    )
    parser.set_defaults(**settings)
    try:
        script, unknown = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        raise UsageError(f"no argument {name!r}.{suggestion(name.replace('-', '_'), known | {'samples'})}")
    return script
