"""Which checkpoint a run resumes from."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlkd.errors import UsageError
from trainers.common import checkpoints
from trainers.common.checkpoints import damage, find_checkpoint, is_at_its_end, list_files, step_of


def checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if complete else '{"global_st')
    return path


def listed(folder: Path, step: int) -> Path:
    """A checkpoint with a list of its files."""
    path = checkpoint(folder, step)
    (path / "run_state").mkdir()
    (path / "run_state" / "rank0.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(1000))
    list_files(path)
    return path


@pytest.mark.parametrize("wanted", [True, "true", "latest", "yes"])
def test_the_newest_complete_checkpoint_is_found_by_number(tmp_path: Path, wanted) -> None:
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 15, complete=False)
    assert find_checkpoint(wanted, tmp_path) == newest


@pytest.mark.parametrize("wanted", [None, "false", False, ""])
def test_no_checkpoint_is_looked_for_unless_requested(tmp_path: Path, wanted) -> None:
    checkpoint(tmp_path, 5)
    assert find_checkpoint(wanted, tmp_path) is None


def test_before_the_first_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(True, tmp_path / "not-there-yet") is None


def test_a_named_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no complete checkpoint there.*bare flag"):
        find_checkpoint(str(tmp_path), tmp_path)


def test_the_step_of_a_checkpoint_is_read_from_its_state(tmp_path: Path) -> None:
    assert step_of(checkpoint(tmp_path, 7)) == 7


def shorten(path: Path) -> None:
    (path / "model.safetensors").write_bytes(bytes(600))


def change(path: Path) -> None:
    (path / "model.safetensors").write_bytes(bytes(999) + b"1")


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (shorten, "model.safetensors has 600 bytes, 1,000 were saved"),
        (change, "model.safetensors is not what was saved"),
        (lambda path: (path / "run_state" / "rank0.json").unlink(), "run_state/rank0.json is missing"),
        (lambda path: (path / "files.json").write_text('{"model.saf'), "files.json is not readable"),
        (lambda path: (path / "files.json").write_text("[]"), "files.json is not readable"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path: Path, caplog, harm, problem) -> None:
    before, newest = listed(tmp_path, 4), listed(tmp_path, 5)
    assert find_checkpoint(True, tmp_path) == newest
    harm(newest)
    assert find_checkpoint(True, tmp_path) == before
    assert find_checkpoint(True, tmp_path) == before
    assert [record.getMessage() for record in caplog.records] == [
        f"{newest} is damaged and not used ({problem}); the one before it is looked at"
    ]
    with pytest.raises(UsageError, match="no complete checkpoint there"):
        find_checkpoint(str(newest), tmp_path)


def test_files_that_were_added_later_do_not_matter(tmp_path: Path) -> None:
    path = listed(tmp_path, 5)
    (path / "notes.txt").write_text("mine")
    assert damage(path) is None


def test_of_a_large_file_the_size_alone_counts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "LARGEST_HASHED", 999)
    path = listed(tmp_path, 5)
    change(path)
    assert damage(path) is None
    shorten(path)
    assert damage(path) == "model.safetensors has 600 bytes, 1,000 were saved"


def test_what_the_hub_leaves_out_is_no_damage(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5)
    (path / "training_args.bin").write_bytes(b"a token")
    (path / "run_state").mkdir()
    (path / "run_state" / "rank0.json").write_text("{}")
    list_files(path)
    (path / "training_args.bin").unlink()
    shutil.rmtree(path / "run_state")
    assert damage(path) is None


@pytest.mark.parametrize(
    ("max_steps", "epochs", "ended"), [(8, 1, True), (9, 1, False), (-1, 1, True), (-1, 3, False), (-1, 0.5, True)]
)
def test_a_run_is_at_its_end_unless_steps_or_epochs_were_added(tmp_path: Path, max_steps, epochs, ended) -> None:
    path = checkpoint(tmp_path, 8)
    state = {"global_step": 8, "max_steps": 8, "num_train_epochs": 1}
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert is_at_its_end(path, SimpleNamespace(max_steps=max_steps, num_train_epochs=epochs)) is ended
