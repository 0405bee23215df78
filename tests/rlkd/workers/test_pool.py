"""The four guarantees of `rlkd.workers.pool`, with real processes."""

import asyncio
import contextlib
import ctypes
import functools
import gc
import linecache
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

import rlkd.workers.pool
from rlkd.process import carriers, is_running
from rlkd.workers.pool import Fault, IsolationError, WorkerPool, default_workers, inside_worker
from tests.helpers import ROOT

# Real processes take their time; the limit is against hangs, and no test asserts how long anything takes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def pools():
    """Makes pools, and closes them."""
    made = []

    def make(function, **options):
        made.append(WorkerPool(function, **{"workers": 2, **options}))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


# What workers run


def square(x):
    return x * x


def act(what, *more):
    """One thing of many that may happen in a call."""
    return ACTIONS[what](*more)


def spin(*_):
    return 9**9**9**9


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def sleep_deaf(seconds):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(seconds)


def segfault():
    import faulthandler

    faulthandler.disable()
    ctypes.string_at(0)


def abort():
    import faulthandler

    faulthandler.disable()
    os.abort()


def raises(error):
    raise error


def die_once(path, *, fork_server=False):
    """Die when called for the first time."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getppid() if fork_server else os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "alive"


def start_child(new_session, path):
    code = f"import os, pathlib, time; pathlib.Path({str(path)!r}).write_text(str(os.getpid())); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=new_session)
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return child


def start_children_and(what, folder):
    for new_session in (False, True):
        start_child(new_session, folder / f"{new_session}.pid")
    # One whose parent is gone before the worker is.
    middle = (
        "import subprocess, sys, pathlib; "
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        f"pathlib.Path({str(folder / 'orphan.pid')!r}).write_text(str(child.pid))"
    )
    subprocess.run([sys.executable, "-c", middle], check=True)
    if what == "sleep":
        time.sleep(600)
    if what == "die":
        os._exit(3)
    return "done"


def fork_and_both_end(how):
    child = os.fork()
    if how == "raise" and child == 0:
        raise ValueError("in the child")
    if how == "exit" and child == 0:
        sys.exit(0)
    if child:
        os.waitpid(child, 0)
    return "parent" if child else "child"


def touch_and_sleep(path, seconds):
    Path(path).touch()
    time.sleep(seconds)
    return seconds


ACTIONS = {
    "square": square,
    "spin": spin,
    "sleep": sleep,
    "sleep_deaf": sleep_deaf,
    "exit": os._exit,
    "sys_exit": sys.exit,
    "kill": lambda number: os.kill(os.getpid(), number),
    "segfault": segfault,
    "abort": abort,
    "raise": raises,
    "die_once": die_once,
    "allocate": lambda size: len(bytearray(size)),
    "pid": os.getpid,
    "length": len,
    "big": bytes,
    "unpicklable": lambda: lambda: None,
    "close_all": lambda: os.closerange(3, 100),
    "children": start_children_and,
    "fork": fork_and_both_end,
    "touch_and_sleep": touch_and_sleep,
}


class TwoPartError(Exception):
    """Pickles, and does not come back: its arguments are not those that it was made with."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class RudeError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class LeavesNoTrace:
    """Pickles, and is unreadable in any other process."""

    def __init__(self):
        self.process = os.getpid()

    def __reduce__(self):
        return only_in, (self.process,)


def only_in(process):
    if process != os.getpid():
        raise ValueError("made elsewhere")
    return LeavesNoTrace()


def brief():
    """A function that goes by value: a worker that need not load this module is there at once."""

    def work(x):
        import os
        import time

        return os._exit(1) if x == "exit" else time.sleep(600) if x == "sleep" else x * x

    return work


# Counting processes


def descendants():
    """Processes below this one, zombies included."""
    return psutil.Process().children(recursive=True)


def fork_server_pid():
    return rlkd.workers.pool._current.process.pid


def worker_pids():
    return {process.pid for process in psutil.Process(fork_server_pid()).children()}


def is_alive(pid):
    return psutil.pid_exists(pid) and is_running(psutil.Process(pid))


def eventually(condition, what, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def marked(marker):
    """Running processes with a marker in their environment."""
    return [process.pid for process in carriers("ISOLATION_TEST", marker)]


def run_script(code, *arguments, marker="", start=subprocess.run, flags=(), **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ISOLATION_TEST": marker}
    given = [sys.executable, *flags, "-c", textwrap.dedent(code), *map(str, arguments)]
    if start is subprocess.run:
        options = {"capture_output": True, "text": True, "timeout": 120} | options
    return start(given, env=environment, **options)


# A call and its result


def test_results_come_in_the_order_of_the_calls(pools):
    assert pools(square).map([(i,) for i in range(300)]) == [i * i for i in range(300)]


def test_calls_that_take_longer_do_not_change_the_order(pools):
    seconds = [0.05, 0.0, 0.02, 0.0, 0.04, 0.01, 0.0, 0.03]
    assert pools(sleep, workers=3).map([(s,) for s in seconds]) == seconds


def test_no_calls_have_no_results_and_start_nothing(pools):
    pool = pools(square)
    assert pool.map([]) == []
    assert pool._idle == []


def test_one_call_starts_one_worker(pools):
    pool = pools(square, workers=4)
    assert pool.map([(2,)]) == [4]
    assert len(pool._idle) == 1


def test_slow_calls_are_spread_over_all_workers(pools, tmp_path):
    """Each call ends when all three are at work, so none waits behind another."""

    def meet(number):
        import time

        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        return number

    assert pools(meet, workers=3).map([(0,), (1,), (2,)], limit=60) == [0, 1, 2]


def test_a_worker_keeps_state_from_call_to_call(pools):
    seen = []

    def count():
        seen.append(1)
        return len(seen)

    assert pools(count, workers=1).map([()] * 3) == [1, 2, 3]
    assert seen == []


@pytest.mark.parametrize("size", [100, 10_000_000])
def test_arguments_and_results_of_any_size_pass(pools, size):
    pool = pools(act)
    assert pool.map([("length", bytes(size))] * 4, limit=60) == [size] * 4
    assert [len(big) for big in pool.map([("big", size)] * 4, limit=60)] == [size] * 4


def test_a_pool_pickles_without_its_processes(pools):
    pool = pools(square)
    pool.map([(1,)])
    copy = pickle.loads(pickle.dumps(pool))
    assert copy.workers == pool.workers
    assert copy._idle == []
    assert copy.map([(3,)]) == [9]
    copy.close()


def test_fewer_than_one_worker_is_an_error():
    with pytest.raises(ValueError, match="workers 0: expected at least 1"):
        WorkerPool(square, workers=0)


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    counts = []
    for share in ("1", "4", "100", ""):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", share)
        counts.append(default_workers())
    assert counts == [8, 2, 1, 8]


# 1. A call ends


@pytest.mark.parametrize("call", [("spin",), ("sleep", 600), ("sleep_deaf", 600), ("kill", signal.SIGSTOP)])
def test_a_call_that_hangs_is_a_fault_and_the_others_are_right(pools, call):
    calls = [("square", i) for i in range(40)]
    calls[7] = calls[20] = call
    expected = [i * i for i in range(40)]
    expected[7] = expected[20] = Fault("timeout", "took more than 0.5 s")
    assert pools(act).map(calls, limit=0.5) == expected


@pytest.mark.parametrize(
    ("call", "how"),
    [
        (("exit", 3), "exit code 3"),
        (("exit", 0), "exit code 0"),
        (("abort",), "signal SIGABRT"),
        (("segfault",), "signal SIGSEGV"),
        (("kill", signal.SIGKILL), "signal SIGKILL"),
        (("kill", signal.SIGRTMIN + 3), f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_call_that_takes_its_process_down_is_a_fault_and_the_others_are_right(pools, call, how, capfd):
    calls = [("square", i) for i in range(40)]
    calls[7] = calls[20] = call
    expected = [i * i for i in range(40)]
    expected[7] = expected[20] = Fault("crash", f"the worker process died ({how})")
    assert pools(act).map(calls, limit=60) == expected


def test_a_call_that_closes_every_file_is_a_crash_and_the_others_are_right(pools, capfd):
    results = pools(act).map([("square", 1), ("close_all",), ("square", 2)], limit=60)
    assert (results[0], results[1].kind, results[2]) == (1, "crash", 4)


def test_an_exception_is_described_in_one_line_and_passed_on(pools):
    [fault] = pools(act).map([("raise", ValueError("no such thing"))])
    assert fault == Fault("error", "ValueError: no such thing")
    assert type(fault.exception) is ValueError
    assert fault.exception.args == ("no such thing",)


@pytest.mark.parametrize("error", [ConnectionRefusedError("no server"), EOFError("end"), BrokenPipeError("pipe")])
def test_an_error_of_a_connection_is_the_functions_own_and_no_crash(pools, error):
    pool = pools(lambda: raises(error), workers=1)
    [fault, again] = pool.map([(), ()])
    assert fault == again == Fault("error", f"{type(error).__name__}: {error}")


def test_an_exception_that_does_not_pickle_is_only_described(pools):
    [fault] = pools(lambda: raises(TwoPartError(1, 2))).map([()])
    assert fault == Fault("error", "TwoPartError: 1 and 2")
    assert fault.exception is None


def test_an_exception_without_text_is_named(pools):
    assert pools(lambda: raises(RudeError())).map([()]) == [Fault("error", "RudeError")]


@pytest.mark.parametrize(("stop", "message"), [(SystemExit(3), "SystemExit: 3"), (KeyboardInterrupt(), "KeyboardI")])
def test_a_function_that_exits_has_failed_and_its_worker_continues(pools, stop, message):
    pool = pools(lambda stop, first: raises(stop) if first else os.getpid(), workers=1)
    [fault, pid, again] = pool.map([(stop, True), (stop, False), (stop, False)])
    assert fault.kind == "error"
    assert fault.message.startswith(message)
    assert pid == again


def test_a_result_that_does_not_pickle_is_a_fault(pools):
    pool = pools(act, workers=1)
    [fault, result] = pool.map([("unpicklable",), ("square", 3)])
    assert fault.kind == "error"
    assert fault.message.startswith("its result cannot be sent back: ")
    assert result == 9


def test_a_result_that_cannot_be_read_here_is_a_fault(pools):
    pool = pools(lambda odd: LeavesNoTrace() if odd else "fine", workers=1)
    assert pool.map([(True,), (False,)]) == [
        Fault("error", "its result cannot be read: ValueError: made elsewhere"),
        "fine",
    ]


def test_a_call_that_takes_too_much_memory_is_a_fault_and_the_others_are_right(pools):
    pool = pools(act, memory=2**30)
    sizes = [10, 2**31, 20, 2**31, 30]
    assert pool.map([("allocate", size) for size in sizes], limit=60) == [
        10,
        Fault("memory", "ran out of memory"),
        20,
        Fault("memory", "ran out of memory"),
        30,
    ]


def test_arguments_that_exceed_the_memory_limit_are_a_fault_of_that_call(pools):
    pool = pools(act, memory=2**29)
    [fault, result] = pool.map([("length", bytes(2**28)), ("square", 3)], limit=60)
    assert fault.kind == "memory"
    assert result == 9


def test_a_memory_limit_above_the_systems_own_is_no_error():
    code = """
    import resource
    from rlkd.workers.pool import WorkerPool
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    print(WorkerPool(len, workers=1, memory=2**40).map([("abc",)]))
    """
    assert run_script(code).stdout == "[3]\n"


def test_calls_behind_one_that_is_killed_go_to_another_worker(pools):
    pool = pools(act, workers=1)
    calls = [("square", i) for i in range(200)]
    for position in (100, 101, 150, 199):
        calls[position] = ("spin",)
    results = pool.map(calls, limit=0.2)
    assert [r for i, r in enumerate(results) if calls[i][0] == "square"] == [
        i * i for i in range(200) if calls[i][0] == "square"
    ]
    assert [results[i].kind for i in (100, 101, 150, 199)] == ["timeout"] * 4


@pytest.mark.slow
def test_the_limit_is_each_calls_own_and_the_deadline_that_of_all(pools):
    pool = pools(act, workers=1)
    pool.start()
    assert pool.map([("sleep", 0.2)] * 5, limit=5.0) == [0.2] * 5  # each starts again
    late = Fault("timeout", "not done when the batch's 1 s were over")
    results = pool.map([("square", 2), ("sleep", 600), ("square", 3)], deadline=1.0)
    assert results == [4, late, late]
    assert pool.map([("square", 3)], limit=60) == [9]


def test_a_deadline_that_is_over_ends_the_wait_for_a_free_worker(pools):
    pool = pools(act, workers=1)
    busy = threading.Thread(target=pool.map, args=([("sleep", 1)],))
    busy.start()
    eventually(lambda: pool._taken, "the only worker is taken")
    assert [fault.kind for fault in pool.map([("square", 1)] * 3, deadline=0.3)] == ["timeout"] * 3
    busy.join()
    assert pool.map([("square", 3)]) == [9]


def test_a_large_argument_for_a_worker_that_does_not_read_is_no_deadlock(pools, monkeypatch):
    monkeypatch.setattr(rlkd.workers.pool, "STALL_SECONDS", 0.5)
    pool = pools(act, workers=1)
    [pid] = pool.map([("pid",)])
    os.kill(pid, signal.SIGSTOP)
    assert pool.map([("length", bytes(10_000_000))], limit=60) == [10_000_000]
    assert not is_alive(pid)


def test_a_worker_that_never_takes_a_call_is_a_fault_in_the_end(pools, monkeypatch):
    monkeypatch.setattr(rlkd.workers.pool, "STALL_SECONDS", 0.3)

    pool = pools(act, workers=1)
    call = pool._call

    def stop_first(worker, *more):
        os.kill(worker.pid, signal.SIGSTOP)
        call(worker, *more)

    monkeypatch.setattr(pool, "_call", stop_first)
    [fault] = pool.map([("length", bytes(10_000_000))])
    assert fault.kind == "crash"
    monkeypatch.undo()
    assert pool.map([("square", 3)]) == [9]


def test_a_large_result_that_stops_half_way_is_no_deadlock(pools, monkeypatch):
    monkeypatch.setattr(rlkd.workers.pool, "STALL_SECONDS", 0.5)
    pool = pools(act, workers=1)
    [pid] = pool.map([("pid",)])
    [worker] = pool._idle
    receive = worker.connection.recv_bytes

    def stop_half_way():
        eventually(worker.connection.poll, "the result has begun to come")
        time.sleep(0.2)
        os.kill(pid, signal.SIGSTOP)
        return receive()

    monkeypatch.setattr(worker, "connection", Spy(worker.connection, recv_bytes=stop_half_way))
    [fault, result] = pool.map([("big", 10_000_000), ("square", 3)], limit=60)
    assert fault == Fault("timeout", "its result stopped coming for 0.5 s")
    assert result == 9


class Spy:
    """A connection with some methods replaced."""

    def __init__(self, connection, **methods):
        self.connection = connection
        vars(self).update(methods)

    def __getattr__(self, name):
        return getattr(self.connection, name)


def test_large_arguments_and_results_pass_while_others_hang(pools):
    size = 10_000_000
    calls = [("length", bytes(size)), ("spin", bytes(size)), ("big", size), ("sleep", 600), ("length", bytes(size))]
    results = pools(act).map(calls, limit=1.0)
    assert [getattr(r, "kind", None) for r in results] == [None, "timeout", None, "timeout", None]
    assert (results[0], len(results[2]), results[4]) == (size, size, size)


@pytest.mark.parametrize("how", ["return", "raise", "exit"])
def test_a_fork_of_a_worker_does_not_answer_in_its_place(pools, how):
    pool = pools(act, workers=1)
    assert pool.map([("fork", how), ("square", 3), ("fork", how), ("square", 4)], limit=60) == [
        "parent",
        9,
        "parent",
        16,
    ]


# What cannot run in a worker


def test_an_argument_that_does_not_pickle_is_an_error(pools):
    with pytest.raises(IsolationError, match=r"an argument cannot be sent to a worker process: .*lambda"):
        pools(act).map([("square", 1), (lambda: None,)])


def test_an_argument_that_cannot_be_read_in_a_worker_is_an_error(pools):
    pool = pools(act)
    with pytest.raises(IsolationError, match="an argument cannot be read in a worker process: ValueError: made els"):
        pool.map([("square", 1), (LeavesNoTrace(),)])
    assert pool.map([("square", 3)]) == [9]


def test_a_function_that_holds_what_does_not_pickle_is_named(pools):
    lock = threading.Lock()

    def locked():
        return lock

    pool = pools(locked)
    for _ in range(2):
        with pytest.raises(IsolationError, match=r"locked cannot be sent to a worker process: .*lock.* make it where"):
            pool.map([()])


class Homebound:
    def __call__(self):
        return 1

    def __reduce__(self):
        return only_in, (os.getpid(),)


class Deadly:
    def __call__(self):
        return 1

    def __reduce__(self):
        return os._exit, (4,)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Homebound, "Homebound.* does not load in a worker process: ValueError: made elsewhere"),
        (Deadly, r"a worker process died \(exit code 4\) while it loaded .*Deadly"),
    ],
)
def test_a_function_that_does_not_load_in_a_worker_is_named_at_the_start_and_at_a_call(pools, kind, message):
    pool = pools(kind())
    for _ in range(2):
        with pytest.raises(IsolationError, match=message):
            pool.start()
        with pytest.raises(IsolationError, match=message):
            pool.map([(), ()])
    assert not pool._idle
    assert pool._taken == 0


class LoadsFor:
    """Takes a while to load."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self):
        return os.getpid()

    def __reduce__(self):
        return _load_slowly, (self.seconds,)


def _load_slowly(seconds):
    if inside_worker():
        time.sleep(seconds)
    return LoadsFor(seconds)


def test_a_function_that_never_loads_is_named(pools, monkeypatch):
    monkeypatch.setattr(rlkd.workers.pool, "SETUP_SECONDS", 0.5)
    with pytest.raises(IsolationError, match=r"LoadsFor.* did not load in a worker in 0\.5 s"):
        pools(LoadsFor(600)).start()


def test_loading_does_not_count_for_the_limit_of_a_call(pools):
    results = pools(LoadsFor(1.0), workers=2).map([()] * 4, limit=0.5)
    assert all(isinstance(pid, int) for pid in results)


def test_a_deadline_holds_while_a_function_loads_and_the_loading_continues(pools):
    pool = pools(LoadsFor(0.8), workers=1)
    assert pool.map([()], deadline=0.2)[0].kind == "timeout"
    [worker] = pool._idle
    assert pool.map([()]) == [worker.pid]


def test_a_limit_holds_while_another_worker_is_still_loading(pools, tmp_path):
    """The first worker hangs while the second one loads for longer than the test may take."""

    class FirstIsQuick:
        def __call__(self, number):
            return spin() if number == 0 else number

        def __reduce__(self):
            return _quick_once, (tmp_path / "first", FirstIsQuick)

    pool = pools(FirstIsQuick(), workers=2)
    pool.start()
    results = pool.map([(0,), (1,)], limit=0.5, deadline=1.5)
    assert results[0] == Fault("timeout", "took more than 0.5 s")


def _quick_once(path, kind):
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        time.sleep(600)
    return kind()


def test_start_has_a_worker_ready(pools):
    pool = pools(square)
    pool.start()
    pool.start()
    assert [worker.is_ready for worker in pool._idle] == [True]


def test_modules_that_cannot_be_preloaded_are_named(pools):
    with pytest.raises(IsolationError, match="preloading no_such_module: ModuleNotFoundError"):
        pools(square, preload=["no_such_module"]).map([(1,)])


def test_a_module_that_takes_the_fork_server_down_is_an_error_and_no_endless_loop(pools, tmp_path, monkeypatch):
    (tmp_path / "deadly_module.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    pools(square).close()
    if rlkd.workers.pool._current is not None:
        rlkd.workers.pool._current.close()  # so that the next one knows the path
    with pytest.raises(IsolationError, match="worker processes cannot be started: ConnectionError"):
        pools(square, preload=["deadly_module"]).map([(1,)])
    assert pools(square).map([(3,)]) == [9]


def test_preloaded_modules_are_there_before_the_function_loads(pools):
    assert pools(lambda: "wave" in sys.modules).map([()]) == [False]
    assert pools(lambda: "wave" in sys.modules, preload=["wave"]).map([()]) == [True]


def test_where_no_process_can_be_forked_that_is_the_error(pools):
    code = """
    import resource
    from rlkd.workers.pool import IsolationError, WorkerPool
    pool = WorkerPool(len, workers=1)
    print(pool.map([("abc",)]))
    other = WorkerPool(len, workers=1)
    import rlkd.workers.pool
    resource.prlimit(rlkd.workers.pool._current.process.pid, resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))
    try:
        other.map([("abc",)])
    except IsolationError as error:
        print(str(error)[:40])
    """
    assert run_script(code).stdout == "[3]\nworker processes cannot be started: OSEr\n"


# Where it is called from


def everywhere():
    """Ways to call a function: on this thread, on another, on one of asyncio's."""

    def thread(function):
        got = []
        other = threading.Thread(target=lambda: got.append(function()))
        other.start()
        other.join()
        return got[0]

    return {
        "main": lambda function: function(),
        "thread": thread,
        "asyncio": lambda function: asyncio.run(asyncio.to_thread(function)),
    }


@pytest.mark.parametrize("where", ["main", "thread", "asyncio"])
def test_limits_hold_from_any_thread(pools, where):
    pool = pools(act)
    results = everywhere()[where](lambda: pool.map([("square", 2), ("spin",), ("exit", 1)], limit=0.5))
    assert [getattr(r, "kind", r) for r in results] == [4, "timeout", "crash"]


def test_threads_share_a_pool_and_never_exceed_its_workers(pools):
    pool = pools(act, workers=2)
    results, counts, is_over = {}, [], threading.Event()

    def call(number):
        calls = [("square", i) for i in range(number, number + 60)]
        calls[30] = ("sleep", 600) if number % 2 else ("exit", 1)
        results[number] = pool.map(calls, limit=0.5)

    def count():
        while not is_over.wait(0.02):
            counts.append(len(worker_pids()))

    pool.start()
    before = len(worker_pids()) - 1
    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    counter = threading.Thread(target=count)
    for thread in [*threads, counter]:
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    counter.join()
    for number in range(6):
        expected = [i * i for i in range(number, number + 60)]
        got = results[number]
        assert got.pop(30).kind == ("timeout" if number % 2 else "crash")
        expected.pop(30)
        assert got == expected
    assert max(counts) - before <= 2


def _in_a_child(queue):
    pool = WorkerPool(act, workers=1)
    queue.put([getattr(r, "kind", r) for r in pool.map([("square", 3), ("spin",)], limit=0.5)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_daemonic_process_may_have_workers(pools, method):
    pools(act).map([("square", 1)])
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=120) == [9, "timeout"]
    child.join()
    assert child.exitcode == 0


def in_a_fork(function):
    """What a function returns in a fork of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        got = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(got)


def test_a_forked_process_has_workers_of_its_own(pools):
    pool = pools(act, workers=1)
    [ours] = pool.map([("pid",)])
    our_server = fork_server_pid()

    def child():
        [theirs] = pool.map([("pid",)])
        their_server = fork_server_pid()
        pool.close()
        rlkd.workers.pool._close()
        return theirs, their_server

    theirs, their_server = in_a_fork(child)
    assert theirs != ours
    assert their_server != our_server
    assert pool.map([("pid",)]) == [ours]
    assert fork_server_pid() == our_server


def test_a_fork_while_another_thread_is_in_the_middle_of_everything_can_go_on(pools):
    pool = pools(act, workers=1)
    pool.map([("pid",)])
    locks = [rlkd.workers.pool._starting, rlkd.workers.pool._current.lock, pool._lock]
    held, done = threading.Event(), threading.Event()

    def hold():
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def child():
        signal.alarm(60)
        result = pool.map([("square", 3)])
        rlkd.workers.pool._close()
        return result

    try:
        assert in_a_fork(child) == [9]
    finally:
        done.set()
        thread.join()


def test_a_worker_may_have_workers(pools):
    def nested(number):
        inner = WorkerPool(act, workers=1)
        return [getattr(r, "kind", r) for r in inner.map([("square", number), ("spin",)], limit=0.5)]

    assert pools(nested, workers=1).map([(3,)]) == [[9, "timeout"]]


# 2. A pool never shrinks


def test_a_pool_is_as_large_after_many_kills(pools):
    pool = pools(brief())
    assert [fault.kind for fault in pool.map([("exit",)] * 20)] == ["crash"] * 20
    assert [fault.kind for fault in pool.map([("sleep",)] * 6, limit=0.1)] == ["timeout"] * 6
    assert [fault.kind for fault in pool.map([("sleep",)] * 2, deadline=1.0)] == ["timeout"] * 2
    assert pool.map([(i,) for i in range(50)]) == [i * i for i in range(50)]
    assert pool._taken == 0
    assert 1 <= len(pool._idle) <= 2


@pytest.mark.slow
def test_kills_leave_no_file_open_and_no_process_behind(pools):
    pool = pools(brief())
    pool.map([("exit",)] * 3)

    def held():
        pool.close()
        gc.collect()
        return open_files(os.getpid()), len(open_files(fork_server_pid())), len(worker_pids())

    mine, server, workers = held()
    pool.map([("exit",)] * 50)
    pool.map([("sleep",)] * 4, limit=0.05)
    mine_after, server_after, workers_after = held()
    assert mine_after - mine == set()  # other tests' files may be closed meanwhile
    assert (server_after, workers_after) == (server, workers)


def open_files(pid: int) -> set[tuple[str, str]]:
    """The descriptors of a process and what they stand for."""
    found = set()
    for path in list(Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((path.name, str(path.readlink())))
    return found


def test_a_worker_that_died_while_idle_is_replaced_and_no_call_fails(pools):
    pool = pools(act)
    pool.map([("sleep", 0.2)] * 2)
    assert len(pool._idle) == 2
    for worker in pool._idle:
        os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: not any(is_alive(worker.pid) for worker in pool._idle), "idle workers are dead")
    assert pool.map([("square", i) for i in range(10)]) == [i * i for i in range(10)]


def test_a_closed_pool_can_be_used_again(pools):
    pool = pools(act)
    [first] = pool.map([("pid",)])
    pool.close()
    assert not is_alive(first)
    [second] = pool.map([("pid",)])
    assert second != first


# 3. No process is left


def test_a_collected_pool_has_no_processes(pools):
    keep = pools(act, workers=1)  # its fork server goes on
    keep.map([("pid",)])
    pool = WorkerPool(act, workers=2)
    pids = set(pool.map([("sleep", 0.2)] * 2 + [("pid",)] * 8)[2:])
    assert pids <= {worker.pid for worker in pool._idle}
    assert pids
    del pool
    gc.collect()
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "its workers are gone, and no zombies")


def test_a_pool_may_be_collected_during_a_request_to_the_fork_server(pools):
    keep = pools(act, workers=1)
    keep.map([("pid",)])
    pool = WorkerPool(act, workers=1)
    [pid] = pool.map([("pid",)])
    server = rlkd.workers.pool._current
    with server.lock:
        del pool
        gc.collect()
    keep.map([("exit", 1)])
    eventually(lambda: not psutil.pid_exists(pid), "its worker is gone")
    assert rlkd.workers.pool._current is server


@pytest.mark.parametrize("what", [pytest.param("sleep", marks=pytest.mark.slow), "die", "return"])
def test_processes_that_a_worker_started_end_with_it(pools, what, tmp_path):
    pool = pools(act, workers=1)
    pool.map([("children", what, tmp_path)], limit=None if what != "sleep" else 5.0)
    pool.close()
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert len(pids) == 3
    eventually(
        lambda: not any(map(psutil.pid_exists, pids)), "children, grandchildren and orphans are gone, and no zombies"
    )


def test_processes_that_a_worker_started_live_as_long_as_it(pools, tmp_path):
    pool = pools(act, workers=2)

    def start():
        code = "sleep 600 & echo $!"  # its parent is gone at once
        done = subprocess.run(["sh", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return int(done.stdout)

    other = pools(
        lambda: os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid"), workers=1
    )
    other.map([()])
    path = tmp_path / "pid"
    eventually(lambda: path.exists() and path.read_text().strip(), "it is started")
    pid = int(path.read_text())
    pool.map([("exit", 1)] * 4)  # ends of other workers do not concern it
    assert is_alive(pid)
    other.close()
    eventually(lambda: not is_alive(pid), "it is gone")


PARENT = """
    import os, sys, threading, time
    from rlkd.workers.pool import WorkerPool

    def work(what, path):
        open(path, "w").close()
        if what == "spin":
            9**9**9**9
        elif what == "sleep":
            time.sleep(600)
        elif what == "child":
            import subprocess
            subprocess.run(["sleep", "600"])

    folder = sys.argv[1]
    idle = WorkerPool(len, workers=1)
    idle.map([("abc",)])
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(600)  # holds copies of all that the parent has open
    pool = WorkerPool(work, workers=3)
    pool.map([(what, f"{folder}/{what}") for what in ("spin", "sleep", "child")])
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_however_the_parent_ends(tmp_path, end):
    marker = f"isolation-{os.getpid()}-{random.random()}"
    parent = run_script(
        PARENT, tmp_path, marker=marker, start=subprocess.Popen, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    eventually(lambda: len(list(tmp_path.iterdir())) == 3, "all are at work")
    assert len(marked(marker)) >= 6  # parent, fork server, one idle worker and three busy ones
    parent.send_signal(end)
    parent.wait(60)
    eventually(lambda: not marked(marker), "no process is left")


def test_no_process_is_left_where_a_fork_of_the_parent_lives_on(tmp_path):
    marker = f"isolation-{os.getpid()}-{random.random()}"
    parent = run_script(PARENT, tmp_path, "fork", marker=marker, start=subprocess.Popen, stderr=subprocess.DEVNULL)
    eventually(lambda: len(list(tmp_path.iterdir())) == 3, "all are at work")
    parent.kill()
    parent.wait(60)
    eventually(lambda: len(marked(marker)) == 1, "only the fork is left")
    [left] = marked(marker)
    assert left != parent.pid
    os.kill(left, signal.SIGKILL)


def test_no_zombies_are_left(pools):
    pool = pools(act)
    pool.map([("exit", 1)] * 5 + [("sleep", 600)] * 2, limit=0.3)
    assert not [process for process in descendants() if process.status() == psutil.STATUS_ZOMBIE]


# At the end of the interpreter

QUIET_END = """
    import sys, threading, time
    from rlkd.workers.pool import WorkerPool

    def work(seconds):
        time.sleep(seconds)
        return seconds

    pool = WorkerPool(work, workers=2)
    print(pool.map([(0,), (0,), (60,)], limit=0.3), flush=True)
    WorkerPool(work, workers=1).map([(0,)])
    if "thread" in sys.argv:
        threading.Thread(target=pool.map, args=([(600,)] * 3,), daemon=True).start()
        time.sleep(0.3)
    if "error" in sys.argv:
        raise SystemExit(3)
    if "fork" in sys.argv:
        import os
        if os.fork() == 0:
            print(WorkerPool(work, workers=1).map([(0.01,)]), pool.map([(0.02,)]), flush=True)
            sys.exit()
        os.wait()
    if "killed" in sys.argv:
        import os, signal, rlkd.workers.pool
        os.kill(rlkd.workers.pool._current.process.pid, signal.SIGKILL)
        print(pool.map([(0.01,)]))
"""


@pytest.mark.parametrize("how", ["plain", "thread", "error", "fork", "killed"])
def test_the_end_of_the_interpreter_is_quiet_even_where_warnings_are_errors(how):
    marker = f"isolation-{os.getpid()}-{random.random()}"
    done = run_script(QUIET_END, how, marker=marker, flags=["-W", "error", "-X", "dev"])
    assert done.stderr == ""
    assert done.returncode == (3 if how == "error" else 0)
    assert done.stdout.startswith("[0, 0, Fault(kind='timeout'")
    if how == "fork":
        assert done.stdout.endswith("[0.01] [0.02]\n")
    if how == "killed":
        assert done.stdout.endswith("[0.01]\n")
    eventually(lambda: not marked(marker), "no process is left")


# 4. Interrupts pass through


@contextlib.contextmanager
def interrupt_when(path):
    """Send this process SIGINT as soon as a file is there."""

    def send():
        eventually(path.exists, "the call is at work")
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_passes_kills_running_calls_and_leaves_a_pool_that_works(pools, tmp_path):
    pool = pools(act)
    pool.start()
    before = worker_pids()
    path = tmp_path / "at-work"
    with pytest.raises(KeyboardInterrupt), interrupt_when(path):
        pool.map([("touch_and_sleep", path, 600)] * 5)
    assert pool._taken == 0
    assert not {pid for pid in before if is_alive(pid)} - {worker.pid for worker in pool._idle}
    assert pool.map([("square", i) for i in range(10)], limit=60) == [i * i for i in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [11, pytest.param(3, marks=pytest.mark.nightly)])
def test_an_interrupt_at_any_line_passes_and_leaves_a_pool_that_works(pools, stride):
    """Raised by a trace function, `stride` lines further into a call of `map` each time."""
    pool = pools(brief(), workers=2)
    pool.map([(1,)])
    others = worker_pids() - {worker.pid for worker in pool._idle}  # of pools that other tests have filled
    file = rlkd.workers.pool.__file__
    line, is_over = 0, False
    while not is_over:
        line += stride
        left = line

        def trace(frame, event, argument):
            if frame.f_code.co_filename != file:
                return None
            nonlocal left
            # Not where a block begins or ends, where no real interrupt comes, and one would leave a lock held.
            if event == "line" and not linecache.getline(file, frame.f_lineno).strip().startswith(("with ", "try:")):
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        calls = [(1,), ("exit",), (2,), ("sleep",), (3,)]
        sys.settrace(trace)
        try:
            pool.map(calls, limit=0.05)
            is_over = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        gc.collect()
        assert pool._taken == 0, line
        assert pool.map([(i,) for i in range(5)], limit=60) == [0, 1, 4, 9, 16], line
        assert len(pool._idle) <= 2, line
        held = {worker.pid for worker in pool._idle}
        eventually(lambda held=held: worker_pids() <= held | others, f"no worker is left over at line {line}")
        if line % 2 == 0:
            pool.close()  # so that some begin with new workers
    assert line > 50


def test_a_request_to_the_fork_server_that_is_interrupted_ends_it_and_a_new_one_takes_over(pools, monkeypatch):
    pool = pools(act, workers=1)
    pool.map([("pid",)])
    server = rlkd.workers.pool._current

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_control", Spy(server._control, recv=interrupted))
    with pytest.raises(KeyboardInterrupt):
        pool.map([("exit", 1)])
    monkeypatch.undo()
    assert server.is_gone()
    assert pool.map([("square", i) for i in range(5)]) == [0, 1, 4, 9, 16]
    assert rlkd.workers.pool._current is not server
    assert not is_alive(server.process.pid)


def test_an_interrupt_on_one_thread_does_not_concern_another(pools, tmp_path):
    pool, other = pools(act, workers=1), pools(brief(), workers=1)
    results = []
    calls = [(i,) if i % 3 else ("exit",) for i in range(60)]
    thread = threading.Thread(target=lambda: results.extend(other.map(calls)))
    pool.start()
    thread.start()
    path = tmp_path / "at-work"
    with pytest.raises(KeyboardInterrupt), interrupt_when(path):
        pool.map([("touch_and_sleep", path, 600)])
    rlkd.workers.pool._current.give_up()  # as an interrupt during a request does
    thread.join()
    assert [r for r in results if isinstance(r, int)] == [i * i for i in range(60) if i % 3]
    assert {r.message for r in results if isinstance(r, Fault)} == {"the worker process died (exit code 1)"}


def test_ctrl_c_in_the_terminal_does_not_reach_workers(pools):
    assert pools(lambda: (os.getsid(0), os.getpgid(0)), workers=1).map([()])[0] != (os.getsid(0), os.getpgid(0))
    assert os.getsid(fork_server_pid()) != os.getsid(0)
    [(session, group)] = pools(lambda: (os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())).map([()])
    assert session
    assert group


# The fork server itself


def test_when_the_fork_server_is_killed_half_way_all_results_are_right(pools, tmp_path):
    pool = pools(act)
    calls = [("square", i) for i in range(100)]
    calls[40] = ("die_once", tmp_path / "once")
    killer = functools.partial(die_once, fork_server=True)
    pool = pools(lambda what, *more: killer(*more) if what == "die_once" else act(what, *more))
    expected = [i * i for i in range(100)]
    expected[40] = "alive"
    assert pool.map(calls, limit=60) == expected


def test_a_fork_server_that_died_unnoticed_is_replaced(pools):
    pool = pools(act)
    pool.map([("pid",)])
    pid = fork_server_pid()
    os.kill(pid, signal.SIGKILL)
    assert pool.map([("square", i) for i in range(20)]) == [i * i for i in range(20)]
    assert fork_server_pid() != pid
    assert not psutil.pid_exists(pid)


def test_a_call_that_kills_the_fork_server_every_time_is_a_crash_and_no_endless_loop(pools):
    pool = pools(lambda x: os.kill(os.getppid(), signal.SIGKILL) or time.sleep(60) if x == 1 else x, workers=1)
    assert pool.map([(0,), (1,), (2,)]) == [
        0,
        Fault("crash", "the worker process died (killed with the process that it was forked from, 3 times)"),
        2,
    ]


# What a worker sees


def test_a_worker_has_no_torch_unless_the_function_imports_it(pools):
    import torch  # noqa: F401 (this process has it)

    assert pools(lambda: "torch" in sys.modules).map([()]) == [False]


def test_the_main_script_is_executed_once_even_without_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import pathlib
        from rlkd.workers.pool import WorkerPool
        with open("executed", "a") as file:
            file.write("x")
        FACTOR = 3
        def triple(x):
            return helper(x)
        def helper(x):
            return x * FACTOR
        class Adder:
            def __call__(self, x):
                return x + FACTOR
        print(WorkerPool(triple, workers=2).map([(i,) for i in range(5)]))
        print(WorkerPool(Adder(), workers=2).map([(i,) for i in range(5)]))
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[0, 3, 6, 9, 12]\n[3, 4, 5, 6, 7]\n", done.stderr
    assert (tmp_path / "executed").read_text() == "x"


def test_files_of_the_current_folder_hide_no_module_of_the_standard_library(tmp_path):
    for name in ("json", "socket", "pickle", "random", "rlkd"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not me')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text("from rlkd.workers.pool import WorkerPool\nprint(WorkerPool(len, workers=1).map([('abc',)]))\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "[3]\n", done.stderr


def test_lambdas_and_closures_go_by_value(pools):
    offset = 5
    assert pools(lambda x: x + offset).map([(1,)]) == [6]


def test_a_worker_has_this_processs_folder_path_and_environment(pools, tmp_path, monkeypatch):
    pools(square).map([(1,)])  # the fork server is there already
    (tmp_path / "made_just_now.py").write_text("VALUE = 5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MADE_JUST_NOW", "yes")

    def look():
        import made_just_now

        return made_just_now.VALUE, str(Path.cwd()), os.environ.get("MADE_JUST_NOW"), os.environ["OMP_NUM_THREADS"]

    assert pools(look).map([()]) == [(5, str(tmp_path), "yes", "1")]


def test_a_worker_starts_where_the_folder_has_been_deleted(pools, tmp_path, monkeypatch):
    folder = tmp_path / "short-lived"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert pools(square).map([(3,)]) == [9]


def test_a_worker_reads_nothing_from_this_processs_input():
    code = """
    import sys
    from rlkd.workers.pool import WorkerPool
    print(WorkerPool(lambda: sys.stdin.read(), workers=1).map([()]), sys.stdin.read())
    """
    assert run_script(code, input="for the parent").stdout == "[''] for the parent\n"


def test_workers_draw_different_random_numbers(pools):
    def draw():
        import numpy

        time.sleep(0.1)
        return os.getpid(), random.random(), float(numpy.random.random())

    for preload in ([], ["numpy"]):
        drawn = pools(draw, workers=3, preload=preload).map([()] * 6)
        assert len({pid for pid, _, _ in drawn}) > 1
        assert len({number for _, number, _ in drawn}) == 6
        assert len({number for _, _, number in drawn}) == 6


def test_a_function_knows_that_it_is_in_a_worker(pools):
    assert pools(inside_worker).map([()]) == [True]
    assert not inside_worker()


def test_a_process_with_many_open_files_has_workers_too():
    code = """
    import os, resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3000), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1500)]
    from rlkd.workers.pool import WorkerPool
    print(WorkerPool(len, workers=2).map([("abc",), ("de",)]))
    """
    assert run_script(code).stdout == "[3, 2]\n"
