"""The selector `judge`: a model says yes or no to a rationale, with a probability."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkd.cache import Cache
from rlkd.engines.base import Engine, EngineError, Message
from rlkd.engines.choice_mass import check_choice_mass
from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.contract import NOT_MEASURED, SelectorVerdict, by_question, report_failures
from rlkd.rationales.select.engine import WithEngine

TEMPLATE = """\
Problem:
{question}

Solution:
{rationale}

Is every step of this solution correct, does each follow from the problem and the steps before it, and do they lead to
the answer that the solution gives? Wording and style do not count. Answer with Yes or No."""
CHOICES = ("Yes", "No")
REFUSED = "the judge says no"

# The value of a choice that the engine calls impossible, in nats.
_MIN_LOGPROB = -100.0


class JudgeSelector(WithEngine):
    """Keeps what an engine says yes to. Score `judge`: the log-probability of Yes, given Yes or No, in nats.

    The right answer is not shown, so that the judge reads the steps. Measure a judge on data with known answers first:
    small models say yes to everything.

    Args:
        engine: spec of the model.
        threshold: minimum probability of Yes of a kept rationale, 0 to 1.
        template: text of the message, with `{question}` and `{rationale}` in it; it must ask for Yes or No.
        cache, deadline: see `WithEngine`; a call has 256 prompts.
    """

    __name__ = "judge"

    def __init__(
        self,
        engine: str | Engine,
        *,
        threshold: float = 0.5,
        template: str = TEMPLATE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a probability, 0 to 1")
        for field in ("{question}", "{rationale}"):
            if field not in template:
                raise ValueError(f"template={template[:80]!r}...: expected a text with {field} in it")
        super().__init__(engine, cache, deadline)
        self.threshold = threshold
        self.template = template

    def check_ready(self) -> None:
        """Raise `UsageError` if a server does not answer, or the model does not begin its reply with Yes or No."""
        super().check_ready()
        text = self.template.replace("{question}", "What is 1 + 1?").replace("{rationale}", "1 + 1 = 2.")
        role = f"selector {self.__name__!r}"
        check_choice_mass(self.engine, [{"role": "user", "content": text}], CHOICES, role, self.deadline)

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        prompts = [self.prompt(question, each) for question in questions for each in question.candidates]
        scores = await self.cached("judge of rationales", prompts, self._scores, 256, lambda each: (each, CHOICES))
        report_failures(self.__name__, scores)
        return by_question(map(self._verdict, scores), questions)

    def prompt(self, question: Question, each: Candidate) -> list[Message]:
        """The message about one rationale."""
        # By parts, so that a question that contains `{rationale}` stays as it is.
        before, _, after = self.template.partition("{rationale}")
        head, tail = (part.replace("{question}", question.question) for part in (before, after))
        return [{"role": "user", "content": head + each.text + tail}]

    def _verdict(self, score: float | EngineError) -> SelectorVerdict:
        if isinstance(score, EngineError):
            return SelectorVerdict(NOT_MEASURED)
        return SelectorVerdict(None if math.exp(score) >= self.threshold else REFUSED, {"judge": score})

    async def _scores(self, prompts: list[list[Message]]) -> list[float | EngineError]:
        scores: list[float | EngineError] = []
        for reply in await self.engine.choose(prompts, CHOICES, deadline=self.deadline):
            if isinstance(reply, EngineError):
                scores.append(reply)
            elif max(reply) == -math.inf or any(map(math.isnan, reply)):
                text = f"no log-probabilities of {' and '.join(CHOICES)}: {reply}."
                scores.append(EngineError(self.engine.name, text))
            else:
                scores.append(log_share(*reply))
        return scores


def log_share(yes: float, no: float) -> float:
    """The log-probability of Yes among Yes and No, in nats, from those of both; at least -100.

    >>> round(log_share(-1.0, -1.0), 4), log_share(-3.0, float("-inf"))
    (-0.6931, 0.0)
    """
    yes, no = max(yes, _MIN_LOGPROB), max(no, _MIN_LOGPROB)
    top = max(yes, no)
    return max(_MIN_LOGPROB, min(0.0, yes - top - math.log(math.exp(yes - top) + math.exp(no - top))))
