"""The data keys from command line and config."""

import json

import pytest

from rlkd.errors import UsageError
from tests.helpers.json_lines import write_json_lines as jsonl
from trainers.common.arguments import parse
from trainers.common.data_arguments import DataArguments


@pytest.fixture
def read(tmp_path, monkeypatch):
    """The data keys of a config and a command line, in a folder with two files of three rows."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(tmp_path / name, *({"question": f"{i}?", "answer": i, "level": i} for i in range(3)))
        with (tmp_path / name).open("a") as file:
            file.write("no JSON\n")

    def parsed(config, *words):
        (tmp_path / "my.yaml").write_text(json.dumps(config))
        script, *_ = parse(words, (DataArguments,), default_config=tmp_path / "my.yaml")
        return script

    return parsed


@pytest.mark.parametrize(
    ("config", "words", "name"),
    [
        ({"dataset_name": "a.jsonl"}, [], "a.jsonl"),
        ({"dataset_name": ["a.jsonl"]}, [], "a.jsonl"),
        ({"dataset_name": ["a.jsonl", "b.jsonl"]}, [], ["a.jsonl", "b.jsonl"]),
        ({"dataset_name": "a.jsonl"}, ["--dataset_name", "b.jsonl"], "b.jsonl"),
        ({"dataset_name": "a.jsonl"}, ["--dataset_name", "b.jsonl", "a.jsonl"], ["b.jsonl", "a.jsonl"]),
    ],
)
def test_one_or_several_sources_come_from_config_and_command_line(read, config, words, name):
    script = read(config, *words)
    assert script.dataset_name == name
    assert script.source_name == (name if isinstance(name, str) else ", ".join(name))


def test_rows_end_with_the_limits_and_bad_ones_are_left_out(read):
    keys = {"dataset_name": "?.jsonl", "dataset_test_split": "test", "other_columns": [], "skip_bad_rows": True}
    script = read(keys, "--max_rows", "4", "--eval_rows", "2")
    assert [row["id"] for row in script.train_rows()] == ["a-0", "a-1", "a-2", "b-0"]
    assert [row["id"] for row in script.test_rows()] == ["a-0", "a-1"]
    assert "level" not in script.train_rows()[0]
    assert len(read(keys, "--eval_rows", "99").test_rows()) == 6
    with pytest.raises(UsageError, match=r"a\.jsonl, line 4: not JSON"):
        read(keys, "--skip_bad_rows", "false").train_rows()


def test_the_test_rows_are_of_the_split_test_where_only_their_dataset_is_named(read):
    named = {"dataset_name": "a.jsonl", "dataset_test_name": "b.jsonl", "skip_bad_rows": True}
    assert [row["id"] for row in read(named).test_rows()] == ["b-0", "b-1", "b-2"]
    assert read(named).test_split == "test"
    assert read(named, "--dataset_test_split", "train").test_split == "train"
    assert read(named, "--dataset_test_split", "").test_rows() == []
    assert read({"dataset_name": "a.jsonl"}).test_rows() == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_rows": [3]}, r"my\.yaml, key max_rows: expected a whole number, found \[3\]"),
        ({"max_rows": 2.5}, r"my\.yaml, key max_rows: expected a whole number, found 2\.5"),
        ({"max_rows": "many"}, "max_rows.*invalid int value: 'many'"),
        ({"columns": "{bad"}, "columns: '{bad' is not JSON"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_key(read, config, message):
    with pytest.raises(UsageError, match=message):
        read(config)


def test_further_columns_are_read_beside_other_columns(read):
    config = {"dataset_name": "a.jsonl", "other_columns": [], "skip_bad_rows": True}
    assert read(config).train_rows("level")[0]["level"] == 0
    with pytest.raises(UsageError, match="no row has a column 'domain'"):
        read(config).train_rows("domain")


def test_rows_of_other_pass_rates_are_left_out_and_the_column_is_read(read, tmp_path):
    rows = ({"question": f"{i}?", "answer": i, "pass_rate": i / 4, "level": 1, "other": 2} for i in range(5))
    jsonl(tmp_path / "rates.jsonl", *rows)
    config = {"dataset_name": "rates.jsonl", "other_columns": ["level"], "keep_pass_rate": [0.1, 0.9]}
    script = read(config)
    assert [row["pass_rate"] for row in script.train_rows()] == [0.25, 0.5, 0.75]
    assert {*script.train_rows()[0]} >= {"level", "pass_rate"}
    assert "other" not in script.train_rows()[0]
    assert [row["pass_rate"] for row in read(config, "--keep_pass_rate", "0.5", "1").train_rows()] == [0.5, 0.75, 1.0]
    with pytest.raises(UsageError, match=r"expected the lowest and the highest pass rate, such as \[0.1, 0.9\]"):
        read(config | {"keep_pass_rate": [0.9]}).train_rows()
    with pytest.raises(UsageError, match="no row has a column 'pass_rate'"):
        read(config | {"dataset_name": "a.jsonl", "skip_bad_rows": True}).train_rows()
