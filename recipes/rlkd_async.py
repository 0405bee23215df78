"""RLKD with rollouts that go on while the student trains: TRL's AsyncGRPOTrainer on a LoRA adapter.

    accelerate launch recipes/rlkd_async.py               # says which `vllm serve` it wants, and waits for it
    accelerate launch recipes/rlkd_async.py --vllm_server_base_url http://127.0.0.1:8161
    accelerate launch recipes/rlkd_async.py --config recipes/rlkd_async_2gpu.yaml
    accelerate launch recipes/rlkd_async.py --config my.yaml --resume_from_checkpoint

The same rewards as recipes/rlkd.py, by the same keys. A process beside the trainer asks the server for completions and
scores them; after each step the adapter goes to the server. Without --config the run takes recipes/rlkd_async.yaml:
SmolLM2-135M-Instruct, ten steps, without a GPU. Keys are those of TRL's AsyncGRPOConfig and those that --help lists
first; the command line wins over the file.

What differs from recipes/rlkd.py: nothing is measured before and after (TRL's model cannot generate while its
attention is packed), and a resumed run does not repeat the interrupted one exactly. See docs/async.md.
"""

import sys
from pathlib import Path

# A script's own folder heads the search path, and there rlkd.py would be found as the package `rlkd`. The checkout
# takes its place. Done by path and not by position, as the rollout process runs this again on a cleaned path.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlkd.data.loading import to_dataset
from rlkd.models import EMBEDDED
from trainers.common.arguments import RowArguments, say, start

if TYPE_CHECKING:
    from trainers import RLKDAsyncConfig, RLKDAsyncTrainer


@dataclass
class RLKDAsyncScriptArguments(RowArguments):
    """Data, student and adapter. TRL's ModelConfig does not go with AsyncGRPOConfig: both have `dtype`."""

    system_prompt: str | None = field(default=None, metadata={"help": "put before every question"})
    few_shot_examples: int = field(default=0, metadata={"help": "GSM8K examples (0 to 2) to put before a question"})
    model_name_or_path: str = field(default=EMBEDDED, metadata={"help": "the student; the server serves the same"})
    lora_r: int = field(default=16, metadata={"help": "rank of the adapter"})
    lora_alpha: int = field(default=32, metadata={"help": "its scale, by the rank"})
    # Without dropout: the server has none, and log-probabilities would differ.
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "layers that it adapts, but not the head"}
    )


def main(script: RLKDAsyncScriptArguments, args: "RLKDAsyncConfig") -> None:
    """Load the data, build the trainer, train, and show the result."""
    from peft import LoraConfig

    from trainers import RLKDAsyncTrainer
    from trainers.async_grpo.trainer import async_line
    from trainers.common.recipes import run

    rows = script.train_rows()
    say(args, f"{len(rows)} training rows of {script.dataset_name}.")

    targets = script.lora_target_modules
    trainer = RLKDAsyncTrainer(
        model=script.model_name_or_path,
        args=args,
        train_dataset=to_dataset(rows, system_prompt=script.system_prompt, examples=script.few_shot_examples),
        peft_config=LoraConfig(
            r=script.lora_r,
            lora_alpha=script.lora_alpha,
            lora_dropout=0.0,
            target_modules=targets[0] if len(targets) == 1 else targets,
            task_type="CAUSAL_LM",
        ),
    )
    run(trainer, line=async_line, show=show_rewards)


def show_rewards(trainer: "RLKDAsyncTrainer") -> None:
    """Show the figures of each reward over all rollouts."""
    for name, figures in trainer.reward_figures().items():
        print(f"{name + ':':<16} {figures}")


if __name__ == "__main__":
    from trainers import RLKDAsyncConfig

    start(main, (RLKDAsyncScriptArguments, RLKDAsyncConfig), default_config=_RECIPES / "rlkd_async.yaml")
