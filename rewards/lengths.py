"""Rewards for the length of a completion."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rewards.contract import CHEAP, Failed, RewardError, RewardOptions
from rewards.verified import AccuracyReward, Column, Rules, Score
from rlkd.answers import VERIFY_SECONDS
from rlkd.data.rows import completion_text


class SoftOverlong:
    """0 up to a length, then a linear fall to -1 at the maximum and beyond (DAPO, arXiv 2503.14476, eq. 13).

    Args:
        max_completion_len: L_max in tokens.
        soft_punish_cache: number of tokens before L_max over which the punishment grows; 0 for none.
    """

    __name__ = "soft_overlong_punishment_reward"
    reward_options = CHEAP
    penalises = True

    def __init__(self, max_completion_len: int, soft_punish_cache: int):
        if not 0 <= soft_punish_cache <= max_completion_len or not max_completion_len > 0:
            raise ValueError(
                f"soft_punish_cache ({soft_punish_cache}) must lie between 0 and max_completion_len "
                f"({max_completion_len}), which must be above 0"
            )
        self.max_completion_len = max_completion_len
        self.soft_punish_cache = soft_punish_cache

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """Score a batch; lengths are in tokens, including an end token."""
        return [self._punishment(len(ids)) for ids in completion_ids]

    def keys(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[int]:
        """What decides each score: the length."""
        return [len(ids) for ids in completion_ids]

    def _punishment(self, length: int) -> float:
        start = self.max_completion_len - self.soft_punish_cache
        if length <= start:
            return 0.0
        return -1.0 if length > self.max_completion_len else (start - length) / self.soft_punish_cache


class RelativeLength(AccuracyReward):
    """From 0.5 for the shortest completion to -0.5 for the longest, and at most 0 for a wrong answer.

    Registered as `length`: open-r1's length reward, after Kimi k1.5 (arXiv 2501.12599, section 2.3.3). With
    l = 0.5 - (length - shortest) / (longest - shortest), a right answer earns l and a wrong one min(0, l); all earn 0
    if all have the same length. Lengths are in characters. Not applicable where the solution is unreadable; the length
    of such a completion still counts.

    Args:
        by_group: compare completions of the same prompt, as in the paper. Otherwise compare the whole batch, as
            open-r1 does, in which a short answer to a hard question is long next to the others.
        rules, timeout: as in `rewards.verified.AccuracyReward`.
    """

    __name__ = "length"
    reward_options = RewardOptions(per_sample=False, isolate=False, timeout=None)
    penalises = True

    def __init__(self, by_group: bool = False, rules: Rules = "open_r1", timeout: float = VERIFY_SECONDS):
        super().__init__(rules, timeout)
        self.by_group = by_group

    def __call__(
        self,
        completions: Sequence[Any],
        solution: Column = None,
        answer: Column = None,
        prompts: Column = None,
        **columns: Any,
    ) -> list[Score]:
        """Score a batch."""
        scores = super().__call__(completions, solution, answer)
        lengths = [len(completion_text(completion)) for completion in completions]
        for members in self._groups(prompts, len(scores)):
            shortest, longest = min(lengths[i] for i in members), max(lengths[i] for i in members)
            for i in members:
                score = scores[i]
                if score is not None and not isinstance(score, Failed):
                    scores[i] = relative_length(lengths[i], shortest, longest, correct=bool(score))
        return scores

    def _groups(self, prompts: Column, count: int) -> list[list[int]]:
        if not self.by_group:
            return [list(range(count))] if count else []
        if prompts is None:
            raise RewardError(f"reward {self.__name__!r} with by_group needs the prompts, and there are none")
        groups: dict[str, list[int]] = defaultdict(list)
        for position, prompt in enumerate(prompts):
            groups[json.dumps(prompt, sort_keys=True, default=repr)].append(position)
        return list(groups.values())


def relative_length(length: int, shortest: int, longest: int, *, correct: bool) -> float:
    """The formula of `RelativeLength`."""
    if longest == shortest:
        return 0.0
    value = 0.5 - (length - shortest) / (longest - shortest)
    return value if correct else min(0.0, value)
