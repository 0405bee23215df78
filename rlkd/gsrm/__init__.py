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
    UnreadableReply,
    reasoning_part,
)
from rlkd.gsrm.judges import DeterministicJudge, EmbeddingJudge, Judge, JudgeError, ModelJudge
from rlkd.gsrm.model import GSRM, Judgement, StructureStore
from rlkd.gsrm.stores import VerdictStore

__all__ = [
    "GSRM",
    "Decomposer",
    "DecompositionError",
    "DeterministicJudge",
    "EmbeddingJudge",
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
    "UnreadableReply",
    "Verdict",
    "VerdictStore",
    "best_branch",
    "reasoning_part",
    "step_scores",
    "structure_score",
]
