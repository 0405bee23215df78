"""Notices that a reward rises in training while held-out accuracy falls: the reward is optimised, not the answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlkd.report.held_out import GREEDY, SAMPLED, paired_change
from rlkd.series import trend

FEWEST_STEPS = 20
"""Logged steps below which no trend is looked for (our choice)."""


def rising_rewards(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rewards whose mean rises over the logged steps, with an interval of the slope above 0; not `accuracy`."""
    names = sorted({key for logs in history for key in logs if key.startswith("rewards/") and key.endswith("/mean")})
    rising = []
    for key in names:
        values = [logs[key] for logs in history if key in logs and math.isfinite(logs[key])]
        name = key.removeprefix("rewards/").removesuffix("/mean")
        if name != "accuracy" and len(values) >= FEWEST_STEPS and trend(values).low > 0:
            rising.append(name)
    return rising


def overoptimisation(evaluations: Sequence[Mapping[str, Any]], history: Sequence[Mapping[str, Any]]) -> str:
    """What the log says where held-out accuracy has fallen since the first evaluation and a reward has risen; else "".

    `evaluations`: the records of `eval.jsonl`; `history`: the metrics of the logged steps. A fall counts if its 95 %
    interval, paired by row, lies below 0: of the sampled answers where there are some, else of the greedy ones.
    """
    if len(evaluations) < 2:
        return ""
    first, last = evaluations[0], evaluations[-1]
    change = paired_change(first, last, SAMPLED if "sampled" in first and "sampled" in last else GREEDY)
    if change is None or change.high >= 0 or not (rising := rising_rewards(history)):
        return ""
    names = " and ".join(repr(name) for name in rising)
    return (
        f"held-out accuracy has changed by {change:+.1%} since step {first['step']}, while {names} rose in training: "
        f"what is rewarded is not what is measured. Ways out: the checkpoint of an earlier step; a smaller weight "
        f"(reward_weights), or reward_gates: {{{rising[0]}: accuracy}}, which pays only where the answer is right; a "
        f"lower learning_rate; beta above 0"
    )
