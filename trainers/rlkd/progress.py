"""The line per step of an RLKD run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def step_line(step: int, max_steps: int, logs: Mapping[str, Any]) -> str | None:
    """Each reward's mean, missing rewards, the share of groups without signal, and the share of truncated completions.

    With `teacher_kl` its mean. With vLLM also `ratio`, the mean importance sampling ratio: far below 1, hardly
    anything is learnt.

    >>> logs = {"reward": 0.4, "rewards/accuracy/mean": 0.25, "frac_reward_zero_std": 0.5, "step_time": 9.6}
    >>> step_line(1, 10, logs | {"rewards/accuracy/failed": 0.125, "completions/clipped_ratio": 0.25})
    'step 1/10 | accuracy 0.250 | missing rewards: accuracy 12% failed | zero-std groups 50% | truncated 25% | 10 s'
    """
    if "reward" not in logs:
        return None
    parts, missing = [f"step {step}/{max_steps}"], []
    for name in [key.split("/")[1] for key in logs if key.startswith("rewards/") and key.endswith("/mean")]:
        mean = logs[f"rewards/{name}/mean"]
        parts.append(f"{name} n/a" if mean is None or not math.isfinite(mean) else f"{name} {mean:.3f}")
        shares = {status: logs.get(f"rewards/{name}/{status}", 0.0) for status in ("failed", "not_applicable")}
        listed = [f"{share:.0%} {status.replace('_', ' ')}" for status, share in shares.items() if share]
        if listed:
            missing.append(f"{name} {' and '.join(listed)}")
    if missing:
        parts.append(f"missing rewards: {', '.join(missing)}")
    zero_std = logs.get("resampling/frac_zero_std", logs.get("frac_reward_zero_std", 0.0))
    groups = f"zero-std groups {zero_std:.0%}"
    alone = logs.get("rewards/accuracy/frac_zero_std")
    if alone is not None and sum(each.startswith("rewards/") and each.endswith("/frac_zero_std") for each in logs) > 1:
        # Accuracy would leave that many groups without a signal.
        groups += f" (accuracy alone {alone:.0%})"
    parts.append(groups)
    if (kl := logs.get("teacher_kl/mean")) is not None:
        parts.append(f"teacher KL {kl:.2f}")
    parts.append(f"truncated {logs.get('completions/clipped_ratio', 0.0):.0%}")
    if (ratio := logs.get("sampling/importance_sampling_ratio/mean")) is not None:
        parts.append(f"ratio {ratio:.2f}")
    parts.append(f"{logs.get('step_time', 0.0):.0f} s")
    return " | ".join(parts)
