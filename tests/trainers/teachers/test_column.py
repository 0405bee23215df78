"""Which of several teachers scores a row, and what a config or a dataset must not leave open."""

import pytest
from datasets import Dataset

from benchmarks.tiny import training_arguments
from rlkd.errors import UsageError
from trainers import RLKDConfig, ValidityKDConfig
from trainers.teachers.column import TeacherColumn

COLUMN = TeacherColumn("domain", {"math": "A", "code": "B", "logic": "A", "7": "C"})


def test_each_value_has_its_teacher_and_a_teacher_of_two_values_is_one() -> None:
    assert COLUMN.teachers == ["A", "B", "C"]
    assert COLUMN.values(0) == ["math", "logic"]
    assert COLUMN.numbers([{"domain": "logic"}, {"domain": "code"}, {"domain": 7}, {"domain": "math"}]) == [0, 1, 2, 0]
    rows = Dataset.from_list([{"domain": "math", "n": 0}, {"domain": "code", "n": 1}, {"domain": "logic", "n": 2}])
    assert [COLUMN.own_rows(rows, number)["n"] for number in range(3)] == [[0, 2], [1], []]


def test_a_row_without_a_teacher_is_named_with_its_value() -> None:
    rows = [{"id": "a", "domain": "math"}, {"id": "b", "domain": "law"}, {"id": "c", "domain": None}]
    with pytest.raises(
        UsageError, match=r"train_dataset: row 1 \(id 'b'\) has 'law' in the column 'domain'.*'math', "
    ):
        COLUMN.check(Dataset.from_list(rows), "train_dataset")
    with pytest.raises(UsageError, match="the row 'c' has None in the column 'domain'"):
        COLUMN.numbers([rows[0], rows[2]])
    with pytest.raises(UsageError, match=r"train_dataset has no column 'domain', which teacher_column names.*prompt"):
        COLUMN.check(Dataset.from_list([{"prompt": "1?"}]), "train_dataset")


@pytest.mark.parametrize("config", [ValidityKDConfig, RLKDConfig])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {"a": "A"}}, "teachers without teacher_column"),
        ({"teacher_column": "domain"}, "teacher_column 'domain' without teachers"),
        ({"teachers": {"a": "A"}, "teacher": "B", "teacher_column": "domain"}, "teacher and teachers are both set"),
        ({"teachers": {"a": "self"}, "teacher_column": "domain"}, "teachers: 'a' has 'self'"),
        ({"teachers": {}, "teacher_column": "domain"}, "expected a mapping from values to teachers"),
        ({"teachers": "{math: A", "teacher_column": "domain"}, "'{math: A' is no JSON object"),
    ],
)
def test_settings_that_leave_the_teacher_open_are_refused(tmp_path, config, changes, message) -> None:
    with pytest.raises(UsageError, match=message):
        config(**training_arguments(tmp_path, **changes))


@pytest.mark.parametrize("config", [ValidityKDConfig, RLKDConfig])
def test_the_command_line_takes_json_and_addresses_may_stand_in_the_environment(tmp_path, config, monkeypatch) -> None:
    monkeypatch.setenv("CODER", "http://127.0.0.1:1/v1#coder")
    given = {"teachers": '{"math": "A", "code": "env:CODER"}', "teacher_column": "domain"}
    args = config(**training_arguments(tmp_path, **given))
    assert args.teachers == {"math": "A", "code": "http://127.0.0.1:1/v1#coder"}
    assert args.column_of(args.teachers).teachers == ["A", "http://127.0.0.1:1/v1#coder"]
    assert args.column_of("A") is None
    assert args.columns_read == ["domain"]
    assert config(**training_arguments(tmp_path)).columns_read == []


@pytest.mark.parametrize("teachers", ['{"a": "http://me:pw@host/v1#m"', ["http://me:pw@host/v1#m"]])
def test_messages_show_no_password(tmp_path, teachers) -> None:
    with pytest.raises(UsageError, match=r"http://\*\*\*@host/v1#m") as refused:
        RLKDConfig(**training_arguments(tmp_path, teachers=teachers, teacher_column="domain"))
    assert "pw" not in str(refused.value)
