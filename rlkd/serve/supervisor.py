"""Start the servers, wait until they answer, show their logs, start again what dies, and end everything.

One event loop. Each server has a task (`_keep`) that starts it, waits for it, watches it and starts it again; what a
server writes goes straight into its log file, so that it never waits for us, and is shown from there.

Exit codes: the trainer's where there is one; 128 + n after signal n; 1 where a server could not be kept up.
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
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rlkd.serve import checks, processes
from rlkd.serve.commands import Server, by_role, role_spec
from rlkd.serve.config import ServeConfig
from rlkd.serve.processes import MARK, Process
from rlkd.serve.state import StateFile

if TYPE_CHECKING:
    from httpx import AsyncClient

WARDEN = Path(__file__).with_name("guard.py")
PROBE_SECONDS = 10.0  # for one answer
STARTING_PAUSE, READY_PAUSE = 0.5, 10.0  # between two looks at a server's health
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 30.0
LOG_PAUSE = 0.2
STATE_PAUSE = 2.0
SHOWN_LINES = 25
ERROR = re.compile(r"\b\w*(Error|Exception): ")
COLOURS = (36, 33, 35, 32, 34, 31)  # of the terminal, by role


class GivenUp(Exception):
    """A server cannot be kept up; the message says why."""


class Child:
    """A process of ours below its warden."""

    def __init__(self, process: asyncio.subprocess.Process, control: int):
        self.process = process
        self._control: int | None = control

    @property
    def running(self) -> bool:
        """Whether its warden, and so anything below that, is there."""
        return self.process.returncode is None

    def tell(self, command: bytes) -> None:
        """`t`: end, `i`: interrupt, `k`: kill; see `guard.py`."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                os.write(self._control, command)

    def close(self) -> None:
        """Let go of the control pipe of a process that has ended."""
        if self._control is not None:
            os.close(self._control)
            self._control = None

    @classmethod
    async def start(
        cls, command: Sequence[str], environment: dict[str, str], grace: float, output: IO[bytes] | None
    ) -> Child:
        """Start a command below a warden; `output` takes what it writes (None: where we write)."""
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(WARDEN)),
                *(str(reading), str(os.getpid()), str(grace)),
                *command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output and subprocess.STDOUT,
                pass_fds=(reading,),
                # A terminal's Ctrl-C is for us; what then happens to servers is ours to say.
                start_new_session=True,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, writing)


class Log:
    """The log file of a server: written by the server itself, read for the terminal."""

    def __init__(self, path: Path, prefix: str):
        self.path = path
        self.prefix = prefix
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.offset = self.begin = path.stat().st_size
        self._rest = b""

    def open(self, title: str) -> IO[bytes]:
        """The file for a new process, with a line that says so."""
        handle = self.path.open("ab", buffering=0)
        self.begin = handle.seek(0, os.SEEK_END)
        handle.write(f"--- {datetime.now().isoformat(timespec='seconds')} {title}\n".encode())
        return handle

    def lines(self, last: bool = False) -> list[str]:
        """The whole lines since the last call; with `last`, an unfinished one, too."""
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
        # Of a progress bar, what stood there last.
        shown = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in whole]
        return [line for line in shown if not line.startswith("--- ")]

    def tail(self) -> str:
        """The last lines of the present process, and its first error, which vLLM says long before its last."""
        with self.path.open("rb") as handle:
            handle.seek(max(self.begin, self.path.stat().st_size - (1 << 18)))
            lines = handle.read().decode(errors="replace").splitlines()
        lines = [line.rpartition("\r")[2] for line in lines if line.strip() and not line.startswith("--- ")]
        shown = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
        if not shown:
            return f"it wrote nothing ({self.path})"
        first = next((line for line in lines[:-SHOWN_LINES] if ERROR.search(line)), None)
        return f"its last lines ({self.path}):\n{shown}" + (f"\nand the first error:\n  {first}" if first else "")


class Minded:
    """A server, and how it fares."""

    def __init__(self, server: Server, log: Log):
        self.server = server
        self.log = log
        self.child: Child | None = None
        self.state = "waiting"
        self.ready = asyncio.Event()
        self.starts = 0
        self.deaths: deque[float] = deque()
        self.seen: list[Process] = []


class Supervisor:
    """All servers of a config. `show` writes a line to the terminal; `on_ready` is called when all answer."""

    def __init__(
        self,
        config: ServeConfig,
        servers: Sequence[Server],
        state: StateFile,
        *,
        about: dict[str, Any],
        show: Any,
        on_ready: Any,
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
        self.minded = []
        for server in servers:
            prefix = f"[{server.label}]".ljust(width + 2)
            if sys.stdout.isatty():
                prefix = f"\033[{COLOURS[roles.index(server.role) % len(COLOURS)]}m{prefix}\033[0m"
            self.minded.append(Minded(server, Log(logs / f"{server.label}.log", prefix)))
        self._trainer: Child | None = None
        self._client: AsyncClient | None = None
        self._devices = {device: asyncio.Lock() for server in servers for device in server.devices}
        self._signals: asyncio.Queue[int] = asyncio.Queue()

    async def run(self, trainer: Sequence[str] = ()) -> int:
        """Until a signal, the trainer's end, or a server that cannot be kept up; return the exit code."""
        loop = asyncio.get_running_loop()
        numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        self.write_state()
        side = [asyncio.create_task(self._show_logs()), asyncio.create_task(self._note())]
        keepers = [asyncio.create_task(self._keep(each)) for each in self.minded]
        training = asyncio.create_task(self._train(trainer))
        told = asyncio.create_task(self._signals.get())
        try:
            done, _ = await asyncio.wait([*keepers, training, told], return_when=asyncio.FIRST_COMPLETED)
            if told in done:
                number = told.result()
                self.show(f"{signal.Signals(number).name}: stopping; once more to kill")
                code = 128 + number
                if self._trainer is not None:
                    self._trainer.tell(b"i" if number == signal.SIGINT else b"t")
                    await self._or_killed(self._trainer.process.wait())
            elif training in done:
                code = training.result()
                self.show(f"the trainer has ended with exit code {code}; stopping")
            else:
                code = 1
                for keeper in keepers:
                    if keeper in done and (error := keeper.exception()) is not None:
                        if not isinstance(error, GivenUp):
                            raise error
                        self.show(f"{error}\nstopping")
        finally:
            for task in (*keepers, training, told, *side):
                task.cancel()
            await asyncio.gather(*keepers, training, told, *side, return_exceptions=True)
            await self._or_killed(self._end())
            for number in numbers:
                loop.remove_signal_handler(number)
            for each in self.minded:
                self._show_lines(each, last=True)
            if self._client is not None:
                await self._client.aclose()
        self.state.remove()
        return code

    # Servers

    async def _keep(self, minded: Minded) -> None:
        """Start a server, watch it, and start it again when it dies. Raises `GivenUp`."""
        label = minded.server.label
        while True:
            async with self._alone(minded.server):
                reason = await self._start(minded)
            if reason is None:
                minded.ready.set()
                reason = await self._watch(minded)
                minded.ready.clear()
            elif minded.starts == 1:
                # A mistake rather than an accident: the next start would fare no better.
                await self._end_child(minded)
                raise GivenUp(f"{label} {reason} before it was ready; {minded.log.tail()}")
            minded.state = "ending"
            await self._end_child(minded)
            minded.state = "down"
            now = time.monotonic()
            minded.deaths.append(now)
            while now - minded.deaths[0] > self.config.restart_window:
                minded.deaths.popleft()
            if len(minded.deaths) > self.config.restarts:
                raise GivenUp(
                    f"{label} {reason}, and has been down {len(minded.deaths)} times within "
                    f"{self.config.restart_window:g} s (restarts: {self.config.restarts}); {minded.log.tail()}"
                )
            backoff = min(FIRST_BACKOFF * 2 ** (len(minded.deaths) - 1), LONGEST_BACKOFF)
            self.show(f"{label} {reason}; starting it again in {backoff:g} s ({minded.log.path})")
            await asyncio.sleep(backoff)

    @contextlib.asynccontextmanager
    async def _alone(self, server: Server) -> AsyncIterator[None]:
        """vLLM measures what is free on a GPU while it starts, so that servers of one GPU start one after another."""
        async with contextlib.AsyncExitStack() as stack:
            for device in sorted(server.devices):  # always in one order, or two could wait for each other
                await stack.enter_async_context(self._devices[device])
            yield

    async def _start(self, minded: Minded) -> str | None:
        """Start a server and wait until it answers; None, or what became of it."""
        server = minded.server
        minded.starts += 1
        minded.state = "starting"
        started = time.monotonic()
        self.show(f"{server.label}: starting on {', '.join(server.devices) or 'the CPU'}, port {server.port}")
        with minded.log.open(server.masked_shell()) as output:
            minded.child = await Child.start(
                server.command, server.full_environment(self.mark), self.config.stop_timeout, output
            )
        self.write_state()
        found, lost_before = "no answer", ""
        while time.monotonic() - started < server.start_timeout:
            if not minded.child.running:
                return _ended(minded.child.process)
            # Asked before, so that no stranger is told our key, and after, as its answer must be ours.
            lost = self._lost(minded)
            if not lost:
                found = await self._probe(server)
                lost = "" if found else self._lost(minded)
            # Twice, as another start's look whether the port is free is over at once (`is_free`).
            if lost and lost == lost_before and minded.child.running:
                return lost
            lost_before = lost
            if not found and not lost and minded.child.running:
                minded.state = "ready"
                self.show(f"{server.label}: ready after {time.monotonic() - started:.0f} s")
                self.write_state()
                return None
            await self._sleep_or_end(minded.child, STARTING_PAUSE)
        return f"is not ready after {server.start_timeout:g} s (start_timeout; {found})"

    def _lost(self, minded: Minded) -> str:
        """Nothing, or which process, none of this server's, listens at its address. Where that shows, it is told."""
        server, child = minded.server, minded.child
        assert child is not None
        sockets = checks.listeners(server.port, server.host)
        if not sockets:
            return ""
        own = {child.process.pid, *(each.pid for each in processes.descendants([child.process.pid]))}
        for pids in sockets:
            if not pids & own:
                found = checks.named(min(pids))
                return f"lost its port {server.port} to {found} (end that, or take another port)"
        return ""

    async def _watch(self, minded: Minded) -> str:
        """Until a server that was ready is not; say what became of it."""
        assert minded.child is not None
        limit = self.config.unresponsive_timeout
        answered = time.monotonic()
        while True:
            await self._sleep_or_end(minded.child, min(READY_PAUSE, limit / 3) if limit else READY_PAUSE)
            if not minded.child.running:
                return _ended(minded.child.process)
            if limit:
                found = await self._probe(minded.server, health_only=True)
                if not found:
                    answered = time.monotonic()
                elif time.monotonic() - answered > limit and minded.child.running:
                    return f"has not been healthy for {limit:g} s (unresponsive_timeout; {found})"

    async def _probe(self, server: Server, health_only: bool = False) -> str:
        """Nothing where a server is healthy (and serves its names), else what it answers.

        Raises `GivenUp` where it asks for another key than the one we know, or for one at all.
        """
        import httpx

        if self._client is None:
            # Never through a proxy, and no connection is kept: a server that starts again knows nothing of it.
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
                return f"/health says {health.status_code}"
            if health_only:
                return ""
            models = await self._client.get(f"{server.address}/v1/models", headers=headers)
            if models.status_code in (401, 403):
                known = "does not take the one that it is started with" if headers else "there is none to send"
                raise GivenUp(
                    f"{server.label}: /v1/models says {models.status_code}: it asks for a key, and {known}. Say it "
                    f"as  workers.{server.role}.environment: {{VLLM_API_KEY: KEY}}"
                )
            names = {model["id"] for model in models.json()["data"]}
        except httpx.HTTPError as error:
            return f"no answer: {type(error).__name__}"
        except (ValueError, KeyError, TypeError):
            return "/v1/models says something else than a list of models"
        missing = [name for name in server.names if name not in names]
        return f"/v1/models has no {missing[0]!r}, but {sorted(names)}" if missing else ""

    async def _sleep_or_end(self, child: Child, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.process.wait(), seconds)

    # The trainer

    async def _train(self, command: Sequence[str]) -> int:
        for each in self.minded:
            await each.ready.wait()
        self.on_ready(self.minded)
        if not command:
            await asyncio.Event().wait()
        self.show(f"starting the trainer: {' '.join(command)}")
        environment = {**os.environ, **addresses([each.server for each in self.minded])}
        environment[MARK] = f"{self.mark}:trainer"
        self._trainer = await Child.start(command, environment, self.config.stop_timeout, None)
        self.write_state()
        code = await self._trainer.process.wait()
        return code if code >= 0 else 128 - code

    # The end

    async def _end_child(self, minded: Minded) -> None:
        """End one server and all below it, whatever state it is in."""
        if minded.child is None:
            return
        minded.child.tell(b"t")
        await minded.child.process.wait()
        minded.child.close()
        self._sweep(f"{self.mark}:{minded.server.label}", minded.seen)
        minded.seen = []

    async def _end(self) -> None:
        children = [each.child for each in self.minded if each.child is not None]
        if self._trainer is not None:
            # First, so that it does not see its servers go.
            self._trainer.tell(b"t")
            await self._trainer.process.wait()
            self._trainer.close()
        for child in children:
            child.tell(b"t")
        for child in children:
            await child.process.wait()
            child.close()
        everything = [each for minded in self.minded for each in minded.seen]
        self._sweep(self.mark, everything)
        for minded in self.minded:
            minded.state, minded.seen = "down", []

    def _sweep(self, mark: str, seen: Sequence[Process]) -> None:
        """A warden leaves nothing. But a warden may be killed by others, and then this finds what was below it."""
        spared = processes.ancestors()

        def left() -> list[Process]:
            found = processes.marked(lambda text: text == mark or text.startswith(f"{mark}:"))
            found += [each for each in seen if processes.alive(each)]
            return [each for each in found if each.pid not in spared]

        processes.end_all(left)
        for each in left():
            self.show(f"SIGKILL does not end {checks.named(each.pid)} (stuck in a driver? state D in ps); left behind")

    async def _or_killed(self, ending: Any) -> None:
        """Wait for an end that a second signal turns into a kill."""
        task = asyncio.ensure_future(ending)
        told: asyncio.Task[int] | None = None
        while not task.done():
            told = told or asyncio.create_task(self._signals.get())
            await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                told = None
                self.show("killing")
                for child in [*(each.child for each in self.minded), self._trainer]:
                    if child is not None:
                        child.tell(b"k")
        if told is not None:
            told.cancel()
        task.result()

    # What is written

    async def _show_logs(self) -> None:
        while True:
            for each in self.minded:
                self._show_lines(each)
            await asyncio.sleep(LOG_PAUSE)

    def _show_lines(self, minded: Minded, last: bool = False) -> None:
        for line in minded.log.lines(last):
            # vLLM's lines about our own questions stay in the file.
            if not self.quiet and '"GET /health ' not in line:
                self.show(f"{minded.log.prefix} {line}", plain=True)

    async def _note(self) -> None:
        while True:
            await asyncio.sleep(STATE_PAUSE)
            self.write_state()

    def write_state(self) -> None:
        """Note which processes there are. A full disk is no reason to end a run."""
        with contextlib.suppress(OSError):
            self.state.write(self._content())

    def _content(self) -> dict[str, Any]:
        servers = []
        for each in self.minded:
            pid = each.child.process.pid if each.child is not None and each.child.running else None
            if pid is not None:
                warden = processes.identify(pid)
                each.seen = [*([warden] if warden else []), *processes.descendants([pid])]
            servers.append(
                {
                    "label": each.server.label,
                    "role": each.server.role,
                    "state": each.state,
                    "restarts": max(0, each.starts - 1),
                    "address": each.server.address,
                    "specs": [role_spec([each.server], name) for name in each.server.names],
                    "log": str(each.log.path),
                    "processes": [list(process) for process in each.seen],
                }
            )
        if self._trainer is not None and self._trainer.running:
            pid = self._trainer.process.pid
            below = [process for process in (processes.identify(pid), *processes.descendants([pid])) if process]
            servers.append({"label": "trainer", "state": "running", "processes": [list(each) for each in below]})
        me = processes.identify(os.getpid())
        return self.about | {"mark": self.mark, "supervisor": list(me) if me else None, "servers": servers}


def addresses(servers: Sequence[Server]) -> dict[str, str]:
    """What a trainer finds in its environment.

    RLKD_<ROLE>_URL, such as `http://127.0.0.1:8000` (of several replicas all, with commas between them), and
    RLKD_<ROLE>_SPEC, such as `http://127.0.0.1:8000/v1#NAME`.
    """
    found = {}
    for role, replicas in by_role(servers).items():
        found[f"RLKD_{role.upper()}_URL"] = ",".join(server.address for server in replicas)
        found[f"RLKD_{role.upper()}_SPEC"] = role_spec(replicas)
    return found


def _ended(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is None:
        return "has ended"
    if code < 0:
        hint = " (out of memory? see dmesg)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"has ended with exit code {code}"
