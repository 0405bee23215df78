import pytest
from datasets import Dataset
from PIL import Image

from rlkd.data import loading
from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.row_table import RowTable
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
        early = {"rationales": [], "structures": [], "level": i / 2, "talk": []}
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
@pytest.mark.parametrize(
    ("early", "late"),
    [(1, "hard"), (1, 0.5), ([1], [None, 0.5]), ({"a": 1}, {"a": 0.5}), (1, 2**63), ("a", 2**64), (0.5, 2**70)],
)
def test_rows_with_a_column_that_arrow_cannot_hold_exactly_stay_a_list(tmp_path, few, caplog, first, early, late):
    values = [late if i >= first else early for i in range(7)]
    rows = load_rows(str(jsonl(tmp_path / "r.jsonl", *({"question": "q?", "level": value} for value in values))))
    assert isinstance(rows, list)
    assert [repr(row["level"]) for row in rows] == list(map(repr, values))
    assert [row["id"] for row in rows] == [f"r-{i}" for i in range(7)]
    [message] = caplog.messages
    assert "stay in memory" in message
    assert "column 'level'" in message
    assert "other_columns" in message


def test_images_are_images_in_the_dataset_of_many_rows(tmp_path, few):
    image = Image.new("RGB", (2, 2), "red")
    saved = Dataset.from_list([{"question": f"{i}?", "image": image} for i in range(7)])
    saved.save_to_disk(str(tmp_path / "saved"))
    made = to_dataset(load_rows(str(tmp_path / "saved")))
    assert made.features["image"] == saved.features["image"]
    assert made[6]["image"].getpixel((0, 0)) == (255, 0, 0)
