"""The generative structure reward model (GSRM) of RLKD: traces to structures, structures to scores."""

from rlkd.gsrm.alignment import Norm, StructureScore, Verdict, best_branch, step_scores, structure_score
from rlkd.gsrm.decomposers import (
    Decomposer,
    DecompositionError,
    GenerativeDecomposer,
    NativeDecomposer,
    PromptedDecomposer,
    RulesDecomposer,
    Trace,
    reasoning_part,
)
from rlkd.gsrm.judges import DeterministicJudge, Judge, JudgeError, ModelJudge
from rlkd.gsrm.model import GSRM, Judgement, StructureStore

__all__ = [
    "GSRM",
    "Decomposer",
    "DecompositionError",
    "DeterministicJudge",
    "GenerativeDecomposer",
    "Judge",
    "JudgeError",
    "Judgement",
    "ModelJudge",
    "NativeDecomposer",
    "Norm",
    "PromptedDecomposer",
    "RulesDecomposer",
    "StructureScore",
    "StructureStore",
    "Trace",
    "Verdict",
    "best_branch",
    "reasoning_part",
    "step_scores",
    "structure_score",
]
