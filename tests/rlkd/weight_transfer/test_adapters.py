"""Adapters that arrive as bytes: the last two are kept, and no other file can be written."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlkd.weight_transfer.adapters import FILES, ReceivedAdapters, are_files, server_folder

FIRST, SECOND = "0" * 8, "1" * 8  # servers


@pytest.fixture
def run() -> Iterator[str]:
    yield (name := f"rlkd-{secrets.token_hex(4)}")
    assert not list(Path("/tmp").glob(f"{name}-*"))


def files(adapter: str, content: bytes, server: str = FIRST) -> list[tuple[str, torch.Tensor]]:
    place = server_folder(adapter, server).name
    return [(f"{place}/{name}", torch.frombuffer(bytearray(content), dtype=torch.uint8)) for name in FILES]


def test_none_outlives_its_process(run: str) -> None:
    code = (
        "import os, sys, torch; from rlkd.weight_transfer.adapters import ReceivedAdapters; "
        "name = os.path.basename(sys.argv[1]) + '/adapter_config.json'; "
        "ReceivedAdapters().store([(name, torch.zeros(3, dtype=torch.uint8))]); "
        "print(os.path.exists(sys.argv[1]))"
    )
    folder = str(server_folder(f"{run}-v1", FIRST))
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_last_two_adapters_are_kept_for_the_owner_alone_until_they_are_cleared(run: str) -> None:
    received = ReceivedAdapters()
    for version in (1, 2, 3):
        received.store(files(f"{run}-v{version}", bytes([version] * version)))
    assert [server_folder(f"{run}-v{version}", FIRST).exists() for version in (1, 2, 3)] == [False, True, True]
    folder = server_folder(f"{run}-v3", FIRST)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(FILES, bytes([3] * 3))
    received.clear()


def test_a_second_worker_of_the_server_writes_the_same_files(run: str) -> None:
    first, second = ReceivedAdapters(), ReceivedAdapters()
    for worker in (first, second):
        worker.store(files(f"{run}-v1", b"same"))
    assert {path.read_bytes() for path in server_folder(f"{run}-v1", FIRST).iterdir()} == {b"same"}
    first.clear()
    second.clear()


def test_a_server_that_ends_leaves_the_adapters_of_another_one(run: str) -> None:
    first, second = ReceivedAdapters(), ReceivedAdapters()
    first.store(files(f"{run}-v1", b"same", FIRST))
    second.store(files(f"{run}-v1", b"same", SECOND))
    first.clear()
    assert {path.read_bytes() for path in server_folder(f"{run}-v1", SECOND).iterdir()} == {b"same"}
    second.clear()


@pytest.mark.parametrize(
    "name",
    [
        "../x/adapter_config.json",
        "rlkd-00000000-v1/adapter_config.json",
        "rlkd-00000000-v1-00000000/../x",
        "rlkd-00000000-v1-00000000/run.sh",
        "x/",
    ],
)
def test_other_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no file of an adapter"):
        ReceivedAdapters().store([(name, torch.zeros(1, dtype=torch.uint8))])


def test_a_folder_that_is_not_this_users_alone_is_refused(run: str, tmp_path, monkeypatch) -> None:
    folder = server_folder(f"{run}-v1", FIRST)
    refused = pytest.raises(PermissionError, match=f"{folder} is not a folder of this user alone")
    tmp_path.chmod(0o700)
    for target in (tmp_path, tmp_path / "none"):
        folder.symlink_to(target)
        with refused:
            ReceivedAdapters().store(files(f"{run}-v1", b"x"))
        folder.unlink()
    folder.mkdir()
    folder.chmod(0o750)
    with refused:
        ReceivedAdapters().store(files(f"{run}-v1", b"x"))
    folder.chmod(0o700)
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with refused:
        ReceivedAdapters().store(files(f"{run}-v1", b"x"))
    assert not [*tmp_path.iterdir(), *folder.iterdir()]
    folder.rmdir()


def test_weights_are_told_from_files() -> None:
    assert are_files(["rlkd-00000000-v1/adapter_config.json"])
    assert not are_files(["model.embed_tokens.weight"])
    assert not are_files([])
