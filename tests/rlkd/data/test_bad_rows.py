import pytest

from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError
from rlkd.errors import UsageError

GOOD = '{"question": "a?"}\n'
BAD = ["{\n", "[1]\n", '{"question": 5}\n', '{"question": 6}\n', '{"x": 1}\n']


def write(path, *lines):
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.parametrize("bad", BAD)
def test_the_first_bad_row_ends_the_run_and_says_how_to_go_on(tmp_path, bad):
    with pytest.raises(RowError, match=r"rows\.jsonl, line 2.*skip_bad_rows: true"):
        load_rows(write(tmp_path / "rows.jsonl", GOOD, bad, GOOD))


def test_bad_rows_are_left_out_by_request_counted_by_kind_and_the_first_three_shown(tmp_path, caplog):
    rows = load_rows(write(tmp_path / "rows.jsonl", *BAD, *([GOOD] * 5)), skip_bad_rows=True)
    assert len(rows) == 5
    [message] = caplog.messages
    assert "left out 5 bad rows of 10 (2 x field 'question': expected text; 1 x not JSON; 1 x expected a " in message
    assert [f"line {n}" in message for n in range(1, 6)] == [True, True, True, False, False]


def test_half_characters_anywhere_are_one_kind_of_fault(tmp_path, caplog):
    bad = [f'{{"question": "{"a" * i}\\ud8{i:02}"}}\n' for i in range(20)]
    load_rows(write(tmp_path / "rows.jsonl", *bad, *([GOOD] * 20)), skip_bad_rows=True)
    [message] = caplog.messages
    assert "(20 x field 'question': the character is half of a pair, no character of its own). The first" in message


def test_only_the_most_frequent_kinds_are_shown(tmp_path, caplog):
    bad = [f'{{"question": "a?", "f{i}": "\\ud800"}}\n' for i in range(14)] + ["{\n"] * 3
    load_rows(write(tmp_path / "rows.jsonl", *bad, *([GOOD] * 17)), skip_bad_rows=True)
    [message] = caplog.messages
    assert "(3 x not JSON; 1 x field 'f0'" in message
    assert message.count(" x ") == 10
    assert "; and 5 further kinds). The first" in message


def test_more_than_half_are_no_exceptions(tmp_path):
    with pytest.raises(UsageError, match=r"5 of 9 rows are bad, more than half \(2 x field 'question'"):
        load_rows(write(tmp_path / "rows.jsonl", *BAD, *([GOOD] * 4)), skip_bad_rows=True)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rows.csv", ["question,answer\n", "a?,1\n", "b?,1,2\n", "c?,3\n"]),
        ("rows.json", ['[{"question": "a?"}, 7, {"question": "b?"}]']),
        ("rows.jsonl", [*GOOD, "\n", "{\n", GOOD]),
        ("rows.jsonl", ["{\n", GOOD, GOOD]),
    ],
)
def test_a_bad_record_of_each_kind_of_file_can_be_left_out(tmp_path, name, lines):
    assert len(load_rows(write(tmp_path / name, *lines), skip_bad_rows=True)) == 2


def test_a_file_that_is_damaged_is_no_bad_row(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_rows(write(tmp_path / "rows.jsonl.gz", GOOD), skip_bad_rows=True)
