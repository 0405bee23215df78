import pytest

from rlkd.errors import UsageError
from rlkd.report.records import read_run
from tests.helpers.json_lines import write_json_lines
from tests.helpers.run_folder import evaluation, rollout, write_run


def test_a_run_is_read_whole(tmp_path):
    run = read_run(write_run(tmp_path / "run"), most_rollouts=100)
    assert (run.name, len(run.metrics), len(run.evaluations)) == ("run", 10, 2)
    assert (len(run.rollouts), run.rollouts_written, run.stride) == (40, 40, 1)


def test_rollouts_of_several_processes_are_in_the_order_of_steps(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=[rollout(1, 0), rollout(2, 0)])
    write_json_lines(folder / "rollouts" / "rank1.jsonl", rollout(1, 1), rollout(2, 1))
    assert [record["step"] for record in read_run(folder, most_rollouts=9).rollouts] == [1, 1, 2, 2]


def test_of_many_rollouts_whole_steps_are_kept_and_the_last_one(tmp_path):
    run = read_run(write_run(tmp_path / "run"), most_rollouts=15)
    assert run.stride == 3
    assert sorted({record["step"] for record in run.rollouts}) == [1, 4, 7, 10]
    assert (len(run.rollouts), run.rollouts_written) == (16, 40)


def test_an_asynchronous_run_counts_groups(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=[])
    record = {name: value for name, value in rollout(0, 0).items() if name not in ("step", "advantage")}
    write_json_lines(folder / "rollouts" / "async.jsonl", record | {"group": 3, "score": 0.5})
    (read,) = read_run(folder, most_rollouts=9).rollouts
    assert (read["step"], read["score"]) == (3, 0.5)


def test_failures_are_counted_by_cause_over_all_rollouts(tmp_path):
    failed = {"rewards": {"accuracy": {"status": "failed", "cause": "timeout"}, "other": {"status": "failed"}}}
    folder = write_run(tmp_path / "run", rollouts=[rollout(step, 0, **failed) for step in range(5)])
    assert read_run(folder, most_rollouts=1).failures == {"accuracy": {"timeout": 5}, "other": {"no cause given": 5}}


def test_a_line_that_is_still_being_written_is_skipped(tmp_path):
    folder = write_run(tmp_path / "run")
    for file in ("metrics.jsonl", "eval.jsonl", "rollouts/rank0.jsonl"):
        with (folder / file).open("a") as stream:
            stream.write('{"step": 11, "compl')
    run = read_run(folder, most_rollouts=100)
    assert (len(run.metrics), len(run.evaluations), len(run.rollouts)) == (10, 2, 40)


def test_a_run_without_rollouts_or_evaluations_has_a_report_too(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write_json_lines(folder / "eval.jsonl", evaluation(0, [1.0]))
    assert len(read_run(folder, most_rollouts=9).evaluations) == 1


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("metrics.jsonl", "{", "metrics.jsonl, line 11: not JSON"),
        ("metrics.jsonl", '{"loss": 1}', "metrics.jsonl, line 11: no step"),
        ("rollouts/rank0.jsonl", '{"step": 1}', "rank0.jsonl, line 41: not a rollout of a run"),
        ("rollouts/rank0.jsonl", '{"step": 1, "completion": "", "rewards": {"a": 1}}', "line 41: not a rollout"),
        (
            "rollouts/rank0.jsonl",
            '{"step": 1, "completion": "", "rewards": {"a": {"status": "lost"}}}',
            "not a rollout",
        ),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, file, line, message):
    folder = write_run(tmp_path / "run")
    with (folder / file).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UsageError, match=message):
        read_run(folder, most_rollouts=9)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"give the output_dir of a run that has finished a step"):
        read_run(tmp_path, most_rollouts=9)
    with pytest.raises(UsageError, match=r"missing is no folder; give the output_dir"):
        read_run(tmp_path / "missing", most_rollouts=9)
