"""A checkpoint is whole or not there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from trainers.common.checkpoints import find_checkpoint, step_of
from trainers.common.saving import UNFINISHED, WholeCheckpoints


class Square(torch.nn.Module):
    """A model of one number, whose loss is its square."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.number * x).square().mean()}


class Saving(WholeCheckpoints, Trainer):
    def save_state(self, folder: Path) -> None:
        (folder / "own.txt").write_text(str(self.state.global_step))


def trainer(folder: Path, **changes: Any) -> Saving:
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 4,
        "save_steps": 1,
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    data = [{"x": torch.ones(1)} for _ in range(4)]
    return Saving(Square(), TrainingArguments(**values | changes), train_dataset=data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_save_that_is_ended_in_the_middle_leaves_no_checkpoint(tmp_path, monkeypatch) -> None:
    run = trainer(tmp_path)
    original = run._save_rng_state

    def fail(folder: str) -> None:
        if run.state.global_step == 3:
            raise OSError("No space left on device")
        original(folder)

    monkeypatch.setattr(run, "_save_rng_state", fail)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert names(tmp_path) == [UNFINISHED, "checkpoint-1", "checkpoint-2"]
    checkpoint = find_checkpoint(True, tmp_path)
    assert checkpoint == tmp_path / "checkpoint-2"
    assert (checkpoint / "own.txt").read_text() == "2"
    trainer(tmp_path).train(resume_from_checkpoint=str(checkpoint))
    assert names(tmp_path) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]


def test_old_checkpoints_are_deleted_after_the_new_one_is_in_place_and_the_best_one_is_kept(tmp_path) -> None:
    class BestIsSecond(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                state.best_global_step = 2

    run = trainer(tmp_path, save_total_limit=2)
    run.add_callback(BestIsSecond())
    run.train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    for step in (2, 4):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "old.txt").write_text("")
    trainer(tmp_path, save_steps=4).train()
    assert names(tmp_path) == ["checkpoint-4"]
    assert not (tmp_path / "checkpoint-4" / "old.txt").exists()
    assert step_of(tmp_path / "checkpoint-4") == 4


def test_what_is_uploaded_is_the_checkpoint_in_its_place(tmp_path, monkeypatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: pushed.append(folder))
    run = trainer(tmp_path, save_steps=2)
    run.args.push_to_hub = True
    monkeypatch.setattr(run, "push_to_hub", lambda *args, **kwargs: None)
    run.train()
    assert pushed == [str(tmp_path / "checkpoint-2"), str(tmp_path / "checkpoint-4")]
