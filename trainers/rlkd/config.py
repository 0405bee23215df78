"""The configuration of an RLKD run, with the checks that need neither a model nor data."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from rlkd.engines import from_environment
from rlkd.errors import UsageError
from rlkd.weight_transfer import WEIGHT_TRANSFERS
from trainers.common.failures import check_failure_limits
from trainers.common.fast_path import FastPath
from trainers.common.reward_settings import MAPPINGS, RewardSettings


@dataclass
class RLKDConfig(RewardSettings, FastPath, GRPOConfig):
    """TRL's `GRPOConfig`, and what RLKD adds to it."""

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, *MAPPINGS]  # noqa: RUF012 (TRL's form)

    max_failure_rate: float | None = field(
        default=0.5,
        metadata={
            "help": "End the run, after a checkpoint, when a reward failed on more than this share of the completions "
            "in the last failure_window generation batches; null for no limit."
        },
    )
    failure_window: int = field(
        default=4, metadata={"help": "Generation batches over which max_failure_rate counts failures."}
    )
    reward_prefetch: bool = field(
        default=False,
        metadata={
            "help": "Compute rewards while the model computes log-probabilities (beta > 0, or several steps per "
            "generation). The rewards are the same either way."
        },
    )
    shuffle_credit: int | None = field(
        default=None,
        metadata={
            "help": "Seed of a control run for step_credit: the scores of the steps of each completion change places, "
            "at random."
        },
    )
    filter_overlong_prompts: bool = field(
        default=False,
        metadata={
            "help": "Leave out rows whose prompt and max_completion_length do not fit the student's context, and say "
            "how many; by default they are an error."
        },
    )
    vllm_weight_transfer: str = field(
        default="nccl",
        metadata={
            "help": "Transfer of weights to the rollout server (vllm_mode: server): nccl (GPUs, TRL's own way), gloo "
            "(a TCP connection) or disk (files that both can read); the server must be started with the same backend.",
            "choices": list(WEIGHT_TRANSFERS),
        },
    )

    def __post_init__(self) -> None:
        """Check the values; the error for a batch that does not divide names the way out."""
        self.read_reward_settings()
        self.check_fast_path()
        if self.vllm_server_base_url is not None:
            url = from_environment(self.vllm_server_base_url, "the server's address")
            self.vllm_server_base_url = url
        try:
            super().__post_init__()
        except ValueError as error:
            if "divisible" in str(error):
                raise UsageError(
                    f"{error} This run has {self.world_size} process(es), per_device_train_batch_size "
                    f"{self.per_device_train_batch_size} and num_generations {self.num_generations}: their products "
                    f"must divide. Make per_device_train_batch_size (per_device_eval_batch_size for evaluation) a "
                    f"multiple of num_generations, and it works with any number of processes."
                ) from error
            raise
        if self.vllm_weight_transfer not in WEIGHT_TRANSFERS:
            raise UsageError(
                f"vllm_weight_transfer {self.vllm_weight_transfer!r}: expected {' or '.join(WEIGHT_TRANSFERS)}"
            )
        if self.shuffle_credit is not None and self.step_credit == "none":
            raise UsageError(
                f"shuffle_credit {self.shuffle_credit}: without step_credit there is nothing to shuffle. Set "
                f"step_credit: local (or to_go), or leave shuffle_credit out"
            )
        check_failure_limits(self.max_failure_rate, self.failure_window)
