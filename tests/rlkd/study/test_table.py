from dataclasses import replace

import pytest

from rlkd.study.analysis import analyse
from rlkd.study.definition import Stage, Study
from rlkd.study.table import render
from tests.helpers.study_runs import made_up

STAGE = [Stage("rlkd", "rlkd", None, {}, {})]


def table(runs: list, **missing: list[int]) -> list[str]:
    arms = dict.fromkeys(("plain", "fast", "slow"), STAGE)
    pairs = [("fast", "plain"), ("slow", "plain")]
    primary = ["sampled_accuracy", "rollouts_to_goal"]
    study = Study("s", "A title", "Does it help?", arms, "plain", [1, 2], primary, pairs)
    figures = analyse(runs, "plain", primary, pairs)
    return render(study, runs, figures, "rlkd study s --out o", missing).splitlines()


@pytest.fixture
def runs() -> list:
    curves = {"plain": (0.2, 0.3, 0.4), "fast": (0.2, 0.4, 0.44), "slow": (0.2, 0.2, 0.25)}
    return [made_up(arm, seed, *points) for arm, points in curves.items() for seed in range(1, 9)]


def test_the_table_says_what_was_asked_and_what_made_it(runs) -> None:
    lines = table(runs)
    assert lines[:3] == ["## A title", "", "Does it help?"]
    assert "rlkd study s --out o" in lines
    assert "24 runs: 3 arms, seeds 1, 2, 3, 4, 5, 6, 7, 8; 40 held-out rows; 1,280 rollouts a run." in lines
    assert not any("Not finished" in line or "smoke" in line for line in lines)


def test_primary_figures_come_first_with_adjusted_p_values(runs) -> None:
    lines = table(runs)
    assert any("4 comparisons; p is adjusted (Holm) for the 2 of a figure." in line for line in lines)
    assert "| sampled_accuracy | fast | plain | +4.0% (+4.0% to +4.0%) | < 0.001 | < 0.001 |" in lines
    assert "| rollouts_to_goal | fast | plain | 0.50 (0.50 to 0.50) | 0.008 | 0.016 |" in lines
    assert "| rollouts_to_goal | slow | plain | ∞ (∞ to ∞) | 0.008 | 0.016 |" in lines
    (goal,) = (line for line in lines if line.startswith("- `rollouts_to_goal`"))
    assert "here 30.0%. A ratio of 0.5 means half as many rollouts; ∞: this arm never reached the goal; 0: the" in goal


def test_a_run_that_never_reaches_the_goal_is_said(runs) -> None:
    assert any("| slow | none of 8 reaches it | ∞ (∞ to ∞) |" in line for line in table(runs))
    assert "| rollouts_to_goal | slow | plain | ∞ (∞ to ∞) | 0.008 | 0.016 |" in table(runs)
    runs[8] = replace(runs[8], sampled=runs[16].sampled)
    assert any("| fast | never, 320, 320, 320, 320, 320, 320, 320; 7 of 8 reach it |" in line for line in table(runs))


def test_few_seeds_have_a_ratio_without_an_interval(runs) -> None:
    lines = table([run for run in runs if run.seed < 4])
    assert any("| rollouts_to_goal | fast | plain | 0.50 (no interval, 3 seeds) | 0.250 |" in line for line in lines)


def test_missing_runs_and_a_missing_goal_are_said(runs) -> None:
    lines = table([run for run in runs if run.arm != "fast"], plain=[], fast=[1, 2])
    assert "**Not finished, and so not in these figures** (arm and seeds): `fast` 1, 2." in lines
    flat = [made_up(arm, seed, 0.2, 0.2) for arm in ("plain", "fast") for seed in (1, 2)]
    lines = table(flat)
    assert any("no value here: the interval of the control's gain contains 0" in line for line in lines)
    assert "| rollouts_to_goal | fast | plain | - | - | - |" in lines


def test_without_the_control_arms_are_shown_uncompared(runs) -> None:
    lines = table([run for run in runs if run.arm == "fast"], plain=[1])
    assert "| sampled_accuracy | fast | plain | - | - | - |" in lines
    assert any(line.startswith("| fast | 8 | 20.0%") and line.endswith("| - |") for line in lines)


def test_few_seeds_are_said_and_their_intervals_end_where_shares_do(runs) -> None:
    apart = {1: 0.1, 2: 0.9}
    lines = table([made_up(arm, seed, 0.3, apart[seed] / 2) for arm in ("plain", "fast") for seed in apart])
    assert any(line.startswith("**2 seeds only**: an interval has up to 12.7 standard errors") for line in lines)
    # Student's interval alone: 50.0% (-458.2% to 558.2%).
    assert any("| 50.0% (0.0% to 100.0%) | -10.0% (-100.0% to +100.0%) |" in line for line in lines)
    assert any(
        line.startswith("**3 seeds only**: an interval has up to 4.3")
        for line in table([run for run in runs if run.seed < 4])
    )
    assert any(line.startswith("**One seed**") for line in table([run for run in runs if run.seed == 1]))
    assert not any("seeds only" in line or "One seed" in line for line in table(runs))


def test_columns_without_a_goal_are_explained(runs) -> None:
    flat = table([made_up(arm, seed, 0.2, 0.2) for arm in ("plain", "fast") for seed in (1, 2)])
    assert any(line.startswith("There is no goal, so rollouts to it are `-`: the interval of the") for line in flat)
    alone = table([run for run in runs if run.arm == "fast"], plain=[1])
    assert any("`-`: no run of the control has finished." in line for line in alone)
    assert not any("There is no goal" in line for line in table(runs))
