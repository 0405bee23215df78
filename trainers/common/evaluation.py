"""Accuracy on held-out rows before, during and after a run: greedy answers, in a file that survives a resume.

`eval.jsonl` in the output folder has one line a measurement:

| key | meaning |
| --- | --- |
| `step` | optimizer steps done; 0 is the model before training |
| `accuracy` | share of right answers: `value`, 95 % interval (`low`, `high`), rows that could be judged (`n`) |
| `ended` | share of completions that end by themselves and are not cut off, in the same form |
| `tokens` | mean length of a completion, without its end token |
| `seconds` | what the measurement took |
| `rows` | of each row `id`, `correct` (1, 0, or null without a gold answer), `tokens` and `completion` |

With the texts at hand, anything else can be measured later, and two runs compared row by row.
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
    """Measures before the first step, after every `every` steps (0: none in between), and after the last.

    Neither the random state of the run nor its weights are touched, so a run trains the same with and without it. A
    resumed run keeps the measurements up to its checkpoint and makes the later ones anew; what an earlier run left is
    moved to its `earlier-N` (`trainers.common.run_files` does both). With several processes all share the generating,
    and the first one writes.

    Args:
        trainer: the trainer that this callback is added to.
        rows: held-out rows; at least one has an `answer`.
        prompts: the prompt of each row.
        every: optimizer steps between two measurements.

    Raises `UsageError` where no row has an answer, or `every` is negative.
    """

    def __init__(self, trainer: Any, rows: Sequence[Mapping[str, Any]], prompts: Sequence[Any], *, every: int = 0):
        if every < 0:
            raise UsageError(f"eval_every {every}: expected a number of steps, or 0 for before and after only")
        if all(row.get("answer") is None for row in rows):
            raise UsageError(f"none of the {len(rows)} held-out rows has an answer, so no accuracy can be measured")
        self.trainer = trainer
        self.rows = list(rows)
        self.prompts = list(prompts)
        self.every = every
        self.path = Path(trainer.args.output_dir) / "eval.jsonl"
        self._log = StepLog(self.path)
        self._measured: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the model before training."""
        if state.global_step == 0:
            self._measure(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is time to; after the last step before its checkpoint, which then lacks nothing."""
        if (self.every and state.global_step % self.every == 0) or state.global_step >= state.max_steps:
            self._measure(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the trained model where the run was stopped before its last step."""
        if self._measured != state.global_step:
            self._measure(args, state, control)

    def estimates(self) -> list[tuple[int, Interval]]:
        """The accuracy at each measured step so far, from the file; to be called on the main process."""
        records = read_steps(self.path) if self.path.exists() else []
        return [(record["step"], Interval(**record["accuracy"])) for record in records]

    def _measure(self, args: Any, state: Any, control: Any) -> None:
        self._measured = state.global_step
        if state.is_world_process_zero:
            tqdm.write(f"measuring accuracy on {len(self.rows)} test rows ...")
        start = time.perf_counter()
        limit = args.max_completion_length
        texts = greedy_completions(self.trainer, self.prompts, max_new_tokens=limit)
        if not state.is_world_process_zero:
            return
        record = _record(self.rows, texts, self.trainer.processing_class, limit)
        record["seconds"] = round(time.perf_counter() - start, 1)
        self._log.append([{"step": state.global_step, **record}])
        tqdm.write(
            f"accuracy after step {state.global_step}: {Interval(**record['accuracy']):.1%}, "
            f"{record['ended']['value']:.0%} of the answers ended, {record['tokens']:.0f} tokens each"
        )
        # Not by `trainer.log`: in mid-step TRL would empty its metrics of the step into it.
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
    """The figures of one measurement, `limit` being the most tokens that a completion could have."""
    correct = [accuracy(row, text) for row, text in zip(rows, texts, strict=True)]
    # Counted again on the text. What was cut off has `limit` tokens; what ended has its end token, which is no text,
    # among at most as many.
    tokens = [min(limit, len(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]
    judged = [value for value in correct if value is not None]
    return {
        # None can be judged where no gold answer is of a kind that can be compared.
        "accuracy": dataclasses.asdict(estimate(judged) if judged else Interval(0.0, 0.0, 1.0, 0)),
        "ended": dataclasses.asdict(estimate([float(count < limit) for count in tokens])),
        "tokens": sum(tokens) / len(tokens),
        "rows": [
            {"id": row.get("id"), "correct": right, "tokens": count, "completion": text}
            for row, right, count, text in zip(rows, correct, tokens, texts, strict=True)
        ],
    }
