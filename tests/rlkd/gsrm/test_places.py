"""Where the steps of a structure stand in the completion, for every decomposer."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.data.samples import sample_rows
from rlkd.gsrm import NativeDecomposer, ReasoningTrace, RulesDecomposer
from rlkd.gsrm.grounding import grounded
from rlkd.gsrm.places import LONGEST, step_places
from rlkd.structure import Step, Structure, render

TEXT = (
    "<think>Hm, let me see. First 48/2 = <<48/2=24>>24 clips, and 3 + 4 == **7** pears; so 7*2 = 14.\nThat is all. "
    "Then 14 - 2 = 12.\n#### 12</think>\n12"
)


def structure_of(decomposer, text: str) -> Structure:
    (found,) = asyncio.run(decomposer.decompose([ReasoningTrace("", text)]))
    return found


def shown(structure: Structure, text: str) -> list[str | None]:
    return [None if place is None else text[slice(*place)] for place in step_places(structure, text)]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (
            "calculation",
            [
                "First 48/2 = <<48/2=24>>24 clips, and 3 + 4 == **7** pears; so 7*2 = 14.",
                "Then 14 - 2 = 12.",
            ],
        ),
        (
            "equation",
            ["First 48/2 = <<48/2=24>>24 clips, and ", "3 + 4 == **7** pears; so ", "7*2 = 14.", "Then 14 - 2 = 12."],
        ),
    ],
)
def test_the_place_of_a_step_by_rules_is_its_sentence_or_its_part_of_it(level, expected) -> None:
    assert shown(structure_of(RulesDecomposer(level), TEXT), TEXT) == expected


def test_the_place_of_a_tagged_step_is_its_tags_and_what_is_between() -> None:
    text = (
        "Well: <step>\n<meta>How?</meta><question>1+1</question><answer>2</answer></step> and "
        "<step><answer>3</answer> <step></step><Step ><meta>a</meta></STEP> <step><me"
    )
    assert shown(structure_of(NativeDecomposer(), text), text) == [
        "<step>\n<meta>How?</meta><question>1+1</question><answer>2</answer></step>",
        "<step><answer>3</answer> ",
        "<Step ><meta>a</meta></STEP>",
    ]


def test_a_step_in_the_words_of_a_model_is_found_by_its_calculation_or_its_result() -> None:
    text = "Half of the 48 are 24. Together 48 + 24 = 72 clips. So 72 is the answer."
    structure = Structure([Step("How many in May?", "48/2", "24"), Step("How many in all?", "24+48", "72")])
    assert shown(structure, text) == ["Half of the 48 are 24.", "Together 48 + 24 = 72 clips."]
    assert shown(Structure([Step("Why?"), Step("What?", "1+1", "2")]), text) == [None, None]


def test_every_step_of_the_embedded_rationales_has_a_place() -> None:
    for row in sample_rows("gsrm")[:60]:
        for text in row["rationales"]:
            for structure in (structure_of(RulesDecomposer(), text), grounded(Structure(), text)):
                assert None not in step_places(structure, text)


@pytest.mark.parametrize("text", ["", "#### 72", "<think></think>", "no numbers", "<step>"])
def test_a_text_without_steps_has_no_places(text) -> None:
    assert step_places(Structure(), text) == []
    assert step_places(Structure([Step(None, "1+1", "2")]), text) == [None]


def test_a_loop_is_read_up_to_a_limit() -> None:
    text = "So 1 + 1 = 2. " * (LONGEST + 5)
    places = step_places(structure_of(RulesDecomposer(), text), text)
    assert [place is None for place in places] == [False] * LONGEST + [True] * 5


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(
            ["So 1 + 1 = 2. ", "2 * 3 = 6 and 6 + 1 = 7.\n", "Hm. ", "é 漢 = 3 ", "<step>", "\\frac{1}{2} = "]
        )
    ).map("".join),
    st.sampled_from(["calculation", "sentence", "equation"]),
)
def test_places_are_in_order_and_apart_and_have_the_result(text, level) -> None:
    structure = structure_of(RulesDecomposer(level), text)
    places = step_places(structure, text)
    found = [place for place in places if place is not None]
    assert all(0 <= start < stop <= len(text) for start, stop in found)
    assert all(one[1] <= other[0] for one, other in pairwise(found))
    for step, place in zip(structure, places, strict=True):
        assert place is None or step.answer is None or step.answer in text[slice(*place)]
    tagged = render(structure)
    if len(structure):
        assert None not in step_places(structure, tagged)
