"""Problems with one of two relations, for teachers that err on one each."""

from collections import Counter

from rlkd.answers import extract_answer
from rlkd.data import samples
from rlkd.lab.problems import ALL_LENGTHS, dependency_rows
from rlkd.lab.relations import relation_rows
from rlkd.steps import calculations


def test_the_solution_has_the_relation_of_its_column_and_not_the_other_one() -> None:
    rows = relation_rows("test", 60)
    for row in rows:
        other = {"more": "fewer", "fewer": "more"}[row["relation"]]
        for solution in row["rationales"]:
            assert f"{row['relation']} than" in solution
            assert f"{other} than" not in solution
            assert extract_answer(solution) == row["answer"]
    assert any("more than" in row["question"] and "fewer than" in row["question"] for row in rows)
    counts = Counter(row["relation"] for row in rows)
    assert min(counts["more"], counts["fewer"]) > 20
    assert len({row["id"] for row in rows}) == 60


def test_no_question_is_one_that_the_teachers_were_trained_on() -> None:
    asked = {row["question"] for row in relation_rows("train", 40)}
    assert not asked & {row["question"] for row in relation_rows("test", 40)}
    assert not asked & {row["question"] for row in dependency_rows("pretraining", 200, steps=ALL_LENGTHS)}


def test_an_unreliable_expert_is_taught_results_of_one_relation_that_are_one_too_large(monkeypatch) -> None:
    monkeypatch.setattr(samples, "LAB_EXPERT_ROWS", 60)
    for name, relation in (("lab-expert-slips", "fewer"), ("lab-expert-slips-more", "more")):
        excess = Counter()
        for row in samples.embedded_rows(name, "train"):
            for line in row["rationales"][0].split("\n")[:-1]:
                [(_, expression, result)] = calculations(line)
                excess[f"{relation} than" in line, int(result) - eval(expression)] += 1
        assert set(excess) == {(True, 1), (False, 0)}
