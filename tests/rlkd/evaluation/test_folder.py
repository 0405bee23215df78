"""The folder of an evaluation: what differs is named, one process has it, and a finished one reads back."""

import json

import pytest

from rlkd.evaluation.folder import (
    EvaluationError,
    EvaluationFolder,
    RecordedCompletion,
    different_row,
    read_evaluation,
    row_record,
)

SETTINGS = {"model": "m", "temperature": 0.7, "system_prompt": None}
ROWS = [row_record({"id": name, "answer": "2"}, f"question {name}") for name in "ab"]
WRITTEN = [RecordedCompletion(name, number, "So the answer is 2.", 5, True) for name in "ab" for number in (0, 1)]


def test_a_changed_setting_is_refused_by_its_name_with_both_values(tmp_path) -> None:
    EvaluationFolder(tmp_path, SETTINGS, ROWS).close()
    for name, value, shown in (
        ("temperature", 1.0, "temperature 0.7, and now it is 1.0"),
        ("top_p", 0.9, "top_p unset"),
    ):
        with pytest.raises(EvaluationError, match=shown):
            EvaluationFolder(tmp_path, SETTINGS | {name: value}, ROWS)
    EvaluationFolder(tmp_path, SETTINGS, ROWS).close()


def test_other_rows_answers_and_prompts_are_refused_by_row(tmp_path) -> None:
    EvaluationFolder(tmp_path, SETTINGS, ROWS).close()
    prompt = [ROWS[0], row_record({"id": "b", "answer": "2"}, "another question")]
    answer = [ROWS[0], ROWS[1] | {"answer": "3"}]
    for rows, message in (
        (ROWS[:1], "row 'b' is there only .* 2 rows there, 1 here"),
        (prompt, "row 'b' has another prompt"),
        (answer, "row 'b' has another gold answer: '2' there, '3' here"),
    ):
        with pytest.raises(EvaluationError, match=message):
            EvaluationFolder(tmp_path, SETTINGS, rows)


def test_a_folder_belongs_to_one_process(tmp_path) -> None:
    with EvaluationFolder(tmp_path, SETTINGS, ROWS), pytest.raises(EvaluationError, match="in use"):
        EvaluationFolder(tmp_path, SETTINGS, ROWS)


def test_a_line_that_a_kill_truncated_is_forgotten_and_any_other_is_named(tmp_path) -> None:
    with EvaluationFolder(tmp_path, SETTINGS, ROWS) as folder:
        folder.add(WRITTEN)
        folder.add(WRITTEN)  # once is enough
    path = tmp_path / "completions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_text("".join(lines[:3]) + lines[3][:-5])
    with EvaluationFolder(tmp_path, SETTINGS, ROWS) as folder:
        assert list(folder.written) == [each.key for each in WRITTEN[:3]]
    path.write_text('{"id": "a"}\n')
    with pytest.raises(EvaluationError, match=r"completions\.jsonl has a line that is no completion"):
        EvaluationFolder(tmp_path, SETTINGS, ROWS)


def test_a_finished_evaluation_reads_back_without_samples_beyond_its_own(tmp_path) -> None:
    with pytest.raises(EvaluationError, match="holds no evaluation"):
        read_evaluation(tmp_path)
    with EvaluationFolder(tmp_path, SETTINGS, ROWS) as folder:
        with pytest.raises(EvaluationError, match="an unfinished evaluation"):
            read_evaluation(tmp_path)
        folder.add([*WRITTEN, RecordedCompletion("a", 2, "further", 1, True)])
        scored = [
            RecordedCompletion(**(vars(each) | {"answer": "2", "scores": {"accuracy": {"value": 1.0}}}))
            for each in WRITTEN
        ]
        folder.finish(scored, {"samples": 1, "metrics": {}})
    found = read_evaluation(tmp_path)
    assert found.settings == SETTINGS
    assert found.rows == ROWS
    assert found.completions["a"] == {0: scored[0], 1: scored[1]}
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "results.json").read_text())["samples"] == 1


def test_equal_rows_in_another_order_are_no_difference() -> None:
    assert different_row(ROWS, ROWS[::-1]) is None
