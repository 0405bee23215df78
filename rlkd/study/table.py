"""The table of a study in Markdown, ready for a page: the question, the comparisons, all arms, what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlkd.statistics import Interval
from rlkd.study.analysis import AnswerFigures, ArmFigures, Comparison, StudyFigures
from rlkd.study.definition import FIGURES, Study
from rlkd.study.measures import StudyRun

NONE = "-"
NO_GOAL = "the interval of the control's gain contains 0"


def render(
    study: Study, runs: Sequence[StudyRun], figures: StudyFigures, command: str, missing: Mapping[str, Sequence[int]]
) -> str:
    """The Markdown. `missing`: seeds without a finished run, by arm."""
    unit = "steps" if runs[0].counts_steps else "rollouts"
    smoke = ["**A smoke test: these figures mean nothing.**", ""] if study.smoke else []
    lines = [f"## {study.title}", "", study.question, "", *smoke, "```bash", command, "```", "", _size(runs, unit), ""]
    lines += _missing(missing)
    lines += _few_seeds(figures)
    lines += _primary(study, figures, unit)
    lines += ["All arms; 95 % intervals over seeds and rows, which are crossed; not adjusted for their number:", ""]
    if any(arm.sampled for arm in figures.arms.values()):
        answers = {name: arm.sampled for name, arm in figures.arms.items() if arm.sampled}
        lines += [*_accuracies("sampled", study, figures, answers), ""]
    lines += [*_accuracies("greedy", study, figures, {name: arm.greedy for name, arm in figures.arms.items()}), ""]
    lines += [*_training(study, figures, unit), ""]
    return "\n".join(lines)


def _size(runs: Sequence[StudyRun], unit: str) -> str:
    arms, seeds = len({run.arm for run in runs}), sorted({run.seed for run in runs})
    rows = max(len(run.greedy.after) for run in runs)
    counts = [run.rollouts for run in runs]
    trained = " to ".join(f"{count:,.0f}" for count in sorted({min(counts), max(counts)}))
    return (
        f"{len(runs)} runs: {arms} arms, seeds {', '.join(map(str, seeds))}; {rows} held-out rows; "
        f"{trained} {unit} a run."
    )


def _missing(missing: Mapping[str, Sequence[int]]) -> list[str]:
    gone = [f"`{arm}` {', '.join(map(str, seeds))}" for arm, seeds in missing.items() if seeds]
    return [f"**Not finished, and so not in these figures** (arm and seeds): {'; '.join(gone)}.", ""] if gone else []


def _few_seeds(figures: StudyFigures) -> list[str]:
    """What one to three seeds do to the intervals; quantiles are those of 1, 2 and 7 degrees of freedom."""
    fewest = min(len(arm.seeds) for arm in figures.arms.values())
    if fewest == 1:
        return ["**One seed**: these intervals are over rows only, and do not cover other seeds.", ""]
    if fewest in (2, 3):
        return [
            f"**{fewest} seeds only**: an interval has up to {12.7 if fewest == 2 else 4.3} standard errors on each "
            "side (Student's quantile; 2.4 with eight seeds). Wide intervals here say that seeds are few. They end "
            "where a share or a difference of shares must.",
            "",
        ]
    return []


def _primary(study: Study, figures: StudyFigures, unit: str) -> list[str]:
    count = len(figures.comparisons)
    lines = [
        f"Primary, fixed before the first run, paired by seed and row: {count} comparison{'s' * (count != 1)}; p is "
        f"adjusted (Holm) for the {count // len(study.primary)} of a figure.",
        "",
        "| figure | arm | against | difference or ratio | p | p, adjusted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_comparison(comparison) for comparison in figures.comparisons]
    lines += ["", *(f"- `{name}`: {FIGURES[name].replace('rollouts', unit)}." for name in study.primary)]
    if "rollouts_to_goal" in study.primary:
        lines[-1] = (
            f"{lines[-1][:-1]}, {_goal(figures)}. A ratio of 0.5 means half as many {unit}; ∞: this arm never reached "
            "the goal; 0: the other arm never did."
        )
    return [*lines, ""]


def _goal(figures: StudyFigures) -> str:
    if figures.goal is None:
        return f"which has no value here: {NO_GOAL}"
    return f"here {figures.goal:.1%}"


def _comparison(comparison: Comparison) -> str:
    shown = _ratio if comparison.figure == "rollouts_to_goal" else _signed
    cells = (
        *(comparison.figure, comparison.arm, comparison.base),
        shown(comparison.difference),
        *map(_p, (comparison.p, comparison.p_holm)),
    )
    return f"| {' | '.join(cells)} |"


def _accuracies(kind: str, study: Study, figures: StudyFigures, answers: Mapping[str, AnswerFigures]) -> list[str]:
    lines = [
        f"| {kind} accuracy | seeds | before | after | gain | after, minus `{study.control}` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, found in answers.items():
        cells = (
            arm,
            str(len(figures.arms[arm].seeds)),
            _share(found.before),
            _share(found.after),
            _signed(found.gain),
        )
        lines.append(f"| {' | '.join([*cells, _signed(found.over_control)])} |")
    return lines


def _training(study: Study, figures: StudyFigures, unit: str) -> list[str]:
    lines = [
        f"| arm | {unit} to the goal, by seed | ratio to `{study.control}` | calculations | tokens | zero-std groups "
        "| minutes a run |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, found in figures.arms.items():
        cells = (
            *(arm, _needed(found), _ratio(found.rollouts.ratio) if found.rollouts else NONE),
            *(_number(found.calculations, ".2f"), _number(found.tokens, ".1f"), _number(found.zero_std, ".0%")),
            _number(found.minutes, ".1f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    why = NO_GOAL if study.control in figures.arms else "no run of the control has finished"
    no_goal = f"There is no goal, so {unit} to it are `{NONE}`: {why}. " if figures.goal is None else ""
    return [*lines, "", f"{no_goal}Calculations and tokens are those of an answer to a held-out row after training."]


def _needed(arm: ArmFigures) -> str:
    """`320, 510, never; 2 of 3 reach it`."""
    if arm.rollouts is None:
        return NONE
    needed = arm.rollouts.needed.values()
    reached = sum(value is not None for value in needed)
    if not reached:
        return f"none of {len(needed)} reaches it"
    listed = ", ".join("never" if value is None else f"{value:,.0f}" for value in needed)
    return listed if reached == len(needed) else f"{listed}; {reached} of {len(needed)} reach it"


def _share(interval: Interval | None) -> str:
    return NONE if interval is None else interval.short(".1%")


def _signed(interval: Interval | None) -> str:
    return NONE if interval is None else interval.short("+.1%")


def _ratio(interval: Interval | None) -> str:
    """A ratio, which is infinite where runs never reach the goal: `1.40 (1.10 to ∞)`."""
    if interval is None:
        return NONE
    value, low, high = (
        "∞" if math.isinf(x) else f"{x:.2f}" if x else "0" for x in (interval.value, interval.low, interval.high)
    )
    if interval.low == 0 and math.isinf(interval.high):
        return f"{value} (no interval, {interval.n} seeds)"
    return f"{value} ({low} to {high})"


def _p(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None, spec: str) -> str:
    return NONE if value is None else f"{value:{spec}}"
