"""Two evaluations of the same rows and prompts, compared row by row.

What makes a row hard for both cancels, so a difference is seen on far fewer rows than two intervals need to part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlkd.evaluation.folder import EvaluationError, FinishedEvaluation, RecordedCompletion, different_row
from rlkd.evaluation.summary import ACCURACY, figure, score
from rlkd.series import series_mean
from rlkd.statistics import Interval, mcnemar, paired_shares, sign_flip


@dataclass(frozen=True)
class Flip:
    """A row whose greedy answer is right in one evaluation and wrong in the other."""

    id: str
    question: str
    gold: str | None
    first: str | None
    second: str | None
    gained: bool


@dataclass(frozen=True)
class PairedFigure:
    """A figure of two evaluations on the same rows, its change from the first to the second, the p-value of none."""

    name: str
    first: float
    second: float
    change: Interval
    p: float | None
    test: str = ""


@dataclass(frozen=True)
class EvaluationComparison:
    """The figures of two evaluations, the rows that flipped, and the settings in which they differ."""

    first: str
    second: str
    figures: list[PairedFigure]
    flips: list[Flip]
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = [{**vars(each), "change": figure(each.change)} for each in self.figures]
        flips = [vars(each) for each in self.flips]
        return {"first": self.first, "second": self.second, "figures": figures, "flips": flips} | {
            "settings": {name: list(pair) for name, pair in self.settings.items()}
        }


def compare_evaluations(first: FinishedEvaluation, second: FinishedEvaluation) -> EvaluationComparison:
    """Compare two evaluations.

    Raises `EvaluationError` where rows, gold answers or prompts differ, and where no figure is common.

    Greedy accuracy has McNemar's exact test, every other figure a test that flips the signs of the rows' differences.
    """
    if (differs := different_row(first.rows, second.rows)) is not None:
        raise EvaluationError(
            f"{first.path} and {second.path} are not of the same rows and prompts: {differs}. (There is {first.path}, "
            f"here {second.path}.) Compare evaluations of the same --dataset_name, --eval_rows and system prompt"
            f"{_prompt_settings(first, second)}"
        )
    figures: list[PairedFigure] = []
    flips: list[Flip] = []
    has_greedy = all("greedy" in each.results for each in (first, second))
    has_samples = all(each.results["samples"] for each in (first, second))
    metrics = [name for name in first.results["metrics"] if name in second.results["metrics"]]
    if not metrics or not (has_greedy or has_samples):
        raise EvaluationError(
            f"{first.path} and {second.path} have no figure in common: the one has "
            f"{', '.join(first.results['metrics'])}, the other {', '.join(second.results['metrics'])}"
        )
    for metric in metrics:
        if has_greedy:
            pairs = _pairs(first, second, metric, greedy=True)
            if metric == ACCURACY:
                figures += _greedy_accuracy(pairs)
                flips = _flips(first, second)
            else:
                figures += _signed(f"greedy {metric}", pairs)
        if has_samples:
            figures += _signed(f"sampled {metric}", _pairs(first, second, metric, greedy=False))
    names = dict.fromkeys((*first.settings, *second.settings))
    differ = {
        name: (first.settings.get(name), second.settings.get(name))
        for name in names
        if first.settings.get(name) != second.settings.get(name)
    }
    for name in ("samples", "answers"):
        if first.results.get(name) != second.results.get(name):
            differ[name] = first.results.get(name), second.results.get(name)
    return EvaluationComparison(str(first.path), str(second.path), figures, flips, differ)


def _prompt_settings(first: FinishedEvaluation, second: FinishedEvaluation) -> str:
    names = ("system_prompt", "few_shot_examples", "chat_template_kwargs")
    differ = [name for name in names if first.settings.get(name) != second.settings.get(name)]
    return f"; here {', '.join(differ)} differ" if differ else ""


def _row_score(completions: dict[int, RecordedCompletion], metric: str, greedy: bool) -> float | None:
    own = [each for number, each in completions.items() if (number == 0) == greedy]
    values = [value for each in own if (value := score(each, metric)) is not None]
    return sum(values) / len(values) if values else None


def _pairs(
    first: FinishedEvaluation, second: FinishedEvaluation, metric: str, *, greedy: bool
) -> list[tuple[float, float]]:
    """The scores of each row in both, without rows that lack one."""
    found = []
    for row in first.rows:
        one, other = (_row_score(dict(each.completions[row["id"]]), metric, greedy) for each in (first, second))
        if one is not None and other is not None:
            found.append((one, other))
    return found


def _greedy_accuracy(pairs: Sequence[tuple[float, float]]) -> list[PairedFigure]:
    if not pairs:
        return []
    gained = sum(one < other for one, other in pairs)
    lost = sum(one > other for one, other in pairs)
    change = paired_shares(gained, lost, len(pairs))
    return [PairedFigure(f"greedy {ACCURACY}", *_means(pairs), change, mcnemar(gained, lost), "McNemar, exact")]


def _signed(name: str, pairs: Sequence[tuple[float, float]]) -> list[PairedFigure]:
    if not pairs:
        return []
    differences = [other - one for one, other in pairs]
    change = series_mean(differences, block=1, resamples=2000)
    if not any(differences) and name.endswith(ACCURACY):  # an empty interval would claim too much
        change = paired_shares(0, 0, len(pairs))
    return [PairedFigure(name, *_means(pairs), change, sign_flip(differences), "sign flips")]


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    first, second = zip(*pairs, strict=True)
    return sum(first) / len(pairs), sum(second) / len(pairs)


def _flips(first: FinishedEvaluation, second: FinishedEvaluation) -> list[Flip]:
    found = []
    for row in first.rows:
        one, other = (each.completions[row["id"]][0] for each in (first, second))
        before, after = score(one, ACCURACY), score(other, ACCURACY)
        if before is not None and after is not None and before != after:
            found.append(Flip(row["id"], row["question"], row["answer"], one.answer, other.answer, before < after))
    return found
