"""Errors of rollout servers."""

from __future__ import annotations

from typing import Self

from rlkd.engines.spec import without_secrets
from rlkd.errors import UsageError


class SyncFailed(UsageError):
    """The rollout server did not take the trainer's weights."""

    what = ""

    @classmethod
    def of(cls, url: str, problem: str, cause: object) -> Self:
        """An error with the server's address, its problem (a verb phrase), the cause and the way out."""
        what = f"the rollout server {without_secrets(url)} {problem}: {cause}"
        error = cls(
            f"{what}. See its log. The run continues from its last checkpoint with --resume_from_checkpoint, once the "
            f"server is up"
        )
        error.what = what
        return error


class ServerLost(SyncFailed):
    """The rollout server does not answer, or is another process than the one that got the weights."""
