import os
from pathlib import Path

import pytest

from rlkd.doctor import disk
from rlkd.doctor.disk import check_disk, check_folder, hub_cache


def test_free_space_of_a_folder_that_does_not_exist_yet_is_that_of_the_one_above(tmp_path):
    found = check_folder("output", tmp_path / "a" / "b", "Name another.")
    assert found.level in ("ok", "warning")
    assert "GiB free" in found.text


def test_little_space_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SPARE", 2**60)
    found = check_folder("cache", tmp_path, "RLKD_CACHE=FOLDER names another one.")
    assert found.level == "warning"
    assert "RLKD_CACHE" in found.way_out


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "is a file" in check_folder("output", tmp_path / "file" / "run", "").text
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = check_folder("output", tmp_path / "run", "Name another.")
    assert (found.level, found.way_out) == ("problem", "Name another.")
    assert str(tmp_path) in found.text


def test_the_caches_and_the_output_folder_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    shown = [finding.text for finding in check_disk(tmp_path / "runs")]
    for folder, text in zip(("own", "hub", "runs"), shown, strict=True):
        assert str(tmp_path / folder) in text


def test_the_hubs_cache_is_where_its_library_has_it(monkeypatch):
    import huggingface_hub.constants

    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        if name in os.environ:
            pytest.skip(f"{name} is set")
    assert hub_cache() == Path(huggingface_hub.constants.HF_HUB_CACHE)
