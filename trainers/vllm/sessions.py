"""How the clients of rollout servers send requests: once, and not for ever."""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from rlkd.http import get_json

# Seconds for a server's answer about itself.
PATIENCE = 10.0
# Seconds to connect, and for the completions of one request: a server that is gone without a word, as its machine
# without power, must not hold the run for ever.
LIMITS = (PATIENCE, 3600.0)


class _LimitedAdapter(HTTPAdapter):
    """Sends a request once, with a time limit where the caller has none."""

    def send(self, *arguments: Any, **settings: Any) -> Any:
        """As `HTTPAdapter`."""
        settings["timeout"] = settings.get("timeout") or LIMITS
        return super().send(*arguments, **settings)


def send_once(session: requests.Session) -> None:
    """Take TRL's retries from a session, and give its requests a time limit."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, _LimitedAdapter(pool_maxsize=64))


def is_healthy(url: str) -> bool:
    """Whether the server answers that it is well."""
    try:
        return get_json(f"{url}/health", timeout=PATIENCE)[0] == 200
    except OSError:
        return False
