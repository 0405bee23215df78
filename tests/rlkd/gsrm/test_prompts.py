"""The few-shot examples of each domain are themselves what they ask for."""

import json
from typing import get_args

import pytest

from rlkd.gsrm import ReasoningTrace
from rlkd.gsrm.decomposers import PromptedDecomposer
from rlkd.gsrm.labelling import fault
from rlkd.gsrm.prompts import Domain, domain_of, instruct_request
from rlkd.structure import Structure, parse


@pytest.mark.parametrize("domain", get_args(Domain))
def test_the_examples_of_a_domain_report_their_traces_and_can_be_read(domain) -> None:
    tagged = instruct_request("Why?", "So.", as_json=False, domain=domain)
    as_json = instruct_request("Why?", "So.", as_json=True, domain=domain)
    for shown, reply, replied in zip(tagged[1:-1:2], tagged[2:-1:2], as_json[2:-1:2], strict=True):
        problem, trace = shown["content"].removeprefix("Problem:\n").split("\n\nReasoning:\n")
        structure = parse(reply["content"]).structure
        assert len(structure) > 1
        assert structure == Structure.from_list(json.loads(replied["content"])["steps"])
        assert (
            fault(
                ReasoningTrace(problem, trace.removesuffix("\n\nList the steps that this reasoning takes.")), structure
            )
            is None
        )


def test_no_two_domains_have_an_example_in_common() -> None:
    shown = [
        instruct_request("?", "?", as_json=False, domain=each)[place]["content"]
        for each in get_args(Domain)
        for place in (1, 3)
    ]
    assert len(set(shown)) == 2 * len(get_args(Domain))


def test_a_name_of_no_domain_is_science_and_no_name_is_math() -> None:
    assert [domain_of(name) for name in (None, "", "Math", "puzzle", "chemistry")] == [
        "math",
        "math",
        "math",
        "puzzle",
        "science",
    ]


def test_an_unknown_domain_of_a_decomposer_is_refused(scripted) -> None:
    with pytest.raises(ValueError, match=r"domain 'law': expected one of math, code, puzzle, science"):
        PromptedDecomposer(scripted(), domain="law")
