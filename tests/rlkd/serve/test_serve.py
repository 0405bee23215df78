"""`rlkd serve` with stub servers: real processes, real signals, and nothing left behind."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from rlkd import cli as rlkd_cli
from rlkd.errors import UsageError
from rlkd.serve import checks, processes, state
from rlkd.serve.cli import _show_table, main
from rlkd.serve.commands import Server, make_servers
from rlkd.serve.config import read_config
from rlkd.serve.processes import Process
from rlkd.serve.state import StateFile
from rlkd.serve.supervisor import addresses
from tests.helpers import HELPERS, ROOT

STUB = HELPERS / "stub_server.py"
HANG_GUARD = 120.0
COMMAND = """
import sys
from rlkd.errors import UsageError
from rlkd.serve.cli import main
try:
    sys.exit(main(sys.argv[1:]))
except UsageError as error:
    print(f"rlkd serve: {error}", file=sys.stderr)
    sys.exit(1)
"""
pytestmark = pytest.mark.skipif(not processes.HAS_PROC, reason="reads /proc")


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + HANG_GUARD
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def get(url: str) -> str | None:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """A running `rlkd serve`. Everything below it is found by a variable that only this test's processes have."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder = folder
        self.secret = f"SERVE_TEST={uuid.uuid4().hex}"
        self.output = folder / f"output-{uuid.uuid4().hex[:6]}"
        name, _, value = self.secret.partition("=")
        root = ROOT
        environment = os.environ | {name: value, "PYTHONPATH": str(root), "STUB_FOLDER": str(folder)}
        with self.output.open("wb") as handle:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments],
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def says(self, text: str) -> None:
        until(lambda: text in self.text or self.process.poll() is not None, f"{text!r} in:\n{self.text}")
        assert text in self.text, self.text

    def ready(self) -> "Started":
        self.says("in a recipe's YAML")
        return self

    def code(self) -> int:
        return self.process.wait(HANG_GUARD)

    def left(self) -> list[int]:
        """Every living process of this start, the supervisor included."""
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                with contextlib.suppress(OSError):
                    if (path / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                        continue
                    if self.secret.encode() in (path / "environ").read_bytes().split(b"\0"):
                        found.append(int(path.name))
        return found

    def gone(self) -> None:
        until(
            lambda: not self.left(), f"the end of {[(pid, processes.title(pid)) for pid in self.left()]}\n{self.text}"
        )

    def titled(self, part: str) -> list[int]:
        return [pid for pid in self.left() if part in processes.title(pid)]


class Place:
    """A folder of one test with its configs, and what was started there."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        self.all: list[Started] = []

    def config(self, name: str = "serve.yaml", **keys: object) -> Path:
        path = self.folder / name
        base: dict[str, object] = {"command": [sys.executable, str(STUB)], "stop_timeout": 2, "output_dir": "out"}
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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    yield place
    for started in place.all:
        for pid in started.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.wait(HANG_GUARD)


# What a run does


def test_all_roles_come_up_with_their_addresses_prefixed_lines_and_log_files(place: Place) -> None:
    config = place.config(
        workers={"rollout": place.worker("chatty"), "gsrm": place.worker(served_model_name="struct")}
    )
    started = place.start("--config", config).ready()
    assert f"{place.url('rollout')}/v1#model" in started.text
    assert f"{place.url('gsrm')}/v1#struct" in started.text
    started.says("[rollout] a bar: 100%\n")
    assert "[rollout] stub for" in started.text
    assert "[gsrm]    stub for" in started.text
    assert "stub for" in place.log("gsrm")
    started.process.send_signal(signal.SIGTERM)
    started.code()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_everything_grandchildren_that_ignore_it_included(
    place: Place, number: signal.Signals, code: int
) -> None:
    started = place.serve("grandchildren", stop_timeout=1).ready()
    # Supervisor, warden, server, a grandchild and a daemon.
    assert len(started.left()) == 5
    started.process.send_signal(number)
    assert started.code() == code
    started.gone()


def test_a_second_interrupt_kills_what_takes_its_time(place: Place) -> None:
    started = place.serve("deaf", "grandchildren", stop_timeout=100000).ready()
    started.process.send_signal(signal.SIGINT)
    started.says("SIGINT: stopping")
    started.process.send_signal(signal.SIGINT)
    assert started.code() == 130
    started.gone()


def test_everything_ends_when_the_supervisor_is_killed(place: Place) -> None:
    started = place.serve("grandchildren", stop_timeout=1).ready()
    started.process.kill()
    assert started.code() == -signal.SIGKILL
    started.gone()


def test_the_next_start_of_any_config_ends_what_a_killed_one_left_and_no_stranger(place: Place) -> None:
    started = place.serve("grandchildren").ready()
    wardens = started.titled("guard.py")
    assert wardens
    started.process.send_signal(signal.SIGSTOP)  # so that it does not tidy up after its warden
    for pid in wardens:
        os.kill(pid, signal.SIGKILL)
    started.process.kill()
    started.code()
    until(lambda: not started.titled("stub_server.py"), "the server's death with its warden")
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


def test_a_recorded_id_that_now_is_another_process_is_left_alone(place: Place) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        now = processes.identify(stranger.pid)
        assert now is not None
        earlier = [now.pid, now.started - 1]
        content = {"mark": uuid.uuid4().hex, "where": state.where(), "servers": [{"processes": [earlier]}]}
        assert state.clean(content) == []
        assert not processes.send(Process(*earlier), signal.SIGKILL)
        assert stranger.poll() is None
        content["servers"] = [{"processes": [list(now)]}]
        assert len(state.clean(content)) == 1
        stranger.wait(HANG_GUARD)


def test_ids_of_another_machine_or_an_earlier_boot_name_nothing_here(place: Place) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        now = processes.identify(stranger.pid)
        assert now is not None
        for key in state.where():
            where = state.where() | {key: "another"}
            content = {"mark": "m", "where": where, "servers": [{"processes": [list(now)]}]}
            assert state.remains(content) == []
        stranger.kill()


def test_cleaning_spares_the_process_that_cleans_and_those_above_it(place: Place) -> None:
    me = processes.identify(os.getpid())
    above = processes.identify(os.getppid())
    recorded = [list(each) for each in (me, above) if each]
    content = {"mark": "m", "where": state.where(), "servers": [{"processes": recorded}]}
    assert state.remains(content) == []


def test_a_server_that_dies_is_started_again_at_the_same_address(place: Place) -> None:
    started = place.serve("die-on-request", "grandchildren").ready()
    first = get(f"{place.url()}/pid")
    assert len(before := set(started.titled("SIG_IGN"))) == 2
    get(f"{place.url()}/die")
    started.says("gsrm has ended with exit code 7; starting it again")
    until(lambda: get(f"{place.url()}/pid") not in (None, first), "another server")
    assert not before & set(started.titled("SIG_IGN"))  # what the dead one had left
    until(lambda: started.text.count("ready after") == 2, "ready again")
    status = place.start("--status", "--config", place.folder / "serve.yaml")
    assert status.code() == 0
    assert "restarts: 1" in status.text
    started.process.terminate()
    assert started.code() == 143


def test_a_server_that_keeps_dying_ends_all_and_says_why(place: Place) -> None:
    workers = {"gsrm": place.worker("crash-later", "grandchildren"), "rollout": place.worker()}
    started = place.start("--config", place.config(workers=workers, restarts=1))
    assert started.code() == 1
    assert "gsrm has ended with exit code 9, and has been down 2 times within 600 s (restarts: 1)" in started.text
    assert "  a fault in the engine" in started.text
    started.gone()


def test_a_restart_that_fails_counts_as_another_death(place: Place) -> None:
    started = place.serve("crash-second", "die-on-request", restarts=2).ready()
    get(f"{place.url()}/die")
    assert started.code() == 1
    assert "gsrm has ended with exit code 3, and has been down 3 times" in started.text
    assert "the second start fails" in started.text


def test_a_server_that_dies_before_it_was_ready_is_not_tried_again(place: Place) -> None:
    workers = {"rollout": place.worker("grandchildren"), "gsrm": place.worker("crash")}
    started = place.start("--config", place.config(workers=workers))
    assert started.code() == 1
    assert "gsrm has ended with exit code 2 before it was ready; its last lines" in started.text
    assert "  the way there\nand the first error:\n  ValueError: no such model" in started.text
    assert started.text.count("gsrm: starting") == 1
    started.gone()


@pytest.mark.parametrize(
    ("stub", "found"),
    [("never-healthy", "/health says 503"), ("other-name", "/v1/models has no 'model', but ['another']")],
)
def test_a_server_that_is_not_ready_in_time_ends_all_and_says_what_it_answered(
    place: Place, stub: str, found: str
) -> None:
    started = place.serve(stub, "grandchildren", start_timeout=4)
    assert started.code() == 1
    assert f"is not ready after 4 s (start_timeout; {found})" in started.text
    assert "stub for" in started.text
    started.gone()


def test_a_server_that_answers_nothing_any_more_is_started_again(place: Place) -> None:
    started = place.serve("hang-on-request", unresponsive_timeout=1).ready()
    get(f"{place.url()}/hang")
    started.says("gsrm has not been healthy for 1 s")
    until(lambda: started.text.count("ready after") == 2, "ready again")
    assert get(f"{place.url()}/health") is not None


def test_a_server_whose_warden_is_killed_leaves_nothing_and_is_started_again(place: Place) -> None:
    started = place.serve("grandchildren").ready()
    assert len(before := set(started.titled("SIG_IGN"))) == 2
    (warden,) = started.titled("guard.py")
    os.kill(warden, signal.SIGKILL)
    started.says("gsrm was killed by SIGKILL")
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


def test_a_trainer_that_crashes_takes_its_own_children_and_all_servers_along(place: Place) -> None:
    config = place.config(workers={"gsrm": place.worker("grandchildren")}, stop_timeout=1)
    code = "import os, signal, subprocess, sys\n"
    code += "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN); "
    code += "time.sleep(1e6)'])\nos.kill(os.getpid(), signal.SIGKILL)"
    started = place.start("--config", config, *trainer(code))
    assert started.code() == 137
    started.gone()


def test_an_interrupt_reaches_the_trainer_before_its_servers_end(place: Place) -> None:
    config = place.config(workers={"gsrm": place.worker()})
    code = "import os, time, urllib.request\ntry:\n    print('tra' + 'ining', flush=True); time.sleep(1e6)\n"
    code += "except KeyboardInterrupt:\n    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
    code += "    print('saved', opener.open(os.environ['RLKD_GSRM_URL'] + '/health').status, flush=True)"
    started = place.start("--config", config, *trainer(code))
    started.says("training\n")
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


def test_stop_asks_which_where_there_are_several(place: Place) -> None:
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
    for pid in started.titled("guard.py"):
        os.kill(pid, signal.SIGKILL)
    started.process.kill()
    started.code()
    assert place.start("--stop").code() == 0
    started.gone()


# The commands


def servers_of(path: Path, **models: str) -> list[Server]:
    config = read_config(path)
    return make_servers(config, models, {}, checks.choose_ports(config)[0])


def test_printed_commands_start_nothing_and_work_in_a_shell(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    worker = place.worker(environment={"GREETING": "it's me"}, served_model_name="a.b")
    assert main(["--config", str(place.config(workers={"gsrm": worker})), "--print"]) == 0
    printed = capsys.readouterr().out
    assert get(f"{place.url()}/health") is None
    title, line = printed.strip().splitlines()
    assert title == f"# gsrm (CPU): {place.url()}/v1#a.b"
    assert "GREETING='it'\"'\"'s me'" in line
    assert "VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind" in line
    with subprocess.Popen(["sh", "-c", f"exec env {line}"]) as process:
        until(lambda: "a.b" in (get(f"{place.url()}/v1/models") or ""), "an answer")
        process.kill()


def test_a_cpu_worker_gets_what_the_cpu_build_needs(place: Place) -> None:
    (server,) = servers_of(place.config(command=None, workers={"gsrm": place.worker(max_model_len=512)}))
    line = shlex.join(server.command)
    assert "--dtype float32 --enforce-eager --no-enable-chunked-prefill --max-model-len 512" in line
    assert server.command[1] == "serve"
    assert "CUDA_VISIBLE_DEVICES" not in server.environment
    assert "--trust-remote-code" not in line


def test_a_variable_that_is_set_already_wins_over_a_default(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    (server,) = servers_of(place.config(workers={"gsrm": place.worker()}))
    assert server.full_environment("mark")["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_a_rollout_worker_takes_weights_and_gives_the_log_probabilities_of_what_was_sampled(place: Place) -> None:
    workers = {"rollout": place.worker(weight_transfer="nccl", gpus=[2, 3], data_parallel=2, memory=0.8)}
    (server,) = servers_of(place.config(workers=workers))
    line = shlex.join(server.command)
    assert """--weight-transfer-config '{"backend": "nccl"}'""" in line
    assert "--logprobs-mode processed_logprobs --max-logprobs -1" in line
    assert "--data-parallel-size 2 --gpu-memory-utilization 0.8" in line
    assert "--tensor-parallel-size" not in line
    assert server.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert server.environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "--dtype" not in line


def test_replicas_share_their_gpus_evenly_and_take_following_ports(place: Place) -> None:
    first = free_port()
    judge = place.worker(gpus=[0, 1, 2, 3], replicas=2, port=first)
    one, two = servers_of(place.config(workers={"judge": judge}))
    assert (one.devices, two.devices) == (("0", "1"), ("2", "3"))
    assert (one.port, two.port) == (first, first + 1)
    assert "--tensor-parallel-size 2" in shlex.join(one.command)
    assert (one.label, two.label) == ("judge-0", "judge-1")
    found = addresses([one, two])
    assert found["RLKD_JUDGE_URL"] == f"http://127.0.0.1:{first},http://127.0.0.1:{first + 1}"
    assert found["RLKD_JUDGE_SPEC"] == f"http://127.0.0.1:{first}/v1,http://127.0.0.1:{first + 1}/v1#model"


def test_the_table_gives_each_address_once_and_a_line_for_every_name(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.folder / "adapter").mkdir()
    (place.folder / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    lora = {"tuned": str(place.folder / "adapter"), "other": str(place.folder / "adapter")}
    servers = servers_of(place.config(workers={"judge": place.worker(port=8000, replicas=2, lora=lora)}))
    _show_table(servers)
    both = "http://127.0.0.1:8000/v1,http://127.0.0.1:8001/v1"
    assert [line.split() for line in capsys.readouterr().out.splitlines() if "#" in line] == [
        ["judge-0", "http://127.0.0.1:8000", f"{both}#model"],
        ["judge-1", "http://127.0.0.1:8001", f"{both}#tuned"],
        [f"{both}#other"],
    ]


def test_gpu_ids_count_within_what_is_visible(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    path = place.config(workers={"gsrm": place.worker(gpus=[1])})
    assert servers_of(path)[0].environment["CUDA_VISIBLE_DEVICES"] == "6"
    path = place.config(workers={"gsrm": place.worker(gpus=[2])})
    assert "there is no GPU 2; here are 2" in checks.check_gpus(read_config(path))[0]


def test_adapters_are_served_by_name_with_room_for_the_largest(place: Place) -> None:
    for name, rank in (("small", 4), ("large", 24)):
        (place.folder / name).mkdir()
        (place.folder / name / "adapter_config.json").write_text(
            json.dumps({"r": rank, "target_modules": ["q_proj", "down_proj"]})
        )
    lora = {"one": str(place.folder / "small"), "two": str(place.folder / "large")}
    (server,) = servers_of(place.config(workers={"gsrm": place.worker(lora=lora)}))
    line = shlex.join(server.command)
    assert "--enable-lora --max-lora-rank 32 --lora-target-modules down_proj q_proj --lora-modules one=" in line
    assert server.names == ("model", "one", "two")


def test_a_trainer_that_swaps_adapters_needs_no_weight_transfer(place: Place) -> None:
    worker = place.worker(weight_transfer="lora", max_lora_rank=16)
    (server,) = servers_of(place.config(workers={"rollout": worker}))
    assert server.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--weight-transfer-config" not in server.command
    assert "--enable-lora" in server.command
    # The CPU build of vLLM must not prepare the output layer, and which layers will come is not known yet.
    after = server.command[server.command.index("--lora-target-modules") + 1 :]
    assert {"q_proj", "up_proj"} <= set(after)
    assert "lm_head" not in after


# What is found before anything starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "workers.gsrm.modle: no such key. Did you mean 'model'?"),
        ({"trust_remote_code": True}, "workers.gsrm.trust_remote_code: runs code of the model's author; say so with"),
        ({"gpus": None}, "workers.gsrm.gpus: is missing; expected a list of GPU ids, such as [0, 1], or cpu"),
        ({"gpus": "0"}, "workers.gsrm.gpus: '0': expected a list of GPU ids, such as [0, 1], or cpu"),
        ({"gpus": 0}, "workers.gsrm.gpus: 0: expected a list of GPU ids"),
        ({"gpus": [0, 0]}, "workers.gsrm.gpus: 0 comes 2 times"),
        ({"gpus": [0, 1, 2], "replicas": 2}, "workers.gsrm.replicas: 2 replicas cannot share 3 GPUs evenly"),
        ({"gpus": [0, 1], "tensor_parallel": 4}, "tensor_parallel 4 x data_parallel 1 = 4 GPUs, but 2 GPUs / 1 repl"),
        ({"memory": 0.5}, "workers.gsrm.memory: is a share of a GPU. On the CPU"),
        ({"gpus": [0], "memory": 40}, "workers.gsrm.memory: 40: expected a share of a GPU"),
        ({"port": 70000}, "workers.gsrm.port: 70000: expected 1 to 65535"),
        ({"port": "any"}, "workers.gsrm.port: 'any': expected a number, or auto"),
        ({"port": True}, "workers.gsrm.port: True: expected a number, or auto"),
        (
            {"weight_transfer": "nccl"},
            "workers.gsrm.weight_transfer: nccl needs a GPU; on the CPU: gloo, disk or lora",
        ),
        ({"weight_transfer": "glo"}, "workers.gsrm.weight_transfer: no 'glo'. Did you mean 'gloo'?"),
        ({"weight_transfer": "lora"}, "workers.gsrm.max_lora_rank: weight_transfer lora needs the rank"),
        (
            {"gpus": [0, 1], "replicas": 2, "weight_transfer": "nccl"},
            "weight_transfer: a trainer sends its weights to one server, not to 2. Several copies of the model behind "
            "one address:  data_parallel: 2",
        ),
        (
            {"gpus": [0, 1], "data_parallel": 2, "weight_transfer": "lora", "max_lora_rank": 8},
            "weight_transfer: lora loads an adapter into one of the 2 API servers of data_parallel",
        ),
        ({"extra": ["--port", "1"]}, "workers.gsrm.extra: '--port' is what the key port says; say it there"),
        ({"extra": ["--max_model_len=9"]}, "is what the key max_model_len says"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, "environment: CUDA_VISIBLE_DEVICES is set by the key gpus"),
        ({"environment": {"A B": "1"}}, "'A B' is no name of a variable"),
        ({"served_model_name": "a#b"}, "served_model_name: 'a#b': expected a name without spaces"),
        ({"replicas": 0}, "workers.gsrm.replicas: 0: expected more than 0"),
        ({"command": ""}, "workers.gsrm.command: is empty"),
        ({"start_timeout": -1}, "workers.gsrm.start_timeout: -1: expected more than 0"),
    ],
)
def test_a_mistake_in_a_worker_is_named_by_file_key_and_value(
    place: Place, changes: dict[str, object], message: str
) -> None:
    path = place.config(workers={"gsrm": place.worker() | changes})
    with pytest.raises(UsageError) as error:
        read_config(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: {}", "workers: expected at least one role"),
        ("just text", "workers: expected at least one role"),
        ("workers: [", "is no YAML"),
        ("workers:\n  a: {model: m, gpus: cpu}\n  a: {model: n, gpus: cpu}", "the key 'a' comes twice"),
        ("workers:\n  Big-Judge: {model: m, gpus: cpu}", "workers.Big-Judge: a role is made of a-z, 0-9 and _"),
        ("workers:\n  trainer: {model: m, gpus: cpu}", "workers.trainer: trainer is what the command after --"),
        ("workers:\n  a:", "workers.a: None: expected keys, at least model and gpus"),
        ("workers:\n  a: {model: m, gpus: cpu}\nrestart: 3", "restart: no such key. Did you mean 'restarts'?"),
        ("workers:\n  a: {model: m, gpus: cpu}\nstop_timeout: .nan", "stop_timeout: nan: expected a number"),
        ("workers:\n  a: {gpus: cpu}", "workers.a.model: is missing"),
        (
            "workers:\n  a: {model: m, gpus: cpu, port: 8001}\n  b: {model: m, gpus: cpu, port: 8000, replicas: 2}",
            "workers.b.port: 8001 is taken twice, by a and b",
        ),
        (
            "workers:\n  a: {model: m, gpus: [0, 1], memory: 0.5}\n  b: {model: m, gpus: [1]}",
            "memory: GPU 1 is shared out to more than 1: 0.5 (a) + 0.9 (b, the default) = 1.4",
        ),
        (
            "workers:\n  a: {model: m, gpus: [0], memory: 0.5, replicas: 3}",
            "memory: GPU 0 is shared out to more than 1: 0.5 (a) + 0.5 (a) + 0.5 (a) = 1.5",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(place: Place, text: str, message: str) -> None:
    path = place.folder / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_config(path)
    assert message in str(error.value)


def test_all_mistakes_of_a_file_are_told_at_once(place: Place) -> None:
    workers = {"gsrm": place.worker(port=0), "judge": place.worker(modle=1)}
    with pytest.raises(UsageError) as error:
        read_config(place.config(workers=workers, restarts="often"))
    assert len(str(error.value).splitlines()) == 3


def test_a_taken_port_is_named_with_the_process_that_has_it(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = place.start("--config", place.config(workers={"gsrm": place.worker(port=port)}))
        assert started.code() == 1
    assert f"workers.gsrm.port: {port} is taken by process {os.getpid()} (" in started.text
    assert "starting" not in started.text


def test_auto_passes_over_taken_and_given_ports(place: Place) -> None:
    start = checks.FIRST_AUTO_PORT
    given = next(port for port in range(start, 65536) if checks.is_free("127.0.0.1", port))
    workers = {"a": place.worker(port="auto", replicas=2), "b": place.worker(port=given)}
    ports, problems = checks.choose_ports(read_config(place.config(workers=workers)))
    assert not problems
    assert len({*ports["a"], given}) == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "workers.gsrm.model: there is no folder"),
        ("./empty", "workers.gsrm.model: './empty' has no config.json"),
        ("./adapter", "It is an adapter: name its base as model"),
        ("not a model", "'not a model' is neither a folder, nor a hub id"),
        ("nobody/nothing", "'nobody/nothing' is not in the hub's cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(place: Place, model: str, message: str) -> None:
    for name in ("empty", "adapter"):
        (place.folder / name).mkdir()
    (place.folder / "adapter" / "adapter_config.json").write_text("{}")
    _, problems = checks.resolve_models(read_config(place.config(workers={"gsrm": place.worker(model=model)})))
    assert message in problems[0]


def interpreter(folder: Path, **found: object) -> str:
    """A program that answers as an interpreter does whose environment has such a vLLM."""
    base: dict[str, object] = {"installed": True, "vllm": "0.30.0", "vllm_cpu": None, "plugins": []}
    path = folder / "python"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(base | found)}\nEND\n")
    path.chmod(0o755)
    (folder / "vllm").touch()
    return str(path)


@pytest.mark.parametrize(
    ("keys", "found", "message"),
    [
        ({}, {"installed": False, "vllm": None}, "vLLM is not installed for "),
        ({}, {}, "is not the CPU build. That takes an environment with vllm-cpu"),
        ({"gpus": [0]}, {"vllm": "0.30.0+cpu"}, "is the CPU build. That takes gpus: cpu"),
        (
            {"weight_transfer": "gloo"},
            {"vllm": "0.30.0+cpu"},
            "workers.gsrm.weight_transfer: gloo is rlkd's plugin for vLLM, and the environment of ",
        ),
    ],
)
def test_a_vllm_that_does_not_fit_is_named(
    place: Place, keys: dict[str, object], found: dict[str, object], message: str
) -> None:
    worker = place.worker(python=interpreter(place.folder, **found), **keys)
    _, problems = checks.check_vllm(read_config(place.config(command=None, workers={"gsrm": worker})))
    assert message in problems[0]


@pytest.mark.parametrize(
    ("found", "program"),
    [
        ({"vllm": "0.30.0+cpu", "vllm_cpu": "0.30.0"}, ["{folder}/vllm", "serve"]),
        (
            {"vllm": None, "vllm_cpu": "0.30.0"},
            ["{folder}/python", "-m", "vllm.entrypoints.openai.api_server", "--model"],
        ),
    ],
)
def test_the_cpu_build_is_started_by_its_module_where_its_command_cannot_work(
    place: Place, found: dict[str, object], program: list[str]
) -> None:
    worker = place.worker(python=interpreter(place.folder, **found))
    config = read_config(place.config(command=None, workers={"gsrm": worker}))
    vllms, problems = checks.check_vllm(config)
    assert not problems
    (server,) = make_servers(config, {}, vllms, {"gsrm": [8000]})
    assert list(server.command[: len(program)]) == [part.format(folder=place.folder) for part in program]


def test_an_interpreter_that_does_not_run_and_a_command_that_is_not_there_are_named(place: Place) -> None:
    workers = {
        "gsrm": place.worker(python="/nowhere/python"),
        "judge": place.worker(command="no-such-program --flag"),
    }
    _, problems = checks.check_vllm(read_config(place.config(command=None, workers=workers)))
    assert "the interpreter /nowhere/python does not run" in problems[0]
    assert "workers.judge.command: there is no program no-such-program" in problems[1]


@pytest.mark.parametrize("host", ["not.an.address.invalid", "203.0.113.7"])
def test_a_host_that_is_not_this_machine_is_named(place: Place, host: str) -> None:
    with pytest.raises(UsageError, match="host: "):
        checks.choose_ports(read_config(place.config(host=host, workers={"gsrm": place.worker()})))


# The rest


def test_the_state_of_a_config_is_its_own(place: Place) -> None:
    assert StateFile.of(Path("a/serve.yaml")).path != StateFile.of(Path("b/serve.yaml")).path
    assert StateFile.of(Path("serve.yaml")).path == StateFile.of(place.folder / "serve.yaml").path


def test_the_command_passes_the_trainer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    got = []
    monkeypatch.setattr(rlkd_cli, "_commands", lambda: {"serve": (lambda rest: got.append(rest) or 0, "")})
    rlkd_cli.main(["serve", "--config", "serve.yaml", "--", "accelerate", "launch", "--", "x"])
    assert got == [["--config", "serve.yaml", "--", "accelerate", "launch", "--", "x"]]


def test_the_command_is_an_entry_point(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["rlkd.commands"]["serve"] == f"{main.__module__}:{main.__name__}"


def test_the_supervisor_imports_no_model_library() -> None:
    code = "import sys, rlkd.serve.cli, rlkd.serve.supervisor, httpx\n"
    code += "print([m for m in ('torch', 'trl', 'transformers', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["serve.yaml", "serve_4gpu.yaml"])
def test_the_shipped_configs_are_right_and_open_with_their_command(root: Path, name: str) -> None:
    path = root / "recipes" / name
    assert f"rlkd serve --config recipes/{name}" in path.read_text().split("\n\n")[0]
    assert read_config(path).workers
