"""A real `vllm serve` for tests: started on a free port, asked over HTTP, ended by its process group."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 420
# Of the servers that this session has started.
LOGS: list[Path] = []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class VLLMServer:
    """A running `vllm serve`; `process.pid` is its process group, too."""

    url: str
    model: str
    backend: str | None
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.loads(response.read() or b"{}")

    def post(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """Raises `urllib.error.HTTPError` with the server's answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.loads(response.read() or b"{}")

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
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "1024", "--max-num-seqs", "16", "--no-enable-chunked-prefill"]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"]
    if backend:
        command += ["--weight-transfer-config", json.dumps({"backend": backend})]
    LOGS.append(log)
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *arguments],
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
        except (OSError, ValueError):
            if process.poll() is not None or time.monotonic() > deadline:
                stop_server(server)
                raise RuntimeError(f"vllm serve did not come up:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.5)


def stop_server(server: VLLMServer) -> None:
    """End the server and its workers, politely first; by their process group, which is theirs alone."""
    for sign, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        try:
            os.killpg(server.process.pid, sign)
        except ProcessLookupError:
            return
        try:
            server.process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
