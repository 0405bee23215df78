"""The config of `rlkd serve`: its mistakes, the commands it becomes, and the checks of this machine."""

import json
import os
import shlex
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlkd import cli as rlkd_cli
from rlkd.errors import UsageError
from rlkd.serve import checks
from rlkd.serve import cli as serve_cli
from rlkd.serve.cli import _show_table, main
from rlkd.serve.commands import Server, addresses, make_servers
from rlkd.serve.config import read_config
from tests.helpers.ports import free_port
from tests.helpers.serving import Place, get, until

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


def test_printing_creates_no_model(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Path(os.environ["RLKD_CACHE"])
    workers = {name: place.worker(model=name, port="auto") for name in ("embedded-gsrm", "embedded", "lab-student")}
    config = place.config(workers={name.replace("-", "_"): worker for name, worker in workers.items()})
    assert main(["--config", str(config), "--print"]) == 0
    shown = capsys.readouterr()
    assert f"{cache}/embedded-gsrm-" in shown.out
    assert f"workers.embedded.model: embedded is not in {cache}/smollm2-135m-instruct-v1 yet" in shown.err
    assert "lab_student" not in shown.err  # part of the installation
    assert list(cache.rglob("*.safetensors")) == []


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
    assert "VLLM_CPU_KVCACHE_SPACE" not in server.environment  # the server inherits it


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


def test_replicas_of_a_rollout_worker_take_adapters_from_a_trainer(place: Place) -> None:
    rollout = place.worker(weight_transfer="gloo", max_lora_rank=12, replicas=2)
    for server in servers_of(place.config(workers={"rollout": rollout})):
        line = shlex.join(server.command)
        assert """--weight-transfer-config '{"backend": "gloo"}'""" in line
        assert "--enable-lora --max-lora-rank 16" in line
        assert server.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


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
    assert "there is no GPU 2; CUDA_VISIBLE_DEVICES=4,6 has 2" in checks.check_gpus(read_config(path))[0]


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


@pytest.mark.parametrize("extra", [["--port", "1"], ["--max_model_len=9"]])
def test_an_argument_that_another_key_sets_is_refused(place: Place, extra: list[str]) -> None:
    config = place.config(workers={"gsrm": place.worker(max_model_len=8, extra=extra)})
    with pytest.raises(UsageError, match=r"workers.gsrm.extra: '--(port|max_model_len=9)' is set by rlkd serve"):
        servers_of(config)


# Problems found before anything starts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": "x"}, "workers.gsrm.modle: unknown key. Did you mean 'model'?"),
        ({"trust_remote_code": True}, "workers.gsrm.trust_remote_code: unknown key."),
        ({"gpus": None}, "workers.gsrm.gpus: is missing; expected a list of GPU ids, such as [0, 1], or cpu"),
        ({"gpus": "0"}, "workers.gsrm.gpus: '0': expected a list of GPU ids, such as [0, 1], or cpu"),
        ({"gpus": 0}, "workers.gsrm.gpus: 0: expected a list of GPU ids"),
        ({"gpus": [0, 0]}, "workers.gsrm.gpus: 0 comes 2 times"),
        ({"gpus": [0, 1, 2], "replicas": 2}, "workers.gsrm.replicas: 2 replicas cannot share 3 GPUs evenly"),
        ({"gpus": [0, 1], "tensor_parallel": 4}, "tensor_parallel 4 x data_parallel 1 = 4 GPUs, but 2 GPUs / 1 repl"),
        ({"memory": 0.5}, "workers.gsrm.memory: is a share of a GPU. On the CPU"),
        ({"gpus": [0], "memory": 40}, "workers.gsrm.memory: 40: input should be less than or equal to 1"),
        ({"port": 70000}, "workers.gsrm.port: 70000: expected a number from 1 to 65535"),
        ({"port": "any"}, "workers.gsrm.port: 'any': expected a number from 1 to 65535, or auto"),
        ({"port": True}, "workers.gsrm.port: True: expected a number from 1 to 65535, or auto"),
        (
            {"weight_transfer": "glo"},
            "workers.gsrm.weight_transfer: 'glo': input should be 'nccl', 'ipc', 'gloo', 'disk', 'lora' or 'nccl_ada",
        ),
        ({"weight_transfer": "lora"}, "workers.gsrm.max_lora_rank: weight_transfer lora needs the rank"),
        (
            {"gpus": [0, 1], "replicas": 2, "weight_transfer": "nccl"},
            "weight_transfer: a trainer sends its weights to one server, not to 2. For several copies of the model "
            "behind one address, set  data_parallel: 2",
        ),
        (
            {"gpus": [0, 1], "data_parallel": 2, "weight_transfer": "lora", "max_lora_rank": 8},
            "weight_transfer: lora loads an adapter into one of the 2 API servers of data_parallel",
        ),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "1"}}, "environment: CUDA_VISIBLE_DEVICES is set by the key gpus"),
        ({"served_model_name": "a#b"}, "served_model_name: 'a#b': expected a name without spaces"),
        ({"replicas": 0}, "workers.gsrm.replicas: 0: input should be greater than 0"),
        ({"start_timeout": -1}, "workers.gsrm.start_timeout: -1: input should be greater than 0"),
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
        ("workers: [", "is not a YAML file"),
        ("workers:\n  a: {model: m, gpus: cpu}\n  a: {model: n, gpus: cpu}", "the key 'a' comes twice"),
        ("workers:\n  Big-Judge: {model: m, gpus: cpu}", "workers.Big-Judge: a role consists of a-z, 0-9 and _"),
        ("workers:\n  trainer: {model: m, gpus: cpu}", "workers.trainer: is the name of the command after --"),
        ("workers:\n  a:", "workers.a: None: expected keys, at least model and gpus"),
        ("workers:\n  a: {model: m, gpus: cpu}\nrestart: 3", "restart: unknown key. Did you mean 'restarts'?"),
        (
            "workers:\n  a: {model: m, gpus: cpu}\nstop_timeout: .nan",
            "stop_timeout: nan: input should be a finite number",
        ),
        ("workers:\n  a: {gpus: cpu}", "workers.a.model: is missing"),
        (
            "workers:\n  a: {model: m, gpus: cpu, port: 8001}\n  b: {model: m, gpus: cpu, port: 8000, replicas: 2}",
            "workers.b.port: 8001 is used twice, by a and b",
        ),
        (
            "workers:\n  a: {model: m, gpus: [0, 1], memory: 0.5}\n  b: {model: m, gpus: [1]}",
            "memory: the shares of GPU 1 exceed 1: 0.5 (a) + 0.9 (b, the default) = 1.4",
        ),
        (
            "workers:\n  a: {model: m, gpus: [0], memory: 0.5, replicas: 3}",
            "memory: the shares of GPU 0 exceed 1: 0.5 (a) + 0.5 (a) + 0.5 (a) = 1.5",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(place: Place, text: str, message: str) -> None:
    path = place.folder / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_config(path)
    assert message in str(error.value)


def test_all_mistakes_of_a_file_are_reported_at_once(place: Place) -> None:
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
        ("./adapter", "It is an adapter: set its base as model"),
        ("not a model", "'not a model' is neither a folder, nor a hub id"),
    ],
)
def test_a_model_that_is_not_there_is_named(place: Place, model: str, message: str) -> None:
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
        ({}, {}, "is not the CPU build, which needs an environment with vllm-cpu"),
        ({"gpus": [0]}, {"vllm": "0.30.0+cpu"}, "is the CPU build, which needs gpus: cpu"),
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


def test_the_command_passes_the_trainer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    got = []
    monkeypatch.setattr(serve_cli, "main", lambda rest: got.append(list(rest)) or 0)
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
