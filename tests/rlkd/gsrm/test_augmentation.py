import random
import re
from collections import Counter

import pytest

from rlkd.data.samples import sample_rows
from rlkd.gsrm.augmentation import (
    LAYOUTS,
    SWAPPED,
    TRUNCATED,
    WRONG_NUMBER,
    Sentence,
    augmented,
    training_pairs,
)
from rlkd.gsrm.calculations import canonical_calculation
from rlkd.gsrm.lines import parse_lines
from rlkd.gsrm.prompts import fine_tuned_request
from rlkd.structure import Step

ROWS = sample_rows("gsrm")
PAIRS = training_pairs(ROWS, copies=4, seed=7)
NUMBER = re.compile(r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?|\.\d+")


def numbers(text: str) -> set[float]:
    return {float(found.replace(",", "")) for found in NUMBER.findall(text)}


def trace_of(pair) -> str:
    return pair["prompt"][1]["content"].partition("\n\nReasoning: ")[2]


def structure_of(pair):
    return parse_lines(pair["completion"][0]["content"])


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("48/2", "48/2"),
        ("14 pieces/house * 60 houses", "14*60"),
        ("9 eggs x $2", "9*2"),
        ("$1,200 - $300", "1200-300"),
        ("2 x 4 x 5", "2*4*5"),
        ("12 \\times 3", "12*3"),
        ("1/2 of 30", "1/2*30"),
        ("20% * 50", "20%*50"),
        ("6x+25", "6x+25"),
        ("x + 5", "x + 5"),
        ("the larger of 3 and 4", "the larger of 3 and 4"),
        ("8-hour shifts * 5", "8*5"),
        ("4 - -3", "4 - -3"),
        ("\\frac{24}{2}", "24/2"),
        ("(5+3", "5+3"),
        (None, None),
    ],
)
def test_the_same_calculation_reads_the_same_however_it_is_written(written, canonical) -> None:
    assert canonical_calculation(written) == canonical


def test_pairs_are_the_same_for_a_seed_and_differ_between_copies_and_seeds() -> None:
    assert training_pairs(ROWS[:40], copies=2, seed=7) == training_pairs(ROWS[:40], copies=2, seed=7)
    assert training_pairs(ROWS[:40], copies=2, seed=7) != training_pairs(ROWS[:40], copies=2, seed=8)
    traces = {}
    for pair in PAIRS:
        traces.setdefault(pair["id"].rpartition("/")[0], set()).add(trace_of(pair))
    assert len(traces) == len(ROWS)
    assert sum(len(variants) >= 3 for variants in traces.values()) > 0.95 * len(ROWS)


def test_every_pair_asks_about_one_row_and_answers_with_steps() -> None:
    questions = {row["id"]: row["question"] for row in ROWS}
    for pair in PAIRS:
        assert pair["prompt"] == fine_tuned_request(questions[pair["id"].rpartition("/")[0]], trace_of(pair))
        assert len(structure_of(pair)) >= 1


def test_no_row_of_the_half_for_reinforcement_learning_or_of_the_test_set_is_among_them() -> None:
    others = {row["question"].strip() for part in ("rl", "test") for row in sample_rows(part)}
    asked = {pair["prompt"][1]["content"].partition("\n\nReasoning: ")[0].removeprefix("Problem: ") for pair in PAIRS}
    assert not asked & others


def test_the_fields_of_a_structure_are_in_its_trace() -> None:
    foreign = 0
    for pair in PAIRS:
        shown = numbers(trace_of(pair))
        foreign += any(not numbers(step.answer or "") <= shown for step in structure_of(pair))
    # A solution of the data rounds a result silently now and then.
    assert foreign < 0.02 * len(PAIRS)


def test_layouts_and_changes_come_about_as_often_as_they_say() -> None:
    variants = [pair["variant"] for pair in PAIRS]
    layouts = Counter(variant.removeprefix("swapped ").split(" + ")[0] for variant in variants)
    for name, share in LAYOUTS.items():
        assert layouts[name] / len(variants) == pytest.approx(share, abs=0.04)
    assert sum("swapped" in variant for variant in variants) / len(variants) == pytest.approx(SWAPPED, abs=0.02)
    # Some of these find nothing to change.
    assert 0.7 * WRONG_NUMBER < sum("wrong" in variant for variant in variants) / len(variants) <= 1.1 * WRONG_NUMBER
    assert 0.7 * TRUNCATED < sum("truncated" in variant for variant in variants) / len(variants) <= 1.1 * TRUNCATED


def test_a_paragraph_holds_no_line_break_before_its_answer() -> None:
    paragraphs = [pair for pair in PAIRS if pair["variant"] == "paragraph"]
    assert len(paragraphs) > 100
    for pair in paragraphs:
        body = re.split(r"\n(?:####|A:|The final|\\boxed)", trace_of(pair))[0]
        assert "\n" not in body


def solution() -> list[Sentence]:
    return [
        Sentence("She sold 48/2 = 24 clips in May.", Step("How many in May?", "48/2", "24")),
        Sentence("In all she sold 48+24 = 72 clips.", Step("How many in all?", "48+24", "72")),
        Sentence("She has 100-72 = 28 left.", Step("How many are left?", "100-72", "28")),
    ]


def test_a_wrong_number_is_wrong_in_trace_and_structure_alike() -> None:
    seen = 0
    for seed in range(400):
        trace, structure, variant = augmented(solution(), "?", "28", random.Random(seed))
        if variant not in ("lines + wrong number", "paragraph + wrong number"):
            continue
        seen += 1
        right = {(s.step.question, s.step.answer) for s in solution()}
        found = {(step.question, step.answer) for step in structure}
        assert found != right
        for step in structure:
            assert f"{step.question} = {step.answer}".replace(" ", "") in trace.replace(" ", "").replace("×", "*")
    assert seen > 20


def test_merged_steps_hold_the_calculation_of_both() -> None:
    merged = [augmented(solution(), "?", None, random.Random(seed)) for seed in range(400)]
    merged = [
        (trace, structure)
        for trace, structure, variant in merged
        if variant in ("lines + merged", "paragraph + merged")
    ]
    assert merged
    for trace, structure in merged:
        assert len(structure) == 2
        calculations = {step.question for step in structure}
        assert calculations in ({"48+(48/2)", "100-72"}, {"48/2", "100-(48+24)"})
        assert not {"24", "72"} & {step.answer for step in structure} or len(numbers(trace)) < 8


def test_a_truncated_trace_has_only_complete_steps() -> None:
    cut = [augmented(solution(), "?", "28", random.Random(seed)) for seed in range(600)]
    cut = [
        (trace, structure)
        for trace, structure, variant in cut
        if variant in ("lines + truncated", "paragraph + truncated")
    ]
    assert cut
    for trace, structure in cut:
        assert 1 <= len(structure) < 3
        assert trace.count("=") == len(structure)
        assert "####" not in trace


def test_a_row_whose_lines_are_not_its_steps_keeps_its_trace() -> None:
    row = {
        "id": "x",
        "question": "How many?",
        "answer": "3",
        "rationales": ["I add 1 and 2 and get 3 <<1+2=3>>.\nSo it is three.\nYes."],
        "structures": [[{"meta": "What is the sum?", "question": "1+2", "answer": "3"}]],
    }
    (pair,) = training_pairs([row], copies=1, seed=0)
    assert trace_of(pair) == "I add 1 and 2 and get 3 .\nSo it is three.\nYes."
    assert pair["completion"][0]["content"] == "What is the sum? | 1+2 | 3"
