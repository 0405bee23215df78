"""Held-out accuracy before, during and after a run: greedy answers, in a file that survives a resume.

`eval.jsonl` in the output folder has one line per evaluation:

| key | meaning |
| --- | --- |
| `step` | optimizer steps done; 0 is the model before training |
| `accuracy` | share of right answers: `value`, 95 % interval (`low`, `high`), rows that could be judged (`n`) |
| `ended` | share of completions that end by themselves and are not truncated, in the same form |
| `tokens` | mean length of a completion, without its end token |
| `seconds` | duration of the evaluation |
| `rows` | of each row `id`, `correct` (1, 0, or null without a gold answer), `tokens` and `completion` |

The texts allow further evaluations later, and comparing two runs row by row.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from rlkd.answers import accuracy
from rlkd.errors import UsageError
from rlkd.statistics import Interval, estimate
from trainers.common.generation import greedy_completions
from trainers.common.run_files import StepLog, read_steps


class HeldOutAccuracy(TrainerCallback):
    """Evaluates before the first step, after every `every` steps (0: none in between), and after the last.

    Neither the random state of the run nor its weights change, so a run trains the same with and without it. A resumed
    run keeps the evaluations up to its checkpoint and repeats the later ones (`trainers.common.run_files`). With
    several processes all share the generation, and the first one writes.

    `rows` are the held-out rows, with one of `prompts` each; `limit` tokens of a completion are by default the
    trainer's `max_completion_length`. Raises `UsageError` where no row has an answer, or `every` is negative.
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
        self.path = Path(trainer.args.output_dir) / "eval.jsonl"
        self._log = StepLog(self.path)
        self._last_step: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the model before training."""
        if state.global_step == 0:
            self._evaluate(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate every `every` steps; after the last step before its checkpoint, so that a resume keeps it."""
        if (self.every and state.global_step % self.every == 0) or state.global_step >= state.max_steps:
            self._evaluate(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the trained model if the run was stopped before its last step."""
        if self._last_step != state.global_step:
            self._evaluate(args, state, control)

    def estimates(self) -> list[tuple[int, Interval]]:
        """The accuracy at each evaluated step so far, from the file; for the main process."""
        records = read_steps(self.path) if self.path.exists() else []
        return [(record["step"], Interval(**record["accuracy"])) for record in records]

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

    def _evaluate(self, args: Any, state: Any, control: Any) -> None:
        self._last_step = state.global_step
        if state.is_world_process_zero:
            tqdm.write(f"evaluating accuracy on {len(self.rows)} test rows ...")
        start = time.perf_counter()
        texts = greedy_completions(self.trainer, self.prompts, max_new_tokens=self.limit)
        if not state.is_world_process_zero:
            return
        record = _record(self.rows, texts, self.trainer.processing_class, self.limit)
        record["seconds"] = round(time.perf_counter() - start, 1)
        self._log.append([{"step": state.global_step, **record}])
        tqdm.write(
            f"accuracy after step {state.global_step}: {Interval(**record['accuracy']):.1%}, "
            f"{record['ended']['value']:.0%} of the answers ended, {record['tokens']:.0f} tokens each"
        )
        # Not by `trainer.log`: within a step, TRL would flush its metrics of that step.
        trackers = tuple(get_reporting_integration_callbacks(args.report_to))
        figures = {
            "eval_accuracy": record["accuracy"]["value"],
            "eval_ended": record["ended"]["value"],
            "eval_tokens": record["tokens"],
        }
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, trackers):
                callback.on_log(args, state, control, logs=dict(figures), model=self.trainer.model)


def _record(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], tokenizer: Any, limit: int) -> dict[str, Any]:
    correct = [accuracy(row, text) for row, text in zip(rows, texts, strict=True)]
    # Counted on the text. A truncated completion has `limit` tokens; one that ended has at most as many, of which its
    # end token is not text.
    tokens = [min(limit, len(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]
    judged = [value for value in correct if value is not None]
    return {
        # None can be judged where no gold answer can be compared.
        "accuracy": dataclasses.asdict(estimate(judged) if judged else Interval(0.0, 0.0, 1.0, 0)),
        "ended": dataclasses.asdict(estimate([float(count < limit) for count in tokens])),
        "tokens": sum(tokens) / len(tokens),
        "rows": [
            {"id": row.get("id"), "correct": right, "tokens": count, "completion": text}
            for row, right, count, text in zip(rows, correct, tokens, texts, strict=True)
        ],
    }
