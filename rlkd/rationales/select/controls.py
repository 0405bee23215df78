"""The selectors `random`, `longest` and `shortest`: what a measure of quality has to beat at the same number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.contract import Judgement, check_keep, keep_first


def random(keep: int = 6, seed: int = 0) -> First:
    """Keeps `keep` candidates of a question, drawn by the seed and each one's id: the same in any order and shard."""
    return First("random", keep, lambda each: draw(seed, each.id), "not drawn")


def longest(keep: int = 6) -> First:
    """Keeps the `keep` candidates of a question with the most characters."""
    return First("longest", keep, lambda each: -float(len(each.text)), "not among the longest")


def shortest(keep: int = 6) -> First:
    """Keeps the `keep` candidates of a question with the fewest characters."""
    return First("shortest", keep, lambda each: float(len(each.text)), "not among the shortest")


class First:
    """Keeps the `keep` candidates of a question with the lowest keys; ties go by id. `reason`: of the others."""

    def __init__(self, name: str, keep: int, key: Callable[[Candidate], float], reason: str) -> None:
        check_keep(keep)
        self.__name__ = name
        self.keep = keep
        self.key = key
        self.reason = reason

    def __call__(self, questions: Sequence[Question]) -> list[list[Judgement]]:
        """See `rlkd.rationales.select.contract`."""
        judgements = []
        for question in questions:
            keys = [self.key(each) for each in question.candidates]
            judgements.append(
                [Judgement(why) for why in keep_first(question.candidates, keys, self.keep, self.reason)]
            )
        return judgements


def draw(seed: int, name: str) -> float:
    """A number in [0, 1) that a seed and a name determine, and nothing else."""
    digest = hashlib.sha256(f"{seed}\x1fdraw\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
