import hashlib
import json

import pyarrow
import pyarrow.parquet
import pytest

from rlkd.answers import number
from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.rows import RESERVED_COLUMNS, RowError, build_prompt, completion_text, question_of, split_half
from rlkd.data.samples import FEW_SHOT_EXAMPLES, few_shot_examples, sample_rows
from rlkd.errors import UsageError
from rlkd.structure import Structure

PINNED_FIRST = {"rl": ["39", "54", "56"], "gsrm": ["24", "63", "80"]}
PINNED_DIGEST = "0f37f2631d394c64"
STEPS = [{"meta": "How many in May?", "question": "48/2", "answer": "24"}]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# The sample


@pytest.fixture(scope="module")
def halves():
    return {part: sample_rows(part) for part in ("rl", "gsrm", "test")}


def test_the_sample_has_the_rows_that_its_provenance_file_names(halves):
    assert {part: len(rows) for part, rows in halves.items()} == {"rl": 366, "gsrm": 382, "test": 200}


def test_the_split_is_the_one_that_structure_models_were_trained_under(halves):
    # Pinned: another split would let a structure model judge questions that it has seen.
    first = {part: [row["id"].rpartition("-")[2] for row in halves[part][:3]] for part in ("rl", "gsrm")}
    assert first == PINNED_FIRST
    ids = "\n".join(row["id"] for row in halves["rl"])
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == PINNED_DIGEST


def test_no_question_stands_in_two_parts(halves):
    questions = [{" ".join(row["question"].lower().split()) for row in rows} for rows in halves.values()]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 948


def test_the_half_of_a_question_does_not_depend_on_case_or_spaces():
    question = sample_rows("rl")[0]["question"]
    assert split_half(question) == split_half("  " + question.upper().replace(" ", "\n ")) == "rl"


def test_every_row_of_the_sample_has_one_rationale_and_its_structure(halves):
    for rows in halves.values():
        for row in rows:
            [rationale], [steps] = row["rationales"], row["structures"]
            assert len(steps) == len(rationale.splitlines()) > 0, row["id"]
            assert number(row["answer"]) is not None, row["id"]


def test_a_rationale_is_the_socratic_solution_without_its_sub_questions(halves, root):
    socratic = {}
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl"):
        for line in (root / "rlkd" / "assets" / name).read_text(encoding="utf-8").rstrip("\n").split("\n"):
            record = json.loads(line)
            socratic[record["id"]] = record["socratic"]
    for rows in halves.values():
        for row in rows:
            *lines, last = socratic[row["id"]].split("\n")
            sub_questions = [line.partition(" ** ")[0] for line in lines]
            assert row["rationales"][0].split("\n") == [line.partition(" ** ")[2] for line in lines]
            assert [step["meta"] for step in row["structures"][0]] == [question.strip() for question in sub_questions]
            assert " ** " not in row["rationales"][0]
            assert last == f"#### {row['answer']}"


def test_an_unknown_part_of_the_sample_is_refused():
    with pytest.raises(UsageError, match="part 'validation': expected 'rl', 'gsrm' or 'test'"):
        load_rows("gsm8k-sample", split="validation")


def test_the_training_split_of_the_sample_is_the_half_for_reinforcement_learning(halves):
    assert [row["id"] for row in load_rows("gsm8k-sample")] == [row["id"] for row in halves["rl"]]


def test_few_shot_examples_come_from_the_half_that_is_never_trained_on_by_rl(halves):
    shown = {question for question, _ in few_shot_examples(len(FEW_SHOT_EXAMPLES))}
    assert len(shown) == len(FEW_SHOT_EXAMPLES)
    assert shown <= {row["question"] for row in halves["gsrm"]}
    assert not shown & {row["question"] for part in ("rl", "test") for row in halves[part]}


def test_few_shot_examples_are_written_as_the_student_should_answer():
    for _, solution in few_shot_examples(2):
        assert "<<" not in solution
        assert solution.splitlines()[-1].startswith("#### ")


@pytest.mark.parametrize("count", [-1, 3])
def test_more_few_shot_examples_than_there_are_is_an_error(count):
    with pytest.raises(UsageError, match=rf"few_shot_examples={count}: there are 2; give 0 to 2"):
        few_shot_examples(count)


# Files


def test_a_row_needs_no_more_than_a_question(tmp_path):
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


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    question = "one\u2028two\u2029three\u0085four\rfive"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": question}, ensure_ascii=False) + "\n", encoding="utf-8", newline="")
    assert [row["question"] for row in load_rows(str(path))] == [question]


def test_empty_lines_are_passed_over_but_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"question": "a?"}\n\n{"question": 5}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl, line 4, field 'question'"):
        load_rows(str(path))


def test_parquet_holds_the_same_rows_as_json(tmp_path):
    records = [
        {"id": "a", "question": "a?", "answer": "1", "rationales": ["r"], "structures": [STEPS], "level": 1},
        {"id": "b", "question": "b?", "answer": None, "rationales": [], "structures": [], "level": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    assert load_rows(str(tmp_path / "rows.parquet")) == load_rows(str(jsonl(tmp_path / "rows.jsonl", *records)))


def test_a_bad_row_of_a_parquet_file_is_named_by_its_place(tmp_path):
    records = [{"question": "a?"}, {"question": "  "}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"rows\.parquet, row 1, field 'question': expected text, found str \"  \""):
        load_rows(str(tmp_path / "rows.parquet"))


# What is wrong with a row


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
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, record, message):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "fine?"}, record)
    with pytest.raises(RowError) as raised:
        load_rows(str(path))
    assert str(raised.value).startswith(f"{path}, line 2")
    assert message in str(raised.value)


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_a_column_that_trl_claims_for_itself_is_refused(tmp_path, name):
    with pytest.raises(RowError, match=rf"line 1: the column name '{name}' is reserved by TRL; rename"):
        load_rows(str(jsonl(tmp_path / "rows.jsonl", {"question": "a?", name: 1})))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": ', "line 2: not JSON"),
        (b'["a?"]', 'line 2: found list ["a?"], expected a JSON object'),
        (b'{"question": "caf\xe9?"}', "line 2: not JSON"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "fine?"}\n' + line + b"\n")
    with pytest.raises(RowError) as raised:
        load_rows(str(path))
    assert f"{path}, {message}" in str(raised.value)


def test_an_id_that_stands_twice_is_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"id": 1, "question": "a?"}, {"id": "1", "question": "b?"})
    with pytest.raises(RowError, match=r"rows\.jsonl: the id '1' stands twice"):
        load_rows(str(path))


def test_a_made_id_that_meets_a_given_one_is_noticed(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"id": "rows-1", "question": "a?"}, {"question": "b?"})
    with pytest.raises(RowError, match="'rows-1' stands twice"):
        load_rows(str(path))


def test_a_file_that_is_not_there_is_named_with_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        load_rows("nowhere.jsonl")
    assert str(tmp_path / "nowhere.jsonl") in str(raised.value)


def test_a_file_without_rows_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no rows"):
        load_rows(str(tmp_path / "rows.jsonl"))


def test_a_dataset_that_cannot_be_had_is_named_with_the_alternatives():
    with pytest.raises(UsageError, match=r"dataset 'no-such/data' .*gsm8k-sample, mawps-sample, distillation-sample"):
        load_rows("no-such/data")


# Columns


@pytest.fixture
def open_r1(tmp_path):
    """Rows laid out as OpenR1-Math's."""
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


def test_columns_are_renamed_and_rationales_that_are_flagged_wrong_are_dropped(open_r1):
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


def test_structures_are_cut_with_their_rationales(tmp_path):
    other = [{"meta": "other"}]
    path = jsonl(tmp_path / "r.jsonl", {"question": "a?", "rationales": ["r", "s"], "structures": [STEPS, other]})
    [row] = load_rows(str(path), max_rationales=1)
    assert row["rationales"] == ["r"]
    assert row["structures"] == [Structure.from_list(STEPS).to_list()]


def test_a_renamed_column_replaces_one_of_our_name(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", {"question": "old?", "problem": "new?"})
    [row] = load_rows(str(path), columns={"question": "problem"})
    assert row["question"] == "new?"
    assert "problem" not in row


def test_a_column_that_is_not_there_is_answered_with_those_that_are(open_r1):
    with pytest.raises(RowError, match=r"line 1: no column 'problme' \(for 'question'\); there are problem, answer"):
        load_rows(str(open_r1), columns={"question": "problme"})


def test_a_field_that_rows_do_not_have_is_refused(open_r1):
    with pytest.raises(UsageError, match=r"columns: 'quesion' is no field of a row\. Fields: id, prompt, question"):
        load_rows(str(open_r1), columns={"quesion": "problem"})


def test_flags_that_do_not_fit_the_rationales_are_named(tmp_path):
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


def test_a_prompt_of_a_row_stays_as_it_is(tmp_path):
    rows = load_rows(str(jsonl(tmp_path / "rows.jsonl", {"prompt": "Once upon a time"})))
    assert to_dataset(rows, system_prompt="Be brief.", examples=1)["prompt"][0] == "Once upon a time"


def test_rows_with_different_keys_make_a_dataset_with_all_of_them(tmp_path):
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


def test_the_question_is_found_again_in_a_prompt():
    assert question_of(build_prompt("2 + 2?", "Be brief.", [("1 + 1?", "2")])) == "2 + 2?"
    assert question_of("2 + 2?") == "2 + 2?"
    assert question_of([{"role": "system", "content": "Be brief."}]) == ""


def test_the_text_of_a_completion_is_what_the_assistant_said():
    assert completion_text("4") == "4"
    assert completion_text([{"role": "assistant", "content": "4"}]) == "4"
    called = [{"role": "assistant", "content": None}, {"role": "tool", "content": "x"}]
    assert completion_text([*called, {"role": "assistant", "content": "4"}]) == "\n4"


def test_rows_without_a_correct_rationale_are_left_out_and_counted(tmp_path, caplog):
    rows = [{"problem": f"{i}?", "gens": ["a", "b"], "ok": [i == 0, False]} for i in range(3)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": "problem", "rationales": "gens", "correct": "ok"}
    [row] = load_rows(str(tmp_path / "r.jsonl"), columns=columns)
    assert row["rationales"] == ["a"]
    assert "left out 2 rows" in caplog.text


def test_prompts_of_two_kinds_are_refused_by_the_name_of_the_row():
    rows = [{"id": "a", "prompt": "text"}, {"id": "b", "prompt": [{"role": "user", "content": "chat"}]}]
    with pytest.raises(RowError, match=r"row 'b', field 'prompt'.*the first row has a text"):
        to_dataset(rows)
