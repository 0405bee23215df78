import pytest

from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from tests.helpers.json_lines import write_json_lines as jsonl

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}
REPLY = {"role": "assistant", "content": "1 + 1 = 2"}


@pytest.mark.parametrize(
    ("messages", "prompt", "rationales"),
    [
        ([USER], [USER], []),
        ([SYSTEM, USER, REPLY], [SYSTEM, USER], ["1 + 1 = 2"]),
        ([USER, REPLY, USER, REPLY], [USER, REPLY, USER], ["1 + 1 = 2"]),
        ('[{"role": "user", "content": "1 + 1?"}]', [USER], []),
    ],
)
def test_messages_are_a_prompt_and_the_trace_at_their_end(tmp_path, messages, prompt, rationales):
    path = str(jsonl(tmp_path / "rows.jsonl", {"messages": messages}))
    [row] = load_rows(path)
    assert (row["prompt"], row["rationales"]) == (prompt, rationales)
    path = str(jsonl(tmp_path / "rows.jsonl", {"talk": messages}))
    assert load_rows(path, columns={"messages": "talk"}, other_columns=[])[0]["prompt"] == prompt


def test_messages_beside_a_question_are_a_column_like_others(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "a?", "messages": [USER, REPLY]})))
    assert (row["messages"], row["rationales"]) == ([USER, REPLY], [])


def test_rationales_count_more_than_the_last_message(tmp_path):
    [row] = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"messages": [USER, REPLY], "rationales": ["r"]})))
    assert (row["prompt"], row["rationales"]) == ([USER], ["r"])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("1 + 1?", "field 'messages': expected a list of messages, found str"),
        (["1 + 1?"], "field 'messages': expected a list of messages, found list"),
        ([REPLY], "field 'prompt': expected text or a list of messages, found list"),
        ([{"from": "human", "value": "a?"}], "field 'prompt': expected messages with role and content"),
    ],
)
def test_messages_of_another_form_are_named(tmp_path, messages, error):
    with pytest.raises(RowError, match=error):
        load_rows(str(jsonl(tmp_path / "rows.jsonl", {"messages": messages})))


def test_columns_to_read_are_those_of_the_fields_and_the_named_ones(tmp_path):
    record = {"problem": "a?", "answer": 0, "choices": ["x", "y"], "level": 1, "source": "amc", "question": "old?"}
    path = str(jsonl(tmp_path / "rows.jsonl", record))
    [row] = load_rows(path, columns={"question": "problem"}, other_columns=["level"])
    assert {key: row[key] for key in ("question", "answer", "level")} == {"question": "a?", "answer": "A", "level": 1}
    assert "source" not in row
    assert load_rows(path, columns={"question": "problem"})[0]["source"] == "amc"


def test_rows_with_measured_pass_rates_are_not_renamed_again(tmp_path):
    measured = {"question": "a?", "answer": "7", "rationales": ["3 + 4 = 7"], "pass_rate": 0.5, "pass_rate_samples": 8}
    path = str(jsonl(tmp_path / "rows.jsonl", measured))
    [row] = load_rows(path, columns={"question": "problem", "rationales": "answer", "answer": "answer"})
    assert (row["question"], row["answer"], row["rationales"]) == ("a?", "7", ["3 + 4 = 7"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"qestion": "problem"}, "'qestion' is not a field of a row.*Did you mean 'question'"),
        ({"question": 3}, "columns: question: expected the name of a column, found int 3"),
    ],
)
def test_a_mistake_in_columns_is_found_before_any_row(columns, message):
    with pytest.raises(UsageError, match=message):
        load_rows("no/such-data", columns=columns)


@pytest.mark.parametrize("max_rows", [None, 1])
def test_a_column_of_other_columns_that_no_row_has_is_named(tmp_path, max_rows):
    path = str(jsonl(tmp_path / "rows.jsonl", *[{"question": "a?", "level": 5}] * 2))
    with pytest.raises(UsageError, match=r"other_columns: no.* has a column 'levle'; there are question"):
        load_rows(path, other_columns=["levle"], max_rows=max_rows)
