"""The configuration of validity-calibrated distillation, with the checks that need neither a model nor data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

from trl import DistillationConfig

from rlkd.divergence import Divergence, DivergenceKind
from rlkd.engines import from_environment
from rlkd.engines.server import without_secrets
from rlkd.errors import UsageError
from rlkd.registry import suggestion
from rlkd.weight_transfer import WEIGHT_TRANSFERS
from trainers.common.failures import check_failure_limits
from trainers.common.fast_path import FastPath
from trainers.teachers.column import TeachersByColumn
from trainers.teachers.validity_settings import ValiditySettings
from trainers.vllm.adapter_checks import check_adapter_sync

DEFAULT_TEMPLATE = (
    "{prompt}\n\nThis is known about the solution:\n{context}\n\nWrite the solution in your own words, step by step."
)
"""The teacher's prompt with privileged context (our choice of words)."""

CHOICES = {
    "normalise": ("tokens", "weights"),
    "kernel": ("chunked", "trl"),
    "cross_tokenizer": ("auto", "never", "always"),
    "divergence": get_args(DivergenceKind),
    "divergence_off_policy": get_args(DivergenceKind),
    "vllm_weight_transfer": WEIGHT_TRANSFERS,
}


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ValidityKDConfig(ValiditySettings, TeachersByColumn, FastPath, DistillationConfig):
    """TRL's `DistillationConfig` with the settings of weighting by validity.

    `beta` and `temperature` are TRL's; `beta` applies to the student's rollouts, `beta_off_policy` to the teacher's
    traces.
    """

    _VALID_DICT_FIELDS = [*DistillationConfig._VALID_DICT_FIELDS, "validity_kwargs"]  # noqa: RUF012 (TRL's form)

    teacher: str | None = _option(
        None,
        "Teacher: a model (an embedded one, a folder, a hub id), an engine that gives the log-probabilities of a "
        "prompt's tokens (http://HOST:PORT/v1#MODEL of vLLM, or path/to/file.py:Backend), the folder of a teacher "
        "cache, or self: the student before this training (with LoRA its base without the adapter).",
    )
    teacher_context: str | None = _option(
        None,
        "Privileged context in the teacher's prompt only: rationale, answer, or a column of texts; null for none.",
    )
    teacher_context_template: str = _option(
        DEFAULT_TEMPLATE, "Last user message of the teacher's prompt, with {prompt} and {context}."
    )
    foreign_context: bool = _option(False, "Control: the context of another row in the teacher's prompt.")
    teacher_top_k: int = _option(
        64,
        "Number of tokens per position requested from an engine teacher; with another tokenizer, tokens without a "
        "partner that are compared by their order.",
    )
    cross_tokenizer: str = _option(
        "auto",
        "Comparison on spans of text: auto (with a teacher that has another tokenizer), never (such a teacher is an "
        "error), always.",
    )
    keep_teacher_states: bool = _option(
        True,
        "Keep the teacher's hidden states of the weighting for the loss (rows x tokens x hidden size); false runs the "
        "teacher again.",
    )
    lmbda: float = _option(
        0.5,
        "Share of generation batches on the student's rollouts; the others are the traces in the column rationales. "
        "1: rollouts only, 0: traces only.",
    )
    beta_off_policy: float = _option(
        0.0, "Coefficient beta on the teacher's traces: 0 forward KL, 1 reverse KL, in between JSD."
    )
    divergence: str = _option(
        "jsd", "Divergence on the student's rollouts: jsd (with beta), skewed_forward or skewed_reverse (with skew)."
    )
    divergence_off_policy: str = _option("jsd", "Divergence on the teacher's traces, with the same choices.")
    skew: float = _option(0.1, "Mixture coefficient of the skewed divergences.")
    kernel: str = _option(
        "chunked", "Implementation of the divergence: chunked (ours) or trl (Triton on a GPU; jsd only)."
    )
    normalise: str = _option(
        "tokens", "Denominator of the loss: tokens (weights change its size) or weights (they do not)."
    )
    max_failure_rate: float | None = _option(
        0.5,
        "End the run, after a checkpoint, when the validity scorer failed on more than this share of its questions in "
        "the last failure_window generation batches; null for no limit.",
    )
    failure_window: int = _option(4, "Generation batches over which max_failure_rate counts failures.")
    filter_overlong_prompts: bool = _option(
        False,
        "Leave out rows whose prompt and max_completion_length do not fit the context of student and teacher, and say "
        "how many; by default they are an error.",
    )
    allow_other_template: bool = _option(
        False,
        "Let the teacher score prompts in the student's chat template where its own differs; by default an error.",
    )
    save_rollouts: bool = _option(True, "Write every trace with the weights of its steps to OUTPUT_DIR/rollouts.")
    vllm_weight_transfer: str = _option(
        "nccl",
        "Backend that sends the weights to the rollout server (vllm_mode: server): nccl (GPUs, TRL's own), gloo (a "
        "TCP connection) or disk (files that both can read); start the server with the same backend.",
    )
    vllm_adapter_sync: bool = _option(
        False,
        "Send the LoRA adapter alone to the rollout servers (vllm_mode: server), each version under a new name; by "
        "default all weights are sent. vllm_server_base_url may then list several servers, with commas.",
    )

    vllm_importance_sampling_correction: ClassVar[bool] = False  # read by `trainers.vllm.checks`; TRL's has none here

    def __post_init__(self) -> None:
        """Check the values; raises `UsageError`."""
        self.read_validity_kwargs()
        if self.vllm_server_base_url is not None:
            self.vllm_server_base_url = from_environment(self.vllm_server_base_url, "the server's address")
        super().__post_init__()
        self.check_validity()
        if self.validity is None:
            raise UsageError("validity null: name a scorer, or set control: uniform for plain distillation")
        self.check_fast_path()
        if self.teacher is not None and self.teacher_model_name_or_path not in (None, self.teacher):
            raise UsageError(
                f"teacher {without_secrets(self.teacher)!r} and teacher_model_name_or_path "
                f"{without_secrets(self.teacher_model_name_or_path)!r} name two teachers; set one of them"
            )
        self.teacher = self.teacher or self.teacher_model_name_or_path
        if self.teacher is not None:
            self.teacher = from_environment(self.teacher, "a teacher")
        self.read_teachers(self.teacher)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r}.{suggestion(str(getattr(self, name)), known)}")
        for name in ("lmbda", "beta_off_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected a number from 0 to 1")
        if self.teacher_top_k < 1:
            raise UsageError(f"teacher_top_k {self.teacher_top_k}: expected at least 1")
        for place in ("{prompt}", "{context}"):
            if place not in self.teacher_context_template:
                raise UsageError(f"teacher_context_template {self.teacher_context_template!r} lacks {place}")
        check_adapter_sync(self)
        check_failure_limits(self.max_failure_rate, self.failure_window)
        try:
            self.divergence_for(on_policy=True)
            self.divergence_for(on_policy=False)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def divergence_for(self, *, on_policy: bool) -> Divergence:
        """The divergence on the student's rollouts, or on the teacher's traces."""
        kind, beta = (self.divergence, self.beta) if on_policy else (self.divergence_off_policy, self.beta_off_policy)
        return Divergence(kind, beta=beta, skew=self.skew, temperature=self.temperature)  # type: ignore[arg-type]

    @property
    def generation_batch(self) -> int:
        """Rows of one generation batch, over all processes: one optimizer step."""
        return self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps
