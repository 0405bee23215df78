"""`rlkd serve` with real vLLM servers: they answer, and all of them are gone in the end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

from rlkd.engines import Sampling, open_engine, run

HANG_GUARD = 540.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def carriers(secret: str) -> list[int]:
    """The living processes with this in their environment: a variable that only this test's have."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdecimal() and (path / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found += [int(path.name)] * (secret.encode() in (path / "environ").read_bytes().split(b"\0"))
    return found


def until_gone(secret: str, end: float) -> None:
    while left := carriers(secret):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_structure_and_rollout_servers_come_up_answer_and_are_gone_after_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    ports = {"gsrm": free_port(), "rollout": free_port()}
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"""
output_dir: {tmp_path}/out
workers:
  gsrm: {{model: embedded-gsrm, gpus: cpu, port: {ports["gsrm"]}, max_model_len: 512}}
  rollout: {{model: embedded-warm, gpus: cpu, port: {ports["rollout"]}, max_model_len: 512, weight_transfer: gloo}}
"""
    )
    name, value = "SERVE_TEST", uuid.uuid4().hex
    secret = f"{name}={value}"
    environment = os.environ | {name: value}
    output = tmp_path / "output"
    with output.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlkd.cli", "serve", "--config", str(config)],
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=environment,
        )
    end = time.monotonic() + HANG_GUARD
    try:
        while "in a recipe's YAML" not in (shown := output.read_text(errors="replace")):
            assert process.poll() is None, shown[-6000:]
            assert time.monotonic() < end, shown[-6000:]
            time.sleep(0.5)
        lines = shown.splitlines()
        specs = {
            role: f"http://127.0.0.1:{port}/v1#embedded-{kind}"
            for (role, port), kind in zip(ports.items(), ("gsrm", "warm"), strict=True)
        }
        for role, spec in specs.items():
            assert any(line.split() == [role, spec.partition("/v1")[0], spec] for line in lines), shown[-3000:]
            # The line of the table is what an engine takes.
            (completion,) = run(open_engine(spec).generate(["2 + 2 ="], Sampling(max_new_tokens=4)))
            assert completion.text
            assert any(line.startswith(f"[{role}]") for line in lines)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        world = opener.open(f"http://127.0.0.1:{ports['rollout']}/get_world_size", timeout=60)
        assert json.load(world)["world_size"] == 1  # an endpoint of the dev mode, which weight_transfer needs
        # Supervisor; for each server a warden, vLLM's front, its engine, and a worker or a tracker of resources.
        assert len(carriers(secret)) >= 7
        process.send_signal(number)
        assert process.wait(HANG_GUARD) == (143 if number == signal.SIGTERM else -9)
        until_gone(secret, end)
    finally:
        for pid in carriers(secret):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
