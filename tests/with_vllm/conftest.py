"""Tests against a real vLLM; without it, nothing here is collected and one line says so (`make test-vllm` has it).

One server serves the whole session and another one its last tests, on free ports, in float32; a failed test shows
their logs. (This folder must not be called `vllm`: pytest puts the one above it where Python looks for packages.)
"""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.vllm_server import LOGS, MAX_LOGPROBS, VLLMServer, start_server, stop_server

_spec = importlib.util.find_spec("vllm")
HAS_VLLM = _spec is not None and _spec.origin is not None
collect_ignore_glob = [] if HAS_VLLM else ["test_*.py"]

if HAS_VLLM:  # of vLLM in this process, and of the servers that are started from here
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not HAS_VLLM:
        terminalreporter.write_line("vLLM is not installed: tests/with_vllm is left out (make test-vllm runs it)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Each server takes 4 GB: the plain one starts once the tests with further servers of their own are through.
    items.sort(key=lambda item: "plain_server" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def smollm() -> str:
    """The folder of the embedded model, in float32."""
    from rlkd.models import resolve_model

    return resolve_model("embedded")


@pytest.fixture(scope="session")
def server(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """The rollout server of the session: SmolLM2, weights by gloo, adapters allowed."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    started = start_server(smollm, log, "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2")
    yield started
    stop_server(started)


@pytest.fixture(scope="session")
def plain_server(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """A server whose weights no test changes, and which allows `MAX_LOGPROBS` of a position.

    It has no adapters: on a CPU, `prompt_logprobs` in a batch ends a server that has prepared all its layers for them.
    """
    log = tmp_path_factory.mktemp("vllm-plain") / "server.log"
    # The last of two equal options counts.
    started = start_server(smollm, log, "--max-logprobs", str(MAX_LOGPROBS), "--max-model-len", "512", backend=None)
    yield started
    stop_server(started)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.failed:
        for log in LOGS:
            report.sections.append((f"server log {log}", log.read_text(errors="replace")[-6000:]))
    return report
