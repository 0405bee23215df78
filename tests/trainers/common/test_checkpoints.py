"""Which checkpoint a run resumes from."""

import json
from pathlib import Path

import pytest

from rlkd.errors import UsageError
from trainers.common.checkpoints import find_checkpoint, step_of


def checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if complete else '{"global_st')
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
