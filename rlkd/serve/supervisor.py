"""Starts the servers, waits until they answer, shows their logs, restarts what dies, and ends everything.

Exit codes: the trainer's, if there is one; 128 + n after signal n; 1 if a server cannot be kept running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from rlkd.process import carriers, descendants, listeners, python_command
from rlkd.serve.checks import named
from rlkd.serve.commands import Server, addresses, role_spec
from rlkd.serve.config import ServeConfig
from rlkd.serve.guard import MARK, STUCK
from rlkd.serve.state import StateFile, kill_all

if TYPE_CHECKING:
    from httpx import AsyncClient

PROBE_SECONDS = 10.0  # per request
STARTING_PAUSE, READY_PAUSE = 0.5, 10.0  # between health checks
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
STUCK_SECONDS = 10.0  # after SIGKILL
LOG_PAUSE = 0.2
SHOWN_LINES = 25
ERROR = re.compile(r"\b\w*(Error|Exception): ")
COLOURS = (36, 33, 35, 32, 34, 31)  # of the terminal, by role


class GivenUp(Exception):
    """A server cannot be kept running; the message says why."""


class Log:
    """The log file of a server, which writes it itself; read for the terminal."""

    def __init__(self, path: Path, prefix: str):
        self.path = path
        self.prefix = prefix
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.offset = self.begin = path.stat().st_size
        self._rest = b""

    def open(self, title: str) -> IO[bytes]:
        """Open the file for a new process, and write a line with its command."""
        handle = self.path.open("ab", buffering=0)
        self.begin = handle.seek(0, os.SEEK_END)
        handle.write(f"--- {datetime.now().isoformat(timespec='seconds')} {title}\n".encode())
        return handle

    def lines(self, last: bool = False) -> list[str]:
        """Complete lines since the last call; with `last`, an unfinished one as well."""
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.offset)
                new = handle.read(1 << 20)
        except OSError:
            return []
        self.offset += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        if self._rest and (last or len(self._rest) > 1 << 16):
            whole.append(self._rest)
            self._rest = b""
        # Of a progress bar, its last state.
        shown = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in whole]
        return [line for line in shown if not line.startswith("--- ")]

    def tail(self) -> str:
        """The last lines of the current process, and its first error, which vLLM writes long before its last line."""
        with self.path.open("rb") as handle:
            handle.seek(max(self.begin, self.path.stat().st_size - (1 << 18)))
            lines = handle.read().decode(errors="replace").splitlines()
        lines = [line.rpartition("\r")[2] for line in lines if line.strip() and not line.startswith("--- ")]
        shown = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
        if not shown:
            return f"it wrote nothing ({self.path})"
        first = next((line for line in lines[:-SHOWN_LINES] if ERROR.search(line)), None)
        return f"its last lines ({self.path}):\n{shown}" + (f"\nand the first error:\n  {first}" if first else "")


class ServerStatus:
    """A server process and its health."""

    def __init__(self, server: Server, log: Log):
        self.server = server
        self.log = log
        self.guard: Process | None = None  # ends when the server has, with everything below it
        self.state = "waiting"
        self.ready = asyncio.Event()
        self.starts = 0
        self.deaths: deque[float] = deque()

    @property
    def ending(self) -> str:
        """How it ended; empty while it runs."""
        code = self.guard.returncode if self.guard is not None else None
        if code is None:
            return ""
        if code < 0:
            hint = " (out of memory? see dmesg)" if code == -signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-code).name}{hint}"
        return f"has ended with exit code {code}"


class Supervisor:
    """All servers of a config. `show` writes a line to the terminal; `on_ready` is called when all answer."""

    def __init__(
        self,
        config: ServeConfig,
        servers: Sequence[Server],
        state: StateFile,
        *,
        about: dict[str, Any],
        show: Callable[..., None],
        on_ready: Callable[[], None],
        quiet: bool = False,
    ):
        self.config = config
        self.state = state
        self.about = about
        self.show = show
        self.on_ready = on_ready
        self.quiet = quiet
        self.mark = secrets.token_hex(16)
        logs = Path(config.output_dir).expanduser().absolute() / "logs"
        roles = list(dict.fromkeys(server.role for server in servers))
        width = max(len(server.label) for server in servers)
        self.servers = []
        for server in servers:
            prefix = f"[{server.label}]".ljust(width + 2)
            if sys.stdout.isatty():
                prefix = f"\033[{COLOURS[roles.index(server.role) % len(COLOURS)]}m{prefix}\033[0m"
            self.servers.append(ServerStatus(server, Log(logs / f"{server.label}.log", prefix)))
        self._trainer: Process | None = None
        self._client: AsyncClient | None = None
        self._devices = {device: asyncio.Lock() for server in servers for device in server.devices}
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self, trainer: Sequence[str] = ()) -> int:
        """Run until a signal, the trainer's end, or a server that cannot be kept running; returns the exit code."""
        loop = asyncio.get_running_loop()
        numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        keepers = [asyncio.create_task(self._keep(each)) for each in self.servers]
        training = asyncio.create_task(self._train(trainer))
        signalled = asyncio.create_task(self._signals.get())
        tasks: list[asyncio.Task[Any]] = [*keepers, training, signalled, asyncio.create_task(self._show_logs())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if signalled in done:
                number = signalled.result()
                self.show(f"{signal.Signals(number).name}: stopping; once more to kill")
                code = 128 + number
                if self._trainer is not None:
                    self._signal(self._trainer, signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
                    await self._or_killed(self._trainer.wait())
            elif training in done:
                code = training.result()
                self.show(f"the trainer has ended with exit code {code}; stopping")
            else:
                code = 1
                for task in done:
                    if not isinstance(error := task.exception(), GivenUp):
                        raise error or RuntimeError("a server's task has ended")
                    self.show(f"{error}\nstopping")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._or_killed(self._end())
            for number in numbers:
                loop.remove_signal_handler(number)
            for each in self.servers:
                self._show_lines(each, last=True)
            if self._client is not None:
                await self._client.aclose()
        self.state.path.unlink(missing_ok=True)
        return code

    async def _spawn(
        self, label: str, command: Sequence[str], environment: dict[str, str], output: IO[bytes] | None
    ) -> Process:
        """Start a command below a guard; `output` takes what it writes (None: the terminal)."""
        times = [str(self.config.stop_timeout), str(STUCK_SECONDS)]
        return await asyncio.create_subprocess_exec(
            *python_command("rlkd.serve.guard:main", str(os.getpid()), *times, *command, flags=["-I"]),
            env={**os.environ, **environment, MARK: f"{self.mark}:{label}:"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is handled here
        )

    @staticmethod
    def _signal(guard: Process | None, number: int) -> None:
        if guard is not None:
            with contextlib.suppress(ProcessLookupError):
                guard.send_signal(number)

    # Servers

    async def _keep(self, status: ServerStatus) -> None:
        label = status.server.label
        while True:
            async with self._alone(status.server):
                reason = await self._start(status)
            if reason is None:
                status.ready.set()
                reason = await self._watch(status)
                status.ready.clear()
            elif status.starts == 1:  # rather a mistake than an accident: another start would fail as well
                await self._end_server(status)
                raise GivenUp(f"{label} {reason} before it was ready; {status.log.tail()}")
            await self._end_server(status)
            now = time.monotonic()
            status.deaths.append(now)
            while now - status.deaths[0] > self.config.restart_window:
                status.deaths.popleft()
            if len(status.deaths) > self.config.restarts:
                raise GivenUp(
                    f"{label} {reason}, and has been down {len(status.deaths)} times within "
                    f"{self.config.restart_window:g} s (restarts: {self.config.restarts}); {status.log.tail()}"
                )
            backoff = min(FIRST_BACKOFF * 2 ** (len(status.deaths) - 1), LONGEST_BACKOFF)
            self.show(f"{label} {reason}; starting it again in {backoff:g} s ({status.log.path})")
            await asyncio.sleep(backoff)

    @contextlib.asynccontextmanager
    async def _alone(self, server: Server) -> AsyncIterator[None]:
        """vLLM measures the free memory of a GPU while it starts, so servers of one GPU start one after another."""
        async with contextlib.AsyncExitStack() as stack:
            for device in sorted(server.devices):  # in one order for all, or two could wait for each other
                await stack.enter_async_context(self._devices[device])
            yield

    async def _start(self, status: ServerStatus) -> str | None:
        """Start a server and wait until it answers; returns None, or the reason why it does not."""
        server = status.server
        status.starts += 1
        started = time.monotonic()
        self.show(f"{server.label}: starting on {', '.join(server.devices) or 'the CPU'}, port {server.port}")
        with status.log.open(server.masked_shell()) as output:
            status.guard = await self._spawn(server.label, server.command, dict(server.environment), output)
        self._set_state(status, "starting")
        problem, lost_before = "no answer", ""
        while time.monotonic() - started < server.start_timeout:
            # Before, so that no other process receives the key, and after, as the answer must be this server's.
            lost = await self._lost(status)
            if not lost:
                problem = await self._probe(server)
                lost = "" if problem else await self._lost(status)
            if status.ending:
                return status.ending
            # Twice, as another start's check whether the port is free is over at once (`is_free`).
            if lost and lost == lost_before:
                return lost
            lost_before = lost
            if not problem and not lost:
                self.show(f"{server.label}: ready after {time.monotonic() - started:.0f} s")
                self._set_state(status, "ready")
                return None
            await self._sleep_or_end(status, STARTING_PAUSE)
        return f"is not ready after {server.start_timeout:g} s (start_timeout; {problem})"

    async def _lost(self, status: ServerStatus) -> str:
        """The process that listens at the server's address and does not belong to it, in a sentence; else empty."""
        assert status.guard is not None
        pids = await asyncio.to_thread(listeners, status.server.port, status.server.host)
        own = {process.pid for process in descendants(status.guard.pid)} if pids else set()
        for pid in pids:
            if pid not in own and psutil.pid_exists(pid) and not status.ending:
                return f"lost its port {status.server.port} to {named(pid)} (end that, or set another port)"
        return ""

    async def _watch(self, status: ServerStatus) -> str:
        limit = self.config.unresponsive_timeout
        answered = time.monotonic()
        while True:
            await self._sleep_or_end(status, min(READY_PAUSE, limit / 3) if limit else READY_PAUSE)
            problem = await self._probe(status.server, health_only=True) if limit and not status.ending else ""
            if status.ending:
                return status.ending
            if not problem:
                answered = time.monotonic()
            elif time.monotonic() - answered > limit:
                return f"has not been healthy for {limit:g} s (unresponsive_timeout; {problem})"

    async def _probe(self, server: Server, health_only: bool = False) -> str:
        """Empty if a server is healthy (and serves its names), else a description of its reply."""
        import httpx

        if self._client is None:
            # Never through a proxy, and without kept-alive connections, which a restarted server would not know.
            self._client = httpx.AsyncClient(
                trust_env=False,
                verify=False,
                timeout=min(PROBE_SECONDS, self.config.unresponsive_timeout or PROBE_SECONDS),
                headers={"connection": "close"},
            )
        headers = {} if server.api_key is None else {b"authorization": f"Bearer {server.api_key}".encode()}
        try:
            health = await self._client.get(f"{server.address}/health", headers=headers)
            if health.status_code != 200:
                return f"/health answers {health.status_code}"
            if health_only:
                return ""
            models = await self._client.get(f"{server.address}/v1/models", headers=headers)
            if models.status_code in (401, 403):
                known = "rejects the one it was started with" if headers else "none is configured"
                raise GivenUp(
                    f"{server.label}: /v1/models answers {models.status_code}: it requires a key, and {known}. Set it "
                    f"as  workers.{server.role}.environment: {{VLLM_API_KEY: KEY}}"
                )
            names = {model["id"] for model in models.json()["data"]}
        except httpx.HTTPError as error:
            return f"no answer: {type(error).__name__}"
        except (ValueError, KeyError, TypeError):
            return "/v1/models returns no list of models"
        missing = [name for name in server.names if name not in names]
        return f"/v1/models has no {missing[0]!r}, but {sorted(names)}" if missing else ""

    async def _sleep_or_end(self, status: ServerStatus, seconds: float) -> None:
        assert status.guard is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(status.guard.wait(), seconds)

    # The trainer

    async def _train(self, command: Sequence[str]) -> int:
        for each in self.servers:
            await each.ready.wait()
        self.on_ready()
        if not command:
            await asyncio.Event().wait()
        self.show(f"starting the trainer: {' '.join(command)}")
        variables = addresses([each.server for each in self.servers])
        self._trainer = await self._spawn("trainer", command, variables, None)
        self.write_state()
        code = await self._trainer.wait()
        return code if code >= 0 else 128 - code

    # The end

    async def _end_server(self, status: ServerStatus) -> None:
        self._set_state(status, "ending")
        if status.guard is not None:
            self._signal(status.guard, signal.SIGTERM)
            await status.guard.wait()
            await self._sweep(f"{status.server.label}:")
        self._set_state(status, "down")

    async def _end(self) -> None:
        if self._trainer is not None:  # first, so that it does not see its servers go
            self._signal(self._trainer, signal.SIGTERM)
            await self._trainer.wait()
        guards = [each.guard for each in self.servers if each.guard is not None]
        for guard in guards:
            self._signal(guard, signal.SIGTERM)
        for guard in guards:
            await guard.wait()
        await self._sweep("")

    async def _sweep(self, label: str) -> None:
        """Kill what a guard left that was itself killed by others."""

        def left() -> list[psutil.Process]:
            return carriers(MARK, f"{self.mark}:{label}")

        await asyncio.to_thread(kill_all, left, STUCK_SECONDS)
        for process in left():
            self.show(STUCK.format(f"{process.pid}"))

    async def _or_killed(self, ending: Awaitable[Any]) -> None:
        """Wait for an end that a second signal turns into a kill."""
        task = asyncio.ensure_future(ending)
        while not task.done():
            signalled = asyncio.create_task(self._signals.get())
            await asyncio.wait([task, signalled], return_when=asyncio.FIRST_COMPLETED)
            if not signalled.cancel():
                self.show("killing")
                for guard in [*(each.guard for each in self.servers), self._trainer]:
                    self._signal(guard, signal.SIGUSR1)
        task.result()

    # Output

    async def _show_logs(self) -> None:
        while True:
            for each in self.servers:
                self._show_lines(each)
            await asyncio.sleep(LOG_PAUSE)

    def _show_lines(self, status: ServerStatus, last: bool = False) -> None:
        for line in status.log.lines(last):
            # vLLM's lines about health checks stay in the file.
            if not self.quiet and '"GET /health ' not in line:
                self.show(f"{status.log.prefix} {line}", plain=True)

    def _set_state(self, status: ServerStatus, state: str) -> None:
        status.state = state
        self.write_state()

    def write_state(self) -> None:
        """Write the state file. A full disk does not end a run."""
        servers = [
            {
                "label": each.server.label,
                "state": each.state,
                "restarts": max(0, each.starts - 1),
                "address": each.server.address,
                "specs": [role_spec([each.server], name) for name in each.server.names],
            }
            for each in self.servers
        ]
        if self._trainer is not None:
            servers.append({"label": "trainer", "state": "running"})
        me = psutil.Process()
        with contextlib.suppress(OSError):
            self.state.write(
                self.about | {"mark": self.mark, "supervisor": [me.pid, me.create_time()], "servers": servers}
            )
