"""What a checkpoint keeps besides model, optimizer, schedule and random generators, so that a resume is exact.

`checkpoint-N/run_state/` has a file per process, `rankR.json`, with

| key | content |
| --- | --- |
| `shape` | number of processes and sizes of batches; a run with others cannot continue what follows |
| `parts` | adaptive state (`keep`): the scale of margins, counts of failures and of alarms; equal on all processes |
| `metrics`, `loss`, `logged`, `tokens`, `table` | what was collected since the last line of metrics |
| `layouts` | how weights are laid out for generation, which a measurement of time has decided |
| `optimizer` | whether the checkpoint has more than the model (`save_only_model`) |
| `rollouts` | the batch of rollouts that further steps train on, if the checkpoint falls inside its window |

and, in the last case, `rankR.safetensors` with the tensors of the rollouts. A reference model that follows the trained
one (`sync_ref_model`) is in `reference.safetensors`. Nothing is pickled.
"""

from __future__ import annotations

import copy
import json
import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import TrainerCallback

from trainers.common import decoding_weights
from trainers.common.checkpoints import STATE as FOLDER
from trainers.common.saving import WholeCheckpoints

logger = logging.getLogger(__name__)

REFERENCE = f"{FOLDER}/reference.safetensors"
_SIZES = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations")
_TENSOR = {"tensor": True}


class Resumable(Protocol):
    """State that changes during a run."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values of JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""


class RunState(WholeCheckpoints):
    """Mixin for a trainer of TRL: its checkpoints keep what TRL's leave out."""

    _kept: dict[str, tuple[Resumable, dict[str, Any]]]
    _since_log: dict[str, Any] | None = None

    def open_run_state(self) -> None:
        """To be called once the trainer is built."""
        self._kept = {}
        self.add_callback(_PendingLoss(self))  # type: ignore[attr-defined]

    def keep(self, name: str, part: Resumable) -> None:
        """Have checkpoints keep the state of a part of the run, which is to be equal on all processes."""
        self._kept[name] = (part, copy.deepcopy(part.state_dict()))

    def save_state(self, folder: Path) -> None:
        """Write this process's state into an unfinished checkpoint."""
        rank = self.args.process_index
        trainer: Any = self
        state: dict[str, Any] = {
            "shape": self._shape(),
            "parts": {name: part.state_dict() for name, (part, _) in self._kept.items()},
            "metrics": trainer._metrics["train"],
            "loss": trainer._tr_loss.item(),
            "logged": trainer._globalstep_last_logged,
            "tokens": getattr(self, "_total_train_tokens", 0),
            "table": json.loads(json.dumps(self._table(), default=_listed)),
            "layouts": decoding_weights.layouts(),
            "optimizer": not self.args.save_only_model,
            "rollouts": None,
        }
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        if (rollouts := self._rollouts_of_window()) is not None:
            tensors = {
                f"{number}.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
                for number, chunk in enumerate(rollouts)
                for name, value in chunk.items()
                if isinstance(value, torch.Tensor)
            }
            state["rollouts"] = [
                {name: _TENSOR if isinstance(value, torch.Tensor) else value for name, value in chunk.items()}
                for chunk in rollouts
            ]
            save_file(tensors, folder / FOLDER / f"rank{rank}.safetensors")
        if (reference := self._moving_reference()) is not None and self.args.should_save:
            save_model(reference, str(folder / REFERENCE))
        (folder / FOLDER / f"rank{rank}.json").write_text(json.dumps(state, default=float), encoding="utf-8")

    def restore(self, checkpoint: Path | None) -> None:
        """Bring this process's state to a checkpoint, or to the start of a run (None)."""
        trainer: Any = self
        for part, fresh in self._kept.values():  # an earlier call of `train` may have moved it
            part.load_state_dict(copy.deepcopy(fresh))
        trainer._metrics["train"].clear()
        trainer._buffered_inputs = self._since_log = None
        state = None if checkpoint is None else self._read_state(checkpoint)
        if checkpoint is None or state is None:
            return
        trainer._metrics["train"].update(state["metrics"])
        trainer._total_train_tokens = state["tokens"]
        self._since_log = state
        _refill(self._table(), state["table"])
        decoding_weights.use_layouts(state["layouts"])
        if state["rollouts"] is not None:
            tensors = load_file(checkpoint / FOLDER / f"rank{self.args.process_index}.safetensors")
            trainer._buffered_inputs = [
                {
                    name: tensors[f"{number}.{name}"].to(self.accelerator.device) if value == _TENSOR else value
                    for name, value in chunk.items()
                }
                for number, chunk in enumerate(state["rollouts"])
            ]

    def _read_state(self, checkpoint: Path) -> dict[str, Any] | None:
        """This process's state in a checkpoint, with the parts restored; None where it cannot be continued."""
        first = checkpoint / FOLDER / "rank0.json"
        if not first.exists():
            self._say(f"{checkpoint} has no {FOLDER}, as rlkd writes it")
            return None
        state = json.loads(first.read_text(encoding="utf-8"))
        for name, (part, _) in self._kept.items():
            if name in state["parts"]:
                part.load_state_dict(state["parts"][name])
        if (reference := self._moving_reference()) is not None and (checkpoint / REFERENCE).exists():
            load_model(reference, str(checkpoint / REFERENCE))
        now = self._shape()
        changed = {
            name: f"{name} {found}, now {now.get(name, 'not there')}"
            for name, found in state["shape"].items()
            if found != now.get(name)
        }
        if not state["optimizer"]:
            self._say(f"{checkpoint} has no optimizer and no random state (save_only_model)")
        if changed:
            self._say(f"{checkpoint} was written with {'; '.join(changed.values())}")
            return None
        own = checkpoint / FOLDER / f"rank{self.args.process_index}.json"
        own_state: dict[str, Any] = json.loads(own.read_text(encoding="utf-8"))
        return own_state

    def _say(self, why: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning("%s: the run continues, but will not repeat the interrupted one exactly", why)

    def _shape(self) -> dict[str, Any]:
        sizes = {name: getattr(self.args, name) for name in _SIZES if hasattr(self.args, name)}
        return {"processes": self.accelerator.num_processes, **sizes}

    def _rollouts_of_window(self) -> list[dict[str, Any]] | None:
        """The batches of rollouts at hand, if a step after this one trains on them."""
        trainer: Any = self
        rollouts: list[dict[str, Any]] | None = getattr(self, "_buffered_inputs", None)
        if rollouts is None or trainer._step % (len(rollouts) * getattr(self, "num_iterations", 1)) == 0:
            return None
        return rollouts

    def _moving_reference(self) -> Any:
        """The reference model if it follows the trained one, whole in this process; else None."""
        trainer: Any = self
        if not getattr(self.args, "sync_ref_model", False) or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return None
        return self.accelerator.unwrap_model(trainer.ref_model)

    def _table(self) -> dict[str, Any]:
        """The columns of TRL's table of completions, if it is written; without images."""
        if not (getattr(self.args, "log_completions", False) and self.accelerator.is_main_process):
            return {}
        return {name: column for name, column in getattr(self, "_logs", {}).items() if name != "images"}


class _PendingLoss(TrainerCallback):
    """Sets the sum of losses since the last log, once the loop has set it to 0."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the start of the loop, before its first step."""
        since = self.trainer._since_log
        if since is not None:
            self.trainer._tr_loss = self.trainer._tr_loss + since["loss"]
            self.trainer._globalstep_last_logged = since["logged"]


def _listed(value: Any) -> Any:
    """A value of a table as JSON: a column as a list, and an image within a message as its description."""
    return list(value) if isinstance(value, deque) else str(value)


def _refill(table: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    for name, values in saved.items():
        if name not in table and not isinstance(table, defaultdict):
            continue  # the table is no longer written
        if isinstance(values, Mapping):
            _refill(table[name], values)
        else:
            table[name].clear()
            table[name].extend(values)
