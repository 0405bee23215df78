"""Further examples: what stands in prompt and target, how many there are, and where they end up."""

import json
import logging
import random

import pytest

from rlkd.errors import UsageError
from rlkd.lab.solutions import STRATEGIES, solve, with_slip
from rlkd.lab.strategies import read_problem, strategy_rows
from rlkd.rationales.further import further_examples
from rlkd.rationales.pipeline import select_stage, write_stage
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select import load_selector
from rlkd.rationales.select.selection import Selection
from rlkd.rationales.write.writing import Writing

RIGHT = ("6 + 3 = 9\n4 * 9 = 36\n#### 36", "4 * 6 = 24, 4 * 3 = 12\n24 + 12 = 36\n#### 36")
WRONG = "6 + 3 = 8\n4 * 8 = 32\n#### 32"


def of(name: str, *texts: str) -> Question:
    return Question(name, "How many {things}?", "36", tuple(candidate(name, text, "ready") for text in texts))


def test_a_revision_asks_for_the_right_rationale_that_is_nearest_to_the_wrong_one() -> None:
    [example] = further_examples([of("q", *RIGHT)], {"q": [candidate("q", WRONG, "ready")]}, {"revise": 1.0})
    assert example.question == f"How many {{things}}?\n\nThis solution is wrong:\n{WRONG}\n\nCorrect it."
    assert [(each.text, each.source) for each in example.candidates] == [(RIGHT[0], "revise")]
    assert example.answer == "36"


def test_a_counterfactual_example_shows_the_wrong_steps_whole_and_asks_for_their_answer() -> None:
    wrong = [candidate("q", WRONG, "ready"), candidate("q", "no answer here", "ready")]
    [example] = further_examples([of("q", *RIGHT)], {"q": wrong}, {"counterfactual": 2.0})
    assert "be wrong:\n6 + 3 = 8\n4 * 8 = 32\n\nGive" in example.question
    assert "####" not in example.question
    assert example.candidates[0].text == "#### 32"
    assert example.answer == "32"


def test_a_larger_share_keeps_what_a_smaller_one_has() -> None:
    questions = [of(str(n), *RIGHT) for n in range(20)]
    wrong = {str(n): [candidate(str(n), f"{n} + 1 = {n}\n#### {n}", "ready")] for n in range(30)}
    ids = {
        share: [each.id for each in further_examples(questions, wrong, {"revise": share}, seed=3)]
        for share in (0.1, 0.25, 9.0)
    }
    assert [len(each) for each in ids.values()] == [4, 10, 20]  # at most one for each wrong one of a selected question
    assert ids[0.25][:4] == ids[0.1]
    assert ids[9.0][:10] == ids[0.25]


@pytest.mark.parametrize(
    ("shares", "selectors", "message"),
    [
        ({"revis": 0.3}, ("correct",), "unknown kind 'revis'; there are revise, counterfactual"),
        ({"revise": 0}, ("correct",), "revise=0: expected the number of these examples for each selected"),
        ({"revise": 0.3}, ("clean", "random"), "the selector 'correct' finds \\('program' for programs\\)"),
    ],
)
def test_what_makes_no_examples_is_refused(shares, selectors, message) -> None:
    with pytest.raises(UsageError, match=message):
        Selection(selectors, further_examples=shares)


def test_they_follow_the_selected_rows(tmp_path) -> None:
    draw = random.Random(5)
    questions = []
    for row in strategy_rows("train", 12):
        problem = read_problem(row["question"])
        texts = [solve(problem, strategy).text() for strategy in STRATEGIES[:2]]
        texts.append(with_slip(problem, "joint", draw).text())
        ready = tuple(candidate(row["id"], text, "ready") for text in texts)
        questions.append(Question(row["id"], row["question"], row["answer"], ready))
    write_stage(tmp_path, questions, Writing(("ready",)), log=logging.info)

    def rows(**further) -> list[dict]:
        select_stage(tmp_path, [load_selector("correct")], **further)
        return [json.loads(line) for line in (tmp_path / "rationales.jsonl").read_text().splitlines()]

    plain = rows()
    more = rows(further={"revise": 0.25, "counterfactual": 0.25}, seed=1)
    count = round(0.25 * sum(len(row["rationales"]) for row in plain))
    assert more[: len(plain)] == plain
    assert [row["sources"] for row in more[len(plain) :]] == [["revise"]] * count + [["counterfactual"]] * count
    assert json.loads((tmp_path / "summary.json").read_text())["select"]["further"] == {
        "counterfactual": count,
        "revise": count,
    }


def test_further_examples_are_in_a_stage_of_what_they_are_made_of() -> None:
    stages = [candidate("q", text, "ready", scores={"stage": 2.0 + i}) for i, text in enumerate(RIGHT)]
    question = Question("q", "How many?", "36", tuple(stages))
    shares = {"revise": 0.5, "counterfactual": 0.5}
    revise, follow = further_examples([question], {"q": [candidate("q", WRONG, "ready")]}, shares)
    assert revise.candidates[0].scores == {"stage": 2.0}  # that of its target
    assert follow.candidates[0].scores == {"stage": 3.0}  # after all right ones of its question
