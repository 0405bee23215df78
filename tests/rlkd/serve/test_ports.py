"""`rlkd serve`: whose server answers at a port, keys that stay secret, and what SIGKILL does not end."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkd.process import listeners, masked, title
from rlkd.serve import state
from rlkd.serve.cli import main
from rlkd.serve.state import StateFile
from tests.helpers.ports import free_port
from tests.helpers.serving import STUB, Place, get, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the owner of a port is not shown")


@contextlib.contextmanager
def stranger(folder: Path, port: int, *stub: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server of nobody's, which serves the name that a config of `place` expects."""
    folder.mkdir()
    command = [sys.executable, STUB, "m", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--stub", *stub], stdout=output, env=os.environ | {"STUB_FOLDER": str(folder)}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def written(folder: Path, text: str) -> None:
    until(lambda: text in (folder / "output").read_text(), text)


# Ports


@pytest.mark.slow
def test_a_server_of_others_that_answers_first_is_not_taken_for_ours(place: Place) -> None:
    port, other = free_port(), place.folder / "other"
    with stranger(other, port, "late") as process:
        written(other, "bound")
        # Both are bound, as vLLM is while it loads its model, and neither listens.
        started = place.start("--config", place.config(workers={"gsrm": place.worker("late", port=port)}))
        started.shows("[gsrm] bound")
        (other / "listen").touch()
        assert started.code() == 1
        assert f"gsrm lost its port {port} to process {process.pid} (" in started.text
        assert process.poll() is None
    assert "ready" not in started.text.replace("before it was ready", "")


def test_a_port_that_a_server_of_others_shares_is_not_ours(place: Place) -> None:
    port, other = free_port(), place.folder / "other"
    started = place.start("--config", place.config(workers={"gsrm": place.worker("shares", "late", port=port)}))
    started.shows("[gsrm] bound")
    with stranger(other, port, "shares", "late") as process:
        written(other, "bound")
        (other / "listen").touch()
        written(other, "listens")
        (place.folder / "listen").touch()
        assert started.code() == 1
        assert f"gsrm lost its port {port} to process {process.pid} (" in started.text


def test_two_runs_that_choose_at_once_get_different_ports_while_neither_listens(place: Place) -> None:
    for name in ("a.yaml", "b.yaml"):
        place.start("--config", place.config(name, workers={"gsrm": place.worker("late", port="auto")}))
    for started in place.all:
        started.shows("[gsrm] bound")
    ports = [re.search(r"starting on the CPU, port (\d+)", started.text) for started in place.all]
    assert len({found[1] for found in ports if found}) == 2


def test_a_given_port_that_another_run_has_is_named_before_anything_listens_there(place: Place) -> None:
    port = free_port()
    first = place.config("a.yaml", workers={"gsrm": place.worker("late", port=port)})
    place.start("--config", first).shows("[gsrm] bound")
    started = place.start("--config", place.config("b.yaml", workers={"gsrm": place.worker(port=port)}))
    assert started.code() == 1
    assert f"workers.gsrm.port: {port} is taken by {first}, which rlkd serve runs" in started.text


@pytest.mark.parametrize(
    ("local", "host", "counts"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.2", "0.0.0.0", True),
    ],
)
def test_a_listener_counts_where_a_connection_could_reach_it(local: str, host: str, counts: bool) -> None:
    with socket.socket() as one:
        one.bind((local, 0))
        port = one.getsockname()[1]
        assert listeners(port) == []  # bound, and not listening
        one.listen()
        found = [os.getpid() == pid for pid in listeners(port, host)]
    assert found == [True] * counts


# Keys


@pytest.mark.parametrize("how", ["extra", "equals", "environment"])
def test_a_server_with_a_key_becomes_ready_and_the_key_is_in_no_log(
    place: Place, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = place.worker("chatty")
    if how == "environment":
        worker["environment"] = {"VLLM_API_KEY": "very secret", "HF_TOKEN": "hidden"}
    else:
        worker["extra"] = [*(["--api-key", "very secret"] if how == "extra" else ["--api-key=very secret"]), "--stub"]
    config = place.config(workers={"gsrm": worker})
    started = place.start("--config", config).ready()
    for text in (place.log(), started.text):
        assert "very secret" not in text
        assert "hidden" not in text
    assert re.search(r"^--- .*(VLLM_API_KEY=|--api-key[ =])\*\*\*", place.log())
    # The printed commands are exact.
    main(["--config", str(config), "--print"])
    assert "very secret" in capsys.readouterr().out


def test_a_server_that_refuses_the_key_ends_the_start(place: Place) -> None:
    started = place.serve("locked")
    assert started.code() == 1
    assert "gsrm: /v1/models answers 401: it requires a key, and none is configured" in started.text
    assert "workers.gsrm.environment: {VLLM_API_KEY: KEY}" in started.text


def test_a_process_is_named_without_its_keys() -> None:
    command = ["vllm", "serve", "m", "--api_key", "one", "two", "--port", "1", "--hf-token=three"]
    assert masked(command) == [*("vllm", "serve", "m", "--api_key", "***", "***", "--port", "1", "--hf-token=***")]
    with subprocess.Popen([sys.executable, "-c", "input()", "--api-key", "four"], stdin=subprocess.PIPE) as process:
        until(lambda: "--api-key" in title(process.pid), "its command line")
        assert "four" not in title(process.pid)
        process.kill()


# A look from elsewhere


def test_a_start_waits_for_a_look_at_its_lock_and_not_for_a_holder(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile.of(place.folder / "serve.yaml")
    state.folder().mkdir(parents=True)
    with file.path.with_suffix(".lock").open("ab") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not file.is_held()  # another look does not count
        waits = []
        monkeypatch.setattr(state.time, "sleep", lambda seconds: (waits.append(seconds), look.close()))
        assert file.hold()
    assert len(waits) == 1
    assert file.is_held()
    assert not StateFile.of(place.folder / "serve.yaml").hold()
    assert len(waits) == 1
    file.release()
    assert not file.is_held()


# What SIGKILL does not end

TRACER = """
import ctypes, sys, time
assert ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), None, None) == 0
print("traces", flush=True)
time.sleep(1e6)
"""


@pytest.mark.slow
def test_a_server_that_sigkill_does_not_end_is_named_and_left_behind(place: Place) -> None:
    """A tracer that does not wait keeps a killed process from its parent, as a driver that hangs does."""
    started = place.serve(stop_timeout=1).ready()
    pid = get(f"{place.url()}/pid")
    with subprocess.Popen([sys.executable, "-c", TRACER, str(pid)], stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout is not None
        if not tracer.stdout.readline():
            pytest.skip("no process may be traced here")
        started.process.send_signal(signal.SIGINT)
        started.shows("SIGINT: stopping")
        started.process.send_signal(signal.SIGINT)
        assert started.code() == 130
        tracer.kill()
    assert f"SIGKILL does not end process {pid} (" in place.log()
