import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "How many in May?", "question": "48/2", "answer": "24"}]
LINES = '{"question": "a?", "answer": "1"}\n{"question": "b?", "answer": "2"}\n'
ARRAY = '[\n {"question": "a?", "answer": "1"},\n {"question": "b?", "answer": "2"}\n]\n'
TABLE = "question,answer\na?,1\nb?,2\n"


def loaded(folder, name, content, **parameters):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_rows(str(path), **parameters)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.jsonl", LINES),
        ("r.ndjson", LINES),
        ("r.json", LINES),
        ("R.JSONL", LINES),
        ("r.jsonl", "\ufeff" + LINES),
        ("r.jsonl", LINES.replace("\n", "\r\n")),
        ("r.json", ARRAY),
        ("r.json", ARRAY.replace("\n", "")),
        ("r.json", "\ufeff\n\n " + ARRAY),
        ("r.jsonl", ARRAY),
        ("r.json", f'{{"data": {ARRAY}}}'),
        ("r.json", f'{{"data": {ARRAY}}}'.replace("\n", "")),
        ("r.json", f'{{"train": {ARRAY}, "test": [{{"question": "c?"}}]}}'),
        ("r.json", f'{{"rows": {ARRAY}, "version": 2}}'),
        ("r.json", LINES.replace("{", "{\n").replace("}", "\n}")),
        ("r.json", LINES.replace("\n", "")),
        ("r.csv", TABLE),
        ("r.csv", "\ufeff" + TABLE.replace("\n", "\r\n")),
        ("r.tsv", TABLE.replace(",", "\t")),
        ("r.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("r.json.gz", gzip.compress(ARRAY.encode(), mtime=0)),
        ("r.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("r.jsonl.bz2", bz2.compress(LINES.encode())),
        ("r.tsv.xz", lzma.compress(TABLE.replace(",", "\t").encode())),
    ],
)
def test_a_file_of_each_kind_gives_the_same_rows(tmp_path, name, content):
    rows = loaded(tmp_path, name, content)
    assert [(row["question"], row["answer"]) for row in rows] == [("a?", "1"), ("b?", "2")]
    assert [row["id"].lower() for row in rows] == ["r-0", "r-1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.json", '[\n {"question": "a?"},\n {"question": \n]', r"r\.json, line 4: not JSON"),
        ("r.json", '[{"question": "a?"},]', r"r\.json, line 1: not JSON .* or an array of objects"),
        ("r.json", '[{"question": "a?"}, 7]', r"r\.json, row 1: found int 7, expected a JSON object"),
        ("r.json", '"a?"', r"r\.json, row 0: found str \"a\?\""),
        ("r.json", '{"x": {"question": "a?"}}', "neither 'prompt' nor 'question'; there are x"),
        ("r.json", b'[{"question": "caf\xe9"}]', r"r\.json: not JSON"),
        ("r.jsonl", '{"question": "a?"}\n\0\n', "line 2: not JSON"),
        ("r.csv", "question,answer\na?,1,2\n", r"row 0 \(line 2\): 3 cells, but the header has 2 columns"),
        ("r.csv", 'question,answer\n"a?,1\n', r"r\.csv, line \d: unexpected end of data"),
        ("r.csv", "question,question\na?,1\n", "the column 'question' occurs twice"),
        ("r.csv", b"question\ncaf\xe9\n", r"r\.csv, line 1: 'utf-8' codec"),
        ("r.jsonl", '{"question": "a\\ud800"}', r"line 1, field 'question': the character '\\ud800' at position 1"),
        ("r.jsonl", '{"question": "a", "x": {"y": ["\\udfff"]}}', "line 1, field 'x': the character"),
        ("r.jsonl", '{"question": "a", "\\ud800": 1}', r"line 1, field '\\ud800': the character"),
        ("r.tsv", 'question\tanswer\n"a\t1\n', r"r\.tsv, line \d: unexpected end of data"),
        ("r.tsv", 'question\tanswer\n"a\n"b" c\t1\n', r"r\.tsv, line \d"),
        ("r.tsv", 'question\tanswer\n"a" b\t1\t2\n', r"row 0 \(line 2\): 3 cells"),
        ("r.csv", 'question,answer\n"a" b,1\n', r"r\.csv, line \d"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(tmp_path, name, content, message):
    with pytest.raises(RowError, match=message):
        loaded(tmp_path, name, content)


@pytest.mark.parametrize("content", ["", "\n\n", "[]", "[\n]\n", '{"data": []}', '{"train": []}'])
def test_a_json_file_without_objects_has_no_rows(tmp_path, content):
    with pytest.raises(UsageError, match="has no rows"):
        loaded(tmp_path, "r.json", content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.jsonl.gz", b"no gzip"),
        ("r.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:50]),
        ("r.jsonl.xz", b"no xz"),
        ("r.parquet", b"no parquet"),
        ("r.arrow", b"no arrow"),
    ],
)
def test_a_damaged_file_is_said_to_be_that(tmp_path, name, content):
    with pytest.raises(UsageError, match=rf"{name} cannot be read"):
        loaded(tmp_path, name, content)


@pytest.mark.parametrize("name", ["r.yaml", "r.txt", "r", "r.gz", "r.zip", "r.jsonl.zst", "r.parquet.gz"])
def test_a_file_of_an_unknown_kind_is_told_the_kinds(tmp_path, name):
    with pytest.raises(UsageError, match=r"are not read\. The kinds are \.jsonl, \.ndjson, \.json, \.csv, \.tsv, "):
        loaded(tmp_path, name, "x")


@pytest.mark.parametrize("name", ["r.jsonl", "r.json.gz", "r.csv", "r.yaml", "folder/r.parquet"])
def test_a_file_that_is_not_there_is_no_dataset_of_the_hub(tmp_path, name):
    with pytest.raises(UsageError, match="there is no file"):
        load_rows(str(tmp_path / name))


def test_cells_of_a_table_are_texts_and_empty_ones_are_missing(tmp_path):
    table = 'question,answer,rationales,level\n"a, ""b"",\nc",0.50,"[""r"", ""s""]",\nd,,[not JSON,2\n'
    first, second = loaded(tmp_path, "r.csv", table)
    assert (first["question"], first["answer"], first["level"]) == ('a, "b",\nc', "0.50", None)
    assert first["rationales"] == ["r", "s"]
    assert (second["answer"], second["rationales"], second["level"]) == (None, ["[not JSON"], "2")


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ('"Yes" or "no"?\t1\n', '"Yes" or "no"?'),
        ('"Yes" or "no"?\t1', '"Yes" or "no"?'),
        ('"Yes" or "no"?\t1\r\n"b"\t2\r\n', '"Yes" or "no"?'),
        ('Say "yes"\t1\n', 'Say "yes"'),
        ('"Say ""yes""\tor\nno"\t1\n', 'Say "yes"\tor\nno'),
    ],
)
def test_a_cell_of_tsv_may_begin_with_a_quotation(tmp_path, line, question):
    first, *others = loaded(tmp_path, "r.tsv", "question\tanswer\n" + line)
    assert (first["question"], first["answer"]) == (question, "1")
    assert [(row["question"], row["answer"]) for row in others] == [("b", "2")] * len(others)


@pytest.mark.parametrize("name", ["data", "rows", "train"])
def test_a_question_with_a_list_of_objects_is_a_row(tmp_path, name):
    rows = loaded(tmp_path, "r.jsonl", json.dumps({"question": "a?", name: [{"x": 1}]}))
    assert [row[name] for row in rows] == [[{"x": 1}]]


def test_a_cell_may_be_longer_than_the_csv_module_allows_by_default(tmp_path):
    [row] = loaded(tmp_path, "r.csv", "question\n" + "a" * 200_000 + "\n")
    assert len(row["question"]) == 200_000


def test_an_object_with_a_list_of_objects_of_its_own_is_a_row(tmp_path):
    [row] = loaded(tmp_path, "r.json", '{"question": "a?",\n "tests": [{"input": "1", "output": "1"}]}')
    assert row["tests"] == [{"input": "1", "output": "1"}]


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    question = "one\u2028two\u2029three\u0085four\rfive"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": question}, ensure_ascii=False) + "\n", encoding="utf-8", newline="")
    assert [row["question"] for row in load_rows(str(path))] == [question]


def test_empty_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"question": "a?"}\n\n{"question": 5}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl, line 4, field 'question'"):
        load_rows(str(path))


def test_parquet_gives_the_same_rows_as_json(tmp_path):
    records = [
        {"id": "a", "question": "a?", "answer": "1", "rationales": ["r"], "structures": [STEPS], "level": 1},
        {"id": "b", "question": "b?", "answer": None, "rationales": [], "structures": [], "level": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(str(jsonl(tmp_path / "rows.jsonl", *records)))


def test_a_malformed_row_of_a_parquet_file_is_named_by_its_position(tmp_path):
    records = [{"question": "a?"}, {"question": "  "}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows\.parquet, row 1, field 'question': expected text, found str \"  \""):
        load_rows(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": ', "line 2: not JSON"),
        (b'["a?"]', 'line 2: found list ["a?"], expected a JSON object'),
        (b'{"question": "caf\xe9?"}', "line 2: not JSON"),
    ],
)
def test_a_line_that_is_not_a_json_object_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "fine?"}\n' + line + b"\n")
    with pytest.raises(RowError) as raised:
        load_rows(str(path))
    assert f"{path}, {message}" in str(raised.value)


def test_a_missing_file_is_named_with_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        load_rows("nowhere.jsonl")
    assert str(tmp_path / "nowhere.jsonl") in str(raised.value)


def test_a_file_without_rows_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no rows"):
        load_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("name", ["rows.arrow", "rows.feather", "stream.arrow"])
def test_arrow_files_and_streams_are_read(tmp_path, name):
    table = pyarrow.Table.from_pylist([{"question": f"{i}?", "answer": i} for i in range(600)])
    if name.startswith("stream"):
        with pyarrow.ipc.new_stream(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.feather.write_feather(table, tmp_path / name)
    assert [row["answer"] for row in load_rows(str(tmp_path / name))] == [str(i) for i in range(600)]
