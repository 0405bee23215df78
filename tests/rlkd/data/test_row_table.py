import pytest

from rlkd.data import loading
from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.row_table import RowTable
from rlkd.data.rows import RowError
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "How many?", "question": "1+1", "answer": "2"}]


@pytest.fixture
def few(monkeypatch):
    """Three rows are many, and four columns of a part have what the parts before lack."""
    monkeypatch.setattr(loading, "LARGE", 3)
    monkeypatch.setattr(loading, "COMPARED_ROWS", 2)


def records():
    for i in range(9):
        late = {"rationales": ["1 + 1 = 2"], "structures": [STEPS], "level": 0.5, "talk": [{"a": 1}]} if i > 5 else {}
        early = {"rationales": [], "structures": [], "level": i, "talk": []}
        yield {"question": f"{i}?", "answer": "2", **(late or early), **({"id": "x"} if i in (2, 8) else {})}


def test_many_rows_are_those_of_a_list(tmp_path, few, monkeypatch):
    path = str(jsonl(tmp_path / "rows.jsonl", *records()))
    table = load_rows(path)
    monkeypatch.setattr(loading, "LARGE", 99)
    rows = load_rows(path)
    assert isinstance(table, RowTable)
    assert isinstance(rows, list)
    assert list(table) == rows == [table[i] for i in range(len(table))]
    assert (table[-1], table[2:4]) == (rows[-1], rows[2:4])
    made, listed = (to_dataset(each, system_prompt="Be brief.", examples=1) for each in (table, rows))
    assert made.to_list() == listed.to_list()
    assert made.features == listed.features
    assert made.cache_files
    assert not listed.cache_files


def test_columns_that_only_some_parts_have_are_none_elsewhere(tmp_path, few):
    rows = [{"question": f"{i}?", **({"x": i} if i > 4 else {})} for i in range(7)]
    assert [row["x"] for row in load_rows(str(jsonl(tmp_path / "r.jsonl", *rows)))] == [None] * 5 + [5, 6]


@pytest.mark.parametrize("first", [1, 5])
def test_values_of_different_types_are_named(tmp_path, few, first):
    rows = [{"question": f"{i}?", "level": "hard" if i >= first else i} for i in range(7)]
    with pytest.raises(RowError, match="level"):
        load_rows(str(jsonl(tmp_path / "rows.jsonl", *rows)))
