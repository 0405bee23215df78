"""The selectors `random`, `longest` and `shortest`: controls that keep the same number as a measure of quality."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select.contract import SelectorVerdict, check_keep, keep_lowest


def random(keep: int = 6, seed: int = 0) -> LowestKeys:
    """Keeps `keep` candidates of a question, drawn by the seed and their ids: the same in any order and shard."""
    return LowestKeys("random", keep, lambda each: draw(seed, each.id), "not drawn")


def longest(keep: int = 6) -> LowestKeys:
    """Keeps the `keep` candidates of a question with the most characters."""
    return LowestKeys("longest", keep, lambda each: -float(len(each.text)), "not among the longest")


def shortest(keep: int = 6) -> LowestKeys:
    """Keeps the `keep` candidates of a question with the fewest characters."""
    return LowestKeys("shortest", keep, lambda each: float(len(each.text)), "not among the shortest")


class LowestKeys:
    """Keeps the `keep` candidates of a question with the lowest keys; ties go by id. `reason`: of the others."""

    def __init__(self, name: str, keep: int, key: Callable[[Candidate], float], reason: str) -> None:
        check_keep(keep)
        self.__name__, self.keep, self.key, self.reason = name, keep, key, reason

    def __call__(self, questions: Sequence[Question]) -> list[list[SelectorVerdict]]:
        """See `rlkd.rationales.select.contract`."""
        return [keep_lowest(each, list(map(self.key, each.candidates)), self.keep, self.reason) for each in questions]


def draw(seed: int, name: str) -> float:
    """A number in [0, 1) determined by a seed and a name."""
    digest = hashlib.sha256(f"{seed}\x1fdraw\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
