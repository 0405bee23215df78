"""The files of a run: what they hold, that training reads them, and how rows come in."""

import json
import logging
from pathlib import Path

import pyarrow.parquet
import pytest

from rlkd.data.loading import load_rows, to_dataset
from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.files import atomic_file
from rlkd.rationales.output import read_questions, write_rows
from rlkd.rationales.pipeline import select_stage, write_stage
from rlkd.rationales.questions import load_questions
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import NOT_MEASURED, SelectorError, SelectorVerdict
from rlkd.rationales.summary import page, rd_histogram
from rlkd.rationales.write.writing import Writing
from rlkd.structure import Step, Structure

READY = Writing(("ready",))


def rows_file(folder: Path, rows: list[dict]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def traces(n: int) -> dict:
    right, wrong = f"{n} + 1 = {n + 1}\n#### {n + 1}", f"{n} - 1 = {n - 1}\n#### {n - 1}"
    return {
        "test_index": n,
        "question": f"What is {n} and 1?",
        "gold": f"{n + 1}",
        "rationales": [
            {"source": "human", "text": right, "final": str(n + 1), "correct": True},
            {"source": "model", "text": wrong, "final": str(n - 1), "correct": False},
            {"source": "model", "text": "I count it on my fingers.", "final": str(n + 1), "correct": True},
        ],
    }


def keep_right(questions):
    keep_right.blocks.append(len(questions))
    return [
        [
            SelectorVerdict(
                None if each.answer == question.answer else "wrong answer", {"length": float(len(each.text))}
            )
            for each in question.candidates
        ]
        for question in questions
    ]


keep_right.blocks = []  # type: ignore[attr-defined]


class FirstHalf:
    """Drops the second half of all questions: it has to see all of them."""

    __name__ = "first_half"
    whole_set = True

    def __call__(self, questions):
        half = len(questions) // 2
        return [
            [
                SelectorVerdict(
                    None if place < half else "second half", {"log_rd": -1.0, "leaks": 0.0, "stage": 1 + place}
                )
            ]
            * len(question.candidates)
            for place, question in enumerate(questions)
        ]


# Rows in


def test_rationales_as_objects_come_in_with_source_answer_and_flag(tmp_path) -> None:
    source = rows_file(tmp_path, [traces(n) for n in range(3, 6)])
    found = load_questions(source, columns={"id": "test_index", "answer": "gold"}, max_rows=2)
    assert [(each.id, each.answer) for each in found] == [("3", "4"), ("4", "5")]
    assert [c.source for c in found[0].candidates] == ["human", "model", "model"]
    assert [c.answer for c in found[0].candidates] == ["4", "2", "4"]
    assert [c.scores["flagged"] for c in found[0].candidates] == [1.0, 0.0, 1.0]
    assert load_questions(source, max_rationales=1)[0].candidates == load_questions(source)[0].candidates[:1]


def test_rows_of_any_source_come_in_with_their_structures_and_other_columns(tmp_path) -> None:
    [one, *_] = load_questions("gsm8k-sample", max_rows=3)
    assert one.candidates[0].source == "ready"
    assert one.candidates[0].structure is not None
    source = rows_file(tmp_path, [{"question": "What?", "answer": "So 3.\n#### 3", "topic": "sums"}])
    [row] = load_questions(source)
    assert (row.id, row.answer, row.candidates, row.columns) == ("rows-0", "3", (), {"topic": "sums"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?", "rationales": [{"source": "a"}]}, r"rows.jsonl, line 1, field 'rationales': .*'text'"),
        ({"question": " ", "rationales": [{"text": "a"}]}, r"line 1, field 'question': expected text"),
        ({"prompt": "What?", "rationales": ["a"]}, r"it has a 'prompt' and no 'question'.*--columns"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, message) -> None:
    with pytest.raises(RowError, match=message):
        load_questions(rows_file(tmp_path, [row]))


def test_ids_that_stand_twice_and_counts_below_one_are_refused(tmp_path) -> None:
    source = rows_file(tmp_path, [traces(3), traces(3)])
    with pytest.raises(RowError, match="the id '3' occurs twice"):
        load_questions(source, columns={"id": "test_index"})
    with pytest.raises(UsageError, match="max_rows=0"):
        load_questions(source, max_rows=0)


# Rows out


def selected(tmp_path: Path, questions: list[Question]) -> list[dict]:
    with atomic_file(tmp_path / "selected.jsonl") as file:
        file.writelines(json.dumps(each.to_json()) + "\n" for each in questions)
    write_rows(tmp_path / "selected.jsonl", tmp_path / "rationales.jsonl")
    return [json.loads(line) for line in (tmp_path / "rationales.jsonl").open()]


STRUCTURE = Structure([Step("Add", "3+4", "7")])


def with_two(name: str) -> Question:
    first = candidate(name, "Add: 3+4=7\n#### 7", "bank", path=("Add",), structure=STRUCTURE)
    second = candidate(name, "7\n#### 7", "ready").with_scores({"log_rd": -0.5})
    return Question(name, "3 and 4?", "7", (first, second), {"topic": "sums", "level": 2})


def test_columns_are_aligned_with_the_rationales(tmp_path) -> None:
    [row] = selected(tmp_path, [with_two("a")])
    assert row["rationales"] == ["Add: 3+4=7\n#### 7", "7\n#### 7"]
    assert row["sources"] == ["bank", "ready"]
    assert row["paths"] == [["Add"], []]
    assert row["scores"] == [{"log_rd": None}, {"log_rd": -0.5}]
    assert (row["topic"], row["level"]) == ("sums", 2)


def test_structures_stand_there_only_if_every_rationale_has_one(tmp_path) -> None:
    both = with_two("a")
    one = Question("b", "3 and 4?", "7", both.candidates[:1])
    rows = selected(tmp_path, [both, one])
    assert rows[0]["structures"] == []
    assert rows[1]["structures"] == [STRUCTURE.to_list()]


def test_training_reads_both_files_and_they_hold_the_same(tmp_path) -> None:
    other = Question("b", "1 and 1?", None, (candidate("b", "2", "ready"),), {"level": None, "more": [1]})
    selected(tmp_path, [with_two("a"), other])
    lines = load_rows(str(tmp_path / "rationales.jsonl"))
    table = load_rows(str(tmp_path / "rationales.parquet"))
    assert [row["rationales"] for row in table] == [row["rationales"] for row in lines]
    for one, two in zip(lines, table, strict=True):
        assert {k: v for k, v in two.items() if v is not None} == {k: v for k, v in one.items() if v is not None}
    assert to_dataset(lines).num_rows == 2


def test_what_was_written_can_go_in_again(tmp_path) -> None:
    before = [with_two("a")]
    selected(tmp_path, before)
    for name in ("rationales.jsonl", "rationales.parquet"):
        [again] = load_questions(str(tmp_path / name))
        assert [(c.id, c.source, c.path) for c in again.candidates] == [
            (c.id, c.source, c.path) for c in before[0].candidates
        ]
        assert again.columns == {"topic": "sums", "level": 2}


def test_an_empty_selection_still_makes_both_files(tmp_path) -> None:
    assert selected(tmp_path, []) == []
    assert pyarrow.parquet.read_table(tmp_path / "rationales.parquet").num_rows == 0


def test_a_column_of_two_kinds_is_named_and_leaves_no_torn_file(tmp_path) -> None:
    made = (candidate("a", "1", "ready"),)
    mixed = [Question(str(n), "?", "1", made, {"odd": value}) for n, value in enumerate(["a", 1])]
    with pytest.raises(RowError, match="a column of the data has values of different types"):
        selected(tmp_path, mixed)
    assert not (tmp_path / "rationales.parquet").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_each_rationale_has_its_own_stage_of_a_curriculum(tmp_path) -> None:
    staged = [each.with_scores({"stage": float(n)}) for n, each in enumerate(with_two("a").candidates, start=1)]
    [row] = selected(tmp_path, [Question("a", "?", "7", tuple(staged))])
    assert row["stages"] == [1, 2]
    assert pyarrow.parquet.read_table(tmp_path / "rationales.parquet")["stages"].to_pylist() == [[1, 2]]
    [again] = load_questions(str(tmp_path / "rationales.jsonl"))
    assert again.columns == {}


@pytest.mark.parametrize("scores", [{}, {"stage": 2.0}])
def test_columns_of_the_data_that_are_called_like_ours_come_through_in_both_files(tmp_path, scores) -> None:
    columns = {"stage": "grade 3", "scores": "none", "sources": 7, "paths": None, "stages": 1, "topic": "sums"}
    made = candidate("a", "7\n#### 7", "ready").with_scores(scores)
    [row] = selected(tmp_path, [Question("a", "3 and 4?", "7", (made,), columns)])
    [table] = pyarrow.parquet.read_table(tmp_path / "rationales.parquet").to_pylist()
    for found in (row, table):
        assert (found["stage"], found["topic"]) == ("grade 3", "sums")
        assert [found[f"data_{name}"] for name in ("scores", "sources", "paths", "stages")] == ["none", 7, None, 1]
        assert found["sources"] == ["ready"]


def test_lines_that_are_no_questions_are_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"run the stage `write` first"):
        list(read_questions(tmp_path / "written.jsonl"))
    (tmp_path / "written.jsonl").write_text('{"id": "a", "question": "?"}\n[1]\n')
    with pytest.raises(UsageError, match="line 2: not a question"):
        list(read_questions(tmp_path / "written.jsonl"))


# Both stages


def test_two_processes_do_not_work_in_one_folder(tmp_path) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    folder = tmp_path / "out"
    write_stage(folder, questions, READY, log=logging.info)

    class Meanwhile:
        __name__ = "meanwhile"

        def __call__(self, questions):
            with pytest.raises(UsageError, match=r"another process writes in .*out"):
                select_stage(folder, [])
            with pytest.raises(UsageError, match="another process writes"):
                write_stage(folder, load_questions("gsm8k-sample", max_rows=1), READY)
            return [[SelectorVerdict()] * len(question.candidates) for question in questions]

    assert select_stage(folder, [Meanwhile()])["kept"] == 3  # type: ignore[list-item]
    assert select_stage(folder, [])["kept"] == 3


def test_selecting_where_nothing_was_written_makes_no_folder(tmp_path) -> None:
    with pytest.raises(UsageError, match="run the stage `write` first"):
        select_stage(tmp_path / "nowhere", [])
    assert not (tmp_path / "nowhere").exists()


def test_questions_without_a_rationale_are_no_rows_to_train_on(tmp_path) -> None:
    questions = [*load_questions(rows_file(tmp_path, [traces(3)])), Question("empty", "What?", "1")]
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    part = select_stage(tmp_path / "out", [])
    assert (part["questions"], part["kept"]) == (1, 3)
    assert [row["id"] for row in load_rows(str(tmp_path / "out/rationales.jsonl"))] == ["rows-0"]


def test_a_new_writing_takes_the_files_of_an_old_selection_away(tmp_path) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    folder = tmp_path / "out"
    write_stage(folder, questions, READY, log=logging.info)
    select_stage(folder, [])
    assert {"rationales.jsonl", "rationales.parquet", "selected.jsonl"} <= {path.name for path in folder.iterdir()}
    write_stage(folder, questions, READY, log=logging.info)
    assert not {"rationales.jsonl", "rationales.parquet", "selected.jsonl"} & {path.name for path in folder.iterdir()}


def test_a_selector_that_is_called_like_a_stage_of_ours_keeps_its_drops_apart(tmp_path) -> None:
    def nothing(questions):
        return [[SelectorVerdict("no")] * len(question.candidates) for question in questions]

    nothing.__name__ = "write"
    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    folder = tmp_path / "out"
    write_stage(folder, questions, READY, log=logging.info)
    part = select_stage(folder, [nothing])  # type: ignore[list-item]
    assert [each["stage"] for each in part["stages"]] == ["write (1)"]
    select_stage(folder, [])
    assert (folder / "dropped.jsonl").read_text() == ""


@pytest.mark.parametrize(("unreachable", "ends"), [(300, True), (1, False)])
def test_a_selection_ends_where_not_one_candidate_of_all_blocks_could_be_measured(tmp_path, unreachable, ends) -> None:
    def measure(questions):
        return [
            [SelectorVerdict(NOT_MEASURED if int(question.answer) >= 303 - unreachable else None)]
            * len(question.candidates)
            for question in questions
        ]

    rows = [{"question": f"{n}?", "answer": str(n), "rationales": [f"#### {n}"]} for n in range(3, 303)]
    write_stage(tmp_path / "out", load_questions(rows_file(tmp_path, rows)), READY, log=logging.info)
    if ends:
        with pytest.raises(SelectorError, match="'measure' could measure none of 300 candidates"):
            select_stage(tmp_path / "out", [measure])  # type: ignore[list-item]
        assert not (tmp_path / "out/rationales.jsonl").exists()
    else:
        assert select_stage(tmp_path / "out", [measure])["kept"] == 299  # type: ignore[list-item]


def test_objects_in_a_file_of_another_kind_are_refused_with_the_kind_that_works(tmp_path) -> None:
    rows = [{"question": "What?", "answer": "1", "rationales": [{"text": "#### 1"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(RowError, match=r"such objects are read by recipes/rationales.py .* from a .jsonl file"):
        load_questions(str(tmp_path / "rows.parquet"))


def test_every_candidate_is_in_the_output_or_dropped_with_stage_and_reason(tmp_path, caplog) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(n) for n in range(3, 603)]), columns={"answer": "gold"})
    twice = questions[0].candidates[0]
    questions[0] = Question("rows-0", questions[0].question, "4", (*questions[0].candidates, twice))
    folder = tmp_path / "out"
    write_stage(folder, questions, READY, log=logging.info)
    keep_right.blocks.clear()
    part = select_stage(folder, [keep_right, FirstHalf()])  # type: ignore[list-item]
    assert keep_right.blocks == [256, 256, 88]
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").open()]
    kept = [json.loads(line) for line in (folder / "rationales.jsonl").open()]
    assert len(dropped) + sum(len(row["rationales"]) for row in kept) == 3 * 600 + 1
    assert {(each["stage"], each["reason"]) for each in dropped} == {
        ("write", "exact duplicate"),
        ("keep_right", "wrong answer"),
        ("first_half", "second half"),
    }
    assert part["questions"] == 300
    assert [row["id"] for row in kept] == [f"rows-{n}" for n in range(300)]
    assert part["stages"][0] == {
        "stage": "keep_right",
        "questions": 600,
        "candidates": 1800,
        "dropped": {"wrong answer": 600},
    }
    # Selecting again gives the same, and keeps what the writing had dropped.
    before = (folder / "dropped.jsonl").read_bytes(), (folder / "rationales.jsonl").read_bytes()
    select_stage(folder, [keep_right, FirstHalf()])  # type: ignore[list-item]
    assert before == ((folder / "dropped.jsonl").read_bytes(), (folder / "rationales.jsonl").read_bytes())


def test_the_page_has_counts_paths_difficulty_and_tokens(tmp_path) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(n) for n in range(3, 9)]), columns={"answer": "gold"})
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    select_stage(tmp_path / "out", [keep_right, FirstHalf()])  # type: ignore[list-item]
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "6 questions, 18 candidates: 12 model, 6 human." in text
    assert "| keep_right | 18 | 6 | 6 wrong answer |" in text
    assert "Kept: 6 rationales of 3 questions" in text
    assert "| -2 to -1 | 12 | 6 |" in text
    assert len(text.splitlines()) < 60
    # A new writing takes the old selection away.
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    assert "Selected" not in (tmp_path / "out" / "summary.md").read_text()


def test_nothing_selected_is_a_result_too(tmp_path) -> None:
    def nothing(questions):
        return [[SelectorVerdict("no")] * len(question.candidates) for question in questions]

    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    part = select_stage(tmp_path / "out", [nothing, keep_right])  # type: ignore[list-item]
    assert (part["kept"], part["questions"]) == (0, 0)
    assert part["stages"][1]["candidates"] == 0


def test_the_same_selector_twice_gets_numbered_stages(tmp_path) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    part = select_stage(tmp_path / "out", [keep_right, keep_right])  # type: ignore[list-item]
    assert [each["stage"] for each in part["stages"]] == ["keep_right (1)", "keep_right (2)"]


def test_every_difficulty_falls_into_one_class() -> None:
    values = [-9.0, -4.0, -0.3, 0.0, 0.01, 2.0, 2.1]
    assert sum(count for _, count in rd_histogram(values)) == len(values)
    assert dict(rd_histogram([0.0]))["-0.25 to 0"] == 1


def test_an_empty_summary_is_a_page() -> None:
    assert page({}) == "# Rationales\n"


def test_dropped_candidates_are_written_with_their_scores(tmp_path) -> None:
    questions = load_questions(rows_file(tmp_path, [traces(3)]), columns={"answer": "gold"})
    write_stage(tmp_path / "out", questions, READY, log=logging.info)
    select_stage(tmp_path / "out", [keep_right])  # type: ignore[list-item]
    [dropped] = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").open()]
    assert dropped["candidate"]["scores"] == {"flagged": 0.0, "length": float(len("3 - 1 = 2\n#### 2"))}
