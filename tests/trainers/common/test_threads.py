"""The number of threads of a CPU run, where a launcher has set it to 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.common import threads

ACCELERATE = "python bin/accelerate launch recipes/rlkd.py"


@pytest.fixture
def set_to(monkeypatch):
    """The numbers that torch was set to, on a machine of eight cores."""
    found = []
    monkeypatch.setattr("torch.set_num_threads", found.append)
    monkeypatch.setattr(threads, "cores", lambda: 8)
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize(
    ("own", "launcher", "command", "processes", "expected"),
    [
        ("1", {}, ACCELERATE, None, 8),
        ("1", {}, ACCELERATE, "2", 4),
        ("1", {}, "python bin/torchrun --nproc_per_node 3 recipes/rlkd.py", "3", 2),
        ("1", {}, "python -m torch.distributed.run --nproc_per_node 2 recipes/rlkd.py", "2", 4),
        ("1", {}, ACCELERATE, "8", None),
        ("1", {"OMP_NUM_THREADS": "1"}, ACCELERATE, None, None),
        ("1", {}, "accelerate launch --num_cpu_threads_per_process 1 recipes/rlkd.py", None, None),
        ("4", {}, ACCELERATE, None, None),
        (None, {}, ACCELERATE, None, None),
        ("1", {}, "bash run.sh", None, None),
    ],
)
def test_a_launchers_one_thread_becomes_the_share_of_the_cores_and_a_users_number_stays(
    monkeypatch, set_to, own, launcher, command, processes, expected
) -> None:
    for name, value in (("OMP_NUM_THREADS", own), ("LOCAL_WORLD_SIZE", processes)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    is_launcher = any(name in command for name in ("accelerate", "torchrun", "torch.distributed"))
    monkeypatch.setattr(threads, "_launcher", lambda: (launcher, command) if is_launcher else None)
    assert threads.set_cpu_threads() == expected
    assert set_to == ([] if expected is None else [expected])


def test_where_the_launcher_cannot_be_read_nothing_changes(monkeypatch, set_to) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(threads, "_launcher", lambda: None)
    assert threads.set_cpu_threads() is None


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("asked", [False, True])
def test_the_parents_environment_tells_who_set_the_number(tmp_path, asked) -> None:
    # A stand-in for the launcher, which sets the variable for its child only.
    launcher = tmp_path / "torchrun.py"
    launcher.write_text(
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'from trainers.common import threads; "
        "print(threads._limited_by_launcher())'], env=os.environ | {'OMP_NUM_THREADS': '1'}, check=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": "1"} if asked else {}
    done = subprocess.run(
        [sys.executable, launcher],
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(not asked)


def test_the_cores_are_those_of_the_affinity_at_most() -> None:
    assert 1 <= threads.cores() <= len(os.sched_getaffinity(0))
