"""The control of the recorded run: every row has a teacher of its kind, and none has its own."""

from collections import Counter

import pytest

from rlkd.data.samples import sample_rows
from rlkd.data.shuffle import shuffled_steps, shuffled_teachers
from rlkd.errors import UsageError


def row(name: str, steps: int, *, structure: bool = True) -> dict:
    structures = [[{"meta": f"{name}{i}?", "question": None, "answer": None} for i in range(steps)]]
    return {
        "id": name,
        "question": f"question {name}",
        "answer": name,
        "rationales": ["\n".join(f"{name}{i}" for i in range(steps))],
        "structures": structures if structure else [],
    }


def teacher_of(row: dict) -> str:
    return row["rationales"][0]


def test_in_the_sample_no_row_keeps_its_teacher_and_each_teacher_is_used_once() -> None:
    rows = sample_rows("rl")
    shuffled = shuffled_teachers(rows, 1)
    assert all(teacher_of(new) != teacher_of(old) for new, old in zip(shuffled, rows, strict=True))
    assert sorted(map(teacher_of, shuffled)) == sorted(map(teacher_of, rows))


def test_rationale_and_structure_come_from_the_same_row() -> None:
    rows = sample_rows("rl")
    together = {teacher_of(row): row["structures"] for row in rows}
    assert all(together[teacher_of(row)] == row["structures"] for row in shuffled_teachers(rows, 1))


def test_question_answer_id_and_order_stay_and_the_given_rows_are_not_changed() -> None:
    rows = sample_rows("rl")
    for old, new in zip(sample_rows("rl"), shuffled_teachers(rows, 1), strict=True):
        assert [new[key] for key in ("id", "question", "answer")] == [old[key] for key in ("id", "question", "answer")]
    assert rows == sample_rows("rl")


def test_in_the_sample_every_teacher_has_as_many_steps_as_the_one_it_replaces() -> None:
    rows = sample_rows("rl")
    pairs = zip(rows, shuffled_teachers(rows, 1), strict=True)
    assert all(len(old["structures"][0]) == len(new["structures"][0]) for old, new in pairs)


@pytest.mark.parametrize("lengths", [[2, 3], [1, 2, 2, 2, 9], [1, 2, 3], [1, 5, 5], [5, 5, 9], [1, 2, 2, 3]])
def test_a_number_of_steps_that_occurs_once_takes_the_nearest_and_still_none_keeps_its_own(lengths) -> None:
    rows = [row(f"r{i}", steps) for i, steps in enumerate(lengths)]
    shuffled = shuffled_teachers(rows, 3)
    assert all(teacher_of(new) != teacher_of(old) for new, old in zip(shuffled, rows, strict=True))
    assert Counter(map(teacher_of, shuffled)) == Counter(map(teacher_of, rows))


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    rows = sample_rows("rl")
    backwards = shuffled_teachers(rows[::-1], 1)[::-1]
    assert shuffled_teachers(rows, 1) == shuffled_teachers(rows, 1) == backwards
    others = shuffled_teachers(rows, 2)
    assert sum(teacher_of(a) == teacher_of(b) for a, b in zip(others, backwards, strict=True)) < len(rows) / 10


def test_lines_count_as_steps_where_there_is_no_structure() -> None:
    rows = [row(f"r{i}", steps, structure=False) for i, steps in enumerate([2, 4, 2, 4, 2, 4])]
    for old, new in zip(rows, shuffled_teachers(rows, 5), strict=True):
        assert teacher_of(new) != teacher_of(old)
        assert len(teacher_of(new).split("\n")) == len(teacher_of(old).split("\n"))


def test_a_row_without_a_teacher_stays_unchanged() -> None:
    bare = row("bare", 1) | {"rationales": [], "structures": []}
    rows = [row("a", 2), bare, row("b", 2)]
    shuffled = shuffled_teachers(rows, 1)
    assert shuffled[1] == bare
    assert teacher_of(shuffled[0]) == teacher_of(rows[2])


def test_one_teacher_alone_cannot_be_shuffled() -> None:
    with pytest.raises(UsageError, match="1 of 2 rows have rationales or structures"):
        shuffled_teachers([row("a", 2), row("b", 2) | {"rationales": [], "structures": []}], 1)


def test_shuffled_steps_are_the_same_steps_in_another_order_and_the_answer_stays_last() -> None:
    rows = [row("a", 3), row("b", 2)]
    rows[0]["rationales"] = ["a0\na1\na2\n#### 7"]
    for old, new in zip(rows, shuffled_steps(rows, 5), strict=True):
        before, after = old["rationales"][0].split("\n"), new["rationales"][0].split("\n")
        assert after != before
        assert sorted(after) == sorted(before)
        assert [step["meta"] for step in new["structures"][0]] == [
            f"{line}?" for line in after if not line.startswith("####")
        ]
    assert shuffled_steps(rows, 5)[0]["rationales"][0].endswith("\n#### 7")


def test_the_order_depends_on_the_seed_and_the_row_only_and_the_given_rows_are_not_changed() -> None:
    rows = [row(name, 5) for name in "abcd"]
    kept = [teacher_of(each) for each in rows]
    once = {each["id"]: each for each in shuffled_steps(rows, 1)}
    assert {each["id"]: each for each in shuffled_steps(rows[::-1], 1)} == once
    assert [teacher_of(each) for each in rows] == kept
    assert any(teacher_of(each) != teacher_of(once[each["id"]]) for each in shuffled_steps(rows, 2))


def test_steps_of_single_line_traces_cannot_be_shuffled() -> None:
    with pytest.raises(UsageError, match="none of the 1 rows has a teacher trace of two steps"):
        shuffled_steps([row("a", 1)], 1)
