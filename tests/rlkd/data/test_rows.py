import pytest

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


@pytest.mark.parametrize(("answer", "text"), [("4", "4"), (4, "4"), (4.5, "4.5"), (None, None)])
def test_an_answer_may_be_text_or_a_number_or_absent(tmp_path, answer, text):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "2 + 2?", "answer": answer})))
    assert row["answer"] == text


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
        ({"prompt": []}, "field 'prompt': expected text or a list of messages, found list"),
        ({"prompt": [{"content": "a"}]}, "field 'prompt': expected messages with role and content"),
        ({"question": "a?", "answer": ["4"]}, "field 'answer': expected text or a number, found list"),
        ({"question": "a?", "answer": True}, "field 'answer': expected text or a number, found bool true"),
        ({"question": "a?", "rationales": [None]}, "field 'rationales': expected a list of texts, found list [null]"),
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
