import json

import pytest

from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.structure import Structure
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "How many in May?", "question": "48/2", "answer": "24"}]


# Ids


def test_a_missing_id_is_made_from_the_position(tmp_path):
    path = jsonl(
        tmp_path / "rows.jsonl", {"question": "a?"}, {"question": "b?", "id": None}, {"question": "c?", "id": 7}
    )
    assert [row["id"] for row in load_rows(str(path))] == ["rows-0", "rows-1", "7"]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["rows-1", None], ["rows-1", "rows-1-2"]),
        ([None, "rows-0"], ["rows-0-2", "rows-0"]),
        (["x", "x", "x"], ["x", "x-2", "x-3"]),
        (["x", "x", "x-2"], ["x", "x-3", "x-2"]),
        ([1, "1"], ["1", "1-2"]),
        (["", None, " "], ["rows-0", "rows-1", "rows-2"]),
        ([float("nan"), 2.5], ["rows-0", "2.5"]),
    ],
)
def test_ids_are_unique_and_given_ones_stay_where_they_can(tmp_path, given, made):
    path = jsonl(tmp_path / "rows.jsonl", *({"question": f"{i}?", "id": name} for i, name in enumerate(given)))
    assert [row["id"] for row in load_rows(str(path))] == made


def test_a_made_id_does_not_depend_on_the_rows_that_are_left_out(tmp_path):
    rows = [{"question": f"{i}?", "answer": 1, "rationales": [f"#### {i % 2}"]} for i in range(4)]
    path = str(jsonl(tmp_path / "rows.jsonl", *rows))
    assert [row["id"] for row in load_rows(path)] == ["rows-1", "rows-3"]
    assert [row["id"] for row in load_rows(path, wrong_rationales="keep")] == [f"rows-{i}" for i in range(4)]


def test_ids_that_repeat_are_counted(tmp_path, caplog):
    path = jsonl(tmp_path / "rows.jsonl", *({"question": f"{i}?", "id": "x"} for i in range(3)))
    load_rows(str(path))
    assert "2 rows have the id of an earlier row, the first of them 'x'" in caplog.text


def test_a_warning_comes_from_the_first_process_alone(tmp_path, caplog, monkeypatch):
    path = jsonl(
        tmp_path / "rows.jsonl", *({"question": "1 + 1?", "answer": "2", "rationales": ["#### 3", "#### 2"]},)
    )
    for rank, said in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        load_rows(str(path))
        assert ("The wrong ones are left out" in caplog.text) is said


def test_rows_with_different_keys_load(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "a?", "level": 1}, {"prompt": "b?", "source": "x"})
    first, second = load_rows(str(path))
    assert "prompt" not in first
    assert "question" not in second


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


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ([True, False], ["a"]),
        ([1, 0], ["a"]),
        ([1.0, 0.0], ["a"]),
        (["true", "false"], ["a"]),
        (["False", "True"], ["b"]),
        (["1", "0"], ["a"]),
        (["no", "YES"], ["b"]),
        ([None, True], ["b"]),
        ("[true, false]", ["a"]),
        (["t", "F"], ["a"]),
        (["n", "Y"], ["b"]),
        (["correct", "incorrect"], ["a"]),
        (["Wrong", "right"], ["b"]),
        (["", True], ["b"]),
        (["null", "None"], []),
        ([float("nan"), 1.0], ["b"]),
        ([False, False], []),
        # Nobody checked this row.
        (None, ["a", "b"]),
        ("null", ["a", "b"]),
        (float("nan"), ["a", "b"]),
        ("", ["a", "b"]),
    ],
)
def test_a_flag_is_true_false_or_unknown(tmp_path, flags, kept):
    other = {"question": "r?", "gens": ["c"], "ok": True}
    path = jsonl(tmp_path / "rows.jsonl", {"question": "q?", "gens": ["a", "b"], "ok": flags}, other)
    rows = load_rows(str(path), columns={"rationales": "gens", "correct": "ok"})
    assert [row["rationales"] for row in rows if row["question"] == "q?"] == ([kept] if kept else [])


@pytest.mark.parametrize(("flag", "kept"), [(True, 1), (1, 1), ("t", 1), (None, 1), (False, 0), (0, 0), (0.0, 0)])
def test_one_flag_of_one_rationale_need_not_be_a_list(tmp_path, flag, kept):
    rows = [{"question": "q?", "gens": "a", "ok": flag}, {"question": "r?", "gens": ["b"], "ok": [True]}]
    path = jsonl(tmp_path / "rows.jsonl", *rows)
    assert len(load_rows(str(path), columns={"rationales": "gens", "correct": "ok"})) == 1 + kept


@pytest.mark.parametrize("flags", [[True, "maybe"], [True, 2], [True, "-"], [True, [False]]])
def test_a_flag_of_another_kind_is_named(tmp_path, flags):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "q?", "rationales": ["a", "b"], "ok": flags})
    with pytest.raises(RowError, match="line 1, field 'correct': expected true or false for each rationale"):
        load_rows(str(path), columns={"correct": "ok"})


# Wrong traces

TRACES = ["2 + 2 = 4", "2 + 2 = 5", "#### 4", "That is \\boxed{5}.", "I do not know."]


def traces_file(folder):
    rows = [
        {"question": "2 + 2?", "answer": 4, "rationales": TRACES, "structures": [[{"meta": t}] for t in TRACES]},
        {"question": "4 + 4?", "answer": "8", "rationales": ["4 + 4 = 9"]},
        {"question": "Which?", "answer": None, "rationales": ["4 + 4 = 9"]},
        {"question": "No trace?", "answer": "1"},
    ]
    return str(jsonl(folder / "rows.jsonl", *rows))


def test_wrong_traces_are_counted_and_left_out_with_their_structures(tmp_path, caplog):
    first, *others = load_rows(traces_file(tmp_path))
    kept = [TRACES[0], TRACES[2], TRACES[4]]
    assert first["rationales"] == kept
    assert [steps[0]["meta"] for steps in first["structures"]] == kept
    assert [(row["question"], row["rationales"]) for row in others] == [
        ("Which?", ["4 + 4 = 9"]),
        ("No trace?", []),
    ]
    [message] = caplog.messages
    assert message.endswith(
        "rows.jsonl: 6 traces: 2 right, 3 wrong, 1 without a readable answer. The wrong ones are left out, and 1 rows "
        "that have no other"
    )


def test_the_first_traces_are_taken_after_wrong_ones_are_left_out(tmp_path):
    [row] = load_rows(
        str(jsonl(tmp_path / "r.jsonl", {"question": "a?", "answer": 4, "rationales": TRACES[1:]})), max_rationales=1
    )
    assert row["rationales"] == ["#### 4"]


def test_wrong_traces_can_be_kept_or_not_compared_at_all(tmp_path, caplog):
    assert [len(row["rationales"]) for row in load_rows(traces_file(tmp_path), wrong_rationales="keep")] == [
        5,
        1,
        1,
        0,
    ]
    assert "3 wrong, 1 without a readable answer. The wrong ones are kept" in caplog.text
    caplog.clear()
    rows = load_rows(traces_file(tmp_path), wrong_rationales="unchecked")
    assert ([len(row["rationales"]) for row in rows], caplog.text) == ([5, 1, 1, 0], "")


def test_a_flag_counts_more_than_a_comparison(tmp_path, caplog):
    record = {"question": "a?", "answer": "x^2", "rationales": ["#### 4", "#### x^2"], "ok": [True, False]}
    [row] = load_rows(str(jsonl(tmp_path / "r.jsonl", record)), columns={"correct": "ok"})
    assert (row["rationales"], caplog.text) == (["#### 4"], "")


def test_many_rows_are_compared_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("rlkd.data.loading.COMPARED_ROWS", 3)
    rows = [{"question": f"{i}?", "answer": i, "rationales": [f"#### {i % 5}"]} for i in range(10)]
    assert len(load_rows(str(jsonl(tmp_path / "r.jsonl", *rows)))) == 5


# The dataset


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


@pytest.mark.parametrize(
    ("first", "second", "has_column"),
    [
        ({"image": None}, {"image": None}, False),
        ({"images": None}, {"images": []}, False),
        ({"images": [None]}, {"images": [None, None]}, False),
        ({"image": None}, {"image": "a.png"}, True),
        ({"image": ""}, {"image": None}, False),
        ({"images": [""]}, {"images": []}, False),
        ({"image": {"bytes": None, "path": None}}, {"image": None}, False),
        ({"image": {"bytes": None, "path": "a.png"}}, {"image": None}, True),
        ({"images": ["a.png"]}, {"images": []}, True),
        ({"imagery": None}, {"imagery": None}, True),
    ],
)
def test_a_column_of_images_without_an_image_is_left_out(first, second, has_column):
    rows = [{"id": "a", "question": "a?", **first}, {"id": "b", "question": "b?", **second}]
    [name] = first
    assert (name in to_dataset(rows).column_names) is has_column


@pytest.mark.parametrize(
    ("values", "row", "found", "before"),
    [
        ([1, [1]], "1", "list [1]", "int 1"),
        (["a", 1], "1", "int 1", 'str "a"'),
        ([None, "a", ["b"]], "2", 'list ["b"]', 'str "a"'),
        ([[], ["a"], "b"], "2", 'str "b"', 'list ["a"]'),
        ([{"a": 1}, "a"], "1", 'str "a"', 'dict {"a": 1}'),
    ],
)
def test_a_value_of_another_type_than_before_is_named_by_row_and_field(values, row, found, before):
    rows = [{"id": str(i), "question": "a?", "level": value} for i, value in enumerate(values)]
    with pytest.raises(RowError) as raised:
        to_dataset(rows)
    assert str(raised.value).startswith(
        f"row '{row}', field 'level': found {found}, but an earlier row has {before}; all values"
    )


def test_an_integer_that_no_table_holds_is_named_by_row_and_field():
    rows = [{"id": "a", "question": "a?", "n": 1}, {"id": "b", "question": "b?", "n": 2**64}]
    with pytest.raises(RowError, match=r"row 'b', field 'n': found int 18446744073709551616, .*other_columns"):
        to_dataset(rows)


def test_numbers_of_a_json_file_are_numbers_in_the_dataset(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "a?", "w": 0.5}, {"question": "b?", "w": 1})
    assert to_dataset(load_rows(str(path)))["w"][:] == [0.5, 1.0]
