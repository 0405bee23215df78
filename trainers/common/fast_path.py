"""The setting `fast_path`: whether a run leaves out work that changes nothing.

| part | what it leaves out | file |
| --- | --- | --- |
| generation | a group's prompt for each completion, adapters, ended rows | `trainers/common/fast_generation.py` |
| log-probabilities | a group's prompt for each completion | `trainers/rlkd/shared_prompts.py` |
| loss | rows whose advantage is 0 | `trainers/rlkd/fast_loss.py` |

Where a part does not apply (vLLM generates, the model has a sliding window), TRL does that part, and the log says why,
once. `never` is TRL's own computation, bit for bit. With the fast path, completions follow the same distribution, but
other ones are drawn for the same seed, since rows that have ended draw no random numbers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from rlkd.errors import UsageError

logger = logging.getLogger(__name__)

CHOICES = ("auto", "always", "never")
_said: set[str] = set()


@dataclass
class FastPath:
    """Mixin for a config: the setting `fast_path`."""

    fast_path: str = field(
        default="auto",
        metadata={
            "help": "Leave out work that changes nothing, in generation and loss: a group's prompt is read once, "
            "adapters are merged while generating, ended rows leave the batch, rows with advantage 0 are not trained "
            "on. auto: on a CPU; never: TRL's own computation, bit for bit.",
            "choices": list(CHOICES),
        },
    )

    def check_fast_path(self) -> None:
        """Raise `UsageError` for a value that is none."""
        if self.fast_path not in CHOICES:
            raise UsageError(f"fast_path {self.fast_path!r}: expected {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")


def takes_fast_path(trainer: Any) -> bool:
    """Whether the settings and the device of a trainer ask for the fast path; trainers without the setting have auto.

    Not where processes share the weights (FSDP, DeepSpeed): single layers are not whole there.
    """
    chosen = getattr(trainer.args, "fast_path", "auto")
    if str(trainer.accelerator.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        return False
    return bool(chosen == "always" or (chosen == "auto" and trainer.accelerator.device.type == "cpu"))


def say_once(part: str, reason: str) -> None:
    """Log that a part of the fast path does not apply."""
    message = f"fast_path: {part} is TRL's own, since {reason}"
    if message not in _said:
        _said.add(message)
        logger.warning(message)
