"""The keys of a validity-calibrated distillation run, and what can be said of them before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from trl import DistillationConfig

from rlkd.divergence import Divergence, DivergenceKind
from rlkd.engines import from_environment
from rlkd.engines.server import without_secrets
from rlkd.errors import UsageError
from rlkd.registry import suggestion
from rlkd.validity import CONTROLS, AdaptiveTau, StepWeighting, WeightMap
from rlkd.validity.contract import Scale
from rlkd.weight_transfer import WEIGHT_TRANSFERS

Proposals = Literal["expected", "generate"]
CHOICES = {
    "proposals": get_args(Proposals),
    "control": ("none", *CONTROLS),
    "normalise": ("tokens", "weights"),
    "kernel": ("chunked", "trl"),
    "divergence": get_args(DivergenceKind),
    "divergence_off_policy": get_args(DivergenceKind),
    "vllm_weight_transfer": WEIGHT_TRANSFERS,
}


@dataclass
class ValidityKDConfig(DistillationConfig):
    """TRL's `DistillationConfig`, and what weighting by validity adds to it.

    `beta` and `temperature` are TRL's; `beta` counts on the student's own rollouts, `beta_off_policy` on the teacher's
    traces.
    """

    _VALID_DICT_FIELDS = [*DistillationConfig._VALID_DICT_FIELDS, "validity_kwargs"]  # noqa: RUF012 (TRL's form)

    teacher: str | None = field(
        default=None,
        metadata={
            "help": "The teacher: a model (a name of ours, a folder, a hub id), a vLLM server "
            "(http://HOST:PORT/v1#MODEL), or the folder of a teacher cache."
        },
    )
    teacher_top_k: int = field(
        default=64, metadata={"help": "Tokens of each position that a server teacher is asked for."}
    )
    keep_teacher_states: bool = field(
        default=True,
        metadata={
            "help": "Keep what the teacher's forward pass found for the weights until the loss needs it (rows x "
            "tokens x hidden size); false runs the teacher again."
        },
    )
    lmbda: float = field(
        default=0.5,
        metadata={
            "help": "Share of generation batches on the student's own rollouts; the others are the traces "
            "in the column rationales. 1: rollouts only, 0: traces only."
        },
    )
    beta_off_policy: float = field(
        default=0.0, metadata={"help": "As beta, on the teacher's traces: 0 forward KL, 1 reverse KL, between JSD."}
    )
    divergence: str = field(
        default="jsd",
        metadata={"help": "On the student's rollouts: jsd (with beta), skewed_forward or skewed_reverse (with skew)."},
    )
    divergence_off_policy: str = field(default="jsd", metadata={"help": "As divergence, on the teacher's traces."})
    skew: float = field(default=0.1, metadata={"help": "Of the skewed divergences: the share of the mixture."})
    kernel: str = field(
        default="chunked",
        metadata={"help": "What computes the divergence: chunked (ours) or trl (Triton on a GPU; jsd only)."},
    )
    validity: str = field(
        default="likelihood",
        metadata={
            "help": "What scores steps: a registered name (likelihood, rollout, judge, prm), a dotted path, or "
            "path/to/file.py:name."
        },
    )
    validity_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of the scorer, such as {reduction: max}."}
    )
    proposals: str = field(
        default="expected",
        metadata={
            "help": "What stands for the step that is not in the trace: expected (an expectation over the model's "
            "distribution; likelihood only) or generate (the model writes it)."
        },
    )
    proposal_engine: str | None = field(
        default=None,
        metadata={
            "help": "With proposals: generate, the engine that writes the teacher's steps (transformers:NAME, "
            "http://HOST:PORT/v1#MODEL); by default the teacher itself."
        },
    )
    max_step_tokens: int = field(default=96, metadata={"help": "Tokens of a proposed step at most."})
    w_min: float = field(default=0.2, metadata={"help": "The least weight of a valid step of the teacher."})
    w_max: float = field(default=1.8, metadata={"help": "The largest weight."})
    tau: str = field(  # a number, or adapt: the command line cannot tell either
        default="0.2",
        metadata={
            "help": "The margin that moves the weight half way to its end, in units of the validity; adapt: the "
            "median margin so far."
        },
    )
    v_0: float = field(
        default=0.2,
        metadata={"help": "The teacher's validity, as a probability, below which its step loses weight; 0: never."},
    )
    normalise: str = field(
        default="tokens",
        metadata={"help": "What the loss is divided by: tokens (weights change its size) or weights (they do not)."},
    )
    control: str = field(
        default="none",
        metadata={
            "help": "Train a control: uniform (weight 1: plain distillation), shuffled, teacher_only, position, "
            "entropy, divergence."
        },
    )
    save_rollouts: bool = field(
        default=True, metadata={"help": "Write every trace with the weights of its steps to OUTPUT_DIR/rollouts."}
    )
    vllm_weight_transfer: str = field(
        default="nccl",
        metadata={
            "help": "How the weights get to the rollout server (vllm_mode: server): nccl (GPUs, TRL's own way), gloo "
            "(a TCP connection) or disk (files that both can read); the server must be started with the same backend."
        },
    )

    vllm_importance_sampling_correction: ClassVar[bool] = False  # distillation has none; `trainers.vllm.checks` asks

    def __post_init__(self) -> None:
        """Check the values; raises `UsageError`."""
        if isinstance(self.validity_kwargs, str):
            try:
                self.validity_kwargs = json.loads(self.validity_kwargs)
            except ValueError as error:
                raise UsageError(f"validity_kwargs: {self.validity_kwargs!r} is no JSON object ({error})") from error
        if not isinstance(self.validity_kwargs, dict | None):
            raise UsageError(f"validity_kwargs: expected a mapping, found {self.validity_kwargs!r}")
        if self.vllm_server_base_url is not None:
            self.vllm_server_base_url = from_environment(self.vllm_server_base_url, "the server's address")
        super().__post_init__()
        if self.teacher is not None and self.teacher_model_name_or_path not in (None, self.teacher):
            raise UsageError(
                f"teacher {without_secrets(self.teacher)!r} and teacher_model_name_or_path "
                f"{without_secrets(self.teacher_model_name_or_path)!r} name two teachers; give one of them"
            )
        self.teacher = self.teacher or self.teacher_model_name_or_path
        if self.teacher is not None:
            self.teacher = from_environment(self.teacher, "a teacher")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r}.{suggestion(str(getattr(self, name)), known)}")
        for name in ("lmbda", "beta_off_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected a number from 0 to 1")
        for name in ("teacher_top_k", "max_step_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        self.tau = _checked_tau(self.tau)
        try:
            self.step_weighting("log")
            self.divergence_for(on_policy=True)
            self.divergence_for(on_policy=False)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def divergence_for(self, *, on_policy: bool) -> Divergence:
        """What is minimised on the student's rollouts, or on the teacher's traces."""
        kind, beta = (self.divergence, self.beta) if on_policy else (self.divergence_off_policy, self.beta_off_policy)
        return Divergence(kind, beta=beta, skew=self.skew, temperature=self.temperature)  # type: ignore[arg-type]

    def step_weighting(self, scale: Scale) -> StepWeighting:
        """Turns validities on this scale into weights; raises ValueError for values outside their ranges."""
        adaptive = AdaptiveTau() if self.tau == "adapt" else None
        tau = {} if self.tau == "adapt" else {"tau": float(self.tau)}
        weight_map = WeightMap(w_min=self.w_min, w_max=self.w_max, v_0=self.v_0, scale=scale, **tau)
        control = None if self.control == "none" else self.control
        return StepWeighting(weight_map, control=control, adaptive=adaptive, seed=self.seed)  # type: ignore[arg-type]

    @property
    def scorer_parameters(self) -> dict[str, Any]:
        """`validity_kwargs` as a mapping."""
        return self.validity_kwargs if isinstance(self.validity_kwargs, dict) else {}

    @property
    def needs_scorer(self) -> bool:
        """Whether a validity scorer is asked at all: some controls need none."""
        return self.control not in ("uniform", "entropy", "divergence")

    @property
    def generation_batch(self) -> int:
        """Rows of one generation batch, over all processes: one optimizer step."""
        return self.per_device_train_batch_size * self.world_size * self.gradient_accumulation_steps


def _checked_tau(tau: str | float) -> str:
    """As text, whether it came as text or, from YAML and Python, as a number."""
    if tau != "adapt":
        try:
            float(tau)
        except (TypeError, ValueError):
            raise UsageError(f"tau {tau!r}: expected a number above 0, or adapt") from None
    return str(tau)
