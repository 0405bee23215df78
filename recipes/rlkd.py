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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkd.data import to_dataset
from rlkd.evaluate import Estimate, accuracy, evaluate
from rlkd.models import EMBEDDED
from rlkd.report.terminal import best_rollout, show_rollout
from trainers.arguments import DataArguments, say, start
from trainers.checkpoints import find_checkpoint

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainers import RLKDConfig, RLKDTrainer


# The closing example is chosen from the rollouts of so many last steps.
SHOWN_STEPS = 10


@dataclass
class RLKDScriptArguments(DataArguments):
    """Data and measurement; everything else is in TRL's configs."""


def main(script: RLKDScriptArguments, args: "RLKDConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and show what came out."""
    from transformers import ProgressCallback
    from trl import get_peft_config, get_quantization_config

    from trainers import RLKDTrainer
    from trainers.logs import StepLine

    # An interrupted run goes on; whether it can is settled before anything is loaded.
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if checkpoint is None and args.resume_from_checkpoint:
        say(args, f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir} yet, so this starts afresh.")

    train_rows, test_rows = script.train_rows(), script.test_rows()
    say(args, f"{len(train_rows)} training rows of {script.dataset_name}, {len(test_rows)} rows to measure on.")

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
        train_dataset=to_dataset(train_rows, **script.prompt_style),
        peft_config=get_peft_config(model),
    )

    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StepLine())

    before = _measure(trainer, test_rows, script.prompt_style)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(args.output_dir)
    after = _measure(trainer, test_rows, script.prompt_style)
    if trainer.accelerator.is_main_process:
        _summarise(trainer, before, after, resumed=checkpoint is not None)


def _measure(trainer: "RLKDTrainer", rows: Sequence[dict[str, Any]], prompt_style: dict[str, Any]) -> Estimate | None:
    if not rows:
        return None
    from trainers.generation import greedy_completions

    prompts = to_dataset(rows, **prompt_style)["prompt"]
    say(trainer.args, f"measuring accuracy on {len(rows)} test rows ...")

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


if __name__ == "__main__":
    from trl import ModelConfig

    from trainers import RLKDConfig

    start(main, (RLKDScriptArguments, RLKDConfig, ModelConfig), default_config=_RECIPES / "rlkd.yaml")
