"""Skips tests that need the sandbox on a machine without it."""

import os
from collections.abc import Collection
from functools import cache
from typing import Any

import pytest

from rlkd.sandbox import SandboxUnavailable, check


@cache
def missing_for_sandbox() -> str:
    """The reason why this machine has no sandbox; empty with CI set, where a missing sandbox is a failure."""
    if "CI" not in os.environ:
        try:
            check()
        except SandboxUnavailable as error:
            return str(error)
    return ""


def skip_without_sandbox(need_no_sandbox: Collection[str]) -> Any:
    """A fixture that skips every test of a module but those named, on a machine without the sandbox."""

    @pytest.fixture(autouse=True)
    def skipped_without_sandbox(request: pytest.FixtureRequest) -> None:
        if request.node.originalname not in need_no_sandbox and missing_for_sandbox():
            pytest.skip(missing_for_sandbox())

    return skipped_without_sandbox
