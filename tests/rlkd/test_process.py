"""The cores that a process may use."""

from rlkd.process import _physical, cores


def test_two_threads_of_a_core_count_once(tmp_path) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(siblings)
    assert [_physical(cpus, tmp_path) for cpus in ({0, 1, 2, 3}, {0, 2}, {0, 3})] == [2, 1, 2]


def test_without_the_topology_every_cpu_counts(tmp_path) -> None:
    assert _physical({0, 1, 2}, tmp_path) == 3
    assert cores() >= 1
