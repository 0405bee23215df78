"""Attacks on the sandbox, a test for each line of "Covered" in `rlkd.sandbox`. All programs here really run in it."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest

import rlkd
from rlkd.sandbox import (
    ENVIRONMENT,
    SandboxError,
    SandboxLimits,
    SandboxUnavailable,
    call_function,
    check,
    run_program,
    seccomp,
    stages,
)
from rlkd.sandbox.run import way_out
from tests.helpers.sandbox import skip_without_sandbox

ROOT = Path(rlkd.__file__).resolve().parent.parent
MIB = 1 << 20
# Long enough for a busy machine.
PATIENT = SandboxLimits(wall=120)
CHILDREN = SandboxLimits(wall=120, children=True)
ROOT_USER = os.geteuid() == 0
X86 = platform.machine() == "x86_64"


# These run everywhere; the others are skipped without a sandbox.
NEED_NO_SANDBOX = {
    "test_limits_that_make_no_sense_are_named",
    "test_the_numbers_of_the_calls_are_the_kernel_s",
    "test_the_filter_does_what_it_says_on_both_machines",
    "test_arguments_that_are_no_json_are_the_caller_s_mistake",
    "test_on_another_system_it_says_so",
}


skipped_without_sandbox = skip_without_sandbox(NEED_NO_SANDBOX)


def run(source, *, limits=PATIENT, **parameters):
    result = run_program(source, limits=limits, **parameters)
    assert result.status == "ok", result
    return result.stdout


def attempt(*statements, limits=PATIENT, before=""):
    """Run each statement by itself; "done", or the error that stopped it."""
    source = f"""
import os, sys
{before}
for statement in {list(statements)!r}:
    try:
        exec(statement)
    except BaseException as error:
        print(type(error).__name__, getattr(error, "errno", None))
    else:
        print("done")
"""
    lines = run(source, limits=limits).splitlines()
    assert len(lines) == len(statements)
    return lines


def processes(marker):
    """Ids of the processes, seen from outside, that have this text in their command line."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if marker in " ".join(p.info["cmdline"] or ())]


def children():
    """Ids of this process's children, zombies included."""
    return {child.pid for child in psutil.Process().children()}


def wait_until(condition, seconds=60):
    """A guard against hanging, no measurement."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.fixture
def canary(monkeypatch, tmp_path):
    """A secret in the caller's environment, home, current folder, and memory."""
    text = f"canary-{uuid.uuid4().hex}"
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text(text)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("API_KEY", text)
    monkeypatch.chdir(tmp_path)
    return home / ".ssh" / "id_ed25519"


def test_a_program_runs_with_its_input_and_the_standard_library():
    source = "import sys, fractions, decimal, zoneinfo, asyncio\nprint(sum(map(int, sys.stdin)))\nsys.exit(3)"
    result = run_program(source, stdin="1\n2\n", limits=PATIENT)
    assert (result.status, result.returncode, result.stdout, result.stderr) == ("error", 3, "3\n", "")


@pytest.mark.parametrize("stdin", ["", "größe\n€"])
def test_standard_input_is_the_test_s_or_nothing(stdin):
    source = "import sys\nprint(sys.stdin.read() + open('/dev/stdin').read(), end='')"
    assert run(source, stdin=stdin) == stdin * 2


def test_text_that_is_no_text_is_a_syntax_error_of_the_program():
    assert run_program("print('\ud800')", limits=PATIENT).status == "error"
    # Some Pythons read on to the zero byte and stop there.
    assert run_program("print(1)\x00", limits=PATIENT).status in ("ok", "error")
    assert run_program("(" * 100_000, limits=PATIENT).status == "error"


def test_a_set_has_the_same_order_in_every_run():
    assert len({run("print({str(i) for i in range(50)})") for _ in range(3)}) == 1


# the network


def test_no_socket_of_any_family_can_be_opened():
    # By number, since not every Python names them all: Unix, IPv4, IPv6, netlink, packet, CAN, Bluetooth, crypto, ...
    families = [1, 2, 10, 16, 17, 29, 31, 38, 40, 44]
    opened = [f"socket.socket({family}, {kind})" for family in families for kind in (1, 2, 3)]
    assert set(attempt(*opened, before="import socket")) == {"PermissionError 1"}


def test_no_name_is_resolved_and_no_server_is_reached():
    tried = attempt(
        "socket.getaddrinfo('example.org', 80)",
        "socket.gethostbyname('localhost')",
        "socket.create_connection(('127.0.0.1', 80), 1)",
        "urllib.request.urlopen('http://127.0.0.1/', timeout=1)",
        before="import socket, urllib.request",
    )
    assert not any(line.startswith(("done", "TimeoutError")) for line in tried)


def test_a_pair_of_sockets_works_for_asyncio_but_sends_to_no_address(tmp_path):
    assert (
        run("import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print(1)\nasyncio.run(main())")
        == "1\n"
    )
    tried = attempt(
        "a.send(b'x')",
        f"a.sendto(b'x', {str(tmp_path / 'server')!r})",
        "a.sendto(b'x', '\\0abstract')",
        "a.sendmsg([b'x'], [], 0, '\\0abstract')",
        "a.connect('\\0abstract')",
        "a.bind('\\0abstract')",
        "socket.socketpair(socket.AF_INET)",
        before="import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    )
    assert tried == ["done", *["PermissionError 1"] * 6]


def seen_from_outside(look):
    """What `look(pid)` returns of a program while it runs."""
    marker, stop = f"seen-{uuid.uuid4().hex}", threading.Event()
    code = "import time\nwhile True: time.sleep(9)"
    source = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {code!r}, {marker!r}])"
    limits = SandboxLimits(wall=999)

    def work():
        with pytest.raises(SandboxError):
            run_program(source, limits=limits, stop=stop)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: processes(marker))
        [pid] = processes(marker)
        return look(pid)
    finally:
        stop.set()
        thread.join()


def namespace(pid, kind):
    return Path(f"/proc/{pid}/ns/{kind}").readlink()


def test_every_namespace_is_a_new_one_and_the_network_is_empty():
    def look(pid):
        kinds = ("user", "mnt", "pid", "net", "ipc", "uts")
        shared = [k for k in kinds if namespace(pid, k) == namespace("self", k)]
        devices = [line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]]
        return shared, set(devices) - {"lo"}, Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]

    assert seen_from_outside(look) == ([], set(), [])


def test_the_kernel_says_that_there_are_no_rights_left():
    status = seen_from_outside(lambda pid: Path(f"/proc/{pid}/status").read_text())
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (facts["Seccomp"], facts["NoNewPrivs"], facts["NSpid"].split()[1:]) == ("2", "1", ["2"])
    assert {int(facts[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert "0" not in facts["Uid"].split() + facts["Gid"].split() + facts["Groups"].split()


# files, environment


def test_the_caller_s_environment_is_not_visible(canary):
    source = """
import glob, os
print(dict(os.environ))
for path in ["/proc/self/environ", "/proc/1/environ", *glob.glob("/proc/*/environ"), *glob.glob("/proc/*/cmdline")]:
    try:
        print(open(path, "rb").read())
    except OSError:
        pass
"""
    printed = run(source)
    assert canary.read_text() not in printed
    assert eval(printed) == {**ENVIRONMENT, "LC_CTYPE": eval(printed).get("LC_CTYPE", "C.UTF-8")} or (
        eval(printed) == ENVIRONMENT
    )


@pytest.mark.skipif(not sysconfig.get_config_var("Py_ENABLE_SHARED"), reason="Python without a shared library")
def test_a_shared_libpython_is_found_without_proc():
    library = sysconfig.get_config_var("INSTSONAME")
    source = f"import os; print(os.path.exists(os.environ['LD_LIBRARY_PATH'] + '/{library}'))"
    assert run(source) == "True\n"


def test_nothing_of_the_caller_s_can_be_read(canary):
    own = [canary, canary.parent.parent, Path.cwd(), Path(__file__), ROOT, ROOT / "pyproject.toml", Path.home()]
    system = ["/etc/passwd", "/etc/hostname", "/proc", "/proc/self/maps", "/sys", "/run", "/var", "/home", "/mnt"]
    system += ["/dev/shm", "/dev/mem", "/dev/kmsg", "/dev/pts", "/dev/tty", "/bin/sh", "/usr/bin/env"]
    tried = attempt(*[f"os.stat({str(path)!r})" for path in [*own, *system]])
    assert set(tried) == {"FileNotFoundError 2"}


def test_the_root_has_nothing_but_what_is_needed():
    roots = set(run("import os\nprint(*os.listdir('/'))").split())
    assert roots <= {
        "tmp",
        "empty",
        "dev",
        "lib",
        "lib64",
        "usr",
        "program.py",
        "start.py",
        Path(sys.base_prefix).parts[1],
    }
    assert set(run("import os\nprint(*os.listdir('/dev'))").split()) == {
        "null",
        "full",
        "random",
        "urandom",
        "stdin",
    }


def test_installed_packages_are_not_there():
    folders = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("-packages"))}
    folders.add(str(Path(sysconfig.get_path("stdlib")) / "site-packages"))
    found = run(f"import glob\nprint([p for f in {sorted(folders)!r} for p in glob.glob(f + '/*')])")
    assert found == "[]\n"
    before = f"sys.path += {sorted(folders)!r}"
    assert set(attempt("import pytest", "import pip", "import rlkd", before=before)) == {"ModuleNotFoundError None"}


def test_a_symlink_leads_nowhere_outside(canary):
    tried = attempt(
        f"os.symlink({str(canary)!r}, '/tmp/a'); open('/tmp/a').read()",
        f"os.symlink('../../../../../..{canary}', '/tmp/b'); open('/tmp/b').read()",
        f"os.chdir('/..'); os.chdir('../../..'); open({str(canary).lstrip('/')!r}).read()",
        "os.symlink('/proc/1/root/etc/passwd', '/tmp/c'); open('/tmp/c').read()",
        "os.link('/usr/lib', '/tmp/d')",
    )
    assert set(tried[:4]) == {"FileNotFoundError 2"}
    assert tried[4] != "done"


def test_inherited_descriptors_are_not_there(canary):
    secrets = [os.open(canary, os.O_RDWR) for _ in range(3)]
    high = os.dup2(secrets[0], 300)
    folder = os.open("/", os.O_RDONLY)
    try:
        for fd in (*secrets, high, folder):
            os.set_inheritable(fd, True)
        source = """
import os
open_ones = []
for fd in range(1024):
    try:
        os.fstat(fd)
    except OSError:
        continue
    open_ones.append(fd)
print(open_ones)
"""
        assert run(source) == "[0, 1, 2]\n"
        assert call_function(f"def f():\n    {source.replace(chr(10), chr(10) + '    ')}", "f", []).stdout == (
            "[0, 1, 2, 3]\n"
        )
    finally:
        for fd in (*secrets, high, folder):
            os.close(fd)


def test_nothing_outside_is_written_or_deleted(canary):
    before, inode = canary.read_text(), canary.stat()
    library = sysconfig.get_path("stdlib")
    tried = attempt(
        f"os.remove({str(canary)!r})",
        f"open({str(canary)!r}, 'w')",
        f"__import__('shutil').rmtree({str(canary.parent.parent)!r})",
        "open('/x', 'w')",
        "os.mkdir('/x')",
        "os.makedirs('/etc/x')",
        "open('/program.py', 'w')",
        "open('/dev/stdin', 'w')",
        "open('/empty/x', 'w')",
        "os.remove('/program.py')",
        "os.rename('/tmp', '/x')",
        "os.mkfifo('/x')",
        "os.mknod('/tmp/x', 0o60660, os.makedev(254, 0))",
        "open('/usr/lib/x', 'w')",
        f"open({library!r} + '/x.py', 'w')",
        f"open({library!r} + '/os.py', 'a')",
        f"os.chmod({library!r} + '/os.py', 0o777)",
        f"os.utime({library!r} + '/os.py')",
        f"os.remove({library!r} + '/os.py')",
        "os.chmod('/dev/null', 0)",
        "open('/tmp/x', 'w').write('this alone works')",
    )
    assert "done" not in tried[:-1]
    assert tried[-1] == "done"
    assert (canary.read_text(), canary.stat().st_mtime_ns) == (before, inode.st_mtime_ns)


def test_the_temporary_folder_is_small_empty_and_gone_afterwards():
    name = uuid.uuid4().hex
    write = f"open('/tmp/{name}', 'w').write('x')"
    assert run(f"import os\nprint(os.getcwd(), os.listdir('/tmp'))\n{write}") == "/tmp []\n"
    assert run("import os\nprint(os.listdir('/tmp'))") == "[]\n"
    assert not list(Path(tempfile.gettempdir()).glob(name))


def test_endless_writing_to_files_ends_at_the_limit():
    source = """
import itertools, os
written = 0
for i in itertools.count():
    try:
        with open(f"/tmp/{i}", "wb", buffering=0) as file:
            while True:
                written += file.write(bytes(65536))
    except OSError as error:
        if i > 5:
            break
print(written)
"""
    assert 0 < int(run(source, limits=SandboxLimits(wall=120, file_size=MIB))) <= MIB
    many = "for i in range(10**6): open(f'/tmp/{i}', 'w').close()"
    result = run_program(many, limits=PATIENT)
    assert (result.status, "No space left" in result.stderr) == ("error", True)


# limits


@pytest.mark.parametrize(
    "source",
    [
        "bytearray(8 << 30)",
        "data = []\nwhile True: data.append(bytes(1 << 20))",
        "import mmap\ntry: mmap.mmap(-1, 8 << 30)\nexcept OSError: raise MemoryError",
    ],
)
def test_memory_ends_at_the_limit(source):
    assert run_program(source, limits=PATIENT).status == "memory"


def test_threads_share_the_memory_limit():
    source = """
import threading
kept, ready = [], threading.Barrier(4)
def eat():
    ready.wait()
    try:
        while True: kept.append(bytes(1 << 20))
    except MemoryError:
        pass
threads = [threading.Thread(target=eat) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(kept))
"""
    assert 0 < int(run(source, limits=SandboxLimits(wall=120, memory=200 * MIB))) < 200


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\n"])
def test_an_endless_loop_ends_at_the_cpu_limit(before):
    result = run_program(before + "while True: pass", limits=SandboxLimits(wall=120, cpu=1))
    assert (result.status, result.returncode) == ("timeout", -signal.SIGKILL if before else -signal.SIGXCPU)


@pytest.mark.slow
def test_a_sleeping_program_ends_at_the_wall_limit_with_what_it_printed():
    source = "import signal, time\nfor s in (2, 15, 1): signal.signal(s, lambda *_: None)\nprint('up', flush=True)\n"
    result = run_program(source + "while True: time.sleep(9)", limits=SandboxLimits(wall=1))
    assert (result.status, result.stdout) == ("timeout", "up\n")
    assert result.seconds >= 1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_ends_at_the_limit(stream):
    result = run_program(
        f"import sys\nwhile True: sys.{stream}.write('x' * 999)", limits=SandboxLimits(wall=120, output=5000)
    )
    assert (result.status, getattr(result, stream)) == ("output", "x" * 5000)


def test_output_a_byte_over_the_limit_of_a_program_that_ended_is_too_much():
    limits = SandboxLimits(wall=120, output=100)
    assert run_program("print('x' * 99)", limits=limits).status == "ok"
    assert run_program("print('x' * 100)", limits=limits).status == "output"


def test_an_endless_value_ends_at_the_limit():
    source = "import os\ndef f():\n    while True: os.write(3, bytes(9999))"
    assert call_function(source, "f", [], limits=SandboxLimits(wall=120, output=5000)).status == "output"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"wall": 0}, "wall 0"),
        ({"cpu": float("inf")}, "cpu inf"),
        ({"memory": 1000}, "memory 1000"),
        ({"processes": 0}, "processes 0"),
        ({"output": 1.5}, "output 1.5"),
    ],
)
def test_limits_that_make_no_sense_are_named(parameters, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        SandboxLimits(**parameters)


# processes


def test_no_process_can_be_started_unless_allowed():
    tried = attempt(
        "os.fork()",
        "os.posix_spawn(sys.executable, ['x'], {})",
        "subprocess.run([sys.executable, '-c', ''])",
        "multiprocessing.Process(target=print).start()",
        "assert os.system('true') != 0",
        before="import subprocess, multiprocessing",
    )
    assert tried == [*["PermissionError 1"] * 4, "done"]


def test_there_is_no_shell():
    before = "import subprocess"
    tried = attempt(
        "assert os.system('true') != 0", "subprocess.run('true', shell=True)", limits=CHILDREN, before=before
    )
    assert tried == ["done", "FileNotFoundError 2"]


def test_children_are_in_the_sandbox_too(canary):
    source = f"""
import subprocess, sys
code = '''
import os, socket
for attempt in (lambda: open({str(canary)!r}), lambda: socket.socket(), lambda: open("/x", "w")):
    try:
        attempt()
    except OSError as error:
        print(error.errno)
'''
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
"""
    assert run(source, limits=CHILDREN).split() == ["2", "1", "30"]


@pytest.mark.slow
def test_a_fork_bomb_is_bounded_and_ends():
    marker = f"bomb-{uuid.uuid4().hex}"
    bomb = "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    source = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {bomb!r}, {marker!r}])"
    most, over = [0], threading.Event()

    def watch():
        while not over.is_set():
            most.append(len(processes(marker)))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run_program(source, limits=SandboxLimits(wall=1, processes=12, children=True))
        subprocess.run(["true"], check=True)
    finally:
        over.set()
        watcher.join()
    assert result.status in ("timeout", "killed")
    assert 1 < max(most) <= 12
    assert processes(marker) == []


def test_threads_are_bounded():
    source = """
import threading
over = threading.Event()
count = 1
try:
    while True:
        threading.Thread(target=over.wait).start()
        count += 1
except RuntimeError:
    over.set()
print(count)
"""
    assert 1 < int(run(source, limits=SandboxLimits(wall=120, processes=10))) <= 10


def daemon(marker):
    return f"""
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time\\nwhile True: time.sleep(9)", {marker!r}])
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["print('bye')", "import time\ntime.sleep(999)", "while True: print('x' * 9999)"])
def test_a_daemon_does_not_outlive_the_program(ending):
    marker = f"daemon-{uuid.uuid4().hex}"
    run_program(daemon(marker) + ending, limits=SandboxLimits(wall=1, children=True))
    assert processes(marker) == []


def test_no_process_outside_can_be_seen_or_signalled():
    victim = subprocess.Popen(["sleep", "999"], user=65534 if ROOT_USER else None)
    try:
        tried = attempt(
            f"os.kill({os.getpid()}, 9)",
            f"os.kill({victim.pid}, 9)",
            f"os.pidfd_open({victim.pid})",
            "os.kill(-1, 9)",
            "os.kill(1, 9)",
            "assert os.getppid() == 1",
            limits=PATIENT,
        )
        assert tried[:4] == ["ProcessLookupError 3"] * 4
        assert tried[5] == "done"  # process 1 lives, whatever was sent to it
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_every_process_is_gone_when_the_caller_is_killed():
    marker = f"orphan-{uuid.uuid4().hex}"
    source = daemon(marker) + "import time\ntime.sleep(999)"
    code = f"from rlkd.sandbox import *\nrun_program({source!r}, limits=SandboxLimits(wall=999, children=True))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_until(lambda: len(processes(marker)) == 1 + 1)  # the daemon, and the caller with it in its code
        caller.kill()
        caller.wait()
        wait_until(lambda: not processes(marker))
        assert not processes(marker)
    finally:
        caller.kill()
        caller.wait()


def test_ctrl_c_kills_the_program_and_reaches_the_caller():
    marker = f"interrupted-{uuid.uuid4().hex}"
    source = daemon(marker) + "import time\ntime.sleep(999)"
    code = f"from rlkd.sandbox import *\nrun_program({source!r}, limits=SandboxLimits(wall=999, children=True))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(processes(marker)) == 1 + 1)
        caller.send_signal(signal.SIGINT)
        _, stderr = caller.communicate(timeout=60)
        assert stderr.splitlines()[-1] == "KeyboardInterrupt"
        assert processes(marker) == []
    finally:
        caller.kill()
        caller.wait()


def test_a_run_can_be_stopped_from_another_thread():
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with pytest.raises(SandboxError, match="stopped"):
        run_program("import time\ntime.sleep(999)", limits=SandboxLimits(wall=999), stop=stop)


def test_runs_of_many_threads_do_not_mix_and_leave_nothing_open():
    check()
    before = children(), len([*Path("/proc/self/fd").iterdir()])
    results = {}

    def work(i):
        results[i] = run_program(f"import time\ntime.sleep({i % 3} / 10)\nprint({i})", limits=PATIENT).stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: f"{i}\n" for i in range(12)}
    assert (children(), len([*Path("/proc/self/fd").iterdir()])) == before


# privileges, kernel interfaces

SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
"""


def test_every_denied_call_fails_from_machine_code_too():
    column = 0 if X86 else 1
    numbers = {name: both[column] for name, both in seccomp.DENIED.items() if both[column] is not None}
    numbers |= {name: both[column] for name, both in seccomp.FORKS.items() if both[column] is not None}
    tried = attempt(*[f"call({number}, 0, 0, 0, 0, 0)" for number in numbers.values()], before=SYSCALL)
    assert dict(zip(numbers, tried, strict=True)) == dict.fromkeys(numbers, "PermissionError 1")


def test_no_namespace_process_or_new_call_by_a_side_door():
    clone, clone3 = (numbers[0 if X86 else 1] for numbers in (seccomp.CLONE, seccomp.CLONE3))
    flags = {"user": 0x10000000, "mount": 0x20000, "network": 0x40000000, "process": 0x20000000}
    statements = [f"call({clone}, {flag} | 17, 0, 0, 0, 0)" for flag in flags.values()]
    assert set(attempt(*statements, before=SYSCALL, limits=CHILDREN)) == {"PermissionError 1"}
    other = [
        f"call({clone3}, 0, 0)",
        "call(500, 0)",
        f"call({seccomp.NEWEST + 1}, 0)",
        "call(0x40000000 + 41, 2, 1, 0)",
    ]
    assert set(attempt(*other, before=SYSCALL)) == {"OSError 38"}


def test_no_memory_escapes_the_limit():
    """Each of these held gigabytes within a limit of 64 MiB before it was denied."""
    tried = attempt(
        "mmap.mmap(-1, 4096)",
        "open('/dev/zero')",
        f"call({436}, 4000, 5000, 2)",
        "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)",
        "fcntl.fcntl(os.pipe()[0], 1031, 1 << 20)",
        f"call({444}, 0, 0, 1)",
        f"call({157 if X86 else 167}, 41, 0, 0, 0, 0)",
        before=SYSCALL + "import fcntl, mmap, socket",
    )
    denied = "PermissionError 1"
    assert tried == [denied, "FileNotFoundError 2", *[denied] * 5]
    assert run(f"{SYSCALL}print(libc.prctl(42, 0, 0, 0, 0))") == "1\n"  # no huge pages
    kept = "import mmap\nmmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nprint(1)"
    assert run(kept) == "1\n"


def test_no_crash_handler_outside_is_called_and_no_use_of_libraries_outside_is_watched():
    limit = "resource.setrlimit(resource.RLIMIT_CORE, (0, 1))"
    calls = [f"call({254 if X86 else 27}, 3, 0, 1)"]  # inotify_add_watch without an instance
    calls += [f"call({294 if X86 else 26}, 0)"] + ([f"call({253}, 0)"] if X86 else [])
    tried = attempt(limit, *calls, before=SYSCALL + "import resource")
    assert tried[0] in ("PermissionError 1", "ValueError None")
    assert tried[1] == "OSError 9"
    assert set(tried[2:]) == {"PermissionError 1"}
    assert run("import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))") == "(1, 1)\n"


@pytest.mark.skipif(not X86, reason="32-bit calls exist on x86-64 only")
def test_a_call_of_the_32_bit_kind_ends_the_program():
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
    source = f"""
import ctypes, mmap
memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
memory.write({code!r})
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
"""
    assert run_program(source, limits=PATIENT).returncode == -signal.SIGSYS


def test_the_caller_s_memory_cannot_be_read(canary):
    text = canary.read_text().encode()
    source = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(100)
class Vec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
local, remote = Vec(ctypes.addressof(buffer), 100), Vec({id(text)}, 100)
for pid in ({os.getpid()}, 1):
    print(libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0), ctypes.get_errno())
    print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno())
"""
    assert run(source) == "-1 1\n" * 4


def test_there_are_no_privileges_and_no_way_to_gain_any():
    tried = attempt(
        "os.setuid(0)",
        "os.setresuid(65534, 65534, 65534)",
        "os.setgroups([0])",
        "os.chroot('/tmp')",
        "os.nice(-5)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        "resource.setrlimit(resource.RLIMIT_NPROC, (999, 999))",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "time.clock_settime(time.CLOCK_REALTIME, 0)",
        "socket.sethostname('x')",
        before="import resource, time, socket",
    )
    assert "done" not in tried
    seen = run("import os\nprint(os.getresuid(), os.getresgid(), set(os.getgroups()) - {65534})")
    assert seen == "(1000, 1000, 1000) (1000, 1000, 1000) set()\n"


@pytest.mark.parametrize("column", [0, 1])
def test_the_numbers_of_the_calls_are_the_kernel_s(column):
    headers = ["/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"]
    header = Path(headers[column])
    if not header.is_file():
        pytest.skip(f"{header} is not installed")
    known = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    numbers = {name: int(number) for name, number in known}
    special = {
        "clone": seccomp.CLONE,
        "clone3": seccomp.CLONE3,
        "socketpair": seccomp.SOCKETPAIR,
        "sendto": seccomp.SENDTO,
    }
    special |= {name: both for name, both, _ in seccomp.CONDITIONS}
    for name, both in {**seccomp.DENIED, **seccomp.FORKS, **special}.items():
        assert both[column] == numbers.get(name), name


@pytest.mark.parametrize("children", [False, True])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_does_what_it_says_on_both_machines(machine, children):
    column = list(seccomp.ARCHITECTURES).index(machine)
    code = seccomp.build_filter(machine, children=children)

    def verdict(number, *arguments, arch=seccomp.ARCHITECTURES[machine]):
        return interpret(code, number, arch, arguments)

    for name, both in seccomp.DENIED.items():
        if both[column] is not None:
            assert verdict(both[column]) == seccomp.REFUSE, name
    clone = seccomp.CLONE[column]
    thread = seccomp.CLONE_THREAD | seccomp.CLONE_FILES
    assert verdict(clone, thread) == seccomp.ALLOW
    assert verdict(clone, thread | 0x10000000) == seccomp.REFUSE
    assert verdict(clone, seccomp.CLONE_THREAD) == (seccomp.ALLOW if children else seccomp.REFUSE)
    assert verdict(clone, 17) == (seccomp.ALLOW if children else seccomp.REFUSE)
    assert verdict(seccomp.CLONE3[column]) == verdict(453) == verdict(0x40000001) == seccomp.ABSENT
    assert verdict(seccomp.SOCKETPAIR[column], 1) == seccomp.ALLOW
    assert verdict(seccomp.SOCKETPAIR[column], 2) == seccomp.REFUSE
    assert verdict(seccomp.SENDTO[column], 3, 9, 9, 0, 0) == seccomp.ALLOW
    assert verdict(seccomp.SENDTO[column], 3, 9, 9, 0, 1 << 40) == seccomp.REFUSE
    numbers = {name: both[column] for name, both, _ in seccomp.CONDITIONS}
    for name, refused, allowed in (
        ("mmap", (0, 9, 3, 0x21), (0, 9, 3, 0x22)),
        ("mmap", (0, 9, 3, 0x4021), (0, 9, 3, 0x01)),
        ("close_range", (3, 9, 2), (3, 9, 4)),
        ("fcntl", (3, 1031, 0), (1031, 4, 1031)),
        ("prctl", (41, 0), (42, 0)),
        ("prctl", (22, 2), (21, 0)),
        ("setrlimit", (4, 9), (3, 4)),
        ("prlimit64", (0, 4, 9), (0, 4, 0, 9)),
        ("prlimit64", (0, 4, 9 << 32), (4, 3, 9)),
    ):
        assert verdict(numbers[name], *refused) == seccomp.REFUSE, (name, refused)
        assert verdict(numbers[name], *allowed) == seccomp.ALLOW, (name, allowed)
    assert verdict({"x86_64": 0, "aarch64": 63}[machine]) == seccomp.ALLOW  # read
    assert verdict(0, arch=0x40000003) == seccomp.KILL  # 32-bit x86


def interpret(code, number, arch, arguments):
    """Classic BPF, as far as the filter uses it, over one `struct seccomp_data`."""
    import struct

    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at, accumulator = 0, 0
    while True:
        operation, true, false, k = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == seccomp.RETURN:
            return k
        if operation == seccomp.LOAD:
            [accumulator] = struct.unpack_from("<I", data, k)
        else:
            holds = {
                seccomp.EQUAL: accumulator == k,
                seccomp.GREATER: accumulator > k,
                seccomp.ANY_BIT: bool(accumulator & k),
            }
            at += true if holds[operation] else false


# verdicts


def test_a_function_is_called_and_its_value_comes_back():
    source = "import math\ndef f(a, *, b=1): return {'a': a, 'b': (b, math.inf)}\nif __name__ == '__main__': input()"
    assert call_function(source, "f", [["ä", None]], limits=PATIENT).value == {
        "a": ["ä", None],
        "b": [1, float("inf")],
    }
    method = "class Solution:\n    def twice(self, x): return 2 * x"
    assert call_function(method, "twice", [21], limits=PATIENT).value == 42


def test_dataclasses_with_postponed_annotations_work_in_a_called_program():
    source = "from __future__ import annotations\nfrom dataclasses import *\n@dataclass\nclass A:\n    x: int = 1\n"
    assert call_function(source + "def f(): return A().x", "f", [], limits=PATIENT).value == 1


@pytest.mark.parametrize(
    "source",
    [
        "print('PASSED')",
        "def f(): return {1}",
        "class Yes:\n    def __eq__(self, other): return True\ndef f(): return Yes()",
        "import os\nos._exit(0)",
        "import os\ndef f(): os._exit(0)",
        "import sys\nsys.exit(0)",
        "import atexit, os\natexit.register(lambda: os._exit(0))\ndef f(): 1 / 0",
        "import atexit, os\natexit.register(os._exit, 0)\natexit.register(os.write, 3, b'[P')\ndef f(): return 1",
        "import os\ndef f(): os.write(3, b'42'); os.close(3); os._exit(1)",
        "import builtins, os\nbuiltins.print = builtins.exec = lambda *_: None\ndef f(): os.kill(os.getpid(), 9)",
        "import os\ndef f(): os.write(3, b'[' * 100_000); os._exit(0)",
        "import os\ndef f(): os.write(3, b'9' * 100_000); os._exit(0)",
        "raise SystemExit",
        "def g(): return 42",
    ],
)
def test_a_program_that_pretends_returns_no_value(source):
    result = call_function(source, "f", [], limits=PATIENT)
    assert result.status in ("error", "killed")
    assert result.value is None


def test_a_program_gets_no_status_but_its_own():
    # An exception for the sandbox's failing would be an escape from a score of 0.
    for source, status in (
        ("import os\nos.kill(os.getpid(), 9)", "killed"),
        ("import os\nos.kill(os.getpid(), 11)", "error"),
        ("import os\nos.kill(os.getppid(), 9)\nos.kill(os.getppid(), 19)", "ok"),
        (
            "import os\nfor fd in range(999):\n    try: os.write(fd, b'failed x 0 y\\nexit 9 0\\n')\n    except: 0",
            "ok",
        ),
        ("import os\nos.closerange(0, 999)\nos._exit(0)", "ok"),
    ):
        assert run_program(source, limits=PATIENT).status == status, source


def test_arguments_that_are_no_json_are_the_caller_s_mistake():
    with pytest.raises(ValueError, match="'f'"):
        call_function("def f(x): pass", "f", [{1}])


# fails closed

NUMBERS = {  # x86-64, ARM64
    "unshare": (272, 97),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "umount2": (166, 39),
    "capset": (126, 91),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "close_range": (436, 436),
}


def in_a_process_where(answers, code):
    """Run code where these system calls do nothing and return this errno (0: pretend success); raise what it did."""
    program = f"""
import ctypes, platform, struct, sys
from rlkd.sandbox import *
code = struct.pack("<HBBI", 0x20, 0, 0, 0)
for number, answer in {[(NUMBERS[name][0 if X86 else 1], answer) for name, answer in answers.items()]!r}:
    code += struct.pack("<HBBIHBBI", 0x15, 0, 1, number, 0x06, 0, 0, 0x50000 | answer)
code += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
class Program(ctypes.Structure): _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
try:
    {code}
except (SandboxUnavailable, SandboxError) as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, _, text = done.stdout.partition(" ")
    if kind in ("SandboxUnavailable", "SandboxError"):
        raise {"SandboxUnavailable": SandboxUnavailable, "SandboxError": SandboxError}[kind](text)
    return done.stdout


@pytest.mark.parametrize("answer", [1, 38, 0])
@pytest.mark.parametrize("name", NUMBERS)
def test_without_a_mechanism_nothing_is_executed(name, answer):
    """A call that is refused, one that does not exist, and one that reports success and does nothing."""
    if name in ("setresuid", "setresgid") and answer == 0 and not ROOT_USER:
        pytest.skip("an ordinary caller is the user of the sandbox as soon as it is mapped")
    with pytest.raises((SandboxUnavailable, SandboxError)) as caught:
        in_a_process_where({name: answer}, "print(run_program('print(1)').status)")
    assert caught.type is SandboxUnavailable, caught.value


def test_a_call_that_does_not_matter_changes_nothing():
    NUMBERS["syslog"] = (103, 116)
    assert in_a_process_where({"syslog": 1}, "print(run_program('print(1)').status)") == "ok\n"
    del NUMBERS["syslog"]


def test_a_remedy_is_named(monkeypatch):
    with pytest.raises(
        SandboxUnavailable, match=r"user namespace: .*unshare: Operation not permitted\. .*docs/sandbox"
    ):
        in_a_process_where({"unshare": 1}, "check()")
    monkeypatch.setattr(Path, "read_text", lambda self: "0\n" if "max_user" in str(self) else "1\n")
    assert "sudo sysctl user.max_user_namespaces=15000" in way_out("user namespace")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert "--security-opt seccomp=unconfined" in way_out("read-only file tree")


def test_the_command_lists_the_mechanisms_and_fails_if_one_is_missing():
    done = subprocess.run([sys.executable, "-m", "rlkd.sandbox"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("ok "), "missing" in done.stdout) == (0, 10, False)
    listed = json.loads(in_a_process_where({"pivot_root": 1}, "import json; print(json.dumps(stages()))"))
    assert [error for _, error in listed[:-1]] == [None] * 4
    assert listed[-1][0] == "read-only file tree"
    assert "Operation not permitted" in listed[-1][1]


@pytest.mark.parametrize(
    ("place", "name", "value", "text"),
    [
        (sys, "platform", "darwin", "this is darwin"),
        (platform, "machine", lambda: "riscv64", "riscv64"),
        (platform, "release", lambda: "5.4.0-150-generic", "5.4.0"),
    ],
)
def test_on_another_system_it_says_so(monkeypatch, place, name, value, text):
    monkeypatch.setattr(place, name, value)
    with pytest.raises(SandboxUnavailable, match=text):
        run_program("print(1)")
    assert len(stages()) == 1


@pytest.mark.skipif(not ROOT_USER, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_gets_the_same_sandbox():
    """As nobody, with a Python and a copy of the package that nobody can read."""
    python = shutil.which("python3.11", path="/usr/bin") or shutil.which("python3", path="/usr/bin")
    version = python and subprocess.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    if not version or version.stdout != b"True\n":
        pytest.skip("no Python of the system's, 3.11 or newer, that an ordinary user can execute")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        package = Path(folder) / "rlkd"
        shutil.copytree(ROOT / "rlkd" / "sandbox", package / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        (package / "__init__.py").touch()
        shutil.copy(ROOT / "rlkd" / "errors.py", package)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        code = f"""
import os, threading
from rlkd.sandbox import *
check()
assert os.getuid() == 65534
for source, status in {{
    "print(1)": "ok",
    "open({str(secret)!r})": "error",
    "import os; os.fork()": "error",
    "import socket; socket.socket()": "error",
    "bytearray(8 << 30)": "memory",
}}.items():
    result = run_program(source, limits=SandboxLimits(wall=60))
    assert result.status == status, (source, result)
bomb = "import os, time\\nn = 1\\ntry:\\n    while os.fork(): n += 1\\n    time.sleep(999)\\nexcept OSError: print(n)"
result = run_program(bomb, limits=SandboxLimits(wall=60, processes=9, children=True))
assert result.status == "ok" and int(result.stdout) == 9, result
assert "nobody" not in run_program("import os; print(os.getresuid())").stdout
print("all right")
"""
        done = subprocess.run(
            [python, "-B", "-c", code],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            user=65534,
            group=65534,
            extra_groups=[],
        )
        assert done.stdout == "all right\n", done.stderr
