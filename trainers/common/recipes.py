"""What the training recipes share after their trainer is built: progress, evaluation, training, saving, a summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import ProgressCallback

from rlkd.data.loading import to_dataset
from rlkd.report.plots import NO_PLOTS, can_plot
from rlkd.report.run_curve import draw_run
from trainers.common.arguments import say
from trainers.common.data_arguments import DataArguments
from trainers.common.evaluation_settings import DATA_KEYS
from trainers.common.model_card import RunOrigin
from trainers.common.progress import Line, StepLine
from trainers.evaluation import HeldOutAccuracy


def held_out_accuracy(
    trainer: Any, script: DataArguments, rows: Sequence[dict[str, Any]], *, limit: int | None = None
) -> HeldOutAccuracy | None:
    """The evaluation on held-out rows that a recipe asks for; None without rows. `limit`: see `HeldOutAccuracy`."""
    if not rows:
        return None
    prompts = to_dataset(rows, **script.prompt_style)["prompt"]
    return HeldOutAccuracy(
        trainer,
        rows,
        prompts,
        every=script.eval_every,
        limit=limit,
        samples=script.eval_samples,
        settings={key: getattr(script, key) for key in DATA_KEYS},
    )


def say_rewards(args: Any, rewards: Sequence[Any]) -> None:
    """Say what computes a reward, for those with a method `describe`; for structures, by which rule, and whose."""
    for reward in rewards:
        if (describe := getattr(getattr(reward, "function", None), "describe", None)) is not None:
            say(args, f"{reward.__name__}: {describe()}")


def run(
    trainer: Any,
    *,
    line: Line | None = None,
    held_out: HeldOutAccuracy | None = None,
    show: Callable[[Any], None] | None = None,
    rollouts: str = "rollouts",
    origin: RunOrigin | None = None,
) -> None:
    """Train a trainer with `RunFiles` from the checkpoint that the config names, save, draw, and print a summary.

    `line`: the line per step, by default TRL's dictionary of metrics. `show` prints the opening of the summary, if
    rollouts are saved; `rollouts` is their label there. `origin`: command and data, for the model card.
    """
    args = trainer.args
    if origin is not None:
        trainer.origin = origin
    if line is not None and not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(StepLine(line))
    if held_out is not None:
        trainer.add_callback(held_out)
    trainer.train(args.resume_from_checkpoint)
    if trainer.state.global_step:
        trainer.save_final()
    if not trainer.accelerator.is_main_process:
        return
    print()
    saved = getattr(args, "save_rollouts", False)
    if show is not None and saved:
        show(trainer)
    if held_out is not None:
        print(held_out.summary(trainer.state.global_step))
    if trainer.state.global_step:
        print(f"{'model:':<10}{Path(args.output_dir).resolve()}")
    print(f"{'metrics:':<10}{trainer.metrics_path}")
    if held_out is not None:
        print(f"{'eval:':<10}{held_out.path.resolve()}")
    if not can_plot():
        print(f"{'curve:':<10}{NO_PLOTS}")
    elif drawn := draw_run(trainer.metrics_path.parent):
        print(f"{'curve:':<10}{drawn[-1]}")
    if saved:
        print(f"{rollouts + ':':<10}{trainer.rollouts_path.parent}")
