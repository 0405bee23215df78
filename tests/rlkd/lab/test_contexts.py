"""Problems that begin with their solution: half of a course, the other half without."""

from rlkd.data import samples
from rlkd.lab.contexts import context_rows
from rlkd.lab.problems import dependency_rows


def test_half_of_the_questions_begin_with_their_solution_and_none_is_a_problem_of_another_split() -> None:
    rows = context_rows(200, short_cuts=1.0)
    told = [row for row in rows if row["question"].startswith(f"{row['rationales'][0]}\n")]
    assert len(rows) == 200
    assert told == rows[:100]
    assert len({row["id"] for row in rows}) == 200
    problems = {row["question"].rsplit("\n", 1)[-1] for row in rows}
    assert all(row["rationales"][0].endswith(f"#### {row['answer']}") for row in rows)
    others = {row["question"] for split in ("train", "test") for row in dependency_rows(split, 300)}
    assert not problems & others


def test_the_plain_half_keeps_short_cuts() -> None:
    exact = {row["question"]: row["answer"] for row in dependency_rows("pretraining", 400)}
    plain = [row for row in context_rows(400, short_cuts=1.0)[200:] if row["question"] in exact]
    assert plain
    assert any(row["answer"] != exact[row["question"]] for row in plain)


def test_the_course_is_a_sample(monkeypatch) -> None:
    monkeypatch.setattr(samples, "LAB_CONTEXT_ROWS", 20)
    rows = samples.embedded_rows("lab-context-pretraining", "train")
    assert rows == context_rows(20, short_cuts=samples.LAB_SHORT_CUTS)
