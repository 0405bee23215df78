import json

import pyarrow
import pyarrow.parquet
import pytest

from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.structure import Structure
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "How many in May?", "question": "48/2", "answer": "24"}]


# Files


def test_a_missing_id_is_made_from_the_position(tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl", {"question": "a?"}, {"question": "b?", "id": None}, {"question": "c?", "id": 7}
    )
    assert [row["id"] for row in load_rows(str(path))] == ["rows-0", "rows-1", "7"]


def test_rows_with_different_keys_load(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "a?", "level": 1}, {"prompt": "b?", "source": "x"})
    first, second = load_rows(str(path))
    assert "prompt" not in first
    assert "question" not in second


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


def test_a_duplicate_id_is_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"id": 1, "question": "a?"}, {"id": "1", "question": "b?"})
    with pytest.raises(RowError, match=r"rows\.jsonl: the id '1' occurs twice"):
        load_rows(str(path))


def test_a_default_id_that_equals_a_given_one_is_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"id": "rows-1", "question": "a?"}, {"question": "b?"})
    with pytest.raises(RowError, match="'rows-1' occurs twice"):
        load_rows(str(path))


def test_a_missing_file_is_named_with_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        load_rows("nowhere.jsonl")
    assert str(tmp_path / "nowhere.jsonl") in str(raised.value)


def test_a_file_without_rows_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no rows"):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_an_unavailable_dataset_is_named_with_the_alternatives():
    with pytest.raises(UsageError, match=r"dataset 'no-such/data' .*gsm8k-sample, mawps-sample, distillation-sample"):
        load_rows("no-such/data")


# Columns


@pytest.fixture
def open_r1(tmp_path):
    """Rows with the columns of OpenR1-Math."""
    return jsonl(
        tmp_path / "open_r1.jsonl",
        {
            "problem": "2 + 2?",
            "answer": "4",
            "generations": ["bad trace", "good trace", "good trace, longer"],
            "correctness_math_verify": [False, True, True],
            "uuid": "u1",
            "source": "amc",
        },
        {
            "problem": "3 + 3?",
            "answer": "6",
            "generations": ["unchecked"],
            "correctness_math_verify": None,
            "uuid": "u2",
            "source": None,
        },
    )


COLUMNS = {"id": "uuid", "question": "problem", "rationales": "generations", "correct": "correctness_math_verify"}


def test_columns_are_renamed_and_rationales_flagged_wrong_are_dropped(open_r1):
    first, second = load_rows(str(open_r1), columns=COLUMNS)
    assert first == {
        "id": "u1",
        "question": "2 + 2?",
        "answer": "4",
        "rationales": ["good trace", "good trace, longer"],
        "structures": [],
        "source": "amc",
    }
    assert second["rationales"] == ["unchecked"]


def test_the_first_rationales_are_kept_after_wrong_ones_are_dropped(open_r1):
    rows = load_rows(str(open_r1), columns=COLUMNS, max_rationales=1)
    assert [row["rationales"] for row in rows] == [["good trace"], ["unchecked"]]


def test_structures_are_dropped_with_their_rationales(tmp_path):
    other = [{"meta": "other"}]
    path = jsonl(tmp_path / "r.jsonl", {"question": "a?", "rationales": ["r", "s"], "structures": [STEPS, other]})
    [row] = load_rows(str(path), max_rationales=1)
    assert row["rationales"] == ["r"]
    assert row["structures"] == [Structure.from_list(STEPS).to_list()]


def test_a_renamed_column_replaces_a_column_of_that_name(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "old?", "problem": "new?"})
    [row] = load_rows(str(path), columns={"question": "problem"})
    assert row["question"] == "new?"
    assert "problem" not in row


def test_a_missing_column_is_an_error_that_lists_the_columns(open_r1):
    with pytest.raises(RowError, match=r"line 1: no column 'problme' \(for 'question'\); there are problem, answer"):
        load_rows(str(open_r1), columns={"question": "problme"})


def test_an_unknown_field_is_refused(open_r1):
    with pytest.raises(UsageError, match=r"columns: 'quesion' is not a field of a row\. Fields: id, prompt, question"):
        load_rows(str(open_r1), columns={"quesion": "problem"})


def test_a_wrong_number_of_flags_is_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "a?", "rationales": ["r"], "ok": [True, False]})
    with pytest.raises(RowError, match=r"line 1, field 'correct': expected 1 flags, found list \[true, false\]"):
        load_rows(str(path), columns={"correct": "ok"})


# Prompts


def test_a_prompt_ends_with_the_question_after_system_prompt_and_few_shot_examples():
    rows = load_rows("gsm8k-sample")[:2]
    prompts = to_dataset(rows, system_prompt="Be brief.", examples=2)["prompt"]
    for row, prompt in zip(rows, prompts, strict=True):
        assert prompt[-1] == {"role": "user", "content": row["question"]}
        assert [m["role"] for m in prompt] == ["system", "user", "assistant", "user", "assistant", "user"]
        assert prompt[0]["content"] == "Be brief."


def test_a_rows_own_prompt_stays_unchanged(tmp_path):
    rows = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"prompt": "Once upon a time"})))
    assert to_dataset(rows, system_prompt="Be brief.", examples=1)["prompt"][0] == "Once upon a time"


def test_a_dataset_has_the_keys_of_all_rows(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "a?"}, {"question": "b?", "level": 2, "rationales": ["r"]})
    dataset = to_dataset(load_rows(str(path)))
    assert dataset["level"][:] == [None, 2]
    assert dataset["rationales"][:] == [[], ["r"]]


def test_structures_survive_the_dataset():
    rows = load_rows("gsm8k-sample")[:3]
    back = to_dataset(rows)["structures"][:]
    assert [[Structure.from_list(s) for s in row] for row in back] == [
        [Structure.from_list(s) for s in row["structures"]] for row in rows
    ]


def test_rows_without_a_correct_rationale_are_left_out_and_counted(tmp_path, caplog):
    rows = [{"problem": f"{i}?", "gens": ["a", "b"], "ok": [i == 0, False]} for i in range(3)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "problem", "rationales": "gens", "correct": "ok"}
    [row] = load_rows(str(tmp_path / "r.jsonl"), columns=columns)
    assert row["rationales"] == ["a"]
    assert "left out 2 rows" in caplog.text


def test_prompts_of_different_types_are_refused_with_the_row():
    rows = [{"id": "a", "prompt": "text"}, {"id": "b", "prompt": [{"role": "user", "content": "chat"}]}]
    with pytest.raises(RowError, match=r"row 'b', field 'prompt'.*the first row has a text"):
        to_dataset(rows)
