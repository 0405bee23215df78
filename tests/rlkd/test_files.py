import json
import os
import subprocess
import sys

import pytest

from rlkd.errors import UsageError
from rlkd.files import (
    append_records,
    atomic_file,
    lock_file,
    read_records,
    remove_truncated_line,
    write_atomically,
)


def test_a_file_that_fails_in_the_middle_leaves_the_old_one(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path) -> None:
    path = tmp_path / "new folder" / "file"
    write_atomically(path, b"old")
    with atomic_file(path) as file:
        file.write("grün")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_text(encoding="utf-8") == "grün"


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_lock_is_held_by_one_process_until_it_ends_or_closes_the_file(tmp_path) -> None:
    path = tmp_path / "deep" / ".lock"
    code = "import sys; from rlkd.files import lock_file; print(lock_file(sys.argv[1]) is None)"

    def taken() -> bool:
        return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True).stdout == "True\n"

    lock = lock_file(path)
    assert lock is not None
    assert taken()
    assert lock_file(path) is None
    lock.close()
    assert not taken()
    again = lock_file(path, wait=True)
    assert again is not None
    again.close()


def test_shared_locks_exclude_only_the_exclusive_one(tmp_path) -> None:
    first, second = (lock_file(tmp_path / ".lock", shared=True) for _ in range(2))
    assert first is not None
    assert second is not None
    assert lock_file(tmp_path / ".lock") is None
    first.close()
    second.close()


def test_a_file_system_without_locks_is_an_error_with_a_way_out(tmp_path, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UsageError, match=r"Operation not supported.*a folder on a local disk"):
        lock_file(tmp_path / ".lock")


def test_records_come_back_without_a_truncated_last_line(tmp_path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    remove_truncated_line(path)
    append_records(path, [{"a": 1}, {"text": "two\u2028lines\n"}])
    with path.open("a") as file:
        file.write('{"a": ')
    assert list(read_records(path)) == [{"a": 1}, {"text": "two\u2028lines\n"}]
    remove_truncated_line(path)
    append_records(path, [{"a": 3}])
    assert [record.get("a") for record in read_records(path)] == [1, None, 3]
    path.write_text("broken\n")
    with pytest.raises(json.JSONDecodeError):
        list(read_records(path))
    path.write_text("{")
    remove_truncated_line(path)
    assert path.read_text() == ""
