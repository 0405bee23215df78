"""A dry run: prints sections, collects warnings and refusals, and ends with an exit status."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import UsageError
from rlkd.process import is_first_process
from trainers.common.refusals import Refusals
from trainers.dry_run.origins import changed_keys, config_file

WIDTH = 116
_LABEL = 13
_LOGGERS = ("rlkd", "rewards", "trainers")
_OFF = ("none", "false", "no", "off", "")
_ON = {"true": "check", "yes": "check", "on": "check", "check": "check", "probe": "probe"}


def read_mode(given: Any) -> str | None:
    """`--dry_run` as a mode: `check`, `probe`, or None for a run; raises `UsageError` for anything else.

    >>> read_mode("True"), read_mode("probe"), read_mode(None)
    ('check', 'probe', None)
    """
    word = str(given).lower()
    if word in _OFF:
        return None
    if word not in _ON:
        raise UsageError(f"dry_run {given!r}: expected nothing (--dry_run), or probe (--dry_run probe)")
    return _ON[word]


class DryRun(Refusals):
    """Collects what would be refused and prints what would be run, in the first process only.

    `mode`: `check` or `probe`.
    """

    def __init__(self, mode: str = "check") -> None:
        super().__init__()
        self.mode = mode
        self.warnings: list[str] = []

    def section(self, title: str) -> None:
        """Begin a section."""
        self._print(f"\n{title}")

    def line(self, label: str, text: str) -> None:
        """Print a line of a section, with what it is about at its left."""
        lines = [
            part
            for each in text.splitlines() or [""]
            for part in textwrap.wrap(each, WIDTH - _LABEL - 2, break_long_words=False, break_on_hyphens=False) or [""]
        ]
        for number, part in enumerate(lines):
            self._print(f"  {label if number == 0 else '':<{_LABEL}} {part}".rstrip())

    def block(self, text: str) -> None:
        """Print lines of a section as they are, such as a table."""
        for line in text.splitlines():
            self._print(f"  {line}".rstrip())

    def figures(self, values: Mapping[str, str]) -> None:
        """Print several lines."""
        for label, text in values.items():
            self.line(label, text)

    def warn(self, message: str) -> None:
        """Add a warning, which is listed at the end."""
        if message not in self.warnings:
            self.warnings.append(message)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collect what the checks log as warnings."""
        handler = _Listener(self.warn)
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        before = [logger.propagate for logger in loggers]
        for logger in loggers:
            logger.addHandler(handler)
            logger.propagate = False
        try:
            yield
        finally:
            for logger, propagated in zip(loggers, before, strict=True):
                logger.removeHandler(handler)
                logger.propagate = propagated

    def finish(self) -> int:
        """Print warnings and refusals; return the exit status, 0 where the run could start."""
        for title, messages in (("warnings", self.warnings), ("refused", self.messages)):
            if messages:
                self.section(f"{title} ({len(messages)})")
            for number, message in enumerate(messages, 1):
                self.line(f"{number}.", message)
        self._print("")
        if self.messages:
            count = len(self.messages)
            self._print(f"This run would be refused: {count} reason{'s' * (count != 1)} above.")
        else:
            done = "The step of the probe is discarded." if self.mode == "probe" else "Nothing was trained or written."
            self._print(f"This run could start. {done}")
        return int(bool(self.messages))

    def _print(self, text: str) -> None:
        if is_first_process():
            print(text, flush=True)


def _short(file: Path) -> str:
    """A path, relative to the current folder where it is in there."""
    path = file.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(file)


class _Listener(logging.Handler):
    def __init__(self, add: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._add = add

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # a log line must not end a run
            self._add(record.getMessage())


def no_probe(run: DryRun) -> None:
    """Refuse the mode `probe`, for recipes that train nothing."""
    if run.mode == "probe":
        run.add("--dry_run probe measures a step of a training, and this recipe trains nothing. Use --dry_run")


def dry_run_status(
    mode: str,
    dry_run: Callable[..., None],
    parsed: Sequence[Any],
    command: Sequence[str],
    machine: Mapping[str, Any] | None = None,
) -> int:
    """Print the config and the sections of `dry_run(run, *parsed)`; returns the exit status.

    `command`: the command line, with `--config FILE`. `machine`: defaults that follow from this machine.
    """
    run = DryRun(mode)
    # The parser adds a namespace for defaults of the machine that a recipe has no key for.
    parsed = [part for part in parsed if is_dataclass(part)]
    file = config_file(command)
    run.section("config (keys that differ from their defaults)")
    run.line("file", _short(file) if file else "none")
    for key in changed_keys(parsed, command, machine or {}):
        run.line(key.origin, f"{key.name}: {key.value}")
    with run.listening(), run.catch():
        dry_run(run, *parsed)
    return run.finish()
