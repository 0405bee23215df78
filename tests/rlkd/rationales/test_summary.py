"""What a selection says of near copies."""

import json
import logging

import pytest

from rlkd.rationales.pipeline import select_stage, write_stage
from rlkd.rationales.questions import load_questions
from rlkd.rationales.select import load_selector
from rlkd.rationales.write.writing import Writing
from tests.helpers.json_lines import write_json_lines

STEPS = [
    f"{name} has {count} fewer than {other}: 9 - {count} = {9 - count}, so {name} has {9 - count}."
    for name, count, other in (("Ann", 2, "Ben"), ("Cid", 3, "Dan"), ("Eve", 4, "Fay"), ("Gus", 5, "Ida"))
]
TWO_ORDERS = ["\n".join(STEPS), "\n".join([*STEPS[2:], *STEPS[:2]])]
TWO_WAYS = [TWO_ORDERS[0], "Nine less two is seven."]


@pytest.fixture
def selected(tmp_path):
    """The summary of a selection from questions with these rationales."""

    def select(*rationales, **parameters):
        rows = [
            {"question": f"What is {n}?", "answer": "7", "rationales": texts} for n, texts in enumerate(rationales)
        ]
        path = write_json_lines(tmp_path / "rows.jsonl", *rows)
        write_stage(tmp_path / "out", load_questions(str(path)), Writing(("ready",)), log=logging.info)
        return select_stage(tmp_path / "out", [load_selector("clean", parameters), load_selector("longest")])

    return select


def test_two_orders_of_steps_are_near_copies_and_the_key_that_keeps_them_is_named(selected, tmp_path) -> None:
    part = selected(TWO_ORDERS, TWO_ORDERS, TWO_WAYS, STEPS[:1])
    assert part["kept"] == 5
    message = part["near_copies"]
    assert message.startswith(
        "clean: 2 of 3 questions with several rationales keep one, since the others are near copies"
    )
    assert message.endswith("selector_kwargs: {clean: {near_copy: 1.0}}")
    assert message in (tmp_path / "out/summary.md").read_text()
    assert json.loads((tmp_path / "out/summary.json").read_text())["select"]["near_copies"] == message


def test_with_that_key_they_stay_and_nothing_is_said(selected) -> None:
    part = selected(TWO_ORDERS, TWO_ORDERS, TWO_WAYS, near_copy=1.0)
    assert part["kept"] == 6
    assert "near_copies" not in part


def test_near_copies_of_few_questions_are_only_counted(selected) -> None:
    part = selected(TWO_ORDERS, TWO_WAYS, [*TWO_ORDERS, TWO_WAYS[1]])
    assert part["stages"][0]["dropped"] == {"near copy": 2}
    assert "near_copies" not in part
