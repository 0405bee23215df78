"""Rollouts as the page shows them: columns for the table, and for each rollout what its detail view needs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlkd.answers import number
from rlkd.gsrm.alignment import BranchScore
from rlkd.gsrm.calculations import calculation
from rlkd.report.records import STATUSES, RunRecords
from rlkd.report.terminal import arithmetic, step_pairs
from rlkd.steps import calculations
from rlkd.structure import Step

# The keys of `BranchScore.to_dict`.
_OF_STRUCTURE = {"student", "teacher", "alignment", "steps", "divisor", "verdicts", "matches", "branch"}


def rollout_table(runs: Sequence[RunRecords]) -> dict[str, Any]:
    """The columns of all rollouts, which the page sorts, filters and searches.

    `prompts`: each distinct prompt once, as [role, text] per message; `prompt` has their indices. `group`: number of
    the group of each rollout. `numbers`: columns of numbers (null where there is none), by name; `statuses`: indices
    into `STATUSES` for each reward. `wrong`: number of wrong calculations in the completion.
    """
    prompts: dict[str, int] = {}
    messages: list[list[list[str]]] = []
    groups: dict[tuple[int, int, Any], int] = {}
    table: dict[str, Any] = {
        name: [] for name in ("run", "step", "group", "id", "prompt", "completion", "answer", "policy", "wrong")
    }
    shown = [(index, rollout) for index, run in enumerate(runs) for rollout in run.rollouts]
    rewards = list(dict.fromkeys(name for _, rollout in shown for name in rollout.get("rewards", {})))
    numbers: dict[str, list[float | None]] = {}
    statuses: dict[str, list[int | None]] = {name: [] for name in rewards}
    for row, (run, rollout) in enumerate(shown):
        prompt = rollout.get("prompt")
        key = repr(prompt)
        if key not in prompts:
            prompts[key] = len(messages)
            messages.append(_messages(prompt))
        id_ = rollout.get("id")
        table["run"].append(run)
        table["step"].append(rollout["step"])
        table["group"].append(groups.setdefault((run, rollout["step"], key if id_ is None else str(id_)), len(groups)))
        table["id"].append("" if id_ is None else str(id_))
        table["prompt"].append(prompts[key])
        table["completion"].append(rollout["completion"])
        table["answer"].append(None if rollout.get("answer") is None else str(rollout["answer"]))
        table["policy"].append(rollout.get("policy"))
        table["wrong"].append(sum(check["right"] is False for check in _checks(rollout["completion"])))
        for name in rewards:
            outcome = rollout.get("rewards", {}).get(name)
            statuses[name].append(None if outcome is None else STATUSES.index(outcome["status"]))
        for name, value in _numbers(rollout, rewards).items():
            numbers.setdefault(name, [None] * len(shown))[row] = value
    return {**table, "prompts": messages, "numbers": numbers, "statuses": statuses, "rewards": rewards}


def rollout_details(runs: Sequence[RunRecords]) -> list[dict[str, Any]]:
    """What the detail view of each rollout shows besides the table's columns, in the table's order."""
    return [_detail(rollout) for run in runs for rollout in run.rollouts]


def _messages(prompt: Any) -> list[list[str]]:
    if isinstance(prompt, list):
        return [[str(m.get("role", "")), _text(m.get("content"))] for m in prompt if isinstance(m, Mapping)]
    return [["prompt", _text(prompt)]]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)


def _numbers(rollout: Mapping[str, Any], rewards: Sequence[str]) -> dict[str, float | None]:
    outcomes = rollout.get("rewards", {})
    values = {name: outcomes[name].get("value") for name in rewards if name in outcomes}
    values |= {name: rollout[name] for name in ("score", "advantage") if name in rollout}
    if steps := rollout.get("steps"):
        tokens = sum(step["tokens"] for step in steps)
        margins = [step["margin"] for step in steps if step.get("margin") is not None]
        values["weight"] = sum(step["weight"] * step["tokens"] for step in steps) / max(1, tokens)
        values["least weight"] = min(step["weight"] for step in steps)
        values["margin"] = sum(margins) / len(margins) if margins else None
    return {
        name: float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
        for name, value in values.items()
    }


def _detail(rollout: Mapping[str, Any]) -> dict[str, Any]:
    detail: dict[str, Any] = {"checks": _checks(rollout["completion"])}
    for name, outcome in rollout.get("rewards", {}).items():
        facts = {key: outcome[key] for key in ("cause", "seconds", "reused") if outcome.get(key) is not None}
        found = outcome.get("detail") or {}
        if found.keys() >= _OF_STRUCTURE:
            detail.setdefault("structures", {})[name] = _structure(BranchScore.from_dict(found))
        elif found:
            facts["detail"] = json.dumps(found, ensure_ascii=False)  # may hold NaN, which a browser cannot read
        detail.setdefault("rewards", {})[name] = facts
    if rollout.get("steps"):
        detail["steps"] = rollout["steps"]
    if rollout.get("credit"):
        detail["credit"] = [_credited(rollout["completion"], step) for step in rollout["credit"]]
    return detail


def _credited(completion: str, step: Mapping[str, Any]) -> dict[str, Any]:
    """A step with its credit, and its text where it was found."""
    text = None if step["place"] is None else completion[slice(*step["place"])]
    return {"text": text, **{name: step[name] for name in ("score", "tokens", "credit")}}


def _structure(score: BranchScore) -> dict[str, Any]:
    """A comparison of structures: rows of steps side by side, and the arithmetic of the score."""
    return {
        "alignment": score.alignment,
        "branch": score.branch,
        "value": score.value,
        "pairs": [
            {
                "label": pair.label,
                "student": _step(pair.student),
                "teacher": _step(pair.teacher),
                "verdict": pair.verdict,
                "points": pair.points,
            }
            for pair in step_pairs(score)
        ],
        "arithmetic": arithmetic(score),
    }


def _step(step: Step | None) -> dict[str, Any] | None:
    if step is None:
        return None
    shown: dict[str, Any] = {"meta": step.meta, "question": step.question, "answer": step.answer}
    if step.question and step.answer and (check := _check(step.question, step.answer)) is not None:
        shown["check"] = check
    return shown


@lru_cache(maxsize=4096)
def _checks(text: str) -> list[dict[str, Any]]:
    """The calculations with a result in a text, each checked."""
    return [check for _, question, answer in calculations(text) if (check := _check(question, answer)) is not None]


@lru_cache(maxsize=65536)
def _check(question: str, answer: str) -> dict[str, Any] | None:
    """Whether a calculation has the result that it is said to have; None for one that cannot be read, or is too large.

    A result with decimals may be rounded.

    >>> _check("10 / 4", "2.6"), _check("10 / 3", "3.33")["right"]
    ({'text': '10 / 4 = 2.6', 'right': False, 'value': '2.5'}, True)
    """
    calculated, said = calculation(question), number(answer)
    if calculated is None or said is None:
        return None
    decimals = re.search(r"\.(\d+)", answer)
    tolerance = 0.5 / 10 ** len(decimals[1]) if decimals else 0.0
    try:
        value, difference = float(calculated.value), abs(float(calculated.value - said))
    except OverflowError:
        return None
    right = difference <= tolerance * (1 + 1e-9)
    return {"text": f"{question} = {answer}", "right": right, "value": f"{value:.6g}"}
