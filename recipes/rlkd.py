"""RLKD: reinforcement learning on a structure reward (arXiv 2505.16142).

    accelerate launch recipes/rlkd.py                                    # the laboratory's student, in minutes
    accelerate launch recipes/rlkd.py --config recipes/rlkd_smollm2.yaml     # a small language model, on a laptop
    accelerate launch recipes/rlkd.py --config recipes/rlkd_lora_1gpu.yaml
    accelerate launch recipes/rlkd.py --config my.yaml --learning_rate 2e-5 --resume_from_checkpoint
    accelerate launch recipes/rlkd.py --config my.yaml --shuffle_teachers 1    # the control: foreign teachers

Without --config the run takes recipes/rlkd.yaml: the laboratory's student, 0.9 million parameters, which learns within
minutes without a GPU; recipes/rlkd_smollm2.yaml trains SmolLM2-135M-Instruct on a sample of GSM8K. Keys are those of
TRL's GRPOConfig and ModelConfig and the few that --help lists first; the command line overrides the file. A single
process uses the first GPU (CUDA_VISIBLE_DEVICES selects another one).

This recipe leaves out the paper's 7B models and its data of R1 traces (recipes/rlkd_paper.yaml comes as close as it
can). The structure model of recipes/rlkd_smollm2.yaml is a small one of our own, trained by recipes/gsrm.py.
"""

import sys
from pathlib import Path

# A script's own folder heads the search path, where Python would find this file as the package `rlkd`. The checkout
# replaces it, by path and not by position, since spawned workers run this again on a cleaned path. An installed recipe
# does not need that, and site-packages must not come before the standard library.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.data.shuffle import shuffled_steps, shuffled_teachers
from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED
from rlkd.report.terminal import best_rollout, show_rollout
from trainers.common.arguments import apply_model_config, peft_config, require_trl, say, start
from trainers.common.data_arguments import DataArguments

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainers import RLKDConfig
    from trainers.common.run_files import RunFiles
    from trainers.dry_run.dry_run import DryRun


@dataclass
class RLKDScriptArguments(DataArguments):
    """Data and evaluation; everything else is in TRL's configs."""

    shuffle_teachers: int | None = field(
        default=None,
        metadata={"help": "seed of a control run, in which every row has the teacher traces of another row"},
    )
    shuffle_steps: int | None = field(
        default=None,
        metadata={"help": "seed of a control run, in which the steps of the teacher traces are in another order"},
    )


def main(script: RLKDScriptArguments, args: "RLKDConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and show the result."""
    from trainers import RLKDTrainer
    from trainers.common.model_card import origin_of
    from trainers.common.recipes import held_out_accuracy, run, say_rewards
    from trainers.rlkd.progress import step_line

    train_rows, test_rows = training_rows(script, args), script.test_rows()
    if args.control != "none":
        say(args, f"\n*** A CONTROL RUN: the teacher's weights of steps are those of --control {args.control}. ***\n")
    if args.shuffle_rewards:
        names = ", ".join(args.shuffle_rewards)
        say(args, f"\n*** A CONTROL RUN: the values of {names} change places within each group of completions. ***\n")
    say(args, f"{len(train_rows)} training rows of {script.source_name}, {len(test_rows)} rows for evaluation.")

    trainer = RLKDTrainer(**trainer_settings(script, args, model, train_rows))
    say_rewards(args, trainer.rewards)
    held_out = held_out_accuracy(trainer, script, test_rows)
    origin = origin_of(script, train_rows, test_rows) if args.process_index == 0 else None
    try:
        run(trainer, line=step_line, held_out=held_out, show=show_best, origin=origin)
    except EngineError as error:  # of the teacher; that of a reward is a failure of the reward
        raise UsageError(f"{error}\n--resume_from_checkpoint continues from the last checkpoint.") from error


def training_rows(script: RLKDScriptArguments, args: "RLKDConfig") -> Sequence[dict[str, Any]]:
    """The rows to train on, for a control run with other teachers or other steps."""
    from trainers.rlkd.shuffled import take_steps_from_rows

    train_rows = script.train_rows(*args.columns_read)
    if script.shuffle_teachers is not None:
        train_rows = shuffled_teachers(train_rows, script.shuffle_teachers)
        take_steps_from_rows(args, train_rows)
        say(
            args,
            f"\n*** A CONTROL RUN: each row has ANOTHER row's teacher (--shuffle_teachers {script.shuffle_teachers}). "
            f"What it learns of structure is not the teacher's. ***\n",
        )
    if script.shuffle_steps is not None:
        train_rows = shuffled_steps(train_rows, script.shuffle_steps)
        say(
            args,
            f"\n*** A CONTROL RUN: the steps of the teacher traces are in another order (--shuffle_steps "
            f"{script.shuffle_steps}). What it learns of their order is not the teacher's. ***\n",
        )
    return train_rows


def trainer_settings(
    script: RLKDScriptArguments, args: "RLKDConfig", model: "ModelConfig", rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The arguments of the trainer."""
    apply_model_config(args, model)
    return {
        "model": model.model_name_or_path or EMBEDDED,
        "args": args,
        "train_dataset": to_dataset(rows, **script.prompt_style),
        "peft_config": peft_config(model),
    }


def dry_run(run: "DryRun", script: RLKDScriptArguments, args: "RLKDConfig", model: "ModelConfig") -> None:
    """Show what the run would do (`--dry_run`)."""
    from trainers.dry_run.rlkd import show_rlkd

    rows = run.attempt(lambda: training_rows(script, args), [])
    test_rows = run.attempt(script.test_rows, [])
    show_rlkd(run, script, trainer_settings(script, args, model, rows), rows, test_rows)


def show_best(trainer: "RunFiles") -> None:
    """Show the rollout of the last steps with the best structure, or any."""
    recent = trainer.recent_rollouts()
    if shown := best_rollout(recent):
        steps = len({record["step"] for record in recent})
        scored = shown["rewards"].get("structure", {}).get("status") == "score"
        print(f"From the last {steps} steps, {'the rollout with the best structure' if scored else 'a rollout'}:")
        show_rollout(shown)
        print()


if __name__ == "__main__":
    require_trl()
    from trl import ModelConfig

    from trainers import RLKDConfig

    start(
        main,
        (RLKDScriptArguments, RLKDConfig, ModelConfig),
        default_config=_RECIPES / "rlkd.yaml",
        dry_run=dry_run,
    )
