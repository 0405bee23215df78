import gzip
import json

import datasets
import pytest

from rlkd.data.loading import load_rows
from rlkd.data.sources import records
from rlkd.errors import UsageError
from tests.helpers.json_lines import write_json_lines as jsonl


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        jsonl(tmp_path / name, *({"question": f"{name} {i}?"} for i in range(2)))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps([{"question": "d?"}]).encode()))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("*.jsonl", ["a-0", "a-1", "b-0", "b-1"]),
        ("**/c.*", ["c-0", "c-1"]),
        ("[ab].jsonl", ["a-0", "a-1", "b-0", "b-1"]),
        (["b.jsonl", "d.json.gz", "a.jsonl"], ["b-0", "b-1", "d-0", "a-0", "a-1"]),
        (["deep/*.jsonl", "a.jsonl"], ["c-0", "c-1", "a-0", "a-1"]),
        (["a.jsonl", "a.jsonl"], ["a-0", "a-1", "a-0-2", "a-1-2"]),
    ],
)
def test_patterns_and_lists_are_read_one_behind_the_other(folder, monkeypatch, source, names):
    monkeypatch.chdir(folder)
    assert [row["id"] for row in load_rows(source)] == names


def test_a_file_may_have_the_signs_of_a_pattern_in_its_name(tmp_path):
    path = jsonl(tmp_path / "rows[1].jsonl", {"question": "a?"})
    assert len(load_rows(str(path))) == 1


def test_files_and_samples_go_together(folder):
    rows = load_rows([str(folder / "a.jsonl"), "mawps-sample"], max_rows=3)
    assert [row["id"] for row in rows] == ["a-0", "a-1", "mawps-train-0"]


def test_folders_of_save_to_disk_are_read_and_their_splits(tmp_path):
    made = datasets.Dataset.from_list([{"question": f"{i}?", "answer": i, "other": "x"} for i in range(3)])
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "dev": made.select([2])}).save_to_disk(tmp_path / "several")
    assert [row["answer"] for row in load_rows(str(tmp_path / "one"))] == ["0", "1", "2"]
    [row] = load_rows(str(tmp_path / "several"), split="dev", other_columns=[])
    assert row == {"question": "2?", "answer": "2", "rationales": [], "structures": [], "id": "several-0"}
    with pytest.raises(UsageError, match="has no split 'test'; there are train, dev"):
        load_rows(str(tmp_path / "several"), split="test")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("aa.jsonl", "a.jsonl"), ("a.json", "a.jsonl"), ("d.json", "d.json.gz"), ("zzzzz.csv", None)],
)
def test_a_missing_file_brings_the_likely_one(folder, name, meant):
    with pytest.raises(UsageError, match="there is no file") as raised:
        load_rows(str(folder / name))
    assert str(raised.value).endswith(f"Did you mean {folder / meant}?" if meant else f"{name}.")


def test_only_what_is_needed_is_read(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", *({"question": f"{i}?", "x": i} for i in range(3)))
    with path.open("a") as file:
        file.write("not JSON\n")
    assert [row["id"] for row in load_rows(str(path), max_rows=3)] == ["rows-0", "rows-1", "rows-2"]
    found = records(str(path), "train", names={"question"})
    assert next(found).columns == {"question": "0?"}


def test_a_dataset_of_the_hub_is_streamed_where_a_limit_is_set(monkeypatch):
    asked = []

    def load_dataset(name, config, **options):
        asked.append(options.get("streaming", False))
        return datasets.Dataset.from_list([{"question": f"{i}?", "image": b"large"} for i in range(5)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for offline in (True, False):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        assert len(load_rows("org/rows")) == 5
        [first, _] = load_rows("org/rows", max_rows=2, other_columns=[])
        assert "image" not in first
    assert asked == [False, False, False, True]


def test_a_loading_script_is_not_run(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UsageError, match=r"is a Python script, which is not run.*refs/convert/parquet"):
        load_rows(str(tmp_path / "mine"))
    assert not (tmp_path / "ran").exists()
