"""Weights of steps: from two validities, or a control, to one weight per step, with the state for checkpoints.

    w = [w_min + (w_max - w_min) * sigmoid((V_T - V_S) / tau)] * min(1, V_T / v_0)

The second factor, which avoids a strong pull towards a step that is probably wrong, is left out where V_T is an
expectation. All of this is our choice; `docs/validity.md` has the reasons.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, get_args

from rlkd.validity.contract import Scale
from rlkd.validity.controls import CONTROLS, Control, PositionProfile, divergence, entropy, shuffled, teacher_only


@dataclass(frozen=True)
class WeightMap:
    """The weight of each step from the validities of both proposals.

    On the scale `probability`, V lies in [0, 1]. On the scale `log`, V is a log-probability in nats per token: the
    margin is their difference, `tau` is in nats, and the second factor uses exp(V_T).

    The weight never falls as V_T grows and never grows as V_S grows. Equal validities give exactly 1 where V_T reaches
    v_0 and w_min + w_max = 2, and only there is a constant validity plain distillation.

    Args:
        w_min: smallest weight of a valid teacher step.
        w_max: largest weight.
        tau: margin that moves the sigmoid from 1/2 to 0.73, in the units of V.
        v_0: validity, as a probability, below which the teacher's step loses weight in proportion; 0 for never.
        scale: scale of the validities, that of the scorer.

    Raises ValueError for values outside their ranges.
    """

    w_min: float = 0.2
    w_max: float = 1.8
    tau: float = 0.2
    v_0: float = 0.2
    scale: Scale = "probability"

    def __post_init__(self) -> None:
        if not (0 <= self.w_min <= self.w_max < math.inf):
            raise ValueError(f"w_min={self.w_min}, w_max={self.w_max}: expected 0 <= w_min <= w_max")
        _check_tau(self.tau)
        if not 0 <= self.v_0 <= 1:
            raise ValueError(f"v_0={self.v_0}: expected a probability, from 0 (no floor) to 1")
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale={self.scale!r}: expected {' or '.join(map(repr, get_args(Scale)))}")

    def __call__(
        self, teacher: Sequence[float | None], student: Sequence[float | None], *, tau: float | None = None
    ) -> list[float]:
        """One weight per step from V_T and V_S; exactly 1 where one is None, nan or infinite: the scorer failed there.

        `tau` replaces the map's own (`AdaptiveTau`). Raises ValueError for lists of different length, for a V outside
        [0, 1] on the scale `probability`, and for a `tau` that is not above 0.
        """
        if len(teacher) != len(student):
            raise ValueError(
                f"{len(teacher)} validities of the teacher and {len(student)} of the student: expected pairs"
            )
        tau = self.tau if tau is None else _check_tau(tau)
        return [self._weight(t, s, tau) for t, s in zip(teacher, student, strict=True)]

    def is_floored(self, teacher: float | None) -> bool:
        """Whether the second factor lowers the weight of a step with this V_T."""
        return self.trust(teacher) < 1

    def trust(self, validity: float | None) -> float:
        """The factor of a step by its own validity V: min(1, V / v_0), and 1 where the scorer failed."""
        if self.v_0 == 0 or validity is None or not math.isfinite(validity):
            return 1.0
        if self.scale == "log":
            return math.exp(min(0.0, validity - math.log(self.v_0)))
        return min(1.0, validity / self.v_0)

    def _weight(self, teacher: float | None, student: float | None, tau: float) -> float:
        if teacher is None or student is None or not (math.isfinite(teacher) and math.isfinite(student)):
            return 1.0
        if self.scale == "probability" and not (0 <= teacher <= 1 and 0 <= student <= 1):
            raise ValueError(
                f"validities {teacher} and {student} on the scale 'probability': expected 0 to 1. A scorer of "
                f"log-probabilities sets scale = 'log'."
            )
        # By sigmoid(x) = (1 + tanh(x / 2)) / 2, so that a tie is exactly the middle.
        middle, half = (self.w_min + self.w_max) / 2, (self.w_max - self.w_min) / 2
        compared = middle + half * math.tanh((teacher - student) / tau / 2)
        return min(max(compared, self.w_min), self.w_max) * self.trust(teacher)


class AdaptiveTau:
    """A `tau` that follows the margins: `factor` times the running median of their sizes.

    With `factor` 1, half of the margins move the sigmoid beyond 0.27 to 0.73 in any unit. Our choice. Margins of
    exactly 0 are left out: they give the same weight under any `tau`, and scorers with few values (`rollout`) produce
    many of them.

    The median is over the last `window` margins, so it depends on their order and not on the batches. In a run of
    several processes, give every process the margins of all, in the order of the ranks. `start`: `tau` before the
    first margin; `floor`: smallest `tau`, in the units of V.
    """

    def __init__(self, start: float = 0.2, *, factor: float = 1.0, window: int = 2048, floor: float = 1e-3) -> None:
        for name, value in (("start", start), ("factor", factor), ("floor", floor)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a number above 0")
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1")
        self.start = start
        self.factor = factor
        self.floor = floor
        self._sizes: deque[float] = deque(maxlen=window)

    @property
    def value(self) -> float:
        """The current `tau`."""
        return max(self.floor, self.factor * median(self._sizes)) if self._sizes else self.start

    def update(self, margins: Sequence[float | None]) -> float:
        """Add the margins V_T - V_S of a batch (None, nan and infinite ones are skipped); return the new `tau`."""
        self._sizes.extend(abs(m) for m in margins if m is not None and math.isfinite(m) and m != 0)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"sizes": list(self._sizes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's `state_dict`."""
        self._sizes = deque(map(float, state["sizes"]), maxlen=self._sizes.maxlen)


@dataclass(frozen=True)
class StepEvidence:
    """Validities and statistics of the steps of a batch; `StepWeighting.needs` names the required fields.

    Args:
        positions: relative position in the trace, 0 for its first step to 1 for its last.
        teacher, student: V_T and V_S on the scale of the map; None where the scorer failed.
        teacher_entropy, student_entropy, kl: means over the step in nats per token (`step_means`); kl is KL(S||T).
        teacher_is_expected: whether V_T is an expectation, -H_T. That is the teacher's uncertainty, not the validity
            of a step, so the map's floor (`v_0`) does not apply.
        on_policy: whether the traces are the student's rollouts, else the teacher's: their margins differ in size.
    """

    positions: Sequence[float]
    teacher: Sequence[float | None] | None = None
    student: Sequence[float | None] | None = None
    teacher_entropy: Sequence[float | None] | None = None
    student_entropy: Sequence[float | None] | None = None
    kl: Sequence[float | None] | None = None
    teacher_is_expected: bool = False
    on_policy: bool = True


def joined(parts: Sequence[StepEvidence]) -> StepEvidence:
    """The evidence of several processes as one, in the order of the parts, which must have the same fields.

    Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("no parts to join: expected one from each process")
    whole: dict[str, Any] = {name: getattr(parts[0], name) for name in ("teacher_is_expected", "on_policy")}
    for name in ("positions", "teacher", "student", "teacher_entropy", "student_entropy", "kl"):
        known = getattr(parts[0], name) is not None
        whole[name] = [value for part in parts for value in getattr(part, name)] if known else None
    return StepEvidence(**whole)


@dataclass(frozen=True)
class WeightedSteps:
    """The weights of a batch's steps (1 where the scorer failed), with the values they were made from.

    `raising`: the weights of a signal that makes the student's own step likelier, and so should not where that step is
    invalid: with the further factor min(1, V_S / v_0).
    `margins`: V_T - V_S as the map saw them; None where the scorer failed, and throughout under `uniform`. `failed`,
    `floored`: number of steps without validity, and of those whose weight the teacher's own validity lowered (`v_0`).
    """

    weights: list[float]
    margins: list[float | None]
    tau: float
    failed: int
    floored: int
    raising: list[float]


class StepWeighting:
    """Turns the evidence of a batch into weights, under the method or one of the controls.

    Args:
        weight_map: its scale is that of the validities. `entropy` and `divergence` use it on the scale `log`,
            whatever its own, and without its floor: their V_T is -H_T, the teacher's uncertainty.
        control: None for the method.
        adaptive: makes `tau` follow the margins, in place of `weight_map.tau`: one for rollouts, and a second one like
            it for the teacher's traces, whose margins have another size.
        seed: random seed of `shuffled`.

    Raises ValueError for an unknown control.
    """

    def __init__(
        self,
        weight_map: WeightMap,
        *,
        control: Control | None = None,
        adaptive: AdaptiveTau | None = None,
        seed: int = 0,
    ) -> None:
        if control is not None and control not in CONTROLS:
            raise ValueError(f"control={control!r}: expected {', '.join(map(repr, CONTROLS))}, or none for the method")
        of_entropy = control in ("entropy", "divergence")
        self.weight_map = replace(weight_map, scale="log", v_0=0.0) if of_entropy else weight_map
        self.control = control
        self.adaptive = adaptive
        self.adaptive_off_policy = copy.deepcopy(adaptive)
        self.seed = seed
        self._profile, self._raising_profile = PositionProfile(), PositionProfile()

    @property
    def needs(self) -> frozenset[str]:
        """The required fields of `StepEvidence` besides `positions`."""
        return {
            "uniform": frozenset[str](),
            "teacher_only": frozenset({"teacher"}),
            "entropy": frozenset({"teacher_entropy", "student_entropy"}),
            "divergence": frozenset({"teacher_entropy", "kl"}),
        }.get(self.control or "", frozenset({"teacher", "student"}))

    def __call__(self, evidence: StepEvidence, step: int) -> WeightedSteps:
        """The weights of the steps; raises ValueError where the evidence lacks a field that `needs` names.

        `evidence`: that of all processes (`joined`), so that `tau` and the controls do not depend on how rows are
        spread over processes. `step`: number of the generation batch, part of the seed of `shuffled`.
        """
        count = len(evidence.positions)
        if self.control == "uniform":
            return WeightedSteps([1.0] * count, [None] * count, self.weight_map.tau, 0, 0, [1.0] * count)
        pairs = self._compared(evidence)
        margins = [None if t is None or s is None else t - s for t, s in pairs]
        weight_map = replace(self.weight_map, v_0=0.0) if evidence.teacher_is_expected else self.weight_map
        adaptive = self.adaptive if evidence.on_policy else self.adaptive_off_policy
        tau = weight_map.tau if adaptive is None else adaptive.update(margins)
        valid = [margin is not None for margin in margins]
        weights = weight_map([t for t, _ in pairs], [s for _, s in pairs], tau=tau)
        floored = sum(weight_map.is_floored(t) for t, _ in pairs)
        own = [None] * count if self.control == "teacher_only" else [s for _, s in pairs]  # which sees no student
        raising = [weight * weight_map.trust(value) for weight, value in zip(weights, own, strict=True)]
        if self.control == "shuffled":
            weights, raising = (shuffled(values, valid, seed=self.seed, step=step) for values in (weights, raising))
        elif self.control == "position":
            weights = self._profile(weights, evidence.positions, valid)
            raising = self._raising_profile(raising, evidence.positions, valid)
        return WeightedSteps(weights, margins, tau, valid.count(False), floored, raising)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint: plain numbers."""
        taus = [None if tau is None else tau.state_dict() for tau in (self.adaptive, self.adaptive_off_policy)]
        profiles = {"profile": self._profile.state_dict(), "profile_raising": self._raising_profile.state_dict()}
        return {"tau": taus[0], "tau_off_policy": taus[1], **profiles}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a checkpoint's `state_dict`."""
        for tau, name in ((self.adaptive, "tau"), (self.adaptive_off_policy, "tau_off_policy")):
            # Checkpoints of earlier versions have one tau.
            if tau is not None and (saved := state.get(name)) is not None:
                tau.load_state_dict(saved)
        self._profile.load_state_dict(state["profile"])
        self._raising_profile.load_state_dict(state.get("profile_raising", state["profile"]))

    def _compared(self, evidence: StepEvidence) -> list[tuple[float | None, float | None]]:
        given = {}
        for name in sorted(self.needs):
            values = getattr(evidence, name)
            if values is None or len(values) != len(evidence.positions):
                found = "none" if values is None else str(len(values))
                raise ValueError(
                    f"control {self.control or 'none'!r} needs {name} of all {len(evidence.positions)} steps; "
                    f"found {found}"
                )
            given[name] = [None if v is None or not math.isfinite(v) else float(v) for v in values]
        if self.control == "teacher_only":
            teacher, student = teacher_only(given["teacher"])
        elif self.control == "entropy":
            teacher, student = entropy(given["teacher_entropy"], given["student_entropy"])
        elif self.control == "divergence":
            teacher, student = divergence(given["teacher_entropy"], given["kl"])
        else:
            teacher, student = given["teacher"], given["student"]
        return [(None, None) if t is None or s is None else (t, s) for t, s in zip(teacher, student, strict=True)]


def _check_tau(tau: float) -> float:
    if not (math.isfinite(tau) and tau > 0):
        raise ValueError(f"tau={tau}: expected a number above 0, in the units of the validity")
    return tau
