"""`rlkd serve` with stub servers: real processes, real signals, and nothing left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rlkd.serve import state
from rlkd.serve.guard import MARK
from rlkd.serve.state import StateFile
from tests.helpers.serving import Place, get, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ends what left a process tree, as only Linux can")


# What a run does


def test_all_roles_come_up_with_their_addresses_prefixed_lines_and_log_files(place: Place) -> None:
    config = place.config(
        workers={"rollout": place.worker("chatty"), "gsrm": place.worker(served_model_name="struct")}
    )
    started = place.start("--config", config).ready()
    assert f"{place.url('rollout')}/v1#model" in started.text
    assert f"{place.url('gsrm')}/v1#struct" in started.text
    started.shows("[rollout] a bar: 100%\n")
    assert "[rollout] stub for" in started.text
    assert "[gsrm]    stub for" in started.text
    assert "stub for" in place.log("gsrm")
    started.process.send_signal(signal.SIGTERM)
    started.code()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_everything_grandchildren_that_ignore_it_included(
    place: Place, number: signal.Signals, code: int
) -> None:
    started = place.serve("grandchildren", stop_timeout=1).ready()
    # Supervisor, guard, server, a grandchild and a daemon.
    assert len(started.left()) == 5
    started.process.send_signal(number)
    assert started.code() == code
    started.gone()


@pytest.mark.slow
def test_a_second_interrupt_kills_what_takes_its_time(place: Place) -> None:
    started = place.serve("deaf", "grandchildren", stop_timeout=100000).ready()
    started.process.send_signal(signal.SIGINT)
    started.shows("SIGINT: stopping")
    started.process.send_signal(signal.SIGINT)
    assert started.code() == 130
    started.gone()


@pytest.mark.slow
def test_everything_ends_when_the_supervisor_is_killed(place: Place) -> None:
    started = place.serve("grandchildren", stop_timeout=1).ready()
    started.process.kill()
    assert started.code() == -signal.SIGKILL
    started.gone()


@pytest.mark.slow
def test_the_next_start_of_any_config_ends_what_a_killed_one_left_and_no_stranger(place: Place) -> None:
    started = place.serve("grandchildren").ready()
    guards = started.guards()
    assert guards
    started.process.send_signal(signal.SIGSTOP)  # so that it does not tidy up after its guard
    for pid in guards:
        os.kill(pid, signal.SIGKILL)
    started.process.kill()
    started.code()
    until(lambda: not started.titled("stub_server.py"), "the server's death with its guard")
    orphans = started.left()
    assert len(orphans) == 2
    status = place.start("--status")
    assert status.code() == 1
    assert "its supervisor is gone, and left 2 processes" in status.text

    with subprocess.Popen(["sleep", "1000"]) as stranger:
        other = place.config("other.yaml", workers={"judge": place.worker()})
        again = place.start("--config", other).ready()
        started.gone()
        assert stranger.poll() is None
        stranger.kill()
    assert "ended what an earlier rlkd serve" in again.text
    assert all(str(pid) in again.text for pid in orphans)
    again.process.terminate()
    again.code()
    assert not list((place.folder / "cache" / "serve").glob("*.json"))


def test_cleaning_up_finds_only_processes_with_the_mark_and_spares_itself(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "m:gsrm:")
    with subprocess.Popen(["sleep", "1000"]) as ours, subprocess.Popen(["sleep", "1000"], env={}) as stranger:
        content = {"mark": "m"}
        assert [process.pid for process in state.leftovers(content)] == [ours.pid]
        assert [process.pid for process in state.kill_all(lambda: state.leftovers(content))] == [ours.pid]
        assert stranger.poll() is None
        stranger.kill()


def test_a_supervisor_is_its_id_and_its_start(place: Place) -> None:
    me = psutil.Process()
    assert state.supervisor({"supervisor": [me.pid, me.create_time()]}) == me
    assert state.supervisor({"supervisor": [me.pid, me.create_time() - 60]}) is None


@pytest.mark.slow
def test_a_server_that_dies_is_started_again_at_the_same_address(place: Place) -> None:
    started = place.serve("die-on-request", "grandchildren").ready()
    first = get(f"{place.url()}/pid")
    assert len(before := set(started.titled("SIG_IGN"))) == 2
    get(f"{place.url()}/die")
    started.shows("gsrm has ended with exit code 7; starting it again")
    until(lambda: get(f"{place.url()}/pid") not in (None, first), "another server")
    assert not before & set(started.titled("SIG_IGN"))  # what the dead one had left
    until(lambda: started.text.count("ready after") == 2, "ready again")
    status = place.start("--status", "--config", place.folder / "serve.yaml")
    assert status.code() == 0
    assert "restarts: 1" in status.text
    started.process.terminate()
    assert started.code() == 143


@pytest.mark.slow
def test_a_server_that_keeps_dying_ends_all_with_the_reason(place: Place) -> None:
    workers = {"gsrm": place.worker("crash-later", "grandchildren"), "rollout": place.worker()}
    started = place.start("--config", place.config(workers=workers, restarts=1))
    assert started.code() == 1
    assert "gsrm has ended with exit code 9, and has been down 2 times within 600 s (restarts: 1)" in started.text
    assert "  a fault in the engine" in started.text
    started.gone()


@pytest.mark.slow
def test_a_restart_that_fails_counts_as_another_death(place: Place) -> None:
    started = place.serve("crash-second", "die-on-request", restarts=2).ready()
    get(f"{place.url()}/die")
    assert started.code() == 1
    assert "gsrm has ended with exit code 3, and has been down 3 times" in started.text
    assert "the second start fails" in started.text


@pytest.mark.slow
def test_a_server_that_dies_before_it_was_ready_is_not_tried_again(place: Place) -> None:
    workers = {"rollout": place.worker("grandchildren"), "gsrm": place.worker("crash")}
    started = place.start("--config", place.config(workers=workers))
    assert started.code() == 1
    assert "gsrm has ended with exit code 2 before it was ready; its last lines" in started.text
    assert "  the way there\nand the first error:\n  ValueError: no such model" in started.text
    assert started.text.count("gsrm: starting") == 1
    started.gone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stub", "found"),
    [("never-healthy", "/health answers 503"), ("other-name", "/v1/models has no 'model', but ['another']")],
)
def test_a_server_that_is_not_ready_in_time_ends_all_and_reports_its_answer(
    place: Place, stub: str, found: str
) -> None:
    started = place.serve(stub, "grandchildren", start_timeout=6)
    assert started.code() == 1
    assert f"is not ready after 6 s (start_timeout; {found})" in started.text
    assert "stub for" in started.text
    started.gone()


@pytest.mark.slow
def test_a_server_that_stops_answering_is_started_again(place: Place) -> None:
    started = place.serve("hang-on-request", unresponsive_timeout=1).ready()
    get(f"{place.url()}/hang")
    started.shows("gsrm has not been healthy for 1 s")
    until(lambda: started.text.count("ready after") == 2, "ready again")
    assert get(f"{place.url()}/health") is not None


def test_a_server_whose_guard_is_killed_leaves_nothing_and_is_started_again(place: Place) -> None:
    started = place.serve("grandchildren").ready()
    assert len(before := set(started.titled("SIG_IGN"))) == 2
    (guard,) = started.guards()
    os.kill(guard, signal.SIGKILL)
    started.shows("gsrm was killed by SIGKILL")
    until(lambda: started.text.count("ready after") == 2, "ready again")
    assert not before & set(started.left())


def test_servers_of_one_gpu_start_one_after_another(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    shared = {"gpus": [0], "memory": 0.4}
    workers = {"rollout": place.worker(**shared), "gsrm": place.worker(**shared)}
    text = place.start("--config", place.config(workers=workers)).ready().text
    first, second = ("rollout", "gsrm") if text.index("rollout: st") < text.index("gsrm: st") else ("gsrm", "rollout")
    assert text.index(f"{first}: ready") < text.index(f"{second}: starting")


# With a trainer


def trainer(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


@pytest.mark.slow
def test_a_trainer_finds_the_addresses_and_its_exit_code_is_the_result(place: Place) -> None:
    config = place.config(
        workers={"gsrm": place.worker("grandchildren"), "judge": place.worker(port="auto", replicas=2)}
    )
    code = "import os; print('|', os.environ['RLKD_GSRM_URL'], os.environ['RLKD_GSRM_SPEC'], '|')\n"
    code += "print(len(os.environ['RLKD_JUDGE_URL'].split(','))); raise SystemExit(5)"
    started = place.start("--config", config, "--quiet", *trainer(code))
    assert started.code() == 5
    assert f"| {place.url()} {place.url()}/v1#model |\n2\n" in started.text
    assert "[gsrm]" not in started.text
    started.gone()


@pytest.mark.slow
def test_a_trainer_that_crashes_takes_its_own_children_and_all_servers_along(place: Place) -> None:
    config = place.config(workers={"gsrm": place.worker("grandchildren")}, stop_timeout=1)
    code = "import os, signal, subprocess, sys\n"
    code += "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
    code += "time.sleep(1e6)'])\nos.kill(os.getpid(), signal.SIGKILL)"
    started = place.start("--config", config, *trainer(code))
    assert started.code() == 137
    started.gone()


@pytest.mark.slow
def test_an_interrupt_reaches_the_trainer_before_its_servers_end(place: Place) -> None:
    config = place.config(workers={"gsrm": place.worker()})
    code = "import os, time, urllib.request\ntry:\n    print('tra' + 'ining', flush=True); time.sleep(1e6)\n"
    code += "except KeyboardInterrupt:\n    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
    code += "    print('saved', opener.open(os.environ['RLKD_GSRM_URL'] + '/health').status, flush=True)"
    started = place.start("--config", config, *trainer(code))
    started.shows("training\n")
    started.process.send_signal(signal.SIGINT)
    assert started.code() == 130
    assert "saved 200" in started.text
    started.gone()


def test_a_trainer_that_does_not_exist_ends_all(place: Place) -> None:
    started = place.start("--config", place.config(workers={"gsrm": place.worker()}), "--", "no-such-program")
    assert started.code() == 127
    assert "cannot start no-such-program" in started.text
    started.gone()


def test_servers_that_cannot_be_kept_up_end_the_trainer(place: Place) -> None:
    config = place.config(workers={"gsrm": place.worker("die-on-request")}, restarts=0)
    code = "import os, time, urllib.request\ntry: urllib.request.build_opener(urllib.request.ProxyHandler({}))"
    code += ".open(os.environ['RLKD_GSRM_URL'] + '/die')\nexcept Exception: pass\ntime.sleep(1e6)"
    started = place.start("--config", config, *trainer(code))
    assert started.code() == 1
    started.gone()


# Seen and stopped from elsewhere


@pytest.mark.slow
def test_stop_ends_a_running_one_and_status_then_finds_nothing(place: Place) -> None:
    started = place.serve("grandchildren", stop_timeout=1).ready()
    again = place.start("--config", place.folder / "serve.yaml")
    assert again.code() == 1
    assert f"is running already, as process {started.process.pid}" in again.text
    stopped = place.start("--stop")
    assert stopped.code() == 0
    assert "stopped" in stopped.text
    started.gone()
    assert started.code() == 143
    for action in ("--status", "--stop"):
        assert "nothing is running" in (done := place.start(action)).text or done.code() >= 0
        assert "nothing is running" in done.text


@pytest.mark.slow
def test_stop_needs_a_config_where_several_servers_run(place: Place) -> None:
    for name in ("a.yaml", "b.yaml"):
        place.start("--config", place.config(name, workers={"gsrm": place.worker()})).ready()
    done = place.start("--stop")
    assert done.code() == 1
    assert f"--config {place.folder / 'a.yaml'}" in done.text
    assert place.start("--stop", "--config", place.folder / "a.yaml").code() == 0
    assert place.all[0].code() == 143
    assert place.all[1].process.poll() is None


def test_stop_ends_what_a_killed_supervisor_left(place: Place) -> None:
    started = place.serve("grandchildren").ready()
    started.process.send_signal(signal.SIGSTOP)
    for pid in started.guards():
        os.kill(pid, signal.SIGKILL)
    started.process.kill()
    started.code()
    assert place.start("--stop").code() == 0
    started.gone()


def test_the_state_of_a_config_is_its_own(place: Place) -> None:
    assert StateFile.of(Path("a/serve.yaml")).path != StateFile.of(Path("b/serve.yaml")).path
    assert StateFile.of(Path("serve.yaml")).path == StateFile.of(place.folder / "serve.yaml").path
