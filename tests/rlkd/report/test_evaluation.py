"""The tables of an evaluation say what the figures say, and nothing in a text is taken for markup."""

import io

from rich.console import Console

from rlkd.evaluation.comparison import compare_evaluations
from rlkd.evaluation.contamination import Contamination, Overlap
from rlkd.evaluation.summary import summarise
from rlkd.report.evaluation import PAIRS_SHOWN, render_comparison, render_contamination, render_results
from tests.rlkd.evaluation.test_comparison import A, B
from tests.rlkd.evaluation.test_summary import FAILED, RIGHT, WRONG, evaluation


def shown(renderable) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_table_has_greedy_and_sampled_figures_side_by_side_and_failures_below() -> None:
    found = summarise(
        ["r0", "r1"],
        evaluation(
            [("7", RIGHT), ("7", RIGHT), ("8", WRONG), ("7", RIGHT)],
            [("7", FAILED), ("8", WRONG), ("8", WRONG), ("7", RIGHT)],
        ),
        samples=3,
    )
    text = shown(render_results(found))
    lines = {line.split("│")[1].strip(): line.split("│")[2:] for line in text.splitlines() if line.count("│") > 2}
    assert lines["accuracy (sampled: avg@3)"][0].strip().startswith("100.0% (")
    assert lines["accuracy (sampled: avg@3)"][1].strip().startswith("50.0% (")
    assert lines["pass@2"][0].strip() == ""
    assert lines["pass@2"][1].strip().startswith("83.3% (")
    assert lines["maj@3"][1].strip().startswith("50.0% (")
    assert "accuracy: failed 1 x no server" in text


def test_a_comparison_shows_the_change_its_test_and_some_rows_that_flipped() -> None:
    text = shown(render_comparison(compare_evaluations(A, B), flips=2))
    assert "McNemar, exact" in text
    assert "temperature differs: 1.0 in A, 0.7 in B" in text
    assert "3 rows are right in B only, 1 in A only" in text
    assert "r1" in text
    assert "r3" not in text


def test_contamination_shows_the_share_and_the_first_pairs() -> None:
    pairs = [Overlap(f"t{i}", "a", 0.5, "[bold]words[/bold] in common") for i in range(PAIRS_SHOWN + 2)]
    text = shown(render_contamination(Contamination("train.jsonl", 48, 9, pairs)))
    assert "12 of 48 test questions (25.0%) overlap with train.jsonl (9 rows)" in text
    assert "[bold]words[/bold]" in text
    assert "and 2 more pairs" in text
    assert "0 of 5 test questions overlap" in shown(render_contamination(Contamination("t", 5, 9, [])))
