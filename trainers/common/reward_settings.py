"""The config keys of rewards: their names, parameters and options, and how they are combined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards import CompositeReward, Reward, RewardError, build_rewards
from rewards.composite import AGGREGATIONS
from rlkd.errors import UsageError

STEP_CREDITS = ("none", "local", "to_go")
MAPPINGS = ("reward_kwargs", "reward_options", "reward_gates")


@dataclass
class RewardSettings:
    """Rewards by name and how they are combined; part of the config of every trainer with rewards."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "structure"],
        metadata={
            "help": "Rewards: registered names (rlkd rewards list), dotted paths, or path/to/file.py:name, each with "
            "an optional alias= in front; for RLKD also reward models (hub id, folder). Weights come from "
            "reward_weights, in the same order."
        },
    )
    reward_kwargs: dict[str, dict[str, Any]] | str | None = field(
        default=None, metadata={"help": "Parameters of rewards: {name: {parameter: value}}."}
    )
    reward_options: dict[str, dict[str, Any]] | str | None = field(
        default=None,
        metadata={
            "help": "Options of rewards: {name: {option: value}}. Options: timeout (seconds per call), isolate "
            "(in worker processes), workers, per_sample, cache, version; see rewards.RewardOptions."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward, in the order of reward_funcs; by default 1 each."}
    )
    reward_cache: str = field(
        default="on",
        metadata={
            "help": "Cache of scores across steps and runs, for rewards that allow it: on (rewards.sqlite in the "
            "cache folder), off, or a file."
        },
    )
    reward_gates: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "{gated: condition}: the gated reward is multiplied by the condition, clipped to [0, 1]. "
            "{structure: accuracy} rewards structure only where the answer is right."
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
            "help": "Handling of a failed reward: impute (the group's mean of that reward replaces it), drop (the "
            "completion is left out), raise (the run ends).",
            "choices": ["impute", "drop", "raise"],
        },
    )
    step_credit: str = field(
        default="none",
        metadata={
            "help": "Credit of steps: none (one advantage per completion), local (a step that earned more than the "
            "mean of its completion's tokens gets more), to_go (and for what the steps after it earned). For rewards "
            "that score steps, such as structure.",
            "choices": list(STEP_CREDITS),
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
                    raise UsageError(f"{name}: {value!r} is not a JSON object ({error})") from error
                setattr(self, name, value)
            if value is not None and not isinstance(value, dict):
                raise UsageError(f"{name}: expected a mapping, found {value!r}")
        for name in ("reward_kwargs", "reward_options"):
            for reward, parameters in (getattr(self, name) or {}).items():
                if not isinstance(parameters, dict):
                    raise UsageError(f"{name}: expected a mapping for {reward!r}, found {parameters!r}")
        if self.on_failure not in ("impute", "drop", "raise"):
            raise UsageError(f"on_failure {self.on_failure!r}: expected 'impute', 'drop' or 'raise'")
        if self.step_credit not in STEP_CREDITS:
            raise UsageError(f"step_credit {self.step_credit!r}: expected 'none', 'local' or 'to_go'")

    def gates(self) -> dict[str, str]:
        """`reward_gates` as a mapping."""
        return dict(self.reward_gates or {})  # type: ignore[arg-type]  # read_reward_settings has read the text

    def check_reward_funcs(self) -> None:
        """Raise `RewardError` where the config names no reward."""
        if not self.reward_funcs:
            raise RewardError("no rewards: reward_funcs is empty. `rlkd rewards list` shows the known names.")

    def build_rewards(self, specs: Sequence[Any] | None = None) -> list[Reward]:
        """The rewards that the config names, or the given ones with its parameters; raises `RewardError`."""
        if specs is None:
            self.check_reward_funcs()
        return build_rewards(
            self.reward_funcs if specs is None else specs,
            self.reward_kwargs,  # type: ignore[arg-type]
            self.reward_options,  # type: ignore[arg-type]
            cache=self.cache(),
        )

    def composite(self, log: Path | None = None) -> CompositeReward:
        """The rewards as one, which scores one group per call and writes to `log`; raises `UsageError`."""
        return CompositeReward(
            self.build_rewards(),
            weights=self.reward_weights,
            gates=self.gates(),
            aggregation=self.multi_objective_aggregation,  # type: ignore[arg-type]
            on_failure=self.on_failure,  # type: ignore[arg-type]
            log=log,
        )

    def cache(self) -> Path | bool:
        """`reward_cache` as `rewards.build_rewards` takes it."""
        return read_cache(self.reward_cache)


def read_cache(given: Any) -> Path | bool:
    """The key `reward_cache` as `rewards.build_rewards` takes it. YAML reads a bare on or off as true or false."""
    known = {"on": True, "true": True, "off": False, "false": False, "none": False}
    return known.get(str(given).lower(), Path(str(given)).expanduser())
