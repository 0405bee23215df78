"""The selector `rank_surprisal`: rationales that surprise the student, in words that it might have chosen itself.

The rank-surprisal ratio of a text (arXiv 2601.14249):

    RSR = sum_t min(rank_t, r) / sum_t surprisal_t             r = 100

`rank_t` is the place of token t among all tokens in the order of the student's probability, 1 for the likeliest, and
`surprisal_t` is its negative log-probability in nats. A low ratio is better: much to learn (surprisal) at little
strangeness (rank). Formula and r are those of the authors' released code; the paper averages over the tokens of the
response, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.cache import Cache, cache_key
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.select.asking import Student
from rlkd.rationales.select.contract import Judgement, SelectorError, check_keep, keep_first, report_failures
from rlkd.rationales.select.rationale_difficulty import TEMPLATE

UNFIT = "fits the student worse than the kept ones"

# Texts of one call of the engine: what has been measured is kept after each.
_TEXTS = 256


def rank_surprisal_ratio(ranks: Sequence[int], surprisals: Sequence[float], clip: int = 100) -> float:
    """The ratio of one text, from the rank and the surprisal in nats of each of its tokens; above 0.

    A text without any surprise has nothing to teach: its ratio is as large as numbers get. Raises ValueError for
    lists that differ in length or are empty.

    >>> rank_surprisal_ratio([1, 500, 3], [0.5, 6.0, 1.5])
    13.0
    """
    if not ranks or len(ranks) != len(surprisals):
        raise ValueError(f"{len(ranks)} ranks and {len(surprisals)} surprisals: expected one each for every token")
    return sum(min(rank, clip) for rank in ranks) / max(sum(surprisals), 1e-12)


class RankSurprisal:
    """Keeps the `keep` candidates of a question with the lowest rank-surprisal ratio. Score `rank_surprisal`.

    Args:
        student: spec of the student before training: an engine that tells ranks (`score_with_ranks`), as
            `transformers:` does.
        keep: how many of a question; the paper takes the best one.
        clip: the largest rank that counts, r.
        template: the text before a rationale, with `{question}` in it.
        cache: where what was measured is kept.
        deadline: seconds for one call of the engine, of 256 texts.
    """

    __name__ = "rank_surprisal"

    def __init__(
        self,
        student: str | Engine,
        *,
        keep: int = 1,
        clip: int = 100,
        template: str = TEMPLATE,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        check_keep(keep)
        if clip < 1:
            raise ValueError(f"clip={clip}: expected a rank, 1 or more")
        self.student = Student("selector 'rank_surprisal'", student, template, cache, deadline)
        self.keep = keep
        self.clip = clip
        if not hasattr(self.student.engine, "score_with_ranks"):
            raise SelectorError(
                f"selector 'rank_surprisal': {self.student.engine.name} does not tell the ranks of tokens. Give the "
                "student as transformers:MODEL."
            )

    def check_ready(self) -> None:
        """Raise `UsageError` where the student is a server that does not answer or lacks the model."""
        self.student.check_ready()

    async def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        wanted = [
            (self.student.prompt(question), f" {each.text.strip()}")
            for question in questions
            for each in question.candidates
        ]
        ratios = await self._ratios(wanted)
        causes = [str(ratio) for ratio in ratios if isinstance(ratio, EngineError)]
        report_failures(self.__name__, causes, len(ratios))
        values = [None if isinstance(ratio, EngineError) else ratio for ratio in ratios]
        judgements, start = [], 0
        for question in questions:
            own = values[start : start + len(question.candidates)]
            start += len(own)
            reasons = keep_first(question.candidates, own, self.keep, UNFIT)
            judgements.append(
                [
                    Judgement(why, {} if ratio is None else {"rank_surprisal": ratio})
                    for why, ratio in zip(reasons, own, strict=True)
                ]
            )
        return judgements

    async def _ratios(self, requests: Sequence[tuple[str, str]]) -> list[float | EngineError]:
        name, cache = self.student.engine.name, self.student.cache
        found: list[float | EngineError] = []
        for start in range(0, len(requests), _TEXTS):
            some = requests[start : start + _TEXTS]
            keys = [cache_key("rank-surprisal ratio", 1, name, self.clip, *request) for request in some]
            known: dict[str, Any] = {} if cache is None else cache.get(keys)
            missing = {key: request for key, request in zip(keys, some, strict=True) if key not in known}
            engine: Any = self.student.engine  # checked when it was made
            replies = await engine.score_with_ranks(list(missing.values()), deadline=self.student.deadline)
            fresh: dict[str, Any] = {}
            for key, reply in zip(missing, replies, strict=True):
                if not isinstance(reply, EngineError) and not reply.n_tokens:
                    reply = EngineError(name, f"the text {missing[key][1][:80]!r} has no tokens.")
                if isinstance(reply, EngineError):
                    known[key] = reply
                else:
                    fresh[key] = rank_surprisal_ratio(reply.ranks, [-value for value in reply.logprobs], self.clip)
            if cache is not None:
                cache.put(fresh)
            known |= fresh
            found += [known[key] for key in keys]
        return found
