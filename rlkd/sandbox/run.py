"""Starts the sandbox, watches the program in it, and reads its result. `rlkd.sandbox` lists what is covered."""

from __future__ import annotations

import contextlib
import errno
import json
import marshal
import math
import os
import platform
import selectors
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlkd.errors import UsageError
from rlkd.sandbox.seccomp import ARCHITECTURES, build_filter

MIB = 1 << 20
KERNEL = (5, 14)  # the first to count processes per user namespace, and it has all the mount calls
SETUP_SECONDS = 60.0  # to build the sandbox, on a busy machine; usually 0.03
FOLDER = Path(__file__).resolve().parent
# Names as the launcher reports them.
STAGES = (
    "user namespace",
    "process, network, IPC and host name namespaces",
    "mount namespace",
    "read-only file tree",
    "dropped rights",
    "resource limits",
    "seccomp filter",
    "checks",
    "execution",
)
# Read-only in the sandbox, in addition to the Python installation: folders, or symlinks as they are.
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
# Not /dev/zero: a partly unmapped mapping of it holds memory that no limit counts.
DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "1",  # else each thread reserves 64 MiB of address space, which the memory limit counts
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",  # one program and one input give one output, sets included
    "TMPDIR": "/tmp",
}
if sysconfig.get_config_var("Py_ENABLE_SHARED"):
    # Python's container images find libpython by a path relative to the program, which the loader reads from /proc.
    ENVIRONMENT["LD_LIBRARY_PATH"] = os.path.realpath(Path(sys.base_prefix, "lib"))


class SandboxUnavailable(UsageError):
    """A sandbox mechanism is missing on this machine; the message names it and a way out. Nothing was executed.

    `stage`: the failed one of `STAGES`, empty if not even the first was reached.
    """

    def __init__(self, message: str, stage: str = ""):
        super().__init__(message)
        self.stage = stage


class SandboxError(RuntimeError):
    """The sandbox itself failed or was stopped. Says nothing about the program."""


@dataclass(frozen=True)
class SandboxLimits:
    """Resource limits of a program; with `children`, `cpu` and `memory` are those of each process.

    `wall` and `cpu` are seconds, `memory` bytes of address space (Python itself takes about 20 MiB), `processes`
    counts threads too, `output` bytes of standard output, standard error and a function's value, each, `file_size`
    bytes in /tmp.
    """

    wall: float = 10.0
    cpu: float = 5.0
    memory: int = 512 * MIB
    processes: int = 32
    children: bool = False
    output: int = MIB
    file_size: int = 16 * MIB

    def __post_init__(self) -> None:
        for name in ("wall", "cpu"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{name} {value!r}: expected a number of seconds above 0")
        for name, least in (("memory", 64 * MIB), ("processes", 1), ("output", 1), ("file_size", 4096)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} {value!r}: expected an integer of at least {least}")


@dataclass(frozen=True)
class ProgramResult:
    """Outcome of a program.

    `status`: `ok` (exit code 0), `error` (another exit code, or a signal), `timeout` (wall or CPU time), `memory`
    (ended by a MemoryError), `output` (stopped for writing too much), `killed` (SIGKILL that did not come from here:
    by the kernel for lack of memory, or by itself). `returncode`: minus the signal's number for a signal. `seconds`:
    wall time from the program's start. `value`: return value of the function (`call_function`).
    """

    status: Literal["ok", "error", "timeout", "memory", "output", "killed"]
    returncode: int | None
    stdout: str
    stderr: str
    seconds: float
    value: Any = field(default=None, compare=False)


def run_program(
    source: str, *, stdin: str = "", limits: SandboxLimits | None = None, stop: threading.Event | None = None
) -> ProgramResult:
    """Run a Python program in a fresh interpreter, with the standard library and this standard input.

    Blocks; the sandbox dies with the calling thread. `stop`: kills the program when set. Raises `SandboxUnavailable`
    or `SandboxError`, never because of something the program did.
    """
    files = {"/program.py": _bytes(source), "/start.py": (FOLDER / "start.py").read_bytes()}
    result, _ = _run(files, ["/start.py"], stdin, limits or SandboxLimits(), False, stop)
    return result


def call_function(
    source: str,
    function: str,
    arguments: list[Any],
    *,
    limits: SandboxLimits | None = None,
    stop: threading.Event | None = None,
) -> ProgramResult:
    """Load a program in the sandbox, call `function(*arguments)`, and return its value in `ProgramResult.value`.

    The function is one of the program, or a method of its class `Solution`. Arguments and value travel as JSON; the
    status is `error` if there is no such function, or its value is not JSON. Raises like `run_program`, and ValueError
    for arguments that are not JSON.
    """
    try:
        passed = json.dumps(list(arguments))
    except TypeError as error:
        raise ValueError(f"arguments of {function!r}: {error}") from error
    files = {
        "/program.py": _bytes(source),
        "/driver.py": (FOLDER / "driver.py").read_bytes(),
        "/arguments.json": passed.encode(),
    }
    result, text = _run(files, ["/driver.py", function], "", limits or SandboxLimits(), True, stop)
    if result.status != "ok":
        return result
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"returned a value that is not JSON: {error}" if text else "returned no value"
        return ProgramResult("error", result.returncode, result.stdout, result.stderr + reason, result.seconds)
    return ProgramResult("ok", 0, result.stdout, result.stderr, result.seconds, value)


def check() -> None:
    """Raise `SandboxUnavailable` unless a program runs here in the full sandbox. Starts one sandbox per process."""
    _checked(os.getpid())


@cache
def _checked(pid: int) -> None:
    limits = SandboxLimits(wall=SETUP_SECONDS)
    done = call_function("def answer(x):\n    return x + 1", "answer", [41], limits=limits)
    if done.value != 42:
        raise SandboxUnavailable(
            f"no sandbox here: its test program ended with {done.status!r} and the value {done.value!r}, expected 42. "
            f"{done.stderr[-500:].strip()}"
        )


def require_platform() -> None:
    """Raise `SandboxUnavailable` on a system where the sandbox cannot be built."""
    other = "Use a Linux machine or a virtual machine with Linux."
    if sys.platform != "linux":
        raise SandboxUnavailable(f"the sandbox needs Linux, this is {sys.platform}. {other}")
    if platform.machine() not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise SandboxUnavailable(
            f"the sandbox knows the system calls of {' and '.join(ARCHITECTURES)} with a 64-bit Python, this is "
            f"{platform.machine()}. {other}"
        )
    release = platform.release()
    numbers = [int("".join(c for c in part if c.isdigit()) or 0) for part in release.split(".")[:2]]
    if tuple(numbers) < KERNEL:
        raise SandboxUnavailable(f"the sandbox needs Linux 5.14 or newer, this is {release}. {other}")


def _run(
    files: Mapping[str, bytes],
    arguments: list[str],
    stdin: str,
    limits: SandboxLimits,
    returns: bool,
    stop: threading.Event | None,
) -> tuple[ProgramResult, str]:
    """Start the launcher, read its output and the program's, end it; returns the result and descriptor 3's text."""
    require_platform()
    if not os.access(_python(), os.X_OK):
        raise SandboxUnavailable(f"no sandbox here: the interpreter {_python()!r} cannot be executed")
    opened: list[int] = []  # descriptors to close here, whatever happens
    process: subprocess.Popen[bytes] | None = None
    control = -1
    try:
        names = ["stdout", "stderr", "status", *(["result"] if returns else [])]
        reads, writes = {}, {}
        for name in names:
            reads[name], writes[name] = os.pipe()
            opened += reads[name], writes[name]
            os.set_blocking(reads[name], False)
        controlled, control = os.pipe()
        job_file = os.memfd_create("job")
        opened += controlled, control, job_file
        job = {
            **_surroundings(),
            "files": {**files, "/dev/stdin": _bytes(stdin)},
            "command": [_python(), "-P", "-s", "-S", "-B", "-X", "utf8", *arguments],
            "environment": ENVIRONMENT,
            "limits": _resource_limits(limits),
            "filter": build_filter(platform.machine(), children=limits.children),
            "supervisor": os.getpid(),
            "control": controlled,
            "status": writes["status"],
            "result": writes.get("result", -1),
        }
        with os.fdopen(os.dup(job_file), "wb") as file:
            marshal.dump(job, file)
        process = subprocess.Popen(
            [_python(), "-I", "-S", str(FOLDER / "launcher.py"), str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=writes["stdout"],
            stderr=writes["stderr"],
            pass_fds=[job_file, controlled, *(writes[name] for name in names[2:])],
            env={},
            cwd="/",
            start_new_session=True,
        )
        return _Supervision(process, reads, control, limits, stop).run()
    except OSError as error:  # of this process: too many open files, no more processes
        raise SandboxError(f"the sandbox could not be started: {error}") from error
    finally:
        try:
            # A byte, not closing the pipe: a process forked by another thread of the caller may hold the other end.
            if control >= 0:
                with contextlib.suppress(OSError):
                    os.write(control, b"k")
            if process is not None:
                _reap(process)
        finally:
            for fd in opened:
                os.close(fd)


class _Supervision:
    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reads: Mapping[str, int],
        control: int,
        limits: SandboxLimits,
        stop: threading.Event | None,
    ):
        self.process, self.reads, self.control, self.limits, self.stop = process, reads, control, limits, stop
        self.received = {name: bytearray() for name in reads}
        self.started: float | None = None
        self.ended_for: Literal["timeout", "output"] | None = None

    def run(self) -> tuple[ProgramResult, str]:
        begun = time.monotonic()
        ended = os.pidfd_open(self.process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(ended, selectors.EVENT_READ, "ended")
                for name, fd in self.reads.items():
                    selector.register(fd, selectors.EVENT_READ, name)
                while True:
                    if self.started is None:
                        left = begun + SETUP_SECONDS - time.monotonic()
                    else:
                        left = self.started + self.limits.wall - time.monotonic()
                    if left <= 0:
                        self.ended_for = "timeout"
                        break
                    ready = selector.select(min(left, 0.1) if self.stop is not None else left)
                    if self.stop is not None and self.stop.is_set():
                        raise SandboxError("stopped")
                    for key, _ in ready:
                        if key.data != "ended" and not self._read(key.data):
                            selector.unregister(key.fileobj)
                    if self.ended_for or any(key.data == "ended" for key, _ in ready):
                        break
        finally:
            os.close(ended)
        seconds = time.monotonic() - (self.started or begun)
        os.write(self.control, b"k")
        _reap(self.process)
        for name in self.reads:
            while self._read(name):
                pass
        return self._result(seconds), self.received.get("result", b"").decode("utf-8", "replace")

    def _read(self, name: str) -> bool:
        """Read available data; returns whether there may be more. Nothing is read past the output limit."""
        received = self.received[name]
        try:
            data = os.read(self.reads[name], 65536)
        except BlockingIOError:
            return False
        received += data
        if name == "status":
            if self.started is None and b"started\n" in received:
                self.started = time.monotonic()
        elif len(received) > self.limits.output:
            del received[self.limits.output :]
            self.ended_for = self.ended_for or "output"
            return False
        return bool(data)

    def _result(self, seconds: float) -> ProgramResult:
        stdout, stderr = (self.received[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
        lines = [line.split(" ", 3) for line in self.received["status"].decode("utf-8", "replace").splitlines()]
        if self.started is None:
            raise _not_started(lines, stderr)
        exits = [line for line in lines if line[0] == "exit"]
        code = os.waitstatus_to_exitcode(int(exits[0][1])) if exits else None
        if self.ended_for:
            return ProgramResult(self.ended_for, code, stdout, stderr, seconds)
        if code is None:
            raise SandboxError("the sandbox was killed from outside")
        status: Literal["ok", "error", "timeout", "memory", "killed"] = "ok" if code == 0 else "error"
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and float(exits[0][2]) >= self.limits.cpu):
            status = "timeout"
        elif code == -signal.SIGKILL:
            # Not a failure of the sandbox: a program could cause that at will, and escape its score of 0.
            status = "killed"
        elif code and any(line.startswith("MemoryError") for line in stderr[-2000:].splitlines()):
            status = "memory"
        return ProgramResult(status, code, stdout, stderr, seconds)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the outermost process, which ends after everything in the sandbox; kill it if it does not."""
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _not_started(lines: list[list[str]], stderr: str) -> Exception:
    for line in lines:
        if line[0] == "failed" and len(line) == 4:
            stage = line[1].replace("_", " ")
            if int(line[2]) in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
                # Depend on the load of the machine and say nothing about its mechanisms.
                return SandboxError(f"the sandbox did not come up at {stage!r}: {line[3]}")
            return SandboxUnavailable(f"no sandbox here: {stage}: {line[3]}. {way_out(stage)}", stage)
    if lines:
        return SandboxError(f"the sandbox did not come up; last status: {' '.join(lines[-1])!r}. {stderr[-500:]}")
    return SandboxUnavailable(f"no sandbox here: {_python()} does not run without its environment: {stderr[-500:]}")


def way_out(stage: str) -> str:
    """A remedy for a failed stage, derived from the settings of this machine."""
    if "namespace" in stage:
        for name, bad, good in (
            ("kernel/unprivileged_userns_clone", "0", "1"),
            ("user/max_user_namespaces", "0", "15000"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
        ):
            with contextlib.suppress(OSError):
                if Path("/proc/sys", name).read_text().strip() == bad:
                    return f"Run  sudo sysctl {name.replace('/', '.')}={good}  or use another machine."
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")) or "container" in os.environ:
        return (
            "In a container, start it with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "(docs/sandbox.md has the reasons and a narrower profile), or use a virtual machine."
        )
    return "See docs/sandbox.md, or use another machine."


def stages() -> list[tuple[str, str | None]]:
    """Build one sandbox; returns (name, None or the error) of its stages, up to the first that failed."""
    system = f"Linux {'.'.join(map(str, KERNEL))} or newer on {' or '.join(ARCHITECTURES)}"
    try:
        require_platform()
        _checked.cache_clear()
        check()
    except SandboxUnavailable as error:
        failed = STAGES.index(error.stage) if error.stage in STAGES else None
        passed = [system, *STAGES[:failed]] if failed is not None else []
        return [*((name, None) for name in passed), (error.stage or "sandbox", str(error))]
    return [(name, None) for name in (system, *STAGES)]


@cache
def _python() -> str:
    """The interpreter behind a virtual environment, with symlinks resolved."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def _surroundings() -> dict[str, Any]:
    wanted = [*SYSTEM]
    # The installation behind a virtual environment, never the environment itself.
    base = {"installed_base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    modules = [os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")]
    # PREFIX/lib also has the shared libraries of a conda environment or a relocatable build.
    wanted += [*(str(Path(path).parent) for path in modules), os.path.realpath(Path(sys.base_prefix, "lib"))]
    links = {path: str(Path(path).readlink()) for path in wanted if Path(path).is_symlink()}
    folders: list[str] = []
    for path in sorted({p for p in wanted if p not in links and Path(p).is_dir()}):
        if not any(Path(path).is_relative_to(other) for other in folders):
            folders.append(path)
    files = [p for p in [_python()] if not any(Path(p).is_relative_to(folder) for folder in folders)]
    masks = [
        str(found)
        for folder in folders
        for found in sorted(Path(folder).glob("python3*/*-packages"))
        if found.is_dir() and not found.is_symlink()
    ]
    # Paths of the caller that must be absent; checked from inside.
    absent = ["/proc", "/sys", "/etc", "/usr/bin/env", "/home", "/root/.ssh", str(FOLDER), str(Path.home() / ".ssh")]
    covered = [*masks, *files]
    absent = [p for p in absent if not any(Path(c).is_relative_to(p) for c in [*covered, *folders])]
    return {
        "binds": [(path, False) for path in [*folders, *files]] + [(path, True) for path in DEVICES],
        "links": links,
        "masks": masks,
        "absent": absent,
    }


def _resource_limits(limits: SandboxLimits) -> dict[str, int]:
    return {
        "AS": limits.memory,
        # One byte: too little for a file, and the only value at which the kernel calls no crash handler outside.
        "CORE": 1,
        "CPU": math.ceil(limits.cpu),
        "FSIZE": limits.file_size,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NOFILE": 64,
        # The outermost process and the first one inside count in addition to the program's own.
        "NPROC": limits.processes + 2,
        "SIGPENDING": 64,
        "STACK": 8 * MIB,
    }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
