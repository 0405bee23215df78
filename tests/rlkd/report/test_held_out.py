"""The report of held-out evaluations: the change is paired by row, and says when it shows nothing."""

import pytest

from rlkd.report.held_out import held_out_report, paired_change, sparkline
from rlkd.series import series_mean


def record(step: int, correct: list, sampled: list | None = None) -> dict:
    rows = [{"id": str(i), "correct": value} for i, value in enumerate(correct)]
    judged = [value for value in correct if value is not None]
    figures = {"mean": sum(judged) / len(judged), "low": 0.0, "high": 1.0, "n": len(judged)}
    made = {"step": step, "accuracy": figures, "tokens": 20.0 + step, "calculations": 2.0, "rows": rows}
    if sampled is not None:
        for row, value in zip(rows, sampled, strict=True):
            row["sampled_correct"] = value
        share = {"mean": sum(sampled) / len(sampled), "low": 0.0, "high": 1.0, "n": len(sampled)}
        made["sampled"] = {"samples": 4, "temperature": 1.0, "accuracy": share}
    return made


def test_the_change_is_that_of_the_rows_both_could_judge() -> None:
    before, after = record(0, [0.0, 1.0, None, 0.0] * 10), record(5, [1.0, 1.0, 1.0, None] * 10)
    change = paired_change(before, after)
    assert change == series_mean([1.0, 0.0] * 10, block=1)
    assert change.n == 20


def test_rows_of_other_runs_do_not_pair() -> None:
    other = record(5, [1.0])
    other["rows"][0]["id"] = "elsewhere"
    assert paired_change(record(0, [1.0]), other) is None


def test_rows_whose_ids_repeat_do_not_pair() -> None:
    before, after = record(0, [0.0, 1.0] * 10), record(5, [1.0, 1.0] * 10)
    for row in (*before["rows"], *after["rows"]):
        row["id"] = None
    assert paired_change(before, after) is None


def test_no_change_of_any_row_has_an_interval_that_is_not_empty() -> None:
    change = paired_change(record(0, [0.0, 1.0] * 10), record(5, [0.0, 1.0] * 10))
    assert change.value == 0
    assert change.low < 0 < change.high


def test_a_rise_is_reported_with_its_interval() -> None:
    text = held_out_report([record(0, [0.0] * 30 + [1.0] * 10), record(9, [1.0] * 40)], last_step=9, limit=64)
    assert "accuracy before:  25.0%" in text
    assert "accuracy after:   100.0%" in text
    assert "accuracy change:  +75.0% (95 % interval +61" in text
    assert "contains 0" not in text
    assert "tokens per answer: 20.00 before, 29.00 after" in text
    assert text.endswith("40 test rows, greedy; truncated at 64 tokens. The interval of a change is paired by row.")


def test_a_change_within_its_interval_is_said_to_show_nothing() -> None:
    text = held_out_report([record(0, [0.0, 1.0] * 10), record(9, [1.0, 0.0] * 9 + [1.0, 1.0])], last_step=9, limit=64)
    assert "it contains 0, so no change is shown (--eval_rows for more rows)" in text


def test_samples_have_lines_of_their_own() -> None:
    records = [record(0, [0.0] * 8, [0.25] * 8), record(4, [1.0] * 8, [0.5] * 8), record(9, [1.0] * 8, [0.75] * 8)]
    text = held_out_report(records, last_step=9, limit=64)
    assert "sampled before:   25.0%" in text
    assert "sampled at step 4: 50.0%" in text
    assert "sampled after:    75.0%" in text
    assert "▁▄█" in text
    assert "sampled: 4 completions per row at temperature 1" in text


def test_without_an_evaluation_there_is_nothing_to_report() -> None:
    assert held_out_report([], last_step=0, limit=8) == ""


@pytest.mark.parametrize(("values", "bars"), [([], ""), ([0.5], "▁"), ([1, 1], "▁▁"), ([0, 1, 0.5], "▁█▄")])
def test_a_sparkline_scales_from_the_smallest_to_the_largest(values, bars) -> None:
    assert sparkline(values) == bars
