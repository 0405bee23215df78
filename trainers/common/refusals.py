"""What keeps a run from starting: a run ends at the first refusal, a dry run collects all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from rlkd.errors import UsageError

T = TypeVar("T")
Catch = Callable[[], AbstractContextManager[Any]]
"""Makes the context of one check: `contextlib.nullcontext` lets its error pass, `Refusals.catch` keeps it."""


class Refusals:
    """The messages of failed checks, in order, each once."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Keep the message of a `UsageError`; the checks after it go on."""
        try:
            yield
        except UsageError as error:
            self.add(str(error))

    def attempt(self, make: Callable[[], T], otherwise: T) -> T:
        """What `make` returns, or `otherwise` where it is refused."""
        with self.catch():
            return make()
        return otherwise

    def add(self, message: str) -> None:
        """Add a message."""
        if message not in self.messages:
            self.messages.append(message)
