import json

import pytest

from rlkd.errors import UsageError
from rlkd.files import append_records
from rlkd.study.measures import count_rollouts, read_run
from tests.helpers.study_runs import write_run


def test_a_run_is_read_from_its_files(tmp_path) -> None:
    write_run(tmp_path, [0.2, 0.4, 0.6])
    run = read_run(tmp_path, "plain", 3)
    assert (run.arm, run.seed, run.rollouts, run.counts_steps) == ("plain", 3, 16, False)
    assert run.greedy.curve == [(0, 0.2), (8, 0.4), (16, 0.6)]
    assert run.sampled.curve == [(0, 0.1), (8, 0.2), (16, 0.3)]
    assert run.greedy.before == {f"row-{i}": float(i < 2) for i in range(10)}
    assert run.sampled.after["row-5"] == 0.5
    # Those of the sampled answers, since there are some.
    assert (run.tokens, run.calculations, run.zero_std, run.seconds) == (25, 2.5, 0.25, 30)


def test_rollouts_of_all_processes_and_times_of_all_stages_count(tmp_path) -> None:
    write_run(tmp_path, [0.2, 0.4])
    (tmp_path / "rollouts/rank1.jsonl").write_text((tmp_path / "rollouts/rank0.jsonl").read_text())
    append_records(tmp_path / "sft/times.jsonl", [{"seconds": 5.0}, {"seconds": 7.0}])
    run = read_run(tmp_path, "plain", 3)
    assert (run.rollouts, run.seconds) == (16, 42)
    assert count_rollouts(tmp_path) == {1: 8, 2: 16}


def test_a_run_without_rollouts_samples_and_groups_counts_its_steps(tmp_path) -> None:
    write_run(tmp_path, [0.2, 0.4])
    (tmp_path / "rollouts/rank0.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    records = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    for record in records:
        del record["sampled"]
    records[1]["rows"][0]["correct"] = None
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run = read_run(tmp_path, "plain", 3)
    assert (run.sampled, run.zero_std, run.counts_steps, run.tokens) == (None, None, True, 20)
    assert run.greedy.curve == [(0, 0.2), (2, pytest.approx(3 / 9))]


def test_a_run_that_evaluated_nothing_says_what_it_needs(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"eval\.jsonl has no evaluation: .*dataset_test_split"):
        read_run(tmp_path, "plain", 3)


def test_rows_that_share_an_id_are_refused(tmp_path) -> None:
    write_run(tmp_path, [0.2, 0.4])
    path = tmp_path / "eval.jsonl"
    path.write_text(path.read_text().replace("row-3", "row-4"))
    with pytest.raises(UsageError, match=r"eval\.jsonl, step 0: several rows have the id 'row-4'"):
        read_run(tmp_path, "plain", 3)
