"""Prompts and replies: what the teacher is shown, and how its replies are read."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.rationales.bank.routing import Route
from rlkd.rationales.write.prompts import EXAMPLE, SCHEMA, read_object, read_reply, step_prompt


def test_the_few_shot_example_keeps_its_own_contract() -> None:
    found = read_reply(json.dumps(EXAMPLE[1]))
    assert found is not None
    assert found.path == tuple(EXAMPLE[1]["path"])
    assert len(found.path) <= EXAMPLE[1]["budget"]
    assert set(SCHEMA["required"]) == set(EXAMPLE[1])
    assert [step.answer for step in found.structure()] == ["12", "27"]
    assert found.text().endswith("\n#### 27")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"rationale": {"Add": "1 + 2 = 3"}, "answer": "3"}', "3"),
        ('```json\n{"rationale": {"Add": "1 + 2 = 3"}, "answer": 3}\n```', "3"),
        ('Here it is: {"rationale": {"Add": "1 + 2 = 3"}, "answer": 3/4} I hope it helps.', "3/4"),
        ('{"rationale": {"Add": "1 + 2 = 3",}, "answer": 3.50,}', "3.50"),
        ('<think>{not this}</think>{"rationale": {"Add": "1 + 2 = 3"}, "ans": -1/2}', "-1/2"),
        ('{"rationale": "{\\"Add\\": \\"1 + 2 = 3\\"}", "answer": "3"}', "3"),
        ('{"rationale": [{"Add": "1 + 2 = 3"}], "answer": "3"}', "3"),
        ('{"rationale": [{"step": "Add", "text": "1 + 2 = 3"}], "answer": "3"}', "3"),
        ('{"rationale": {"Add:": "1 +\n2 = 3"}, "answer": "3"}', "3"),
        ('{"rationale": {"Add": "1 + 2 = 3", "Empty": ""}}', None),
    ],
)
def test_replies_are_read_leniently(text, answer) -> None:
    found = read_reply(text)
    assert found is not None
    assert found.steps == (("Add", "1 + 2 = 3"),)
    assert found.answer == answer


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It is 3.",
        "{",
        "}{",
        '{"rationale": {}}',
        '{"rationale": {"Add": "1 + 2',
        '{"answer": 3}',
        "[1]",
        "{" * 9999,
    ],
)
def test_what_cannot_be_used_is_none(text) -> None:
    assert read_reply(text) is None


def test_fractions_and_commas_inside_texts_stay_as_they_are() -> None:
    found = read_object('{"Half": "take 3/4, }", "value": 3/4 }')
    assert found == {"Half": "take 3/4, }", "value": "3/4"}
    assert read_object(r'{"a": "\frac{1}{2} of it"}') == {"a": r"\frac{1}{2} of it"}


@given(st.text(alphabet='{}[]",:\\/ 019aé\n', max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_reply_breaks_the_reader(text) -> None:
    found = read_reply('{"rationale": {"Add": ' + text)
    assert found is None or all(name and line for name, line in found.steps)
    read_reply(text)


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=20), min_size=1, max_size=3))
def test_valid_replies_are_read_as_json_means_them(rationale) -> None:
    found = read_object(json.dumps({"rationale": rationale}, ensure_ascii=False))
    assert found is not None
    # LaTeX aside: a tab before "imes" is a command for this reader.
    if "\\" not in json.dumps(rationale, ensure_ascii=False):
        assert found["rationale"] == rationale


def test_without_a_bank_the_request_differs_by_the_plan_alone() -> None:
    plan = Route("buying", "total cost", (("FindUnitPrice", "AddCosts"), ("AddAll",)), 0.5)
    with_plan, without = step_prompt("What?", plan), step_prompt("What?")
    assert with_plan[:-1] == without[:-1]
    assert with_plan[-1]["content"].startswith("What?\n\n")
    assert "1. FindUnitPrice -> AddCosts\n2. AddAll\n" in with_plan[-1]["content"]
    assert without[-1]["content"] == "What?"


def test_a_reply_to_a_plan_of_one_step_fits_the_schema() -> None:
    assert SCHEMA["properties"]["budget"]["minimum"] == 1
