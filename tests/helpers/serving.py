"""Runs `rlkd serve` with stub servers, finds all of its processes, and ends them after a test."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from rlkd.process import carriers, title
from tests.helpers import HELPERS, ROOT
from tests.helpers.ports import free_port

STUB = HELPERS / "stub_server.py"
HANG_GUARD = 120.0
# The command with short pauses.
COMMAND = """
import sys
from rlkd.errors import UsageError
from rlkd.serve import supervisor
from rlkd.serve.cli import main
supervisor.STARTING_PAUSE = supervisor.FIRST_BACKOFF = 0.05
supervisor.LOG_PAUSE = 0.02
supervisor.STUCK_SECONDS = 1.0
try:
    sys.exit(main(sys.argv[1:]))
except UsageError as error:
    print(f"rlkd serve: {error}", file=sys.stderr)
    sys.exit(1)
"""


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + HANG_GUARD
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def get(url: str) -> str | None:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            return response.read().decode()
    except (urllib.error.URLError, OSError):
        return None


class Started:
    """A running `rlkd serve`. Its processes are found by a variable that only this test's processes have."""

    def __init__(self, folder: Path, *arguments: str):
        self.secret = uuid.uuid4().hex
        self.output = folder / f"output-{self.secret[:6]}"
        environment = {"SERVE_TEST": self.secret, "PYTHONPATH": str(ROOT), "STUB_FOLDER": str(folder)}
        with self.output.open("wb") as handle:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments],
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | environment,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def shows(self, text: str) -> None:
        until(lambda: text in self.text or self.process.poll() is not None, f"{text!r} in:\n{self.text}")
        assert text in self.text, self.text

    def ready(self) -> "Started":
        self.shows("in a recipe's YAML")
        return self

    def code(self) -> int:
        return self.process.wait(HANG_GUARD)

    def left(self) -> list[int]:
        """Every living process of this start, the supervisor included."""
        return [process.pid for process in carriers("SERVE_TEST", self.secret)]

    def gone(self) -> None:
        until(lambda: not self.left(), f"the end of {[(pid, title(pid)) for pid in self.left()]}\n{self.text}")

    def titled(self, part: str) -> list[int]:
        """Processes with this in their command line."""
        found = []
        for pid in self.left():
            with contextlib.suppress(psutil.Error):
                found += [pid] * (part in " ".join(psutil.Process(pid).cmdline()))
        return found

    def guards(self) -> list[int]:
        return self.titled("rlkd.serve.guard")


class Place:
    """A folder of one test with its configs, and the commands started there."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        self.all: list[Started] = []

    def config(self, name: str = "serve.yaml", **keys: object) -> Path:
        path = self.folder / name
        base: dict[str, object] = {"command": [sys.executable, str(STUB)], "stop_timeout": 0.5, "output_dir": "out"}
        path.write_text(yaml.safe_dump(base | keys, sort_keys=False))
        return path

    def worker(self, *stub: str, **keys: object) -> dict[str, object]:
        return {
            "model": str(self.folder / "model"),
            "gpus": "cpu",
            "port": free_port(),
            "extra": ["--stub", *stub],
        } | keys

    def start(self, *arguments: object) -> Started:
        started = Started(self.folder, *map(str, arguments))
        self.all.append(started)
        return started

    def serve(self, *stub: str, **keys: object) -> Started:
        """One stub, as role gsrm."""
        config = self.config(workers={"gsrm": self.worker(*stub)}, **keys)
        return self.start("--config", config)

    def url(self, role: str = "gsrm") -> str:
        config = yaml.safe_load((self.folder / "serve.yaml").read_text())
        return f"http://127.0.0.1:{config['workers'][role]['port']}"

    def log(self, label: str = "gsrm") -> str:
        return (self.folder / "out" / "logs" / f"{label}.log").read_text(errors="replace")

    def close(self) -> None:
        for started in self.all:
            for pid in started.left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            started.process.wait(HANG_GUARD)
