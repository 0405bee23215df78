"""Two evaluations, row by row: the flips, the tests, and the refusal of what cannot be compared."""

from pathlib import Path

import pytest

from rlkd.evaluation.comparison import compare_evaluations
from rlkd.evaluation.folder import EvaluationError, FinishedEvaluation, RecordedCompletion, row_record
from rlkd.statistics import mcnemar, paired_shares


def finished(name: str, greedy: str, sampled: list[float], *, prompt: str = "q", **settings) -> FinishedEvaluation:
    """`greedy`: a verdict per row, 1, 0 or ?; `sampled`: the share of right samples of each row."""
    rows = [row_record({"id": f"r{i}", "answer": "2"}, f"{prompt} {i}") for i in range(len(greedy))]
    completions = {}
    for i, verdict in enumerate(greedy):
        outcome = {"status": "not_applicable"} if verdict == "?" else {"status": "score", "value": float(verdict)}
        own = {0: RecordedCompletion(f"r{i}", 0, "text", 1, True, verdict, {"accuracy": outcome})}
        for number in range(1, 5):
            value = float(number <= 4 * sampled[i])
            own[number] = RecordedCompletion(
                f"r{i}", number, "t", 1, True, "2", {"accuracy": {"status": "score", "value": value}}
            )
        completions[f"r{i}"] = own
    results = {"samples": 4, "greedy": {}, "metrics": {"accuracy": {}}}
    return FinishedEvaluation(Path(name), {"model": name, **settings}, rows, results, completions)


A = finished("a", "00110?", [0.0, 0.25, 0.5, 1.0, 0.0, 1.0], temperature=1.0)
B = finished("b", "11101?", [0.5, 0.5, 0.5, 1.0, 0.25, 1.0], temperature=0.7)


def test_the_greedy_difference_has_mcnemars_test_and_counts_rows_that_both_judge() -> None:
    found = compare_evaluations(A, B)
    greedy, sampled = found.figures
    assert (greedy.name, greedy.first, greedy.second) == ("greedy accuracy", 0.4, 0.8)
    assert (greedy.change, greedy.p) == (paired_shares(3, 1, 5), mcnemar(3, 1))
    assert sampled.change.value == pytest.approx(1.0 / 6)
    assert sampled.p == 2 / 8  # three rows differ, all in one direction
    assert [(flip.id, flip.gained) for flip in found.flips] == [
        ("r0", True),
        ("r1", True),
        ("r3", False),
        ("r4", True),
    ]
    assert found.settings == {"model": ("a", "b"), "temperature": (1.0, 0.7)}
    assert found.to_dict()["flips"][0]["question"] == "q 0"


def test_answers_that_were_compared_in_another_way_are_named() -> None:
    exact, choice = (
        FinishedEvaluation(A.path, A.settings, A.rows, A.results | {"answers": kind}, A.completions)
        for kind in ("exact", "choice")
    )
    assert compare_evaluations(exact, choice).settings == {"answers": ("exact", "choice")}


def test_an_evaluation_and_itself_differ_in_nothing_and_the_intervals_are_not_empty() -> None:
    found = compare_evaluations(A, A)
    assert not found.flips
    for each in found.figures:
        assert each.p == 1
        assert each.change.value == 0
        assert each.change.low < 0 < each.change.high


def test_other_prompts_and_rows_are_refused_with_the_setting_that_differs() -> None:
    other = finished("c", "000000", [0.0] * 6, prompt="Q", system_prompt="Be brief.")
    with pytest.raises(EvaluationError, match=r"row 'r0' has another prompt.*system_prompt differ"):
        compare_evaluations(A, other)
    with pytest.raises(EvaluationError, match="row 'r5' is there only"):
        compare_evaluations(A, finished("d", "00000", [0.0] * 5))


def test_evaluations_without_a_common_figure_are_refused() -> None:
    bare = FinishedEvaluation(A.path, A.settings, A.rows, {"samples": 0, "metrics": {"length": {}}}, A.completions)
    with pytest.raises(EvaluationError, match="no figure in common"):
        compare_evaluations(A, bare)
