"""The contract of a bank entry."""

import doctest
from dataclasses import replace

import pytest

from rlkd.rationales.bank import entries
from rlkd.rationales.bank.entries import RouteEntry, path_violations, proper_names, violations

ENTRY = RouteEntry("q1", "How much is it?", "cost", ("compute total cost",), 1, 2, ("AddPrices", "ApplyTax"), True)


def test_the_examples_of_the_module_are_true():
    assert doctest.testmod(entries).failed == 0


@pytest.mark.parametrize(
    ("difficulty", "budget", "steps", "expected"),
    [
        (1, 2, 1, []),
        (1, 2, 2, []),
        (2, 3, 3, []),
        (3, 3, 1, []),
        (1, 3, 2, ["difficulty 1 with a budget of 3"]),
        (2, 2, 2, ["difficulty 2 with a budget of 2"]),
        (3, 2, 2, ["difficulty 3 with a budget of 2"]),
        (0, 2, 1, ["difficulty 0, expected 1, 2 or 3"]),
        (4, 3, 1, ["difficulty 4, expected 1, 2 or 3"]),
        (1, 2, 3, ["3 steps with a budget of 2"]),
        (2, 3, 4, ["4 steps with a budget of 3", "4 steps, expected 1 to 3"]),
        (2, 3, 0, ["0 steps, expected 1 to 3"]),
    ],
)
def test_the_contract_of_difficulty_and_budget(difficulty, budget, steps, expected):
    path = ("AddUp", "TakeAway", "ShareOut", "RoundOff")[:steps]
    assert violations(RouteEntry("q", "", "cost", ("add",), difficulty, budget, path)) == expected


def test_in_the_guided_round_the_budget_is_the_one_that_was_given():
    given_one = RouteEntry("q", "", "cost", ("add",), 1, 1, ("AddUp",))
    assert violations(given_one) == ["difficulty 1 with a budget of 1"]
    assert violations(given_one, offered_budget=1) == []
    assert violations(given_one, offered_budget=2) == ["budget 1, though 2 was given"]
    longer = replace(given_one, path=("AddUp", "TakeAway"))
    assert violations(longer, offered_budget=1) == ["2 steps with a budget of 1"]


def test_a_route_without_category_or_intent_breaks_the_contract():
    assert violations(replace(ENTRY, category=" ")) == ["no category or no intent"]
    assert violations(replace(ENTRY, intents=())) == ["no category or no intent"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("ComputeTotal", "FindGCD", "SolveForX"), []),
        (("computeTotal",), ["'computeTotal' is not TitleCase in letters only"]),
        (("Compute Total",), ["'Compute Total' is not TitleCase in letters only"]),
        (("Add48Clips",), ["'Add48Clips' is not TitleCase in letters only"]),
        (("Add_Up",), ["'Add_Up' is not TitleCase in letters only"]),
        (("StepOne", "AddUp"), ["'StepOne' does not say what is done"]),
        (("Step",), ["'Step' does not say what is done"]),
        (("FinalStep",), ["'FinalStep' does not say what is done"]),
        (("StepFive",), ["'StepFive' does not say what is done"]),
        (("StepOneAdd",), ["'StepOneAdd' does not say what is done"]),
        (("PartBAdd",), ["'PartBAdd' does not say what is done"]),
        (("One", "NextLast"), ["'One' does not say what is done", "'NextLast' does not say what is done"]),
        (("STEPTWO",), ["'STEPTWO' does not say what is done"]),
        (("StepwiseAdd", "AddTwoParts", "TakeThird"), []),
        (("StageActors", "PartyTotal", "FirstAddAll"), []),
        (("AddUp", "AddUp"), ["a step's name stands twice"]),
        (("Add", "ADD"), ["a step's name stands twice"]),
        (("CountNataliasClips",), ["'CountNataliasClips' names Natalia"]),
        (("CountNataliaClips",), ["'CountNataliaClips' names Natalia"]),
        (("CompareMonths", "AddMay"), ["'AddMay' names May"]),
        (("HalveAmount",), []),
    ],
)
def test_names_of_steps_suit_other_questions_too(path, expected):
    question = "Natalia sold clips to 48 friends in April. Halve of that in May. How many? Compute the total."
    assert path_violations(path, question) == expected


def test_names_in_a_question_are_found_and_beginnings_of_sentences_are_not():
    question = "If Ann's dog Rex eats 2 kg a day, how much? The Rex of tomorrow eats more. Find it. Élise asks."
    assert proper_names(question) == ["Ann", "Rex", "Élise"]
    assert proper_names("How many are left? What is 2 + 2?") == []
    assert proper_names("") == []
