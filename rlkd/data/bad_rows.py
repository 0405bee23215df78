"""Malformed rows of a source: the first one ends the run, or all are left out, counted, and the first ones shown."""

from __future__ import annotations

import logging
from collections import Counter

from rlkd.data.rows import RowError
from rlkd.errors import UsageError
from rlkd.process import is_first_process

logger = logging.getLogger(__name__)

# Bad rows whose messages are shown.
SHOWN = 3
# Kinds of faults that are counted one by one in the message, the most frequent ones.
SHOWN_KINDS = 10


class BadRows:
    """What a reader does with a malformed row of `source`, by `skip`: raise its error, or count it."""

    def __init__(self, source: str, *, skip: bool):
        self._source = source
        self._skip = skip
        self._kinds: Counter[str] = Counter()
        self._first: list[str] = []

    @property
    def count(self) -> int:
        """The rows left out so far."""
        return self._kinds.total()

    def add(self, error: RowError) -> None:
        """Count a row, or raise its error with the way out."""
        if not self._skip:
            end = "" if str(error).endswith(".") else "."
            raise RowError(f"{error}{end} Mend the row, or leave such rows out: skip_bad_rows: true") from error
        self._kinds[error.kind] += 1
        if len(self._first) < SHOWN:
            self._first.append(str(error))

    def report(self, good: int) -> None:
        """Log what was left out beside `good` rows; raises `UsageError` where it is more than half."""
        if not self.count:
            return
        total = self.count + good
        kinds = "; ".join(f"{times:,} x {kind}" for kind, times in self._kinds.most_common(SHOWN_KINDS))
        if (further := len(self._kinds) - SHOWN_KINDS) > 0:
            kinds += f"; and {further:,} further kinds"
        first = "".join(f"\n  {line}" for line in self._first)
        if self.count > good:
            raise UsageError(
                f"{self._source}: {self.count:,} of {total:,} rows are bad, more than half ({kinds}). skip_bad_rows "
                f"leaves out exceptions; here the data or the keys, such as columns, need mending. The first:{first}"
            )
        if is_first_process():
            logger.warning(
                "%s: left out %s bad rows of %s (%s). The first:%s",
                self._source,
                f"{self.count:,}",
                f"{total:,}",
                kinds,
                first,
            )
