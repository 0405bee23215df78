"""The configuration of an asynchronous RLKD run, with the checks that need neither a model nor data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

# Silences TRL's warning that the trainer is experimental; docs/async.md says so.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl.experimental.async_grpo import AsyncGRPOConfig

from rlkd.engines import from_environment
from rlkd.errors import UsageError
from trainers.common.reward_settings import MAPPINGS, RewardSettings


@dataclass
class RLKDAsyncConfig(RewardSettings, AsyncGRPOConfig):
    """TRL's `AsyncGRPOConfig`, and the rewards, under the names that `RLKDConfig` has for them."""

    _VALID_DICT_FIELDS = [*AsyncGRPOConfig._VALID_DICT_FIELDS, *MAPPINGS]  # noqa: RUF012 (TRL's form)

    filter_overlong_prompts: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows whose prompt and max_completion_length do not fit the student's context, and say "
            "how many; by default they are an error."
        },
    )

    def __post_init__(self) -> None:
        self.read_reward_settings()
        if self.step_credit != "none":
            raise UsageError(
                f"step_credit {self.step_credit!r}: the loss of the asynchronous trainer takes one advantage per "
                f"completion. Set step_credit: none, or train with recipes/rlkd.py"
            )
        self.vllm_server_base_url = from_environment(self.vllm_server_base_url, "the server's address")
        if "," in self.vllm_server_base_url:
            raise UsageError(
                f"vllm_server_base_url {self.vllm_server_base_url}: the asynchronous trainer takes one server. Name "
                f"one, or train with recipes/rlkd.py and vllm_adapter_sync: true"
            )
        super().__post_init__()
