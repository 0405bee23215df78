"""A real `vllm serve` for tests, on a free port, below a guard that ends it with all its processes."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rlkd.http import get_json, post_json
from rlkd.process import python_command
from rlkd.serve.vllm_command import vllm_arguments, vllm_environment
from tests.helpers.ports import free_port

START_SECONDS = 420
MAX_LOGPROBS = 32
# Of the servers that this session has started.
LOGS: list[Path] = []


@dataclass
class VLLMServer:
    """A running `vllm serve`; `process` is its guard."""

    url: str
    model: str
    backend: str | None
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> dict[str, Any]:
        status, content = get_json(self.url + path, timeout=60)
        assert status == 200, (path, status, content)
        return content

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        status, reply = post_json(self.url + path, content, timeout=300)
        assert status == 200, (path, status, reply)
        return reply

    def wait_for_requests(self, seconds: float = 120) -> None:
        """Wait until the server generates for at least one request."""
        deadline = time.monotonic() + seconds
        while not self._requests_running():
            assert time.monotonic() < deadline, f"no request is running after {seconds} s"
            time.sleep(0.01)

    def _requests_running(self) -> float:
        shown = httpx.get(f"{self.url}/metrics", timeout=60).text
        values = re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", shown, re.MULTILINE)
        assert values, f"no vllm:num_requests_running in {self.url}/metrics"
        return sum(map(float, values))

    def scores(self, token_ids: list[int], model: str | None = None) -> list[float]:
        """The log-probability of each token but the first, given those before it."""
        answer = self.post(
            "/v1/completions",
            {"model": model or self.model, "prompt": token_ids, "max_tokens": 1, "prompt_logprobs": 0},
        )
        positions = answer["choices"][0]["prompt_logprobs"][1:]
        return [entry[str(token)]["logprob"] for entry, token in zip(positions, token_ids[1:], strict=True)]


def start_server(
    model: str, log: Path, *arguments: str, backend: str | None = "gloo", port: int | None = None
) -> VLLMServer:
    """Start `vllm serve` and wait until it is healthy; raises `RuntimeError` with the end of its log."""
    port = port or free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
    command += vllm_arguments(
        host="127.0.0.1",
        port=port,
        on_cpu=True,
        max_model_len=1024,
        weight_transfer=backend or "lora",
        extra=["--max-num-seqs", "16", *arguments],
    )
    LOGS.append(log)
    environment = os.environ | vllm_environment(on_cpu=False, weight_transfer="lora")
    with log.open("wb") as file:
        process = subprocess.Popen(
            python_command("rlkd.serve.guard:main", str(os.getpid()), "20", "10", *command),
            env=environment,
            cwd=log.parent,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    server = VLLMServer(f"http://127.0.0.1:{port}", model, backend, log, process)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            server.get("/health")
            return server
        except (OSError, AssertionError):
            if process.poll() is not None or time.monotonic() > deadline:
                stop_server(server)
                raise RuntimeError(f"vllm serve did not come up:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.5)


def stop_server(server: VLLMServer) -> None:
    """End the server and everything below it."""
    server.process.terminate()
    server.process.wait()
