"""Is the completion too long?"""

from collections.abc import Sequence
from typing import Any


class SoftOverlong:
    """0 up to a length, then falling in a line to -1, and -1 beyond the maximum (DAPO, arXiv 2503.14476, eq. 13).

    Args:
        max_completion_len: L_max in tokens.
        soft_punish_cache: the last so many tokens before L_max, over which the punishment grows.
    """

    __name__ = "soft_overlong"

    def __init__(self, max_completion_len: int, soft_punish_cache: int):
        if not 0 < soft_punish_cache <= max_completion_len:
            raise ValueError(
                f"soft_punish_cache ({soft_punish_cache}) must lie between 1 and max_completion_len "
                f"({max_completion_len})"
            )
        self.max_completion_len = max_completion_len
        self.soft_punish_cache = soft_punish_cache

    def __call__(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """Score a batch; lengths are in tokens, an end token included."""
        start = self.max_completion_len - self.soft_punish_cache
        return [-min(max((len(ids) - start) / self.soft_punish_cache, 0.0), 1.0) for ids in completion_ids]
