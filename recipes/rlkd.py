"""RLKD: reinforcement learning on a structure reward (arXiv 2505.16142).

    accelerate launch recipes/rlkd.py                                    # the embedded default, on a laptop
    accelerate launch recipes/rlkd.py --config recipes/rlkd_lora_1gpu.yaml
    accelerate launch recipes/rlkd.py --config my.yaml --learning_rate 2e-5 --resume_from_checkpoint

Without --config the run takes recipes/rlkd.yaml: SmolLM2-135M-Instruct on a sample of GSM8K, LoRA, ten steps, without
a GPU. Keys are those of TRL's GRPOConfig and ModelConfig and the few that --help lists first; the command line wins
over the file. A single process takes the first GPU (CUDA_VISIBLE_DEVICES names another).

What this recipe leaves out of the paper: training the structure model (the default finds steps by rules; name any
instruct model on a server by `reward_kwargs: {structure: {decomposer: prompted, engine: ...}}`).
"""

import sys
from pathlib import Path

# A script's own folder heads the search path, and there this very file would be found as the package `rlkd`. The
# checkout takes its place. Done by path and not by position, as spawned workers run this again on a cleaned path. An
# installed recipe needs no such thing, and site-packages must not come before the standard library.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

import difflib
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from rlkd.data import SAMPLE, load_rows, to_dataset
from rlkd.errors import UsageError
from rlkd.evaluate import Estimate, accuracy, evaluate
from rlkd.models import EMBEDDED
from rlkd.report.terminal import best_rollout, show_rollout
from trainers.checkpoints import find_checkpoint

if TYPE_CHECKING:
    from trl import ModelConfig, TrlParser

    from trainers import RLKDConfig, RLKDTrainer


_CONFIG = re.compile(r"--config=.")
# The closing example is chosen from the rollouts of so many last steps.
SHOWN_STEPS = 10


@dataclass
class RLKDScriptArguments:
    """Data and measurement; everything else is in TRL's configs."""

    dataset_name: str = field(
        default=SAMPLE, metadata={"help": f"{SAMPLE}, a .jsonl or .parquet file, or a dataset of the hub"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration of a hub dataset"})
    dataset_train_split: str = field(default="train", metadata={"help": "split to train on"})
    dataset_test_name: str | None = field(default=None, metadata={"help": "where test rows are, if elsewhere"})
    dataset_test_split: str | None = field(default=None, metadata={"help": "split to measure accuracy on; none: skip"})
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "our field -> column of the data, e.g. {question: problem}"}
    )
    max_rationales: int | None = field(default=None, metadata={"help": "teacher traces to keep a row"})
    system_prompt: str | None = field(default=None, metadata={"help": "put before every question"})
    worked_examples: int = field(default=0, metadata={"help": "GSM8K examples (0 to 2) to put before a question"})
    eval_rows: int = field(default=24, metadata={"help": "test rows for the accuracy before and after; 0: skip"})


def make_parser() -> "TrlParser":
    """The parser over all keys of this recipe."""
    from trl import ModelConfig, TrlParser

    from trainers import RLKDConfig

    return TrlParser((RLKDScriptArguments, RLKDConfig, ModelConfig))


def main(script: RLKDScriptArguments, args: "RLKDConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and show what came out."""
    from transformers import ProgressCallback
    from trl import get_peft_config, get_quantization_config

    from trainers import RLKDTrainer
    from trainers.logs import StepLine

    # An interrupted run goes on; whether it can is settled before anything is loaded.
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if checkpoint is None and args.resume_from_checkpoint:
        _say(
            args, f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir} yet, so this starts afresh."
        )

    train_rows = load_rows(
        script.dataset_name,
        split=script.dataset_train_split,
        config=script.dataset_config,
        columns=script.columns,  # type: ignore[arg-type]
        max_rationales=script.max_rationales,
    )
    prompt_style: dict[str, Any] = {"system_prompt": script.system_prompt, "examples": script.worked_examples}
    test_rows = _test_rows(script)
    _say(args, f"{len(train_rows)} training rows of {script.dataset_name}, {len(test_rows)} rows to measure on.")

    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "quantization_config": get_quantization_config(model),
    } | (args.model_init_kwargs or {})
    args.model_init_kwargs = {key: value for key, value in args.model_init_kwargs.items() if value is not None}
    trainer = RLKDTrainer(
        model=model.model_name_or_path or EMBEDDED,
        args=args,
        train_dataset=to_dataset(train_rows, **prompt_style),
        peft_config=get_peft_config(model),
    )

    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StepLine())

    before = _measure(trainer, test_rows, prompt_style)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(args.output_dir)
    after = _measure(trainer, test_rows, prompt_style)
    if trainer.accelerator.is_main_process:
        _summarise(trainer, before, after, resumed=checkpoint is not None)


def _test_rows(script: RLKDScriptArguments) -> list[dict[str, Any]]:
    if not script.dataset_test_split or not script.eval_rows:
        return []
    rows = load_rows(
        script.dataset_test_name or script.dataset_name,
        split=script.dataset_test_split,
        config=script.dataset_config,
        columns=script.columns,  # type: ignore[arg-type]
    )
    return rows[: script.eval_rows]


def _measure(trainer: "RLKDTrainer", rows: Sequence[dict[str, Any]], prompt_style: dict[str, Any]) -> Estimate | None:
    if not rows:
        return None
    from trainers.generation import greedy_completions

    prompts = to_dataset(rows, **prompt_style)["prompt"]
    _say(trainer.args, f"measuring accuracy on {len(rows)} test rows ...")

    def generate(_: Any) -> list[str]:
        return greedy_completions(trainer, prompts, max_new_tokens=trainer.args.max_completion_length)

    return evaluate(rows, generate, {"accuracy": accuracy})["accuracy"]


def _summarise(trainer: "RLKDTrainer", before: Estimate | None, after: Estimate | None, *, resumed: bool) -> None:
    from trainers.logs import last_steps

    print()
    saved = trainer.args.save_rollouts
    recent = last_steps(trainer.rollouts_path, SHOWN_STEPS) if saved else []
    if shown := best_rollout(recent):
        steps = len({record["step"] for record in recent})
        scored = shown["rewards"].get("structure", {}).get("status") == "score"
        print(f"From the last {steps} steps, {'the rollout with the best structure' if scored else 'a rollout'}:")
        show_rollout(shown)
        print()
    if before and after:
        print(f"accuracy before: {before}" + (" - of the model before any training" if resumed else ""))
        print(f"accuracy after:  {after}")
        print(
            f"{after.n} test rows are few: only a change far beyond these intervals would mean anything (--eval_rows "
            f"for more). Answers are cut off at {trainer.args.max_completion_length} tokens."
        )
    print(f"model:    {Path(trainer.args.output_dir).resolve()}")
    print(f"metrics:  {trainer.metrics_path.resolve()}")
    if saved:
        print(f"rollouts: {trainer.rollouts_path.parent.resolve()}")


def command_line(arguments: Sequence[str]) -> list[str]:
    """The arguments with the default config, and a value for a bare --resume_from_checkpoint."""
    completed = [part for given in arguments for part in (given.split("=", 1) if _CONFIG.match(given) else [given])]
    if completed[-1:] == ["--config"]:
        raise UsageError("--config needs a file: --config my.yaml")
    if "--config" not in completed:
        completed = ["--config", str(_RECIPES / "rlkd.yaml"), *completed]
    for i, argument in enumerate(completed):
        if argument == "--resume_from_checkpoint" and (completed[i + 1 : i + 2] or ["--"])[0].startswith("--"):
            completed.insert(i + 1, "latest")
    return completed


def device_defaults() -> dict[str, Any]:
    """What TRL's configs cannot know: without an accelerator it is float32 on the CPU, with one bfloat16 if it can."""
    import torch

    if torch.cuda.is_available():
        return {"bf16": torch.cuda.is_bf16_supported(including_emulation=False)}
    if torch.backends.mps.is_available():
        return {"bf16": False}
    return {"use_cpu": True, "bf16": False}


def parse(arguments: Sequence[str]) -> tuple[RLKDScriptArguments, "RLKDConfig", "ModelConfig"]:
    """Parse config file and command line; a misspelt key ends with what was probably meant."""
    parser = make_parser()
    parser.set_defaults(**device_defaults())
    completed = command_line(arguments)
    try:
        script, args, model = parser.parse_args_and_config(completed)
        if isinstance(script.columns, str):
            script.columns = json.loads(script.columns)
        if not isinstance(script.columns, dict | None):
            raise ValueError(f"columns: expected a mapping such as {{question: problem}}, found {script.columns!r}")
    except OSError as error:
        raise UsageError(f"--config: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the config is no YAML: {error}") from error
    except ValueError as error:
        known = [option.lstrip("-") for action in parser._actions for option in action.option_strings]
        unknown = re.findall(r"'-{0,2}([a-z_]+)'", str(error)) if "rguments" in str(error) else []
        close = {word: difflib.get_close_matches(word, known, n=1) for word in unknown if word not in known}
        hints = [f"{word} (did you mean {match[0]}?)" for word, match in close.items() if match]
        raise UsageError(f"{error}" + (f"\nUnknown: {', '.join(hints)}" if hints else "")) from error
    return script, args, model


def _say(args: "RLKDConfig", text: str) -> None:
    if args.process_index == 0:
        print(text, flush=True)


if __name__ == "__main__":
    if not {"LOCAL_RANK", "WORLD_SIZE"} & set(os.environ):
        # A single process on a machine with several GPUs: TRL refuses to spread over them without a launcher.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # Deprecations between TRL and transformers are theirs to settle, not the reader's.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"trl|transformers")
    try:
        main(*parse(sys.argv[1:]))
    except UsageError as error:
        # A mistake in config, data or rewards: the message says it all, a traceback would bury it.
        sys.exit(f"\n{type(error).__name__}: {error}")
