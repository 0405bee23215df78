import json

import pytest

from rlkd.data.loading import load_rows
from rlkd.data.rows import RowError
from rlkd.rationales.questions import load_questions
from tests.helpers.json_lines import write_json_lines as jsonl

STEPS = [{"meta": "?", "question": "1 + 1", "answer": "2"}]


def row(text, question="1 + 1?", answer="2", **further):
    return {"question": question, "answer": answer, "rationales": [text], **further}


@pytest.fixture
def teachers(tmp_path):
    """Writes the rows of two teachers to a file each; the names of the files."""

    def write(first, second):
        return [str(jsonl(tmp_path / f"{name}.jsonl", *rows)) for name, rows in (("a", first), ("b", second))]

    return write


def test_two_files_become_one_row_for_each_question_in_the_order_of_the_files(teachers, caplog):
    three = {"question": "1 + 2?", "answer": "3"}
    files = teachers([row("1 + 1 = 2", id="x"), row("1 + 2 = 3", **three)], [row("3", **three), row("2", id="x")])
    rows = load_rows(files, join_questions=True)
    assert [(each["id"], each["rationales"]) for each in rows] == [
        ("x", ["1 + 1 = 2", "2"]),
        ("a-1", ["1 + 2 = 3", "3"]),
    ]
    assert not caplog.records  # such as one on ids that repeat
    assert len(load_rows(files)) == 4


def test_white_space_is_no_other_question_but_options_are(teachers):
    files = teachers(
        [row("2"), row("B", "Which?", "B", choices=["1", "2"])],
        [row("two", " 1 +\n1? "), row("B", "Which?", "B", choices=["3", "4"])],
    )
    assert [each["rationales"] for each in load_rows(files, join_questions=True)] == [["2", "two"], ["B"], ["B"]]


def test_prompts_are_joined_as_questions_are(teachers):
    prompt = [{"role": "user", "content": "1 + 1?"}]
    files = teachers([{"prompt": prompt, "rationales": ["2"]}], [{"prompt": prompt, "rationales": ["two"]}])
    assert [each["rationales"] for each in load_rows(files, join_questions=True)] == [["2", "two"]]


def test_another_answer_names_both_rows(teachers, caplog):
    files = teachers([row("2")], [row("2"), row("3", answer="3")])
    with pytest.raises(RowError) as caught:
        load_rows(files, join_questions=True)
    message = str(caught.value)
    assert "b.jsonl, line 2, field 'answer': another answer than that of an earlier row with this question" in message
    assert 'found str "3"' in message
    assert f'{files[0]}, line 1: str "2"' in message
    assert "skip_bad_rows: true" in message
    [kept] = load_rows(files, join_questions=True, skip_bad_rows=True)
    assert kept["rationales"] == ["2", "2"]
    assert "left out 1 bad rows of 3 (1 x field 'answer': another answer" in caplog.text


@pytest.mark.parametrize("other", ["2.0", 2, "$2", None, "1 + 1 = 2\n#### 2"])
def test_the_same_answer_may_be_written_otherwise_or_be_missing(teachers, other):
    for first, second in (("2", other), (other, "2")):
        files = teachers([row("2", answer=first)], [row("two", answer=second)])
        [each] = load_rows(files, join_questions=True)
        assert each["rationales"] == ["2", "two"]
        assert each["answer"] is not None


def test_what_belongs_to_a_rationale_is_joined_with_it(teachers):
    own = {"sources": ["ready"], "paths": [["add"]], "scores": [{"log_rd": 1.5}], "stages": [1], "structures": [STEPS]}
    other = {"sources": ["free"], "paths": [[]], "scores": [{"log_rd": 0.5}], "stages": [2], "structures": [STEPS]}
    files = teachers(
        [row("2", trust=0.5, **own)], [row("two", trust=[0.25], **other), row("3", "1 + 2?", "3", trust=1)]
    )
    joined, single = load_rows(files, join_questions=True, per_rationale=["trust"])
    assert {name: joined[name] for name in (*own, "trust")} == {
        "sources": ["ready", "free"],
        "paths": [["add"], []],
        "scores": [{"log_rd": 1.5}, {"log_rd": 0.5}],
        "stages": [1, 2],
        "structures": [STEPS, STEPS],
        "trust": [0.5, 0.25],
    }
    assert single["trust"] == [1]
    assert joined.keys() == single.keys() | own.keys()


@pytest.mark.parametrize("limits", [{}, {"max_rationales": 1, "wrong_rationales": "keep"}])
def test_what_belongs_to_a_rationale_that_is_left_out_goes_with_it(teachers, limits):
    own = [{"sources": [name], "scores": [{"log_rd": 1.5}], "structures": [STEPS]} for name in ("ready", "free")]
    texts = ["#### 2", "#### 3"] if limits else ["#### 3", "#### 2"]
    files = teachers([row(texts[0], trust=0.1, **own[0])], [row(texts[1], trust=0.9, **own[1])])
    [each] = load_rows(files, join_questions=True, per_rationale=["trust"], **limits)
    place = texts.index("#### 2")
    assert (each["rationales"], each["trust"]) == (["#### 2"], [[0.1], [0.9]][place])
    assert {name: each[name] for name in own[0]} == own[place]


def test_a_row_without_what_belongs_to_a_rationale_has_none_of_it_there(teachers):
    own = {"sources": ["ready"], "paths": [["add"]], "scores": [{"log_rd": 1.5}], "stages": [1]}
    for first, second in ((own, {}), ({}, own)):
        files = teachers([row("2", **first)], [row("two", **second)])
        [each] = load_rows(files, join_questions=True)
        values = {name: [*value, None] if first else [None, *value] for name, value in own.items()}
        assert {name: each[name] for name in own} == values
    [question] = load_questions(files, join_questions=True)
    assert [(one.source, one.path) for one in question.candidates] == [("ready", ()), ("ready", ("add",))]
    assert not own.keys() & question.columns.keys()


def test_structures_of_some_rationales_only_are_left_to_the_decomposer(teachers, caplog):
    [each] = load_rows(teachers([row("2", structures=[STEPS])], [row("two")]), join_questions=True)
    assert (each["rationales"], each["structures"]) == (["2", "two"], [])
    assert "1 of 1 questions have structures for some of their rationales only" in caplog.text


def test_of_other_columns_the_first_value_counts_and_a_warning_names_them(teachers, caplog):
    files = teachers([row("2", teacher="a", level=1)], [row("two", teacher="b", level=1, source="web")])
    [each] = load_rows(files, join_questions=True)
    assert (each["teacher"], each["level"], each["source"]) == ("a", 1, "web")
    assert "column 'teacher' differs within 1 of 1 questions, and the first value counts" in caplog.text


def test_limits_count_joined_rows_and_their_right_rationales(teachers):
    files = teachers([row("#### 3"), row("3", "1 + 2?", "3")], [row("#### 2"), row("two")])
    [each] = load_rows(files, join_questions=True, max_rows=1, max_rationales=1)
    assert each["rationales"] == ["#### 2"]
    [each] = load_rows(files, join_questions=True, max_rows=1, wrong_rationales="keep")
    assert each["rationales"] == ["#### 3", "#### 2", "two"]


def test_traces_of_a_row_without_flags_are_compared_after_joining(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", row("#### 2", right=[True]), row("#### 3", right=None))
    [each] = load_rows(str(path), columns={"correct": "right"}, join_questions=True)
    assert each["rationales"] == ["#### 2"]


def test_without_the_key_rows_stay_as_they_are(teachers):
    files = teachers([row("2", trust=0.5)], [row("two", trust=0.25)])
    assert [json.dumps(each["trust"]) for each in load_rows(files, per_rationale=["trust"])] == ["0.5", "0.25"]


def test_without_the_key_a_list_of_values_follows_its_rationales_too(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", row("#### 3", trust=[0.1, 0.9]) | {"rationales": ["#### 3", "#### 2"]})
    [each] = load_rows(str(path), per_rationale=["trust"])
    assert (each["rationales"], each["trust"]) == (["#### 2"], [0.9])


def test_a_list_of_values_follows_the_rationales_that_flags_leave(tmp_path):
    given = row("#### 3", trust=[0.1, 0.9], stages=[1, 2], right=[False, True]) | {"rationales": ["#### 3", "#### 2"]}
    path = jsonl(tmp_path / "rows.jsonl", given)
    [each] = load_rows(str(path), columns={"correct": "right"}, per_rationale=["trust"])
    assert (each["rationales"], each["trust"], each["stages"]) == (["#### 2"], [0.9], [2])


def test_a_list_of_values_follows_the_rationales_that_are_no_nulls(tmp_path):
    given = row("", trust=[0.1, 0.9], stages=[1, 2]) | {"rationales": [None, "#### 2"]}
    path = jsonl(tmp_path / "rows.jsonl", given)
    [each] = load_rows(str(path), per_rationale=["trust"])
    assert (each["rationales"], each["trust"], each["stages"]) == (["#### 2"], [0.9], [2])
