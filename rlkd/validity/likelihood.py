"""Validity by likelihood: the log-probability of a step under the teacher, in nats per token.

It needs no further model and no training; but a likely step need not be right. `docs/validity.md` measures how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlkd.engines.base import EngineError
from rlkd.validity.contract import Scale, StepQuestion, warn_of_failed_steps
from rlkd.validity.engine import EngineScorer
from rlkd.validity.margins import Reduction, StepValidities, check_reduction, expected_margins, reduce_tokens

if TYPE_CHECKING:
    from rlkd.divergence import TokenStatistics


def likelihood(
    engine: str | None = None,
    *,
    reduction: Reduction = "mean",
    quantile: float = 0.9,
    tokenizer: str | None = None,
    deadline: float | None = 300.0,
) -> TeacherLikelihoodScorer | EngineLikelihoodScorer:
    """The scorer `likelihood`: under the run's own teacher, or under the model of an engine.

    Args:
        engine: spec of the model, which scores at temperature 1; None for the teacher of the run, at its sampling
            temperature. `tokenizer` and `deadline` (seconds for one call) are those of `EngineScorer`.
        reduction, quantile: V is minus the mean, the maximum or this quantile of the surprisals of the step's tokens
            (`rlkd.validity.margins.reduce_tokens`).

    Raises ValueError for values outside their ranges.
    """
    check_reduction(reduction, quantile)
    if engine is None:
        return TeacherLikelihoodScorer(reduction, quantile)
    return EngineLikelihoodScorer(engine, deadline, tokenizer, reduction, quantile)


class TeacherLikelihoodScorer:
    """The likelihood of steps under the run's own teacher, whose log-probabilities the trainer has."""

    __name__ = "likelihood"
    scale: Scale = "log"

    def __init__(self, reduction: Reduction, quantile: float) -> None:
        self.reduction: Reduction = reduction
        self.quantile = quantile

    def from_token_logprobs(self, logprobs: Sequence[Sequence[float]]) -> list[float | None]:
        """As `TokenLogprobScorer`; None for a step without tokens."""
        return reduced_logprobs(logprobs, self.reduction, self.quantile)

    def from_token_statistics(
        self, statistics: TokenStatistics, spans: Sequence[tuple[int, int]], on_policy: bool
    ) -> StepValidities:
        """As `TokenStatisticsScorer`."""
        return expected_margins(
            statistics, spans, on_policy=on_policy, reduction=self.reduction, quantile=self.quantile
        )


class EngineLikelihoodScorer(EngineScorer):
    """The likelihood of steps under an engine's model."""

    __name__ = "likelihood"
    scale: Scale = "log"

    def __init__(
        self, engine: str, deadline: float | None, tokenizer: str | None, reduction: Reduction, quantile: float
    ) -> None:
        super().__init__(engine, deadline, tokenizer)
        self.reduction: Reduction = reduction
        self.quantile = quantile

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | None]:
        """As `ValidityScorer`."""
        texts = await self.texts(list(questions))
        requests = [(text, question.step) for text, question in zip(texts, questions, strict=True)]
        replies = await self.engine.score(requests, deadline=self.deadline)
        causes = [str(reply) for reply in replies if isinstance(reply, EngineError)]
        warn_of_failed_steps(self.__name__, causes, len(questions))
        logprobs = [() if isinstance(reply, EngineError) else reply.logprobs for reply in replies]
        return reduced_logprobs(logprobs, self.reduction, self.quantile)


def reduced_logprobs(logprobs: Sequence[Sequence[float]], reduction: Reduction, quantile: float) -> list[float | None]:
    """Minus the reduced surprisal of each step; None for a step without tokens."""
    reduced = [reduce_tokens([-value for value in step], reduction, quantile) for step in logprobs]
    return [None if value is None else -value for value in reduced]
