"""Rewards tried on real rows: on a row's own rationale, and on that of another row.

A right solution should earn more than a wrong one. A reward that gives right solutions 0 reads another form of answer
than the data have, or another column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from rewards import Reward
from rewards.metrics import scored_completions
from rlkd.evaluation.folder import RecordedCompletion
from rlkd.rendering import text_ids
from rlkd.teachers.traces import trace_text
from trainers.common.think_tags import opens_thought
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.rows import spread

ROWS = 32
# For rewards that send requests to a server: it may be slow, or charge each request.
SERVER_ROWS = 2


@dataclass(frozen=True)
class RewardTrial:
    """Scores of right solutions and of those of other rows; None for a failure or a reward that does not apply."""

    name: str
    right: Sequence[float | None]
    other: Sequence[float | None]
    causes: Sequence[str] = ()

    def line(self) -> str:
        """The figures of a reward as a line."""
        parts = [
            f"right solution {_mean(self.right)} (0 for {_zeros(self.right)} of {len(self.right)})",
            f"another row's {_mean(self.other)}",
        ]
        if missing := sum(value is None for value in (*self.right, *self.other)):
            why = f", such as: {self.causes[0]}" if self.causes else " (not applicable)"
            parts.append(f"{missing} without a score{why}")
        return "; ".join(parts)

    def warning(self) -> str | None:
        """What is wrong with the reward on these rows, if anything."""
        scores, others = _known(self.right), _known(self.other)
        if not scores:
            return f"reward {self.name!r} gives no score to any of {len(self.right)} right solutions"
        if 2 * _zeros(self.right) > len(scores):
            return (
                f"reward {self.name!r} gives 0 to {_zeros(self.right)} of {len(scores)} right solutions (the rows' "
                f"own rationales): a student that solves a question as its teacher does would earn nothing. "
                f"Compare the form of the rationales with what the reward reads (rlkd rewards test shows scores)"
            )
        if self.name == "accuracy" and others and fmean(others) >= fmean(scores):
            return f"reward {self.name!r} gives the solutions of other rows as much as the right ones"
        return None


def show_scores(
    run: DryRun,
    rewards: Sequence[Any],
    dataset: Any,
    tokenizer: Any,
    template: Mapping[str, Any] | None = None,
    *,
    has_probe: bool = True,
) -> None:
    """Try the rewards and print what each gives.

    Rewards that load a model or send requests to a server are tried with the mode `probe` only, where nothing is
    refused. `has_probe`: whether the recipe has this mode.
    """
    run.section("rewards")
    if not rewards:
        run.line("", "not tried, since they are refused (below)")
        return
    usable = [reward for reward in rewards if isinstance(reward, Reward)]
    for reward in rewards:
        if not isinstance(reward, Reward):
            run.line(str(reward).rpartition("/")[2], "a reward model, which is not loaded here")
        elif (cost := _cost(reward)) is not None and (run.mode != "probe" or run.messages):
            when = f"tried by {'--dry_run probe' if has_probe else 'rlkd rewards test'}"
            refused = "not tried, since the run is refused (below)"
            run.line(reward.__name__, f"{cost}: {refused if run.mode == 'probe' else when}")
            usable.remove(reward)
    rows = [] if dataset is None else solved_rows(dataset)
    if not rows:
        run.line("", "no row has a rationale or an answer to try them on")
        return
    encode = None if tokenizer is None else partial(text_ids, tokenizer, special=False)
    opened = tokenizer is not None and opens_thought(tokenizer, rows[0]["prompt"], template)
    written = sum(bool(row.get("rationales")) for row in rows)
    what = "their rationales" if written else "their gold answers, since they have no rationales"
    run.line("", f"tried on {len(rows)} rows: {what}, and those of other rows")
    for reward in usable:
        with run.catch():
            few = rows[:SERVER_ROWS] if _has(reward, "sends_requests") else rows
            trial = try_reward(reward, few, encode, opened=opened)
            run.line(reward.__name__, trial.line())
            if (message := trial.warning()) is not None:
                run.warn(message)
    for reward in usable:
        reward.close()


def _cost(reward: Reward) -> str | None:
    """What makes it costly to try a reward; None for one that only computes."""
    if _has(reward, "loads_models"):
        uses = getattr(reward.function, "models_in_process", ())
        return f"loads {' and '.join(use.model.model for use in uses) or 'a model'}"
    return "sends requests to a server" if _has(reward, "sends_requests") else None


def _has(reward: Reward, name: str) -> bool:
    """An attribute of a reward's function, whose parameters may be set."""
    function = reward.function.func if isinstance(reward.function, partial) else reward.function
    return bool(getattr(function, name, False))


def solved_rows(dataset: Any, count: int = ROWS) -> list[dict[str, Any]]:
    """Rows with a solution, evenly from the dataset: a rationale, or where no row has one, an answer."""
    # Of a large dataset only some rows are read, since most have a solution.
    rows = [dict(dataset[index]) for index in spread(range(len(dataset)), 8 * count)]
    for name in ("rationales", "answer"):
        having = [row for row in rows if row.get(name) not in (None, [], "")]
        if having:
            return [{"id": f"row {place}", **row} for place, row in enumerate(spread(having, count))]
    return []


def try_reward(
    reward: Reward,
    rows: Sequence[Mapping[str, Any]],
    encode: Callable[[str], list[int]] | None,
    *,
    opened: bool = False,
) -> RewardTrial:
    """Score each row's own solution, and that of the next row whose answer differs; raises `RewardError`."""
    completions = []
    for place, row in enumerate(rows):
        others = (*rows[place + 1 :], *rows[:place])
        other = next((each for each in others if each.get("answer") != row.get("answer")), None)
        for number, source in ((1, row), (2, other)):
            if source is not None:
                text = solution(source, opened=opened)
                completions.append(RecordedCompletion(str(row["id"]), number, text, 0, True))
    by_id = {str(row["id"]): row for row in rows}
    scored = scored_completions([reward], by_id, completions, prefilled=opened, encode=encode)
    found: dict[int, list[float | None]] = {1: [], 2: []}
    causes = []
    for each in scored:
        outcome = each.scores[reward.__name__]
        found[each.sample].append(outcome.get("value") if outcome["status"] == "score" else None)
        if "cause" in outcome:
            causes.append(outcome["cause"])
    return RewardTrial(reward.__name__, found[1], found[2], causes)


def solution(row: Mapping[str, Any], *, opened: bool = False) -> str:
    """A row's solution as a student should write it; after an opened `<think>`, with its end."""
    answer = row.get("answer")
    traces = [text for text in row.get("rationales") or [] if text and text.strip()]
    if opened:  # the prompt has it already
        traces = [text.removeprefix("<think>").lstrip("\n") for text in traces]
    text = trace_text(traces[0], answer) if traces else f"#### {answer}"
    return text if not opened or "</think>" in text else f"{text}\n</think>\n\n{text}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> str:
    known = _known(values)
    return f"{fmean(known):.2f}" if known else "no score"


def _zeros(values: Sequence[float | None]) -> int:
    return sum(value == 0 for value in values)
