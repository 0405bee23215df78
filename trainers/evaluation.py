"""Held-out accuracy before, during and after a run: greedy and sampled answers, in a file that survives a resume.

`eval.jsonl` in the output folder has one line per evaluation:

| key | meaning |
| --- | --- |
| `step` | optimizer steps done; 0 is the model before training |
| `accuracy` | share of right answers: `mean`, 95 % interval (`low`, `high`), rows that could be judged (`n`) |
| `ended` | share of completions that end with an end token and are not truncated, in the same form |
| `tokens` | mean length of a completion in tokens as generated, without its end token |
| `calculations` | mean number of calculations with a result in a completion |
| `sampled` | with samples: their number, `temperature`, and `accuracy`, `ended`, `tokens`, `calculations` of them |
| `seconds` | duration of the evaluation |
| `rows` | of each row `id` (else its place), `correct` (1, 0, null without a gold answer), `tokens`, `completion` |

With samples, a row also has `sampled_correct`, their share of right ones, which reinforcement learning moves first.
The texts allow further evaluations later, and comparing two runs row by row.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import ProcessorMixin, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from rlkd.answers import accuracy
from rlkd.context import context_length
from rlkd.errors import UsageError
from rlkd.files import write_atomically
from rlkd.report.held_out import held_out_report, interval_of
from rlkd.statistics import Interval, estimate
from rlkd.steps import calculations
from trainers.common.evaluation_settings import RECORD
from trainers.common.generation import WrittenCompletion, greedy_completions, sampled_completions
from trainers.common.overoptimisation import overoptimisation
from trainers.common.progress import Tenths
from trainers.common.prompts import PromptCheck
from trainers.common.run_files import StepLog, read_steps
from trainers.common.student import ModelFacts

logger = logging.getLogger(__name__)


class HeldOutAccuracy(TrainerCallback):
    """Evaluates before the first step, after every `every` steps (0: none in between), and after the last.

    Neither the random state of the run nor its weights change, so a run trains the same with and without it. A resumed
    run keeps the evaluations up to its checkpoint and repeats the later ones (`trainers.common.run_files`). With
    several processes all share the generation, and the first one writes.

    `rows` are the held-out rows, with one of `prompts` each; `limit` tokens of a completion are by default the
    trainer's `max_completion_length`. `samples`: completions per row drawn at the trainer's temperature, besides the
    greedy one. `settings`: where the rows and their prompts come from, which `evaluation.json` in the output folder
    records with the rest (`trainers.common.evaluation_settings`). Raises `UsageError` where no row has an answer, a
    prompt leaves no room for its answer, or `every` or `samples` is negative.
    """

    def __init__(
        self,
        trainer: Any,
        rows: Sequence[Mapping[str, Any]],
        prompts: Sequence[Any],
        *,
        every: int = 0,
        limit: int | None = None,
        samples: int = 0,
        settings: Mapping[str, Any] | None = None,
    ):
        if every < 0:
            raise UsageError(f"eval_every {every}: expected a number of steps, or 0 for before and after only")
        if samples < 0:
            raise UsageError(f"eval_samples {samples}: expected a number of completions per row, or 0 for none")
        if all(row.get("answer") is None for row in rows):
            raise UsageError(f"none of the {len(rows)} held-out rows has an answer, so there is no accuracy")
        self.trainer = trainer
        self.rows = list(rows)
        self.prompts = list(prompts)
        self.every = every
        self.samples = samples
        self.temperature = float(getattr(trainer.args, "temperature", 1.0))
        self.limit: int = trainer.args.max_completion_length if limit is None else limit
        takes_images = isinstance(trainer.processing_class, ProcessorMixin)  # which only TRL renders
        context = None if takes_images else context_length(trainer.model.config)
        facts = ModelFacts("the model", trainer.processing_class, context, frozenset())
        template = getattr(trainer, "chat_template_kwargs", None)
        PromptCheck(facts, self.limit, template=template).check_lengths(self.prompts, "the held-out rows")
        self.settings = (
            None
            if settings is None
            else {
                **settings,
                "max_completion_length": self.limit,
                "temperature": self.temperature,
                "seed": trainer.args.seed,
                "chat_template_kwargs": template,
            }
        )
        self.path = Path(trainer.args.output_dir) / "eval.jsonl"
        self._log = StepLog(self.path)
        self._last_step: int | None = None
        self._warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the settings, and evaluate the model before training."""
        if self.settings is not None and state.is_world_process_zero:
            write_atomically(self.path.with_name(RECORD), json.dumps(self.settings, indent=1) + "\n")
        if state.global_step == 0:
            self._measure(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate every `every` steps; after the last step before its checkpoint, so that a resume keeps it."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or (self.every and state.global_step % self.every == 0):
            self._measure(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the trained model if the run was stopped before its last step."""
        if self._last_step != state.global_step:
            self._measure(args, state, control)

    def estimates(self) -> list[tuple[int, Interval]]:
        """The accuracy at each evaluated step so far, from the file; for the main process."""
        return [(record["step"], interval_of(record["accuracy"])) for record in self._records()]

    def summary(self, last_step: int) -> str:
        """The evaluations so far as text; for the main process."""
        return held_out_report(self._records(), last_step=last_step, limit=self.limit)

    def _records(self) -> list[dict[str, Any]]:
        return read_steps(self.path) if self.path.exists() else []

    def _progress(self, args: Any, state: Any) -> Callable[[int], object]:
        """Takes the number of completions that are done, and logs each tenth of them."""
        if args.disable_tqdm or not state.is_world_process_zero:
            return lambda count: None
        processes = self.trainer.accelerator.num_processes
        own = sum(ceil(len(self.rows) * number / processes) for number in (1, self.samples))
        return Tenths("evaluation", own, tqdm.write)

    def _measure(self, args: Any, state: Any, control: Any) -> None:
        self._last_step = state.global_step
        if state.is_world_process_zero:
            tqdm.write(f"evaluating accuracy on {len(self.rows)} test rows ...")
        start = time.perf_counter()
        advance = self._progress(args, state)
        completions = greedy_completions(self.trainer, self.prompts, max_new_tokens=self.limit, advance=advance)
        drawn = None
        if self.samples:
            drawn = sampled_completions(
                self.trainer,
                self.prompts,
                samples=self.samples,
                temperature=self.temperature,
                max_new_tokens=self.limit,
                seed=args.seed,
                advance=advance,
            )
        if not state.is_world_process_zero:
            return
        record = _record(self.rows, completions)
        if drawn is not None:
            shares = _add_samples(record, self.rows, drawn)
            record["sampled"] = {"samples": self.samples, "temperature": self.temperature, **shares}
        record["seconds"] = round(time.perf_counter() - start, 1)
        self._log.append([{"step": state.global_step, **record}])
        sampled = f", sampled {record['sampled']['accuracy']['mean']:.1%}" if drawn is not None else ""
        tqdm.write(
            f"accuracy after step {state.global_step}: {interval_of(record['accuracy']):.1%}{sampled}, "
            f"{record['ended']['mean']:.0%} of the answers ended, {record['tokens']:.0f} tokens each"
        )
        if not self._warned and (warning := overoptimisation(self._records(), state.log_history)):
            self._warned = True
            logger.warning("step %d: %s", state.global_step, warning)
        # Not by `trainer.log`: within a step, TRL would flush its metrics of that step.
        trackers = tuple(get_reporting_integration_callbacks(args.report_to))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, trackers):
                callback.on_log(args, state, control, logs=tracked_figures(record), model=self.trainer.model)


def tracked_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an evaluation as a tracker gets them: flat, with the bounds of the accuracy's interval."""
    figures: dict[str, float] = {}
    for prefix, part in (("eval", record), ("eval_sampled", record.get("sampled"))):
        if part is not None:
            accuracy = part["accuracy"]
            figures |= {
                f"{prefix}_accuracy": accuracy["mean"],
                f"{prefix}_accuracy_low": accuracy["low"],
                f"{prefix}_accuracy_high": accuracy["high"],
                f"{prefix}_ended": part["ended"]["mean"],
                f"{prefix}_tokens": part["tokens"],
                f"{prefix}_calculations": part["calculations"],
            }
    return figures


def _record(rows: Sequence[Mapping[str, Any]], completions: Sequence[WrittenCompletion]) -> dict[str, Any]:
    correct = [_right(row, completion) for row, completion in zip(rows, completions, strict=True)]
    return {
        "accuracy": _share(correct),
        **_lengths(completions),
        "rows": [
            {"id": row.get("id", place), "correct": right, "tokens": completion.tokens, "completion": completion.text}
            for place, (row, right, completion) in enumerate(zip(rows, correct, completions, strict=True))
        ],
    }


def _add_samples(
    record: dict[str, Any], rows: Sequence[Mapping[str, Any]], drawn: Sequence[Sequence[WrittenCompletion]]
) -> dict[str, Any]:
    """The figures of the sampled completions; enters their share of right ones in the rows of the record."""
    for entry, row, samples in zip(record["rows"], rows, drawn, strict=True):
        judged = [value for sample in samples if (value := _right(row, sample)) is not None]
        entry["sampled_correct"] = sum(judged) / len(judged) if judged else None
    shares = [entry["sampled_correct"] for entry in record["rows"]]
    return {"accuracy": _share(shares), **_lengths([sample for samples in drawn for sample in samples])}


def _right(row: Mapping[str, Any], completion: WrittenCompletion) -> float | None:
    return accuracy(row, completion.text, prefilled=completion.in_thought)


def _lengths(completions: Sequence[WrittenCompletion]) -> dict[str, Any]:
    return {
        "ended": _figures(estimate([float(completion.ended) for completion in completions])),
        "tokens": sum(completion.tokens for completion in completions) / len(completions),
        "calculations": sum(len(calculations(completion.text)) for completion in completions) / len(completions),
    }


def _share(correct: Sequence[float | None]) -> dict[str, Any]:
    """The mean over rows that could be judged: none can where no gold answer can be compared."""
    judged = [value for value in correct if value is not None]
    return _figures(estimate(judged) if judged else Interval(0.0, 0.0, 1.0, 0))


def _figures(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
