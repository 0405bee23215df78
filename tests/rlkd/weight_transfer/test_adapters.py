"""Adapters that arrive as bytes: the last two are kept, and no other file can be written."""

import secrets
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from rlkd.weight_transfer.adapters import FILES, ReceivedAdapters, are_files, server_folder


@pytest.fixture
def run() -> Iterator[str]:
    yield (name := f"rlkd-{secrets.token_hex(4)}")
    for version in range(1, 5):
        assert not server_folder(f"{name}-v{version}").exists()


def files(adapter: str, content: bytes) -> list[tuple[str, torch.Tensor]]:
    return [(f"{adapter}/{name}", torch.frombuffer(bytearray(content), dtype=torch.uint8)) for name in FILES]


def test_none_outlives_its_process(run: str) -> None:
    code = (
        "import sys, torch; from rlkd.weight_transfer.adapters import ReceivedAdapters, server_folder; "
        "ReceivedAdapters().store([(sys.argv[1] + '/adapter_config.json', torch.zeros(3, dtype=torch.uint8))]); "
        "print(server_folder(sys.argv[1]).exists())"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{run}-v1"], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_the_last_two_adapters_are_kept_for_the_owner_alone_until_they_are_cleared(run: str) -> None:
    received = ReceivedAdapters()
    for version in (1, 2, 3):
        received.store(files(f"{run}-v{version}", bytes([version] * version)))
    assert [server_folder(f"{run}-v{version}").exists() for version in (1, 2, 3)] == [False, True, True]
    folder = server_folder(f"{run}-v3")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict.fromkeys(FILES, bytes([3] * 3))
    received.clear()


def test_a_second_worker_of_the_machine_writes_the_same_files(run: str) -> None:
    first, second = ReceivedAdapters(), ReceivedAdapters()
    for worker in (first, second):
        worker.store(files(f"{run}-v1", b"same"))
    assert {path.read_bytes() for path in server_folder(f"{run}-v1").iterdir()} == {b"same"}
    first.clear()
    second.clear()


@pytest.mark.parametrize(
    "name", ["../x/adapter_config.json", "rlkd-00000000-v1/../x", "rlkd-00000000-v1/run.sh", "x/"]
)
def test_other_files_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no file of an adapter"):
        ReceivedAdapters().store([(name, torch.zeros(1, dtype=torch.uint8))])


def test_a_folder_or_link_of_another_user_is_refused(run: str, tmp_path, monkeypatch) -> None:
    folder = server_folder(f"{run}-v1")
    folder.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match=f"{folder} belongs to another user"):
        ReceivedAdapters().store(files(folder.name, b"x"))
    folder.unlink()
    folder.mkdir()
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"{folder} belongs to another user"):
        ReceivedAdapters().store(files(folder.name, b"x"))
    assert not [*tmp_path.iterdir(), *folder.iterdir()]
    folder.rmdir()


def test_weights_are_told_from_files() -> None:
    assert are_files(["rlkd-00000000-v1/adapter_config.json"])
    assert not are_files(["model.embed_tokens.weight"])
    assert not are_files([])
