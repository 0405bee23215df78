"""Scripts as a user starts them, and as modules."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.helpers import ROOT


def run_script(
    command: Sequence[object], cwd: Path, *, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without PYTHONPATH, as a user does."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def run_here(script: str | Path, arguments: Sequence[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of this repository as Python does, but in this process, which has imported torch and TRL already.

    An exception that would end the script with a traceback is raised.
    """
    words = [str(ROOT / script), *map(str, arguments)]
    shown, complained, status = io.StringIO(), io.StringIO(), 0
    path, at_end = list(sys.path), signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(shown),
        contextlib.redirect_stderr(complained),
    ):
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            complained.write(end.code if isinstance(end.code, str) else "")
        finally:
            sys.path[:] = path
            signal.signal(signal.SIGTERM, at_end)
    return subprocess.CompletedProcess(words, status, shown.getvalue(), complained.getvalue())


def load_script(path: str | Path) -> SimpleNamespace:
    """The names of a script of this repository, without running its `main`."""
    before = list(sys.path)
    try:
        return SimpleNamespace(**runpy.run_path(str(ROOT / path), run_name="script"))
    finally:
        sys.path[:] = before


def quick_figures(
    script: str, cwd: Path, *arguments: object, bounds: bool = True, timeout: float = 280
) -> dict[str, Any]:
    """The figures that a benchmark prints in its quick form.

    `bounds`: whether its exit status must be 0. It may rest on times, which a busy machine spoils.
    """
    done = run_script([sys.executable, ROOT / "benchmarks" / script, "--quick", *arguments], cwd, timeout=timeout)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout.strip(), done.stderr[-3000:]
    if bounds:
        assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
