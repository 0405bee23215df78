"""The keys that name the rewards of a run, and say how they are run and become one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.composite import AGGREGATIONS, CompositeReward
from rlkd.errors import UsageError
from rlkd.registry import suggestion

MAPPINGS = ("reward_kwargs", "reward_options", "reward_gates")


@dataclass
class RewardSettings:
    """Rewards by name, and how they become one: what the configs of all trainers with rewards share."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "structure"],
        metadata={
            "help": "Rewards: registered names (rlkd rewards list), dotted paths, or path/to/file.py:name, each with "
            "an optional alias= in front. Weights come from reward_weights, in the same order."
        },
    )
    reward_kwargs: dict[str, dict[str, Any]] | str | None = field(
        default=None, metadata={"help": "Parameters of rewards: {name: {parameter: value}}."}
    )
    reward_options: dict[str, dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "How rewards are run: {name: {option: value}}, with the options timeout (seconds a call), isolate "
            "(in worker processes), workers, per_sample, cache, version; see rewards.RewardOptions."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each reward, in the order of reward_funcs; by default 1 each."}
    )
    reward_cache: str = field(
        default="on",
        metadata={
            "help": "Keep scores across steps and runs, for rewards that allow it: on (rewards.sqlite in the cache "
            "folder), off, or a file."
        },
    )
    reward_gates: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "{gated: condition}: the gated reward is multiplied by the condition, clipped to [0, 1]. "
            "{structure: accuracy} pays for structure only where the answer is right."
        },
    )
    multi_objective_aggregation: str = field(
        default="sum_then_normalize",
        metadata={
            "help": "sum_then_normalize adds the weighted rewards; normalize_then_sum first brings each to mean 0 and "
            "deviation 1 within its group (GDPO).",
            "choices": list(AGGREGATIONS),
        },
    )
    on_failure: str = field(
        default="impute",
        metadata={
            "help": "What a failed reward does: impute (the group's mean of that reward stands in), drop (the "
            "completion is left out), raise (the run ends).",
            "choices": ["impute", "drop", "raise"],
        },
    )
    save_rollouts: bool = field(
        default=True, metadata={"help": "Write every rollout with its rewards to OUTPUT_DIR/rollouts."}
    )

    def read_reward_settings(self) -> None:
        """Turn mappings that came as JSON text into mappings; raises `UsageError`. For `__post_init__`."""
        for name in MAPPINGS:
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except ValueError as error:
                    raise UsageError(f"{name}: {value!r} is no JSON object ({error})") from error
                setattr(self, name, value)
            if value is not None and not isinstance(value, dict):
                raise UsageError(f"{name}: expected a mapping, found {value!r}")
        for name in ("reward_kwargs", "reward_options"):
            for reward, parameters in (getattr(self, name) or {}).items():
                if not isinstance(parameters, dict):
                    raise UsageError(f"{name}: expected a mapping for {reward!r}, found {parameters!r}")
        if self.on_failure not in ("impute", "drop", "raise"):
            raise UsageError(f"on_failure {self.on_failure!r}: expected 'impute', 'drop' or 'raise'")

    def gates(self) -> dict[str, str]:
        """`reward_gates` as a mapping."""
        return self.reward_gates if isinstance(self.reward_gates, dict) else {}

    def composite(self, log: Path | None = None) -> CompositeReward:
        """The rewards as one, which scores one group a call and writes to `log`; raises `UsageError`."""
        from rewards import RewardError, build_rewards

        if not self.reward_funcs:
            raise RewardError("no rewards: reward_funcs is empty. `rlkd rewards list` shows the names there are.")
        kwargs = self.reward_kwargs if isinstance(self.reward_kwargs, dict) else {}
        options = self.reward_options if isinstance(self.reward_options, dict) else {}
        gates = self.gates()
        rewards = build_rewards(self.reward_funcs, kwargs, options, cache=self.cache())
        self._check(gates, [reward.__name__ for reward in rewards])
        return CompositeReward(
            rewards,
            weights=self.reward_weights,
            gates=gates,
            aggregation=self.multi_objective_aggregation,  # type: ignore[arg-type]
            on_failure=self.on_failure,  # type: ignore[arg-type]
            log=log,
        )

    def cache(self) -> Path | bool:
        """`reward_cache` as `rewards.build_rewards` takes it. YAML reads a bare on or off as true or false."""
        known = {"on": True, "true": True, "off": False, "false": False, "none": False}
        return known.get(str(self.reward_cache).lower(), Path(str(self.reward_cache)).expanduser())

    def _check(self, gates: dict[str, str], names: Sequence[str]) -> None:
        if self.reward_weights is not None and len(self.reward_weights) != len(names):
            raise UsageError(
                f"reward_weights has {len(self.reward_weights)} entries {self.reward_weights} for {len(names)} "
                f"rewards {list(names)}; give one weight a reward, in that order"
            )
        for gated, condition in gates.items():
            for name in (gated, condition):
                if name not in names:
                    raise UsageError(f"reward_gates: {name!r} is no reward of this run.{suggestion(name, names)}")
            if gated == condition:
                raise UsageError(f"reward_gates: {gated!r} cannot be its own condition")
