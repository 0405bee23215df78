"""Held-out accuracy before, during and after a run: greedy answers, in a file that survives a resume.

`eval.jsonl` in the output folder has one line per evaluation:

| key | meaning |
| --- | --- |
| `step` | optimizer steps done; 0 is the model before training |
| `accuracy` | share of right answers: `mean`, 95 % interval (`low`, `high`), rows that could be judged (`n`) |
| `ended` | share of completions that end with an end token and are not truncated, in the same form |
| `tokens` | mean length of a completion in tokens as generated, without its end token |
| `seconds` | duration of the evaluation |
| `rows` | of each row `id`, `correct` (1, 0, or null without a gold answer), `tokens` and `completion` |

The texts allow further evaluations later, and comparing two runs row by row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import ProcessorMixin, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from rlkd.answers import accuracy
from rlkd.context import context_length
from rlkd.errors import UsageError
from rlkd.statistics import Interval, estimate
from trainers.common.generation import GreedyCompletion, greedy_completions
from trainers.common.prompts import PromptCheck
from trainers.common.run_files import StepLog, read_steps
from trainers.common.student import ModelFacts


class HeldOutAccuracy(TrainerCallback):
    """Evaluates before the first step, after every `every` steps (0: none in between), and after the last.

    Neither the random state of the run nor its weights change, so a run trains the same with and without it. A resumed
    run keeps the evaluations up to its checkpoint and repeats the later ones (`trainers.common.run_files`). With
    several processes all share the generation, and the first one writes.

    `rows` are the held-out rows, with one of `prompts` each; `limit` tokens of a completion are by default the
    trainer's `max_completion_length`. Raises `UsageError` where no row has an answer, a prompt leaves no room for
    its answer, or `every` is negative.
    """

    def __init__(
        self,
        trainer: Any,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        *,
        every: int = 0,
        limit: int | None = None,
    ):
        if every < 0:
            raise UsageError(f"eval_every {every}: expected a number of steps, or 0 for before and after only")
        if all(row.get("answer") is None for row in rows):
            raise UsageError(f"none of the {len(rows)} held-out rows has an answer, so there is no accuracy")
        self.trainer = trainer
        self.rows = list(rows)
        self.prompts = list(prompts)
        self.every = every
        self.limit: int = trainer.args.max_completion_length if limit is None else limit
        takes_images = isinstance(trainer.processing_class, ProcessorMixin)  # which only TRL renders
        context = None if takes_images else context_length(trainer.model.config)
        facts = ModelFacts("the model", trainer.processing_class, context, frozenset())
        template = getattr(trainer, "chat_template_kwargs", None)
        PromptCheck(facts, self.limit, template=template).check_lengths(self.prompts, "the held-out rows")
        self.path = Path(trainer.args.output_dir) / "eval.jsonl"
        self._log = StepLog(self.path)
        self._last_step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the model before training."""
        if state.global_step == 0:
            self._measure(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate every `every` steps; after the last step before its checkpoint, so that a resume keeps it."""
        if (self.every and state.global_step % self.every == 0) or state.global_step >= state.max_steps:
            self._measure(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the trained model if the run was stopped before its last step."""
        if self._last_step != state.global_step:
            self._measure(args, state, control)

    def estimates(self) -> list[tuple[int, Interval]]:
        """The accuracy at each evaluated step so far, from the file; for the main process."""
        records = read_steps(self.path) if self.path.exists() else []
        return [(record["step"], interval_of(record["accuracy"])) for record in records]

    def summary(self, last_step: int) -> str:
        """The accuracies so far as text; for the main process."""
        lines = []
        for step, interval in (estimates := self.estimates()):
            label = "before" if step == 0 else "after" if step == last_step else f"at step {step}"
            lines.append(f"{f'accuracy {label}:':<16} {interval:.1%}")
        if estimates:
            lines.append(
                f"{estimates[-1][1].n} test rows are few: only a change far beyond these intervals would mean "
                f"anything (--eval_rows for more). Answers are truncated at {self.limit} tokens."
            )
        return "\n".join(lines)

    def _measure(self, args: Any, state: Any, control: Any) -> None:
        self._last_step = state.global_step
        if state.is_world_process_zero:
            tqdm.write(f"evaluating accuracy on {len(self.rows)} test rows ...")
        start = time.perf_counter()
        completions = greedy_completions(self.trainer, self.prompts, max_new_tokens=self.limit)
        if not state.is_world_process_zero:
            return
        record = _record(self.rows, completions)
        record["seconds"] = round(time.perf_counter() - start, 1)
        self._log.append([{"step": state.global_step, **record}])
        tqdm.write(
            f"accuracy after step {state.global_step}: {interval_of(record['accuracy']):.1%}, "
            f"{record['ended']['mean']:.0%} of the answers ended, {record['tokens']:.0f} tokens each"
        )
        # Not by `trainer.log`: within a step, TRL would flush its metrics of that step.
        trackers = tuple(get_reporting_integration_callbacks(args.report_to))
        figures = {
            "eval_accuracy": record["accuracy"]["mean"],
            "eval_ended": record["ended"]["mean"],
            "eval_tokens": record["tokens"],
        }
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, trackers):
                callback.on_log(args, state, control, logs=dict(figures), model=self.trainer.model)


def _record(rows: Sequence[Mapping[str, Any]], completions: Sequence[GreedyCompletion]) -> dict[str, Any]:
    correct = [
        accuracy(row, completion.text, prefilled=completion.in_thought)
        for row, completion in zip(rows, completions, strict=True)
    ]
    judged = [value for value in correct if value is not None]
    return {
        # None can be judged where no gold answer can be compared.
        "accuracy": _figures(estimate(judged) if judged else Interval(0.0, 0.0, 1.0, 0)),
        "ended": _figures(estimate([float(completion.ended) for completion in completions])),
        "tokens": sum(completion.tokens for completion in completions) / len(completions),
        "rows": [
            {"id": row.get("id"), "correct": right, "tokens": completion.tokens, "completion": completion.text}
            for row, right, completion in zip(rows, correct, completions, strict=True)
        ],
    }


def _figures(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def interval_of(figures: Mapping[str, Any]) -> Interval:
    """The interval of a figure in `eval.jsonl`."""
    return Interval(figures["mean"], figures["low"], figures["high"], figures["n"])
