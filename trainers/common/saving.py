"""Checkpoints that are whole or not there: saved in a folder of unfinished work, listed, then put in their place.

transformers writes a checkpoint file by file into `checkpoint-N`; a kill in between leaves a folder that looks like a
checkpoint. Here it writes into `_unfinished/checkpoint-N`, which becomes `checkpoint-N` by one rename once all
processes have written their part. Old checkpoints are deleted (`save_total_limit`) only after that.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from trainers.common.checkpoints import list_files

# The hub's upload leaves out names that begin with an underscore.
UNFINISHED = "_unfinished"


class WholeCheckpoints:
    """Mixin for a trainer of transformers or TRL, before it among the bases.

    A class with state of its own writes it in `save_state`.
    """

    args: Any
    state: Any
    accelerator: Any
    _is_saving = False

    def save_state(self, folder: Path) -> None:
        """Write this process's own state into an unfinished checkpoint; by default there is none."""

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return str(Path(folder) / UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished = run / UNFINISHED / name
        if self.args.should_save:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
            unfinished.mkdir(parents=True, exist_ok=True)  # with sharded weights, transformers makes it late
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.save_state(unfinished)
        finally:
            self._is_saving = False
        # transformers has looked for the best one among the unfinished.
        if self.state.best_global_step:
            best = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best == run / name or best.is_dir():
                self.state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    self.state.save_to_json(str(unfinished / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            list_files(unfinished)
            put_in_place(unfinished, run / name)
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:  # the upload reads the files later, where they stay
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]


def put_in_place(unfinished: Path, place: Path) -> None:
    """Rename a finished checkpoint to its place, instead of an earlier one of the same step, and tidy up."""
    if place.exists():
        place.rename(unfinished.with_name("replaced"))
    unfinished.rename(place)
    shutil.rmtree(unfinished.parent, ignore_errors=True)
