import os

import pytest

from rlkd.doctor.machine import check_machine, memory_limit


def test_cores_and_memory_of_this_machine_are_shown(tmp_path):
    cores, memory = check_machine(tmp_path)
    assert cores.text.split()[0].isdigit()
    assert "GiB of memory" in memory.text
    assert "limit" not in memory.text


@pytest.mark.parametrize(
    ("limit", "level"), [(900 << 20, "warning"), (3 << 30, "warning"), (1 << 60, None)], ids=["tiny", "small", "none"]
)
def test_the_limit_of_a_container_counts_where_it_is_lower(tmp_path, limit, level):
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("104857600\n")
    _, memory = check_machine(tmp_path)
    assert ("the container's limit is lower" in memory.text) == (level is not None)
    if level is not None:
        assert memory.level == level
        assert "recipes/rlkd" in memory.way_out


def test_both_versions_of_cgroups_are_read(tmp_path):
    assert memory_limit(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == (None, 0)
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("4096\n")
    (old / "memory.usage_in_bytes").write_text("1024\n")
    assert memory_limit(tmp_path) == (4096, 1024)


def test_fewer_cores_than_the_machine_has_are_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    cores, _ = check_machine(tmp_path)
    assert "of 4096 CPUs" in cores.text
