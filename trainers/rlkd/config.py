"""The configuration of an RLKD run, with the checks that need neither a model nor data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from rlkd.engines import from_environment
from rlkd.errors import UsageError
from rlkd.weight_transfer import WEIGHT_TRANSFERS
from trainers.common.failures import check_failure_limits
from trainers.common.fast_path import FastPath
from trainers.common.reward_settings import MAPPINGS, RewardSettings
from trainers.rlkd.shuffled_rewards import read_shuffled
from trainers.teachers.column import TeachersByColumn
from trainers.teachers.validity_settings import ValiditySettings
from trainers.vllm.adapter_checks import check_adapter_sync


@dataclass
class RLKDConfig(RewardSettings, ValiditySettings, TeachersByColumn, FastPath, GRPOConfig):
    """TRL's `GRPOConfig`, and what RLKD adds to it."""

    _VALID_DICT_FIELDS = [  # noqa: RUF012 (TRL's form)
        *GRPOConfig._VALID_DICT_FIELDS,
        *MAPPINGS,
        "shuffle_rewards",
        "teacher_model_init_kwargs",
    ]

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
    shuffle_rewards: dict[str, int] | str | None = field(
        default=None,
        metadata={
            "help": "Control run: {reward: seed}. The values of these rewards change places among the completions of "
            "each group, at random."
        },
    )
    shuffle_credit: int | None = field(
        default=None,
        metadata={
            "help": "Seed of a control run for step_credit: the scores of the steps of each completion change places, "
            "at random."
        },
    )
    step_credit_clip: float | None = field(
        default=None,
        metadata={
            "help": "Largest size of what step_credit adds to the advantage of a token; the credit of a completion "
            "beyond it is made smaller as a whole. null for no limit."
        },
    )
    teacher_kl: float = field(
        default=0.0,
        metadata={
            "help": "Weight of on-policy distillation: each sampled token's log-probability under the teacher minus "
            "that under the student, times this, is added to its advantage. 0: off, no teacher is loaded."
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Teacher for teacher_kl: a model (an embedded one, a folder, a hub id), or an engine that gives "
            "the log-probabilities of a prompt's tokens (http://HOST:PORT/v1#MODEL of vLLM, or "
            "path/to/file.py:Backend)."
        },
    )
    teacher_kl_clip: float | None = field(
        default=None,
        metadata={"help": "Largest size, in nats, of a token's difference in teacher_kl; null for no limit."},
    )
    validity: str | None = field(
        default=None,
        metadata={
            "help": "Validity scorer whose weights multiply teacher_kl step by step: likelihood, arithmetic, rollout, "
            "judge, prm, a dotted path, or path/to/file.py:name. null: no weights."
        },
    )
    teacher_top_k: int = field(
        default=64,
        metadata={"help": "With validity, number of tokens per position requested from an engine teacher."},
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a teacher whose weights are loaded here."}
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of a teacher that is a hub id: a branch, tag or commit."}
    )
    allow_other_template: bool = field(
        default=False,
        metadata={
            "help": "Let the teacher score prompts in the student's chat template where its own differs; by default "
            "an error."
        },
    )
    resample_zero_std: int = field(
        default=0,
        metadata={
            "help": "Further rounds of generation per batch, at most, in which groups whose rewards are all equal are "
            "replaced by groups of other questions; 0: none."
        },
    )
    max_rollouts: int | None = field(
        default=None,
        metadata={
            "help": "End the run after the step at which all processes have generated this many completions, those "
            "dropped by resample_zero_std included; null: max_steps or num_train_epochs alone."
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
    vllm_adapter_sync: bool = field(
        default=False,
        metadata={
            "help": "Send the LoRA adapter alone to the rollout servers (vllm_mode: server), each version under a new "
            "name; by default all weights are sent. vllm_server_base_url may then list several servers, with commas."
        },
    )

    def __post_init__(self) -> None:
        """Check the values; the error for a batch that does not divide names the way out."""
        self.read_reward_settings()
        self.read_validity_kwargs()
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
        self.shuffle_rewards = read_shuffled(self.shuffle_rewards)
        if self.shuffle_rewards and self.step_credit != "none":
            raise UsageError(
                f"shuffle_rewards {self.shuffle_rewards} with step_credit {self.step_credit!r}: the scores of steps "
                f"would not be those of the completion. Set step_credit: none, or shuffle_credit instead"
            )
        if self.shuffle_credit is not None and self.step_credit == "none":
            raise UsageError(
                f"shuffle_credit {self.shuffle_credit}: without step_credit there is nothing to shuffle. Set "
                f"step_credit: local (or to_go), or leave shuffle_credit out"
            )
        if self.step_credit_clip is not None and not self.step_credit_clip > 0:
            raise UsageError(
                f"step_credit_clip {self.step_credit_clip}: expected a number above 0, or null for no limit"
            )
        if not (math.isfinite(self.teacher_kl) and self.teacher_kl >= 0):
            raise UsageError(f"teacher_kl {self.teacher_kl}: expected a weight of at least 0")
        if self.teacher_kl_clip is not None and not self.teacher_kl_clip > 0:
            raise UsageError(f"teacher_kl_clip {self.teacher_kl_clip}: expected nats above 0, or null for no limit")
        if self.teacher is not None:
            self.teacher = from_environment(self.teacher, "a teacher")
        self.read_teachers(self.teacher)
        if self.teacher_kl and not (self.teacher or self.teachers):
            raise UsageError(
                f"teacher_kl {self.teacher_kl:g}: there is no teacher. Set teacher: a model, or "
                f"http://HOST:PORT/v1#MODEL, or several: teachers and teacher_column; or set teacher_kl: 0"
            )
        self.check_validity()
        if self.validity is not None and not self.teacher_kl:
            raise UsageError(f"validity {self.validity!r}: it weighs teacher_kl, which is 0. Set teacher_kl: 0.5")
        if self.validity is None and self.control != "none":
            raise UsageError(f"control {self.control!r}: there are no validity weights. Set validity, or leave it out")
        if self.teacher_top_k < 1:
            raise UsageError(f"teacher_top_k {self.teacher_top_k}: expected at least 1")
        if self.resample_zero_std < 0:
            raise UsageError(f"resample_zero_std {self.resample_zero_std}: expected a number of rounds, or 0")
        if self.max_rollouts is not None and self.max_rollouts < 1:
            raise UsageError(f"max_rollouts {self.max_rollouts}: expected a number of completions, or null")
        check_adapter_sync(self)
        check_failure_limits(self.max_failure_rate, self.failure_window)
