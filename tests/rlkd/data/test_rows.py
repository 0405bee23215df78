from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from rlkd.answers import is_correct
from rlkd.data.loading import load_rows
from rlkd.data.rows import RESERVED_COLUMNS, RowError, build_prompt, completion_text, question_of
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "How many in May?", "question": "48/2", "answer": "24"}]


def test_a_row_needs_only_a_question(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "2 + 2?"})))
    assert row == {"question": "2 + 2?", "answer": None, "rationales": [], "structures": [], "id": "rows-0"}


def test_other_fields_pass_through(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "2 + 2?", "level": 3})))
    assert row["level"] == 3


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ('"4"', "4"),
        ("4", "4"),
        ("4.5", "4.5"),
        ("null", None),
        ("NaN", None),
        ("[]", None),
        ("true", "true"),
        ("false", "false"),
        ('["72"]', "72"),
        ("[72]", "72"),
        ("[false]", "false"),
        ('["4", 5]', "4, 5"),
        ("[4, null, 4, 1e-3]", "4, 0.001"),
        ('[""]', None),
        ("0.00001", "0.00001"),
        ("1e-7", "0.0000001"),
        ("-2.5e-6", "-0.0000025"),
        ("1e16", "10000000000000000"),
        ("1E5", "100000"),
        ("1.50", "1.50"),
        ("12345678901234567890", "12345678901234567890"),
        ("0.12345678901234567890", "0.12345678901234567890"),
        ("1e999999999", "1e999999999"),
    ],
)
def test_an_answer_of_a_json_file_becomes_the_text_of_its_value(tmp_path, written, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"question": "2 + 2?", "answer": {written}}}\n')
    assert load_rows(str(path))[0]["answer"] == text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (1e-5, "0.00001"),
        (1e20, "1" + "0" * 20),
        (0.1, "0.1"),
        (Decimal("72.00"), "72.00"),
        (Decimal("1E-7"), "0.0000001"),
    ],
)
def test_an_answer_of_a_table_becomes_the_text_of_its_value(tmp_path, answer, text):
    table = pyarrow.Table.from_pylist([{"question": "2 + 2?", "answer": answer}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet"))[0]["answer"] == text


@pytest.mark.parametrize(
    ("answer", "options", "text"),
    [
        (0, {"choices": ["Paris", "Rome"]}, "A"),
        (1, {"options": ["Paris", "Rome"]}, "B"),
        (1, {"choices": ["0", "4", "2", "6"]}, "B"),
        (1, {"choices": {"label": ["A", "B"], "text": ["x", "y"]}}, "B"),
        (1, {"choices": {"label": ["1", "2"], "text": ["x", "y"]}}, "1"),
        (0, {"choices": {"A": "x", "B": "y"}}, "A"),
        (5, {"choices": ["3", "5"]}, "5"),
        ("0", {"choices": ["Paris", "Rome"]}, "0"),
        (True, {"choices": ["yes", "no"]}, "true"),
        ([0, 2], {"choices": ["Paris", "Rome", "Bern"]}, "A, C"),
        (0, {"choices": None}, "0"),
        (0, {}, "0"),
    ],
)
def test_an_integer_beside_options_is_a_position(tmp_path, answer, options, text):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "Where?", "answer": answer, **options})))
    assert row["answer"] == text


@pytest.mark.parametrize(
    ("rationales", "kept"),
    [
        ([None, "a"], ["a"]),
        ([None], []),
        (None, []),
        ([], []),
        ('["a", "b"]', ["a", "b"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[a", ["[a"]),
        ([""], [""]),
    ],
)
def test_rationales_are_a_list_of_texts_without_nulls(tmp_path, rationales, kept):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "2 + 2?", "rationales": rationales})))
    assert row["rationales"] == kept


def test_the_structure_of_a_null_goes_with_it(tmp_path):
    record = {"question": "a?", "rationales": [None, "r"], "structures": [[{"meta": "m"}], STEPS]}
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", record)))
    assert (row["rationales"], [steps[0]["question"] for steps in row["structures"]]) == (["r"], ["48/2"])


USER = {"role": "user", "content": "a?"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a?"}]},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "system", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
        {"role": "tool", "content": ""},
    ],
)
def test_a_message_may_have_parts_and_a_call_no_text(tmp_path, message):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"prompt": [USER, message]})))
    assert row["prompt"][1]["role"] == message["role"]


def test_a_single_rationale_may_be_plain_text(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "2 + 2?", "rationales": "2 + 2 = 4"})))
    assert row["rationales"] == ["2 + 2 = 4"]


# Malformed rows


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "x"}, "neither 'prompt' nor 'question'; there are id"),
        ({"question": None}, "neither 'prompt' nor 'question'"),
        ({"question": ""}, "field 'question': expected text, found str \"\""),
        ({"question": ["a"]}, "field 'question': expected text, found list"),
        ({"prompt": ""}, "field 'prompt': expected text or a list of messages, found str"),
        ({"prompt": " \n"}, "field 'prompt': expected text or a list of messages, found str"),
        ({"prompt": [{"role": "human", "content": "a"}]}, "none of its 1 messages has the role 'user'"),
        ({"prompt": []}, "field 'prompt': expected text or a list of messages, found list"),
        ({"prompt": [{"content": "a"}]}, "field 'prompt': expected messages with role and content"),
        ({"prompt": [{"role": "user", "content": None}]}, "field 'prompt': a message without content"),
        ({"prompt": [{"role": "user", "content": " "}]}, "field 'prompt': a message without content"),
        ({"prompt": [{"role": "user", "content": []}]}, "field 'prompt': a message without content"),
        ({"prompt": [{"role": "user", "content": 5}]}, "field 'prompt': a message without content"),
        ({"prompt": [USER, {"role": "assistant", "content": None}]}, "field 'prompt': a message without content"),
        ({"prompt": [{"role": "system", "content": None}, USER]}, "field 'prompt': a message without content"),
        (
            {"prompt": [{"role": "system", "content": "a"}]},
            "field 'prompt': none of its 1 messages has the role 'user'",
        ),
        (
            {"question": "a?", "answer": [["4"], ["5"]]},
            "field 'answer': expected text, a number, a boolean, or a list of these, found list",
        ),
        (
            {"question": "a?", "answer": {"value": 4}},
            "field 'answer': expected text, a number, a boolean, or a list of these, found dict",
        ),
        (
            {"question": "a?", "answer": float("inf")},
            "field 'answer': expected text, a number, a boolean, or a list of these, found float",
        ),
        ({"question": "a?", "rationales": ["r", 5]}, "field 'rationales': expected a list of texts, found list"),
        (
            {"question": "a?", "rationales": [{"source": "a", "text": "r"}]},
            "such objects are read by recipes/rationales.py (writers: [ready]) from a .jsonl file, and its output can "
            "be trained on. Mend the row",
        ),
        ({"question": "a?", "rationales": {"r": 1}}, "field 'rationales': expected a list of texts, found dict"),
        ({"question": "a?", "structures": {"r": 1}}, "field 'structures': expected a list, found dict"),
        (
            {"question": "a?", "rationales": ["r"], "structures": [STEPS, STEPS]},
            "field 'structures': 2 for 1 rationales; expected one each",
        ),
        (
            {"question": "a?", "structures": [[{"meta": "m", "result": "4"}]]},
            "field 'structures': step 0: unknown key 'result'",
        ),
        ({"question": "a?", "structures": [[{"meta": ""}]]}, "field 'structures': step 0"),
        ({"question": "a?", "structures": ["steps"]}, "field 'structures'"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path, record, message):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "fine?"}, record)
    with pytest.raises(RowError) as raised:
        load_rows(str(path))
    assert str(raised.value).startswith(f"{path}, line 2")
    assert message in str(raised.value)


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_a_column_name_reserved_by_trl_is_refused(tmp_path, name):
    with pytest.raises(RowError, match=rf"line 1: the column name '{name}' is reserved by TRL; rename"):
        load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "a?", name: 1})))


def test_question_of_a_prompt_is_its_last_user_message():
    assert question_of(build_prompt("2 + 2?", "Be brief.", [("1 + 1?", "2")])) == "2 + 2?"
    assert question_of("2 + 2?") == "2 + 2?"
    assert question_of([{"role": "system", "content": "Be brief."}]) == ""


def test_the_text_of_a_completion_is_that_of_the_assistant():
    assert completion_text("4") == "4"
    assert completion_text([{"role": "assistant", "content": "4"}]) == "4"
    called = [{"role": "assistant", "content": None}, {"role": "tool", "content": "x"}]
    assert completion_text([*called, {"role": "assistant", "content": "4"}]) == "\n4"


def test_the_values_of_a_list_are_all_needed_in_any_order(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "x^2 = 4?", "answer": [2, -2]})))
    assert [is_correct(f"#### {text}", row["answer"]) for text in ("-2, 2", "2", "2, 3")] == [True, False, False]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("a.jsonl, line 4, field 'question': expected text, found int 5", "field 'question': expected text"),
        ("a.csv, row 4 (line 5): 3 cells, but the header has 2 columns", "3 cells, but the header has 2 columns"),
        ("hub/name, split train, row 4: found list [1], expected a JSON object", "expected a JSON object"),
        ("a.jsonl, line 4: not JSON (Expecting value: line 1); expected one object per line", "not JSON"),
        ("a.jsonl, line 4: no column 'x' (for 'question'); there are y. Did you mean 'y'?", "no column 'x'"),
    ],
)
def test_rows_with_one_fault_are_of_one_kind(message, kind):
    assert RowError(message).kind == kind
