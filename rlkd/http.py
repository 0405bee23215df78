"""Small JSON requests to a server: status checks and administration. Engines have clients of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def get_json(url: str, *, timeout: float = 30.0) -> tuple[int, dict[str, Any]]:
    """Status and JSON object of a response, {} for any other body; raises `OSError` without a response."""
    return _request("GET", url, None, timeout)


def post_json(
    url: str, content: Mapping[str, Any] | None = None, *, timeout: float = 60.0
) -> tuple[int, dict[str, Any]]:
    """As `get_json`, with `content` as the JSON body of the request, or none."""
    return _request("POST", url, content, timeout)


def _request(method: str, url: str, content: Mapping[str, Any] | None, timeout: float) -> tuple[int, dict[str, Any]]:
    import httpx

    try:
        response = httpx.request(method, url, json=content, timeout=timeout, follow_redirects=True)
    except httpx.RemoteProtocolError as error:
        raise OSError(f"the server at {url} does not speak HTTP ({error})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(f"no response from {url}: {error or type(error).__name__}") from error
    try:
        body = response.json()
    except ValueError:
        body = {}
    return response.status_code, body if isinstance(body, dict) else {}
