"""The command line of the recipes: the default config, device defaults, clear errors.

Keys are flat, those of TRL's configs and of a dataclass of the recipe's own; the command line wins over the file.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rlkd.devices import best_device
from rlkd.errors import UsageError
from rlkd.installation import check_trl_version
from trainers.common.checkpoints import is_finished
from trainers.common.data_arguments import RowArguments
from trainers.common.models import check_bitsandbytes
from trainers.common.threads import set_cpu_threads
from trainers.dry_run.dry_run import dry_run_status, read_mode

# The value of an argument that is given without one.
BARE = {"--resume_from_checkpoint": "latest", "--dry_run": "check"}


def require_trl(*, asynchronous: bool = False) -> None:
    """End the process with one message where TRL is of an untested version; for a recipe, before it imports TRL."""
    try:
        check_trl_version(asynchronous=asynchronous)
    except UsageError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")


def start(
    main: Callable[..., None], kinds: Sequence[Any], *, default_config: Path, dry_run: Callable[..., None]
) -> None:
    """Run a recipe's `main` on its parsed command line, unless the run it resumes is finished.

    With `--dry_run`, `dry_run(run, *parsed)` prints what `main` would do (`trainers.dry_run`), and the exit status
    says whether it could. A mistake in config, data or rewards ends with one message.
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
        mode = next((read_mode(part.dry_run) for part in parsed if isinstance(part, RowArguments)), None)
        if any(is_finished(args) for args in trainings):
            return
        for args in trainings:
            if args.device.type == "cpu" and (threads := set_cpu_threads()) is not None:
                say(
                    args,
                    f"{threads} threads: the launcher had set OMP_NUM_THREADS=1 (set it yourself for another number).",
                )
        if mode is not None:
            command = command_line(sys.argv[1:], default_config)
            status = dry_run_status(mode, dry_run, parsed, command, device_defaults())
            if status:
                sys.exit(status)
        else:
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
    except Exception as error:
        # Python, torch and safetensors each have their own error of it.
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        sys.exit(
            f"\n{type(error).__name__}: {error}. The disk is full: free space, then continue from the last "
            f"checkpoint: --resume_from_checkpoint"
        )


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
    # argparse would print the usage, which has some hundred keys.
    parser.error = _refuse  # type: ignore[method-assign]
    words = command_line(arguments, default_config)
    config = words[words.index("--config") + 1]
    try:
        _check_values(parser, config)
        parsed = parser.parse_args_and_config(words)
        for part in parsed:
            if isinstance(part, RowArguments):
                _complete(part)
    except OSError as error:
        raise UsageError(f"--config: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the config is not YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {config}: the file is not UTF-8 ({error})") from error
    except UsageError:
        raise
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
    """The arguments with the default config, and a value for a bare --resume_from_checkpoint or --dry_run."""
    is_config = re.compile(r"--config=.")
    completed = [part for given in arguments for part in (given.split("=", 1) if is_config.match(given) else [given])]
    if completed[-1:] == ["--config"]:
        raise UsageError("--config needs a file: --config my.yaml")
    if "--config" not in completed:
        completed = ["--config", str(default_config), *completed]
    for i, argument in enumerate(completed):
        if argument in BARE and (completed[i + 1 : i + 2] or ["--"])[0].startswith("--"):
            completed.insert(i + 1, BARE[argument])
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


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _check_values(parser: Any, config: str) -> None:
    """Raise `UsageError` for a value of a config that is no number where one is expected.

    argparse reads texts, also those of a config, and takes every other value as it is.
    """
    with Path(config).open(encoding="utf-8") as file:
        given = yaml.safe_load(file)
    for action in parser._actions if isinstance(given, dict) else ():
        value = given.get(action.dest)
        # TRL wraps the type of a key that may be null, and keeps its name.
        kind = getattr(action.type, "__name__", "")
        if action.nargs in ("+", "*") or kind not in ("int", "float"):
            continue
        if not isinstance(value, int | float | str | None) or (
            kind == "int" and isinstance(value, float) and not value.is_integer()
        ):
            expected = "a whole number" if kind == "int" else "a number"
            raise UsageError(f"--config {config}, key {action.dest}: expected {expected}, found {value!r}")


def _complete(script: RowArguments) -> None:
    """Make one name of a list of one, and a mapping of `columns`, as the command line gives them."""
    if isinstance(script.dataset_name, list) and len(script.dataset_name) == 1:
        script.dataset_name = script.dataset_name[0]
    if isinstance(script.columns, str):
        try:
            script.columns = json.loads(script.columns)
        except ValueError as error:
            raise UsageError(f"columns: {script.columns!r} is not JSON ({error})") from error
    if not isinstance(script.columns, dict | None):
        raise ValueError(f"columns: expected a mapping such as {{question: problem}}, found {script.columns!r}")
