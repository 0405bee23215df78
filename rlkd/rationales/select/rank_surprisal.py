"""The selector `rank_surprisal`: rationales that surprise the student, in words that it might have chosen itself.

The rank-surprisal ratio of a text (arXiv 2601.14249):

    RSR = sum_t min(rank_t, r) / sum_t surprisal_t             r = 100

`rank_t` is the rank of token t among all tokens by the student's probability, 1 for the likeliest, and `surprisal_t`
its negative log-probability in nats. A low ratio is better: much to learn (surprisal) at little strangeness (rank).
Formula and r are those of the authors' released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlkd.cache import Cache
from rlkd.engines.base import Engine, EngineError
from rlkd.rationales.records import Question
from rlkd.rationales.select.contract import (
    SelectorError,
    SelectorVerdict,
    by_question,
    check_keep,
    keep_lowest,
    report_failures,
)
from rlkd.rationales.select.engine import WithStudent

UNFIT = "fits the student worse than the kept ones"


def rank_surprisal_ratio(ranks: Sequence[int], surprisals: Sequence[float], clip: int = 100) -> float:
    """The ratio of one text, from the rank and the surprisal in nats of each of its tokens; above 0.

    A text without any surprise has nothing to teach: its ratio is huge. Raises ValueError for lists that differ in
    length or are empty.

    >>> rank_surprisal_ratio([1, 500, 3], [0.5, 6.0, 1.5])
    13.0
    """
    if not ranks or len(ranks) != len(surprisals):
        raise ValueError(f"{len(ranks)} ranks and {len(surprisals)} surprisals: expected one each for every token")
    return sum(min(rank, clip) for rank in ranks) / max(sum(surprisals), 1e-12)


class RankSurprisal(WithStudent):
    """Keeps the `keep` candidates of a question with the lowest rank-surprisal ratio. Score `rank_surprisal`.

    Args:
        student: spec of the student before training: an engine with the ranks of tokens (`score_with_ranks`), such as
            `transformers:`.
        keep: number of candidates to keep per question; the paper takes the best one.
        clip: the largest rank that counts, r.
        template, prompt_style, cache, deadline: see `WithStudent`; a call has 256 texts.
    """

    __name__ = "rank_surprisal"

    def __init__(
        self,
        student: str | Engine,
        *,
        keep: int = 1,
        clip: int = 100,
        template: str | None = None,
        prompt_style: Mapping[str, Any] | None = None,
        cache: Cache | None = None,
        deadline: float | None = None,
    ) -> None:
        check_keep(keep)
        if clip < 1:
            raise ValueError(f"clip={clip}: expected a rank, 1 or more")
        super().__init__(student, template, prompt_style, cache, deadline)
        self.keep = keep
        self.clip = clip
        if not hasattr(self.engine, "score_with_ranks"):
            raise SelectorError(
                f"selector 'rank_surprisal': {self.engine.name} does not tell the ranks of tokens. Give the "
                "student as transformers:MODEL."
            )

    async def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        requests = [
            (self.prompt(question), self.continuation(each.text))
            for question in questions
            for each in question.candidates
        ]
        engine: Any = self.engine  # checked when it was opened
        score = partial(self.per_text, engine.score_with_ranks, self._ratio)
        ratios = await self.cached("rank-surprisal ratio", requests, score, 256, lambda each: (self.clip, *each))
        report_failures(self.__name__, ratios)
        values = by_question((None if isinstance(each, EngineError) else each for each in ratios), questions)
        verdicts = []
        for question, own in zip(questions, values, strict=True):
            scores = [{} if ratio is None else {"rank_surprisal": ratio} for ratio in own]
            verdicts.append(keep_lowest(question, own, self.keep, UNFIT, scores))
        return verdicts

    def _ratio(self, reply: Any) -> float:
        return rank_surprisal_ratio(reply.ranks, [-value for value in reply.logprobs], self.clip)
