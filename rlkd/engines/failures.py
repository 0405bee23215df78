"""Failures of requests to a server: which of them another attempt can help, and messages with a way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlkd.engines.base import EngineError


class RequestLost(ConnectionError):
    """The server stopped answering health checks while it had the request, or ended the request itself."""


class RetriesExhausted(Exception):
    """The last error of a request, after how many attempts, and at which server."""

    def __init__(self, error: Exception, attempts: int, url: str) -> None:
        super().__init__(error, attempts, url)
        self.error = error
        self.attempts = attempts
        self.url = url


def is_unreachable(error: BaseException | None) -> bool:
    """Whether there is no server at the address, or it went away with the request."""
    import openai

    timed_out = isinstance(error, openai.APITimeoutError)
    return isinstance(error, (openai.APIConnectionError, RequestLost)) and not timed_out


def is_outage(error: BaseException | None) -> bool:
    """Whether the server is away or wants requests later, so that an attempt costs next to nothing."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (429, 502, 503, 504)
    return is_unreachable(error)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed at the same server later."""
    import openai

    if isinstance(error, openai.APIStatusError):
        # 501: the server does not implement this request.
        return error.status_code in (408, 409, 429) or (error.status_code >= 500 and error.status_code != 501)
    return isinstance(error, (openai.APIConnectionError, RequestLost))


def is_misfit(error: BaseException) -> bool:
    """Whether this server is the wrong one for the request: another model, another key, not a model server at all."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (401, 403, 404, 405, 410, 501)
    return not isinstance(error, (openai.APIConnectionError, RequestLost, EngineError, UnicodeEncodeError))


def explained(
    error: Exception, engine: str, address: str, attempts: int, timeout: float, redacted: Callable[[str], str]
) -> EngineError:
    """The error for the caller; `address` is empty for a single server, `redacted` hides the key."""
    import openai

    tried = f"{attempts} attempts" if attempts != 1 else "1 attempt"
    if isinstance(error, openai.APIStatusError):
        what = f"{address}the server answered {error.status_code}: {redacted(server_message(error))}"
        if is_transient(error):
            return EngineError(engine, f"{what}, {tried}.", "Lower concurrency, or look at the server's log.")
        return EngineError(engine, f"{what}.")
    if isinstance(error, openai.APITimeoutError):
        what = f"{address}no answer within {timeout:g} s, {tried}."
        return EngineError(engine, what, "Raise timeout, or lower concurrency.")
    if isinstance(error, RequestLost):
        return EngineError(engine, f"{address}{error}, {tried}.", "Look at the server's log.")
    if isinstance(error, openai.APIConnectionError):
        what = f"{address}no connection: {redacted(cause_of(error))}, {tried}."
        return EngineError(engine, what, "Is the server running at this URL?")
    if isinstance(error, UnicodeEncodeError):
        return EngineError(engine, f"the request is not valid text: {error}.")
    what = f"{address}the answer does not follow the protocol ({type(error).__name__}: {redacted(str(error))})."
    return EngineError(engine, what, "Does the URL end in /v1, and does the server support this request?")


def cause_of(error: BaseException) -> str:
    """The connection's own error where the client wraps it; no headers, so no key."""
    return repr(error.__cause__ or error)[:200]


def server_message(error: Any) -> str:
    """The message in the body of an error reply, else the error's own."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
        if message:
            return str(message).rstrip(".")
    return str(error).rstrip(".")
