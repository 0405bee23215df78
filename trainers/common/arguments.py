"""The command line of the recipes: data keys, the default config, device defaults, clear errors.

Keys are flat, those of TRL's configs and of a dataclass of the recipe's own; the command line wins over the file.
"""

from __future__ import annotations

import atexit
import difflib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rlkd.data.files import KINDS
from rlkd.data.loading import WrongRationales, load_rows
from rlkd.data.samples import SAMPLE, SAMPLES
from rlkd.devices import best_device
from rlkd.errors import UsageError
from trainers.common.checkpoints import is_finished
from trainers.common.gold import check_held_out
from trainers.common.models import check_bitsandbytes
from trainers.common.threads import set_cpu_threads


@dataclass
class RowArguments:
    """The source of the rows."""

    dataset_name: str = field(
        default=SAMPLE,
        metadata={"help": f"{', '.join(SAMPLES)}, a file ({', '.join(KINDS)}), or a dataset of the hub"},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub dataset"})
    dataset_train_split: str = field(default="train", metadata={"help": "split to train on"})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "our field -> column of the data, e.g. {question: problem}"}
    )
    max_rationales: int | None = field(default=None, metadata={"help": "teacher traces per row, at most"})

    def train_rows(self) -> list[dict[str, Any]]:
        """The rows to train on, with all their rationales."""
        return self._train_rows("unchecked")

    def _train_rows(self, wrong_rationales: WrongRationales) -> list[dict[str, Any]]:
        return load_rows(
            self.dataset_name,
            split=self.dataset_train_split,
            config=self.dataset_config,
            columns=self.columns,  # type: ignore[arg-type]
            max_rationales=self.max_rationales,
            wrong_rationales=wrong_rationales,
        )


@dataclass
class TraceArguments(RowArguments):
    """The source of rows whose rationales a student learns from."""

    wrong_rationales: Literal["drop", "keep"] = field(
        default="drop", metadata={"help": "what to do with teacher traces whose answer differs from the row's"}
    )

    def train_rows(self) -> list[dict[str, Any]]:
        """The rows to train on; how many of their rationales are right is logged."""
        return self._train_rows(self.wrong_rationales)


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
    dataset_test_split: str | None = field(default=None, metadata={"help": "split to evaluate on; none: skip"})
    eval_rows: int = field(default=24, metadata={"help": "test rows to evaluate on before and after; 0: skip"})
    eval_samples: int = field(
        default=0, metadata={"help": "completions per test row to sample besides the greedy one; 0: none"}
    )
    eval_every: int = field(
        default=0, metadata={"help": "optimizer steps between two evaluations; 0: before and after only"}
    )

    def test_rows(self) -> list[dict[str, Any]]:
        """The first `eval_rows` rows of the test split; none without such a split.

        Raises `UsageError` where no answer of theirs can be read.
        """
        if not self.dataset_test_split or not self.eval_rows:
            return []
        rows = load_rows(
            self.dataset_test_name or self.dataset_name,
            split=self.dataset_test_split,
            config=self.dataset_config,
            columns=self.columns,  # type: ignore[arg-type]
            wrong_rationales="unchecked",
        )
        rows = rows[: self.eval_rows]
        check_held_out(rows)
        return rows


def start(main: Callable[..., None], kinds: Sequence[Any], *, default_config: Path) -> None:
    """Run a recipe's `main` on its parsed command line, unless the run it resumes is finished.

    A mistake in config, data or rewards ends with one message.
    """
    if not {"LOCAL_RANK", "WORLD_SIZE"} & set(os.environ):
        # A single process on a machine with several GPUs: TRL refuses to use them all without a launcher.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Deprecations between TRL and transformers are not the user's.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"trl|transformers")
    # PEFT looks for the config of a base that only rlkd knows by its name; no recipe changes a vocabulary.
    warnings.filterwarnings("ignore", message="Could not find a config file in", module="peft")
    try:
        parsed = parse(sys.argv[1:], kinds, default_config=default_config)
        trainings = [part for part in parsed if hasattr(part, "resume_from_checkpoint")]
        if any(is_finished(args) for args in trainings):
            return
        for args in trainings:
            if args.device.type == "cpu" and (threads := set_cpu_threads()) is not None:
                say(
                    args,
                    f"{threads} threads: the launcher had set OMP_NUM_THREADS=1 (set it yourself for another number).",
                )
        main(*parsed)
        end_processes()
    except UsageError as error:
        # A traceback would bury the message.
        sys.exit(f"\n{type(error).__name__}: {error}")
    except ValueError as error:
        # Only PEFT knows the names of a model's layers, once it is loaded.
        if not str(error).startswith("Target modules"):
            raise
        sys.exit(f"\nUsageError: lora_target_modules: {error} `all-linear` takes every linear layer.")


def end_processes() -> None:
    """End a process of a run on several, after all is written, without the interpreter's own end.

    Threads of gloo outlive the process group and can abort the interpreter as it ends ("terminate called without an
    active exception"): the launcher would call a finished run failed. What is registered with `atexit` runs.
    """
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def parse(arguments: Sequence[str], kinds: Sequence[Any], *, default_config: Path) -> tuple[Any, ...]:
    """One object of each of `kinds` (dataclasses) from config file and command line.

    Raises `UsageError`; for a misspelt key with the likely one.
    """
    from trl import TrlParser

    parser = TrlParser(kinds)
    parser.set_defaults(**device_defaults())
    try:
        parsed = parser.parse_args_and_config(command_line(arguments, default_config))
        for part in parsed:
            if isinstance(part, RowArguments):
                _read_columns(part)
    except OSError as error:
        raise UsageError(f"--config: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the config is not YAML: {error}") from error
    except ValueError as error:
        if "bf16" in str(error) and "setup" in str(error):
            raise UsageError(
                f"bf16: true: {str(error).split('. ')[0]}. Set bf16: false, and fp16: true on a GPU"
            ) from error
        known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        unknown = re.findall(r"'-{0,2}([a-z_]+)'", str(error)) if "rguments" in str(error) else []
        close = {word: difflib.get_close_matches(word, known, n=1) for word in unknown if word not in known}
        hints = [f"{word} (did you mean {match[0]}?)" for word, match in close.items() if match]
        raise UsageError(f"{error}" + (f"\nUnknown: {', '.join(hints)}" if hints else "")) from error
    return tuple(parsed)


def command_line(arguments: Sequence[str], default_config: Path) -> list[str]:
    """The arguments with the default config, and a value for a bare --resume_from_checkpoint."""
    is_config = re.compile(r"--config=.")
    completed = [part for given in arguments for part in (given.split("=", 1) if is_config.match(given) else [given])]
    if completed[-1:] == ["--config"]:
        raise UsageError("--config needs a file: --config my.yaml")
    if "--config" not in completed:
        completed = ["--config", str(default_config), *completed]
    for i, argument in enumerate(completed):
        if argument == "--resume_from_checkpoint" and (completed[i + 1 : i + 2] or ["--"])[0].startswith("--"):
            completed.insert(i + 1, "latest")
    return completed


def device_defaults() -> dict[str, Any]:
    """Defaults for this machine: float32 on the CPU without an accelerator, else bfloat16 if it is supported."""
    import torch

    device = best_device()
    if device == "cuda":
        return {"bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
    return {"bf16": False} | ({"use_cpu": True} if device == "cpu" else {})


def apply_model_config(args: Any, model: Any) -> None:
    """Add the loading options of TRL's `ModelConfig` to the training arguments' `model_init_kwargs`, which win."""
    from trl import get_quantization_config

    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, key):
            check_bitsandbytes(key)
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "quantization_config": get_quantization_config(model),
        **(args.model_init_kwargs or {}),
    }
    args.model_init_kwargs = {key: value for key, value in settings.items() if value is not None}


def peft_config(model: Any) -> Any:
    """The LoRA configuration of TRL's `ModelConfig`; None without `use_peft`."""
    from trl import get_peft_config

    model.lora_target_modules = lora_targets(model.lora_target_modules)
    return get_peft_config(model)


def lora_targets(given: str | Sequence[str] | None) -> str | list[str] | None:
    """`lora_target_modules` as PEFT takes it: `all-linear`, names of modules as a list, or an expression as a text.

    PEFT takes every other text for an expression on whole paths, and TRL turns a list of one name into a text.

    >>> lora_targets("q_proj"), lora_targets(["all-linear"]), lora_targets([r".*attn.*_proj"])
    (['q_proj'], 'all-linear', '.*attn.*_proj')
    """
    if given is None:
        return None
    listed = [given] if isinstance(given, str) else list(given)
    if len(listed) == 1 and (listed[0] == "all-linear" or not re.fullmatch(r"[\w.]+", listed[0])):
        return listed[0]
    return listed


def say(args: Any, text: str) -> None:
    """Print once, whatever the number of processes. `args`: the training arguments."""
    if args.process_index == 0:
        print(text, flush=True)


def _read_columns(script: RowArguments) -> None:
    if isinstance(script.columns, str):
        script.columns = json.loads(script.columns)
    if not isinstance(script.columns, dict | None):
        raise ValueError(f"columns: expected a mapping such as {{question: problem}}, found {script.columns!r}")
