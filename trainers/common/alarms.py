"""Loud lines about a run that trains nothing: each is logged once, from the metrics of its steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

Metrics = Mapping[str, Any]


class Alarms(TrainerCallback):
    """Logs a warning once for each alarm: {message: whether a step's metrics, and the arguments, call for it}.

    An alarm has to ring in `steps` logged steps in a row.
    """

    def __init__(self, alarms: Mapping[str, Callable[[Metrics, Any], bool]], steps: int = 2):
        self.alarms = dict(alarms)
        self.steps = steps
        self._in_a_row = dict.fromkeys(self.alarms, 0)
        self._rung: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """What was counted, and which alarms have rung."""
        return {"in_a_row": dict(self._in_a_row), "rung": sorted(self._rung)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._in_a_row = {message: state["in_a_row"].get(message, 0) for message in self.alarms}
        self._rung = set(state["rung"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Look at the metrics of a step; logs of an evaluation and of the end of a run are no steps."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        for message, rings in self.alarms.items():
            self._in_a_row[message] = self._in_a_row[message] + 1 if rings(logs, args) else 0
            if self._in_a_row[message] >= self.steps and message not in self._rung:
                logger.warning("step %d: %s", state.global_step, message)
                self._rung.add(message)


def all_masked(logs: Metrics, args: Any) -> bool:
    """Whether all completions were truncated and therefore left out of the loss."""
    return bool(getattr(args, "mask_truncated_completions", False)) and logs.get("completions/clipped_ratio") == 1.0


def all_truncated(logs: Metrics, args: Any) -> bool:
    """Whether all completions were truncated, and trained on all the same."""
    return not getattr(args, "mask_truncated_completions", False) and logs.get("completions/clipped_ratio") == 1.0


def weights_are_equal(logs: Metrics, args: Any) -> bool:
    """Whether all steps of the traces had one weight, although a scorer is to tell them apart."""
    low, high = logs.get("kd_weight/q10"), logs.get("kd_weight/q90")
    if not args.needs_scorer or low is None or high is None or logs.get("kd/steps_per_trace", 0.0) <= 1.0:
        return False
    return math.isclose(low, high, rel_tol=1e-6)


def few_are_aligned(logs: Metrics, args: Any) -> bool:
    """Whether less than half of the tokens in the loss lie in spans of text of a teacher with another tokenizer."""
    return logs.get("teacher/aligned", 1.0) < 0.5


ALL_MASKED = (
    "NOTHING WAS TRAINED: all completions were truncated, and mask_truncated_completions leaves them out of the loss. "
    "Raise max_completion_length, set mask_truncated_completions: false, or begin with a student that ends its "
    "answers (recipes/sft.py)"
)
ALL_TRUNCATED = (
    "ALL COMPLETIONS WERE TRUNCATED: none has an end, and few an answer. Raise max_completion_length, or begin with a "
    "student that ends its answers (recipes/sft.py)"
)
EQUAL_WEIGHTS = (
    "ALL STEPS HAVE ONE WEIGHT: the validity scorer does not tell them apart, and this is plain distillation. Look at "
    "its scores in rollouts/, lower tau or w_min, or set control: uniform, which needs no scorer"
)
FEW_ALIGNED = (
    "FEW TOKENS ARE COMPARED: less than half of those in the loss lie in spans that the teacher's tokenizer shares "
    "(teacher/aligned), and the others have divergence 0. It may change the text (to lower case, say). Name another "
    "teacher"
)
