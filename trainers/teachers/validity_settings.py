"""The config keys of validity weights: the scorer, the source of the other proposal, and the map to a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rlkd.errors import UsageError
from rlkd.registry import suggestion
from rlkd.validity import CONTROLS, AdaptiveTau, StepWeighting, WeightMap
from rlkd.validity.contract import Scale

Proposals = Literal["expected", "generate"]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ValiditySettings:
    """Mixin for a config: the weight of each step by the validities of both models' proposals."""

    validity: str | None = _option(
        "likelihood",
        "Validity scorer: likelihood, arithmetic, rollout, judge, prm, a dotted path, or path/to/file.py:name.",
    )
    validity_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Parameters of the scorer; on the command line JSON, such as \'{"reduction": "max"}\'.'},
    )
    proposals: str = _option(
        "expected",
        "Source of the step that is not in the trace: expected (an expectation over the model's distribution, for "
        "scorers that support it) or generate (the model writes it).",
    )
    proposal_engine: str | None = _option(
        None,
        "Engine that writes the teacher's steps with proposals: generate (transformers:NAME, "
        "http://HOST:PORT/v1#MODEL); by default the teacher.",
    )
    max_step_tokens: int = _option(96, "Maximum length of a proposed step in tokens.")
    w_min: float = _option(0.2, "Smallest weight of a valid teacher step.")
    w_max: float = _option(1.8, "Largest weight.")
    tau: str = _option(  # a number, or adapt: the command line cannot tell either
        "0.2",
        "Margin that moves the weight half way to its bound, in units of the validity; adapt: the median margin so "
        "far.",
    )
    v_0: float = _option(
        0.2, "Validity of the teacher's step, as a probability, below which its weight shrinks; 0: never."
    )
    control: str = _option(
        "none",
        "Control to train in place of the method: uniform (weight 1: plain distillation), shuffled, teacher_only, "
        "position, entropy, divergence.",
    )

    def read_validity_kwargs(self) -> None:
        """Read the parameters of the scorer, before transformers tries to; raises `UsageError`."""
        if isinstance(self.validity_kwargs, str):
            try:
                self.validity_kwargs = json.loads(self.validity_kwargs)
            except ValueError as error:
                raise UsageError(f"validity_kwargs: {self.validity_kwargs!r} is no JSON object ({error})") from error
        if not isinstance(self.validity_kwargs, dict | None):
            raise UsageError(f"validity_kwargs: expected a mapping, found {self.validity_kwargs!r}")

    def check_validity(self) -> None:
        """Check the values; raises `UsageError`."""
        for name, known in (("proposals", get_args(Proposals)), ("control", ("none", *CONTROLS))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r}.{suggestion(str(getattr(self, name)), known)}")
        if self.max_step_tokens < 1:
            raise UsageError(f"max_step_tokens {self.max_step_tokens}: expected at least 1")
        self.tau = _checked_tau(self.tau)
        try:
            self.step_weighting("log")
        except ValueError as error:
            raise UsageError(str(error)) from error

    def step_weighting(self, scale: Scale) -> StepWeighting:
        """Turns validities on this scale into weights; raises ValueError for values outside their ranges."""
        adaptive = AdaptiveTau() if self.tau == "adapt" else None
        tau = {} if self.tau == "adapt" else {"tau": float(self.tau)}
        weight_map = WeightMap(w_min=self.w_min, w_max=self.w_max, v_0=self.v_0, scale=scale, **tau)
        control: Any = None if self.control == "none" else self.control
        seed: int = getattr(self, "seed", 0)  # of the trainer's config
        return StepWeighting(weight_map, control=control, adaptive=adaptive, seed=seed)

    @property
    def scorer_parameters(self) -> dict[str, Any]:
        """`validity_kwargs` as a mapping."""
        return self.validity_kwargs if isinstance(self.validity_kwargs, dict) else {}

    @property
    def needs_scorer(self) -> bool:
        """Whether a validity scorer is used: some controls need none."""
        return self.validity is not None and self.control not in ("uniform", "entropy", "divergence")


def _checked_tau(tau: str | float) -> str:
    """`tau` as text, from text or a number."""
    if tau != "adapt":
        try:
            float(tau)
        except (TypeError, ValueError):
            raise UsageError(f"tau {tau!r}: expected a number above 0, or adapt") from None
    return str(tau)
