"""Base class of errors that the user can fix, and a summary of failures for the log.

Recipes and the command line print these errors without a traceback: the message names the object (file, line, key,
reward, server), the value found, the value expected and the way out. Any other exception is a bug and keeps its
traceback.
"""

from collections import Counter
from collections.abc import Sequence
from logging import Logger


class UsageError(ValueError):
    """A config, row, spec or file is invalid."""


def first_line(error: BaseException) -> str:
    """What a library's error says, to be quoted in a sentence: its first line without a full stop, or else its class.

    >>> first_line(OSError("no such model.\\nTry another one.")), first_line(TimeoutError())
    ('no such model', 'TimeoutError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def warn_of_failures(logger: Logger, what: str, consequence: str, causes: Sequence[str], total: int) -> None:
    """Log the share of `total` items that failed and the most frequent of the `causes`; nothing without causes.

    >>> warn_of_failures(logger, "selector 'x'", "candidates are dropped", ["timeout"], 8)  # doctest: +SKIP
    WARNING selector 'x': 1 of 8 candidates are dropped; 1 times because: timeout
    """
    if causes:
        cause, times = Counter(causes).most_common(1)[0]
        logger.warning("%s: %d of %d %s; %d times because: %s", what, len(causes), total, consequence, times, cause)
