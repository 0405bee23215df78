"""Divergence of a student's next-token distribution from its teacher's, per token, for vocabularies of any size.

The logits of a batch, [N, V], are never built: two tiles of `token_chunk` rows are filled again and again, so the peak
memory does not grow with N.

1. Gradients flow to the student's hidden states and to its head where they need one; none to the teacher, to
   log-probabilities, or through weights.
2. Sums are in float32 whatever the inputs are (float64 if the student's hidden states are). Under autocast, hidden
   states and heads are first rounded to autocast's dtype, as in the model's own forward pass.
3. Logits must be finite. Chunk sizes change values and gradients by rounding only. An empty batch is valid.

The gradient with respect to the logits of one token is, with p the student's distribution,

    p * (a - <p, a>)    with a = dD/dp    which is    q - p * sum(q)    with q = p * a

so a divergence is two formulas, its terms and its q (`formulas.terms_and_q`), and everything else is shared.
"""

from rlkd.divergence.api import (
    DivergenceKernel,
    TokenStatistics,
    chunked_divergence,
    token_statistics,
    topk_divergence,
    topk_statistics,
    weighted_mean,
)
from rlkd.divergence.formulas import Divergence, DivergenceKind
from rlkd.divergence.targets import SMALLEST_TAIL
from rlkd.divergence.tiles import Head

__all__ = [
    "SMALLEST_TAIL",
    "Divergence",
    "DivergenceKernel",
    "DivergenceKind",
    "Head",
    "TokenStatistics",
    "chunked_divergence",
    "token_statistics",
    "topk_divergence",
    "topk_statistics",
    "weighted_mean",
]
