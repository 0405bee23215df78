"""Local validity of steps and the weights made from it: scorers, margins, the weight map, controls.

Under one prefix the teacher and the student each propose a next step. A *validity* V says how good each proposal is
there; the difference scales the distillation loss on the tokens of the step that is trained on. The teacher still sets
the direction: weights are never negative.

    >>> from rlkd.validity import WeightMap
    >>> [round(w, 2) for w in WeightMap()([0.9, 0.5, 0.1, None], [0.1, 0.5, 0.1, 0.4])]
    [1.77, 1.0, 0.5, 1.0]

The idea is that of "Validity-Calibrated Reasoning Distillation" (arXiv 2605.04078), of which only the abstract is
known. Every formula here is our choice; `docs/validity.md` explains each.

Importing this loads no torch: models load at the first request.
"""

from rlkd.validity.contract import (
    StepQuestion,
    Tally,
    TokenLogprobScorer,
    TokenStatisticsScorer,
    ValidityError,
    ValidityScorer,
    load_scorer,
    score_logprobs,
    score_pairs,
    score_statistics,
)
from rlkd.validity.controls import CONTROLS
from rlkd.validity.margins import REDUCTIONS, StepValidities, expected_margins, step_means
from rlkd.validity.weighting import AdaptiveTau, StepEvidence, StepWeighting, WeightedSteps, WeightMap, joined

BUILT_IN = {
    "arithmetic": "rlkd.validity.arithmetic.arithmetic",
    "judge": "rlkd.validity.judge.JudgeScorer",
    "likelihood": "rlkd.validity.likelihood.likelihood",
    "prm": "rlkd.validity.prm.PRMScorer",
    "rollout": "rlkd.validity.rollout.RolloutScorer",
}

__all__ = [
    "BUILT_IN",
    "CONTROLS",
    "REDUCTIONS",
    "AdaptiveTau",
    "StepEvidence",
    "StepQuestion",
    "StepValidities",
    "StepWeighting",
    "Tally",
    "TokenLogprobScorer",
    "TokenStatisticsScorer",
    "ValidityError",
    "ValidityScorer",
    "WeightMap",
    "WeightedSteps",
    "expected_margins",
    "joined",
    "load_scorer",
    "score_logprobs",
    "score_pairs",
    "score_statistics",
    "step_means",
]
