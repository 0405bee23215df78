"""Requests to servers that fail, without the pauses between attempts."""

import pytest


def shorten_pauses(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
    """Let the first pause before another attempt be this short, for engines and for the client that they use."""
    monkeypatch.setattr("rlkd.engines.replicas._FIRST_PAUSE", seconds)
    monkeypatch.setattr("rlkd.engines.replicas._LONGEST_PAUSE", 20 * seconds)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", seconds)
