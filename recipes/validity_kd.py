"""Validity-calibrated distillation: a teacher's distribution, and for each step how hard it is followed.

    accelerate launch recipes/validity_kd.py                              # the embedded default, on a laptop
    accelerate launch recipes/validity_kd.py --control uniform            # plain distillation: the first comparison
    accelerate launch recipes/validity_kd.py --config recipes/validity_kd_lora_1gpu.yaml
    accelerate launch recipes/validity_kd.py --config my.yaml --tau adapt --resume_from_checkpoint

Without --config the run takes recipes/validity_kd.yaml: SmolLM2-135M-Instruct with a warm start learns from a better
model of its kind on easy word problems, LoRA, ten steps, without a GPU. Keys are those of TRL's DistillationConfig and
ModelConfig and the few that --help lists first; the command line wins over the file. A single process takes the first
GPU (CUDA_VISIBLE_DEVICES names another).

The idea is that of "Validity-Calibrated Reasoning Distillation" (arXiv 2605.04078), of which only the abstract is
known to us. All formulas are our choices: docs/validity.md says which, docs/validity_kd.md how to use them.
"""

import sys
from pathlib import Path

# A script's own folder heads the search path, and there `recipes/rlkd.py` would be found as the package `rlkd`. The
# checkout takes its place. Done by path and not by position, as spawned workers run this again on a cleaned path. An
# installed recipe needs no such thing, and site-packages must not come before the standard library.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlkd.data.loading import to_dataset
from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED
from rlkd.statistics import Interval
from trainers.common.arguments import DataArguments, apply_model_config, say, start
from trainers.common.checkpoints import resume_point

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainers import ValidityKDConfig, ValidityKDTrainer


# The closing example is chosen from the traces of so many last steps.
SHOWN_STEPS = 10


@dataclass
class ValidityKDScriptArguments(DataArguments):
    """Data and measurement; everything else is in the configs of the trainer and the model."""


def main(script: ValidityKDScriptArguments, args: "ValidityKDConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and show what came out."""
    from transformers import ProgressCallback
    from trl import get_peft_config

    from trainers import ValidityKDTrainer
    from trainers.common.evaluation import HeldOutAccuracy
    from trainers.common.progress import StepLine
    from trainers.validity_kd.progress import kd_line

    # An interrupted run goes on; whether it can is settled before anything is loaded.
    checkpoint, finished = resume_point(args)
    if finished:
        return

    train_rows, test_rows = script.train_rows(), script.test_rows()
    if args.control != "none":
        say(args, f"\n*** A CONTROL RUN: the weights of steps are those of --control {args.control}. ***\n")
    say(args, f"{len(train_rows)} training rows of {script.dataset_name}, {len(test_rows)} rows to measure on.")

    apply_model_config(args, model)
    trainer = ValidityKDTrainer(
        model=model.model_name_or_path or EMBEDDED,
        args=args,
        train_dataset=to_dataset(train_rows, **script.prompt_style),
        peft_config=get_peft_config(model),
    )

    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StepLine(kd_line))

    held_out = None
    if test_rows:
        prompts = to_dataset(test_rows, **script.prompt_style)["prompt"]
        held_out = HeldOutAccuracy(trainer, test_rows, prompts, every=script.eval_every)
        trainer.add_callback(held_out)

    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except EngineError as error:
        raise UsageError(f"{error}\n--resume_from_checkpoint goes on from the last checkpoint.") from error
    trainer.save_model(args.output_dir)
    if trainer.accelerator.is_main_process:
        _summarise(trainer, held_out.estimates() if held_out else [])


def _summarise(trainer: "ValidityKDTrainer", measured: list[tuple[int, Interval]]) -> None:
    from trainers.common.run_files import last_steps
    from trainers.validity_kd.progress import most_contrasting_trace, trace_lines

    print()
    saved = trainer.args.save_rollouts
    recent = last_steps(trainer.rollouts_path, SHOWN_STEPS) if saved else []
    if shown := most_contrasting_trace(recent):
        print(f"From the last {len({record['step'] for record in recent})} steps, where weights differ most:")
        print("\n".join(trace_lines(shown)))
        print()
    for step, accuracy in measured:
        label = "before" if step == 0 else "after" if step == trainer.state.global_step else f"at step {step}"
        print(f"{f'accuracy {label}:':<16} {accuracy:.1%}")
    if measured:
        print(
            f"{measured[-1][1].n} test rows are few: only a change far beyond these intervals would mean anything "
            f"(--eval_rows for more). Answers are cut off at {trainer.args.max_completion_length} tokens."
        )
    print(f"model:    {Path(trainer.args.output_dir).resolve()}")
    print(f"metrics:  {trainer.metrics_path.resolve()}")
    if measured:
        print(f"measured: {trainer.metrics_path.with_name('eval.jsonl').resolve()}")
    if saved:
        print(f"traces:   {trainer.rollouts_path.parent.resolve()}")


if __name__ == "__main__":
    from trl import ModelConfig

    from trainers import ValidityKDConfig

    start(
        main, (ValidityKDScriptArguments, ValidityKDConfig, ModelConfig), default_config=_RECIPES / "validity_kd.yaml"
    )
