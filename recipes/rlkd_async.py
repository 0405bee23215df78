"""Asynchronous RLKD: rollouts continue while the student trains, by TRL's AsyncGRPOTrainer on a LoRA adapter.

    accelerate launch recipes/rlkd_async.py               # prints the `vllm serve` it needs, and waits for it
    accelerate launch recipes/rlkd_async.py --vllm_server_base_url http://127.0.0.1:8161
    accelerate launch recipes/rlkd_async.py --config recipes/rlkd_async_2gpu.yaml
    accelerate launch recipes/rlkd_async.py --config my.yaml --resume_from_checkpoint

The same rewards as recipes/rlkd.py, under the same keys. A second process requests completions from the server and
scores them; after each step the adapter goes to the server. Without --config the run takes recipes/rlkd_async.yaml:
SmolLM2-135M-Instruct, ten steps, without a GPU. Keys are those of TRL's AsyncGRPOConfig and those that --help lists
first; the command line overrides the file.

Differences from recipes/rlkd.py: there is no held-out evaluation (TRL's model cannot generate while its attention is
packed), and a resumed run does not repeat the interrupted one exactly. See docs/async.md.
"""

import sys
from pathlib import Path

# See recipes/rlkd.py: a script's own folder on the search path would hide the package `rlkd`.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.models import EMBEDDED
from trainers.common.arguments import lora_targets, require_trl, say, start
from trainers.common.data_arguments import PromptArguments

if TYPE_CHECKING:
    from trainers import RLKDAsyncConfig, RLKDAsyncTrainer
    from trainers.dry_run.dry_run import DryRun


@dataclass
class RLKDAsyncScriptArguments(PromptArguments):
    """Data, student and adapter; TRL's ModelConfig and AsyncGRPOConfig both have `dtype`, so they do not combine."""

    model_name_or_path: str = field(default=EMBEDDED, metadata={"help": "student, which the server must serve"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapter"})
    lora_alpha: int = field(default=32, metadata={"help": "scale of the adapter, divided by its rank"})
    # There is no dropout: the server has none, and log-probabilities would differ.
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "layers with an adapter; the head cannot have one"}
    )


def main(script: RLKDAsyncScriptArguments, args: "RLKDAsyncConfig") -> None:
    """Load the data, build the trainer, train, and show the result."""
    from trainers import RLKDAsyncTrainer
    from trainers.async_grpo.trainer import async_line
    from trainers.common.model_card import origin_of
    from trainers.common.recipes import run, say_rewards

    rows = script.train_rows()
    say(args, f"{len(rows)} training rows of {script.source_name}.")

    trainer = RLKDAsyncTrainer(**trainer_settings(script, args, rows))
    say_rewards(args, trainer.rewards)
    origin = origin_of(script, rows) if args.process_index == 0 else None
    run(trainer, line=async_line, show=show_rewards, origin=origin)


def trainer_settings(
    script: RLKDAsyncScriptArguments, args: "RLKDAsyncConfig", rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The arguments of the trainer."""
    from peft import LoraConfig

    return {
        "model": script.model_name_or_path,
        "args": args,
        "train_dataset": to_dataset(rows, **script.prompt_style),
        "peft_config": LoraConfig(
            r=script.lora_r,
            lora_alpha=script.lora_alpha,
            lora_dropout=0.0,
            target_modules=lora_targets(script.lora_target_modules),
            task_type="CAUSAL_LM",
        ),
    }


def dry_run(run: "DryRun", script: RLKDAsyncScriptArguments, args: "RLKDAsyncConfig") -> None:
    """Show what the run would do (`--dry_run`)."""
    from trainers.dry_run.async_grpo import show_async

    rows = run.attempt(script.train_rows, [])
    show_async(run, script, trainer_settings(script, args, rows), rows)


def show_rewards(trainer: "RLKDAsyncTrainer") -> None:
    """Show the figures of each reward over all rollouts."""
    for name, figures in trainer.reward_figures().items():
        print(f"{name + ':':<16} {figures}")


if __name__ == "__main__":
    require_trl(asynchronous=True)
    from trainers import RLKDAsyncConfig

    start(
        main,
        (RLKDAsyncScriptArguments, RLKDAsyncConfig),
        default_config=_RECIPES / "rlkd_async.yaml",
        dry_run=dry_run,
    )
