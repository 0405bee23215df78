"""Validity by likelihood: the log-probability of a step under the teacher, in nats a token.

No further model and no training; but what is likely is not therefore right. `docs/validity.md` measures how often.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkd.engines.base import EngineError
from rlkd.validity.asking import Asking
from rlkd.validity.contract import Scale, StepQuestion, ValidityError, report_failures
from rlkd.validity.margins import Reduction, check_reduction, reduce_tokens


class Likelihood:
    """The likelihood of steps under an engine's model, or under the teacher whose log-probabilities the trainer has.

    Args:
        engine: spec of the model (`rlkd.engines.open_engine`), which is asked at temperature 1. None: the trainer's
            own teacher; the trainer gives `of_logprobs` what its forward pass found, at its sampling temperature.
        reduction: of the surprisals of the step's tokens (`rlkd.validity.margins.reduce_tokens`): V is minus their
            mean, their maximum or their quantile.
        quantile: of `reduction: quantile`.
        tokenizer: name of the tokenizer whose chat template renders messages; by default that of the engine's model.
        deadline: seconds for one call.

    Raises ValueError for values outside their ranges.
    """

    __name__ = "likelihood"
    scale: Scale = "log"

    def __init__(
        self,
        engine: str | None = None,
        *,
        reduction: Reduction = "mean",
        quantile: float = 0.9,
        tokenizer: str | None = None,
        deadline: float | None = 300.0,
    ) -> None:
        check_reduction(reduction, quantile)
        self.reduction: Reduction = reduction
        self.quantile = quantile
        self.asking = None if engine is None else Asking("validity scorer 'likelihood'", engine, deadline, tokenizer)

    def of_logprobs(self, logprobs: Sequence[Sequence[float]]) -> list[float | None]:
        """The validity of steps whose tokens have these log-probabilities; None for a step without tokens."""
        surprisals = [[-value for value in step] for step in logprobs]
        reduced = [reduce_tokens(step, self.reduction, self.quantile) for step in surprisals]
        return [None if value is None else -value for value in reduced]

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine is a server that does not answer or lacks the model."""
        if self.asking is not None:
            self.asking.check_ready()

    async def __call__(self, questions: Sequence[StepQuestion]) -> list[float | None]:
        """See `rlkd.validity.contract`. Raises `ValidityError` without an engine."""
        if self.asking is None:
            raise ValidityError(
                "validity scorer 'likelihood' without `engine` lives on the trainer's log-probabilities "
                "(`of_logprobs`) and cannot be asked about texts. Set `engine`."
            )
        texts = await self.asking.texts(list(questions))
        requests = [(text, question.step) for text, question in zip(texts, questions, strict=True)]
        replies = await self.asking.engine.score(requests, deadline=self.asking.deadline)
        causes = [str(reply) for reply in replies if isinstance(reply, EngineError)]
        report_failures(self.__name__, causes, len(questions))
        return self.of_logprobs([() if isinstance(reply, EngineError) else reply.logprobs for reply in replies])
