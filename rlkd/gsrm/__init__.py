"""The generative structure reward model (GSRM) of RLKD: traces to structures, structures to scores."""

from rlkd.gsrm.alignment import Alignment, BranchScore, Explanation, Verdict, best_branch, step_scores
from rlkd.gsrm.decomposers import (
    Decomposer,
    DecompositionError,
    GenerativeDecomposer,
    NativeDecomposer,
    PromptedDecomposer,
    RulesDecomposer,
    UnreadableReply,
)
from rlkd.gsrm.judges import DeterministicJudge, EmbeddingJudge, Judge, JudgeError, ModelJudge
from rlkd.gsrm.model import GSRM
from rlkd.gsrm.stores import StructureStore, VerdictStore
from rlkd.gsrm.traces import ReasoningTrace, reasoning_part

__all__ = [
    "GSRM",
    "Alignment",
    "BranchScore",
    "Decomposer",
    "DecompositionError",
    "DeterministicJudge",
    "EmbeddingJudge",
    "Explanation",
    "GenerativeDecomposer",
    "Judge",
    "JudgeError",
    "ModelJudge",
    "NativeDecomposer",
    "PromptedDecomposer",
    "ReasoningTrace",
    "RulesDecomposer",
    "StructureStore",
    "UnreadableReply",
    "Verdict",
    "VerdictStore",
    "best_branch",
    "reasoning_part",
    "step_scores",
]
