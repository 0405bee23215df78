"""The selector `judge`: a model says yes or no to a rationale, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlkd.cache import Cache, cache_key
from rlkd.engines.base import Engine, EngineError, Message
from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.asking import Asked
from rlkd.rationales.select.contract import NOT_MEASURED, Judgement, report_failures

TEMPLATE = """\
Problem:
{question}

Solution:
{rationale}

Is every step of this solution correct, does each follow from the problem and the steps before it, and do they lead to
the answer that the solution gives? Wording and style do not count. Answer with Yes or No."""
CHOICES = ("Yes", "No")
REFUSED = "the judge says no"

# What a choice that the engine calls impossible counts as, in nats.
_LEAST = -100.0
# Prompts of one call of the engine: what has been measured is kept after each.
_PROMPTS = 256


class Judge:
    """Keeps what an engine says yes to. Score `judge`: the log-probability of Yes where it is Yes or No, in nats.

    The right answer is not shown, so that the judge reads the steps. What a judge is worth must be measured on data
    with known answers first: small models say yes to everything.

    Args:
        engine: spec of the model.
        threshold: probability of Yes from which on a rationale is kept, 0 to 1.
        template: text of the message, with `{question}` and `{rationale}` in it; it must ask for Yes or No.
        cache: where what was said is kept.
        deadline: seconds for one call of the engine, of 256 prompts.
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
        self.asked = Asked("selector 'judge'", engine, deadline)
        self.threshold = threshold
        self.template = template
        self.cache = cache
        self.deadline = deadline

    def check_ready(self) -> None:
        """Raise `UsageError` where the engine is a server that does not answer or lacks the model."""
        self.asked.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        prompts = [self.prompt(question, each) for question in questions for each in question.candidates]
        said: list[float | EngineError] = []
        for start in range(0, len(prompts), _PROMPTS):
            said += await self._ask(prompts[start : start + _PROMPTS])
        report_failures(self.__name__, [str(item) for item in said if isinstance(item, EngineError)], len(said))
        told = iter(said)
        return [[self._judged(next(told)) for _ in question.candidates] for question in questions]

    def prompt(self, question: Question, each: Candidate) -> list[Message]:
        """The message about one rationale."""
        # By parts, so that a question that holds `{rationale}` stays as it is.
        before, _, after = self.template.partition("{rationale}")
        text = (
            before.replace("{question}", question.question)
            + each.text
            + after.replace("{question}", question.question)
        )
        return [{"role": "user", "content": text}]

    def _judged(self, said: float | EngineError) -> Judgement:
        if isinstance(said, EngineError):
            return Judgement(NOT_MEASURED)
        return Judgement(None if math.exp(said) >= self.threshold else REFUSED, {"judge": said})

    async def _ask(self, prompts: Sequence[list[Message]]) -> list[float | EngineError]:
        engine = self.asked.engine
        keys = [cache_key("judge of rationales", 1, engine.name, prompt, CHOICES) for prompt in prompts]
        known: dict[str, float | EngineError] = {} if self.cache is None else dict(self.cache.get(keys))
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        replies = await engine.choose(list(missing.values()), CHOICES, deadline=self.deadline) if missing else []
        fresh: dict[str, float] = {}
        for key, reply in zip(missing, replies, strict=True):
            if isinstance(reply, EngineError):
                known[key] = reply
            elif max(reply) == -math.inf or any(map(math.isnan, reply)):
                known[key] = EngineError(engine.name, f"no log-probabilities of {' and '.join(CHOICES)}: {reply}.")
            else:
                known[key] = fresh[key] = log_share(*reply)
        if self.cache is not None:
            self.cache.put(fresh)
        return [known[key] for key in keys]


def log_share(yes: float, no: float) -> float:
    """The log-probability of Yes among Yes and No, in nats, from those of both; at least -100.

    >>> round(log_share(-1.0, -1.0), 4), log_share(-3.0, float("-inf"))
    (-0.6931, 0.0)
    """
    yes, no = max(yes, _LEAST), max(no, _LEAST)
    top = max(yes, no)
    return max(_LEAST, min(0.0, yes - top - math.log(math.exp(yes - top) + math.exp(no - top))))
