"""Local validity of steps, and how hard the student is pulled there: scorers, margins, the weight map, controls.

Under one prefix the teacher and the student each propose a next step. A *validity* V says how good each proposal is at
that place; the difference scales the distillation loss on the tokens of the step that is trained on. The teacher
still sets the direction: weights are never negative.

    >>> from rlkd.validity import WeightMap
    >>> [round(w, 2) for w in WeightMap()([0.9, 0.5, 0.1, None], [0.1, 0.5, 0.1, 0.4])]
    [1.77, 1.0, 0.5, 1.0]

The idea is that of "Validity-Calibrated Reasoning Distillation" (arXiv 2605.04078), of which we know no more than the
abstract. Every formula here is our choice. `docs/validity.md` says what each does and what was measured.

Importing this loads no torch: models are read at the first request.
"""

from rlkd.validity.contract import (
    Scale,
    StepQuestion,
    ValidityError,
    ValidityScorer,
    load_scorer,
    score_pairs,
)
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
from rlkd.validity.margins import REDUCTIONS, Reduction, StepValidities, expected_margins, reduce_tokens, step_means
from rlkd.validity.weigher import StepEvidence, WeighedSteps, Weigher, joined
from rlkd.validity.weights import AdaptiveTau, WeightMap

BUILT_IN = {
    "judge": "rlkd.validity.judge.Judge",
    "likelihood": "rlkd.validity.likelihood.Likelihood",
    "prm": "rlkd.validity.prm.ProcessRewardModel",
    "rollout": "rlkd.validity.rollout.Rollout",
}

__all__ = [
    "BUILT_IN",
    "CONTROLS",
    "REDUCTIONS",
    "AdaptiveTau",
    "Control",
    "PositionProfile",
    "Reduction",
    "Scale",
    "StepEvidence",
    "StepQuestion",
    "StepValidities",
    "ValidityError",
    "ValidityScorer",
    "WeighedSteps",
    "Weigher",
    "WeightMap",
    "divergence",
    "entropy",
    "expected_margins",
    "joined",
    "load_scorer",
    "reduce_tokens",
    "score_pairs",
    "shuffled",
    "step_means",
    "teacher_only",
    "uniform",
]
