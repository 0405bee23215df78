"""The weights of a batch: validities or a control, `tau`, and the map, with the state that a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlkd.validity.controls import (
    CONTROLS,
    Control,
    PositionProfile,
    divergence,
    entropy,
    shuffled,
    teacher_only,
    uniform,
)
from rlkd.validity.weights import AdaptiveTau, WeightMap


@dataclass(frozen=True)
class StepEvidence:
    """What is known of the steps of a batch, one entry a step; `Weigher.needs` says what must be given.

    Args:
        positions: relative position in the trace, 0 for its first step to 1 for its last.
        teacher, student: V_T and V_S on the scale of the map; None where the scorer failed.
        teacher_entropy, student_entropy, kl: means over the step in nats a token (`step_means`); kl is KL(S||T).
        teacher_is_expected: whether V_T is an expectation, -H_T: how uncertain the teacher is, and no validity of a
            step, so the map's floor (`v_0`) has no part in it.
    """

    positions: Sequence[float]
    teacher: Sequence[float | None] | None = None
    student: Sequence[float | None] | None = None
    teacher_entropy: Sequence[float | None] | None = None
    student_entropy: Sequence[float | None] | None = None
    kl: Sequence[float | None] | None = None
    teacher_is_expected: bool = False


def joined(parts: Sequence[StepEvidence]) -> StepEvidence:
    """What several processes found out about their steps, as one, in the order of the parts.

    All parts must know the same fields. Raises ValueError for no parts.
    """
    if not parts:
        raise ValueError("no parts to join: expected one of each process")
    whole: dict[str, Any] = {"teacher_is_expected": parts[0].teacher_is_expected}
    for name in ("positions", "teacher", "student", "teacher_entropy", "student_entropy", "kl"):
        known = getattr(parts[0], name) is not None
        whole[name] = [value for part in parts for value in getattr(part, name)] if known else None
    return StepEvidence(**whole)


@dataclass(frozen=True)
class WeighedSteps:
    """The weights of a batch's steps, and what they rest on.

    Args:
        weights: one a step, 1 where the scorer failed.
        margins: what the map compared, V_T - V_S; None where the scorer failed, and throughout under `uniform`.
        tau: that was used.
        failed: steps without validity.
        floored: steps whose weight the teacher's own validity lowered (`v_0`).
    """

    weights: list[float]
    margins: list[float | None]
    tau: float
    failed: int
    floored: int


class Weigher:
    """Turns the evidence of a batch into weights, under the method or one of the controls.

    Args:
        weight_map: its scale is that of the validities. `entropy` and `divergence` use the same map on the scale
            `log`, whatever its own, and without its floor: their V_T is -H_T, how uncertain the teacher is.
        control: None for the method.
        adaptive: where given, `tau` follows the margins; `weight_map.tau` is not used.
        seed: of `shuffled`.

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
        self.seed = seed
        self._profile = PositionProfile()

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `StepEvidence` that must be given besides `positions`."""
        return {
            "uniform": frozenset[str](),
            "teacher_only": frozenset({"teacher"}),
            "entropy": frozenset({"teacher_entropy", "student_entropy"}),
            "divergence": frozenset({"teacher_entropy", "kl"}),
        }.get(self.control or "", frozenset({"teacher", "student"}))

    def __call__(self, evidence: StepEvidence, step: int) -> WeighedSteps:
        """The weights of the steps.

        Args:
            evidence: of the steps of all processes (`joined`), so that `tau` and the controls do not depend on how
                rows lie on processes.
            step: number of the generation batch, which `shuffled` draws from.

        Raises ValueError where the evidence lacks what `needs` names.
        """
        count = len(evidence.positions)
        if self.control == "uniform":
            return WeighedSteps(uniform(count), [None] * count, self.weight_map.tau, 0, 0)
        pairs = self._compared(evidence)
        margins = [None if t is None or s is None else t - s for t, s in pairs]
        weight_map = replace(self.weight_map, v_0=0.0) if evidence.teacher_is_expected else self.weight_map
        tau = weight_map.tau if self.adaptive is None else self.adaptive.update(margins)
        valid = [margin is not None for margin in margins]
        weights = weight_map([t for t, _ in pairs], [s for _, s in pairs], tau=tau)
        floored = sum(weight_map.is_floored(t) for t, _ in pairs)
        if self.control == "shuffled":
            weights = shuffled(weights, valid, seed=self.seed, step=step)
        elif self.control == "position":
            weights = self._profile(weights, evidence.positions, valid)
        return WeighedSteps(weights, margins, tau, valid.count(False), floored)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers."""
        adaptive = None if self.adaptive is None else self.adaptive.state_dict()
        return {"tau": adaptive, "profile": self._profile.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's `state_dict`."""
        if self.adaptive is not None and state["tau"] is not None:
            self.adaptive.load_state_dict(state["tau"])
        self._profile.load_state_dict(state["profile"])

    def _compared(self, evidence: StepEvidence) -> list[tuple[float | None, float | None]]:
        """(V_T, V_S) as the map gets them, both None where one is missing or not finite."""
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
        if self.control == "uniform":
            return [(None, None)] * len(evidence.positions)
        if self.control == "teacher_only":
            teacher, student = teacher_only(given["teacher"])
        elif self.control == "entropy":
            teacher, student = entropy(given["teacher_entropy"], given["student_entropy"])
        elif self.control == "divergence":
            teacher, student = divergence(given["teacher_entropy"], given["kl"])
        else:
            teacher, student = given["teacher"], given["student"]
        return [(None, None) if t is None or s is None else (t, s) for t, s in zip(teacher, student, strict=True)]
