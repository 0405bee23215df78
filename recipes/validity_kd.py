"""Validity-calibrated distillation: a teacher's distribution, and for each step how hard it is followed.

    accelerate launch recipes/validity_kd.py                              # the embedded default, on a laptop
    accelerate launch recipes/validity_kd.py --control uniform            # plain distillation: the first comparison
    accelerate launch recipes/validity_kd.py --config recipes/validity_kd_lora_1gpu.yaml
    accelerate launch recipes/validity_kd.py --config my.yaml --tau adapt --resume_from_checkpoint

Without --config the run takes recipes/validity_kd.yaml: SmolLM2-135M-Instruct with a warm start learns from a better
model of its kind on arithmetic chains, LoRA, fifteen steps, without a GPU. Keys are those of TRL's DistillationConfig
and ModelConfig and the few that --help lists first; the command line wins over the file. A single process takes the
first GPU (CUDA_VISIBLE_DEVICES names another).

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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED
from trainers.common.arguments import apply_model_config, peft_config, require_trl, say, start
from trainers.common.data_arguments import DataArguments

if TYPE_CHECKING:
    from trl import ModelConfig

    from trainers import ValidityKDConfig
    from trainers.common.run_files import RunFiles
    from trainers.dry_run.dry_run import DryRun


@dataclass
class ValidityKDScriptArguments(DataArguments):
    """Data and evaluation; everything else is in the configs of the trainer and the model."""


def main(script: ValidityKDScriptArguments, args: "ValidityKDConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and show the result."""
    from trainers import ValidityKDTrainer
    from trainers.common.model_card import origin_of
    from trainers.common.recipes import held_out_accuracy, run
    from trainers.validity_kd.progress import kd_line

    train_rows, test_rows = script.train_rows(*args.columns_read), script.test_rows()
    if args.control != "none":
        say(args, f"\n*** A CONTROL RUN: the weights of steps are those of --control {args.control}. ***\n")
    say(args, f"{len(train_rows)} training rows of {script.source_name}, {len(test_rows)} rows for evaluation.")

    trainer = ValidityKDTrainer(**trainer_settings(script, args, model, train_rows))
    held_out = held_out_accuracy(trainer, script, test_rows)
    origin = origin_of(script, train_rows, test_rows) if args.process_index == 0 else None
    try:
        run(trainer, line=kd_line, held_out=held_out, show=show_trace, rollouts="traces", origin=origin)
    except EngineError as error:
        raise UsageError(f"{error}\n--resume_from_checkpoint continues from the last checkpoint.") from error


def trainer_settings(
    script: ValidityKDScriptArguments, args: "ValidityKDConfig", model: "ModelConfig", rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The arguments of the trainer."""
    apply_model_config(args, model)
    return {
        "model": model.model_name_or_path or EMBEDDED,
        "args": args,
        "train_dataset": to_dataset(rows, **script.prompt_style),
        "peft_config": peft_config(model),
    }


def dry_run(run: "DryRun", script: ValidityKDScriptArguments, args: "ValidityKDConfig", model: "ModelConfig") -> None:
    """Show what the run would do (`--dry_run`)."""
    from trainers.dry_run.validity_kd import show_distillation

    rows = run.attempt(lambda: script.train_rows(*args.columns_read), [])
    test_rows = run.attempt(script.test_rows, [])
    show_distillation(run, script, trainer_settings(script, args, model, rows), rows, test_rows)


def show_trace(trainer: "RunFiles") -> None:
    """Show the trace of the last steps whose weights differ most."""
    from trainers.validity_kd.progress import most_contrasting_trace, trace_lines

    recent = trainer.recent_rollouts()
    if shown := most_contrasting_trace(recent):
        print(f"From the last {len({record['step'] for record in recent})} steps, where weights differ most:")
        print("\n".join(trace_lines(shown)))
        print()


if __name__ == "__main__":
    require_trl()
    from trl import ModelConfig

    from trainers import ValidityKDConfig

    start(
        main,
        (ValidityKDScriptArguments, ValidityKDConfig, ModelConfig),
        default_config=_RECIPES / "validity_kd.yaml",
        dry_run=dry_run,
    )
