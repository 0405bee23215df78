"""kubernetes.yaml against compose.yaml, the launcher and the recipe: nothing here runs on a cluster."""

import re
from typing import Any

import pytest
import yaml

from rlkd.serve.vllm_command import vllm_arguments, vllm_environment
from tests.helpers import ROOT

DOCKER = ROOT / "docker"
TEXT = (DOCKER / "kubernetes.yaml").read_text()
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    (found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(TEXT)
}
JOB = OBJECTS["Job", "rlkd-trainer"]["spec"]
TEMPLATES = {name: found["spec"]["template"] for (_, name), found in OBJECTS.items() if "template" in found["spec"]}
PODS = {name: template["spec"] for name, template in TEMPLATES.items()}
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]


def words(pod: str) -> list[str]:
    """The words of a pod's command, --name=value as two."""
    given = PODS[pod]["containers"][0]["command"]
    return [part for word in given for part in (word.split("=", 1) if word.startswith("--") else [word])]


def variables(pod: str) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in PODS[pod]["containers"][0]["env"]}


def composed(service: str, weight_transfer: str = "gloo") -> list[str]:
    """The words of compose.yaml for a service, with its defaults and weights sent by gloo."""
    given = [re.sub(r"\$\{WEIGHT_TRANSFER:-\w+\}", weight_transfer, word) for word in COMPOSE[service]["command"]]
    plain = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in given]
    return [part for word in plain for part in (word.split("=", 1) if word.startswith("--") else [word])]


@pytest.mark.parametrize("name", ["rollout", "gsrm"])
def test_a_server_is_that_of_compose(name: str) -> None:
    assert words(name) == composed(name)
    [container] = PODS[name]["containers"]
    assert container["image"] == COMPOSE[name]["image"] == "rlkd:gpu"
    assert set(COMPOSE[name]["environment"]) == set(variables(name))


def test_the_rollout_server_takes_weights_by_gloo_as_rlkd_serve_would_start_it() -> None:
    settings = {"on_cpu": False, "weight_transfer": "gloo"}
    expected = vllm_arguments(host="0.0.0.0", port=8000, max_model_len=4096, scale_out=True, **settings)
    assert words("rollout") == ["vllm", "serve", "Qwen/Qwen2.5-1.5B-Instruct", *expected]
    assert vllm_environment(**settings).items() <= variables("rollout").items()


def test_a_service_finds_its_pods_and_their_ports() -> None:
    services = {name: found["spec"] for (kind, name), found in OBJECTS.items() if kind == "Service"}
    assert services.keys() == PODS.keys()
    for name, service in services.items():
        assert service["selector"].items() <= TEMPLATES[name]["metadata"]["labels"].items()
        others = [other for other in TEMPLATES if other != name]
        assert not any(
            service["selector"].items() <= TEMPLATES[other]["metadata"]["labels"].items() for other in others
        )
        [port] = PODS[name]["containers"][0]["ports"]
        assert service["ports"][0]["port"] == port["containerPort"]
        assert service["ports"][0].get("targetPort", port["containerPort"]) in (port["name"], port["containerPort"])
        if name != "rlkd-trainer":
            assert words(name)[words(name).index("--port") + 1] == str(port["containerPort"])
            probe = PODS[name]["containers"][0]["startupProbe"]
            assert probe["httpGet"] == {"path": "/health", "port": port["name"]}
            assert probe["periodSeconds"] * probe["failureThreshold"] == 3600
            assert OBJECTS["Deployment", name]["spec"]["selector"]["matchLabels"] == service["selector"]


def test_only_pods_of_the_run_reach_the_servers() -> None:
    policy = OBJECTS["NetworkPolicy", "rlkd"]["spec"]
    everyone = policy["podSelector"]["matchLabels"]
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": everyone}}]}]
    assert all(everyone.items() <= template["metadata"]["labels"].items() for template in TEMPLATES.values())


def test_the_trainer_asks_these_servers_and_waits_for_them() -> None:
    trainer = variables("rlkd-trainer")
    expected = {name: value for name, value in COMPOSE["trainer"]["environment"].items() if name != "HF_TOKEN"}
    assert expected.items() <= trainer.items()
    assert re.findall(r"http://([\w-]+):", " ".join(expected.values())) == ["rollout", "gsrm"]
    [waiting] = PODS["rlkd-trainer"]["initContainers"]
    assert "('rollout', 'gsrm')" in waiting["command"][-1]
    compile(waiting["command"][-1].split('"')[1], "wait", "exec")


def test_the_launcher_starts_a_process_per_gpu_on_pods_that_find_the_first_one() -> None:
    from accelerate.commands.launch import launch_command_parser

    found = words("rlkd-trainer")
    assert found[:2] == ["accelerate", "launch"]
    script = found.index("recipes/rlkd.py")
    given = set(re.findall(r"--\w+", (DOCKER / "slurm_node.sh").read_text()))
    assert {word for word in found[:script] if word.startswith("--")} == given
    for rank in range(JOB["completions"]):
        arguments = [word.replace("$(POD_INDEX)", str(rank)) for word in found[2:]]
        args = launch_command_parser().parse_args(arguments)
        assert (args.machine_rank, args.num_machines) == (rank, JOB["completions"])
        assert JOB["parallelism"] == args.num_machines
        gpus = PODS["rlkd-trainer"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
        assert args.num_processes == gpus * args.num_machines
        pod = PODS["rlkd-trainer"]
        assert args.main_process_ip == f"rlkd-trainer-0.{pod['subdomain']}"
        service = OBJECTS["Service", pod["subdomain"]]["spec"]
        assert service["clusterIP"] == "None"
        assert service["ports"][0]["port"] == args.main_process_port
        assert args.training_script_args == found[script + 1 :]
    assert JOB["completionMode"] == "Indexed"


def test_the_recipe_takes_the_arguments_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import ModelConfig

    from recipes.rlkd import RLKDScriptArguments
    from trainers import RLKDConfig
    from trainers.common.arguments import parse

    for name, value in variables("rlkd-trainer").items():
        monkeypatch.setenv(name, value or "")
    found = words("rlkd-trainer")
    arguments = found[found.index("recipes/rlkd.py") + 1 :]
    assert arguments == [
        "/config/rlkd.yaml" if word == "docker/rlkd.yaml" else word
        for word in composed("trainer")[composed("trainer").index("recipes/rlkd.py") + 1 :]
    ]
    [mount] = [each for each in PODS["rlkd-trainer"]["containers"][0]["volumeMounts"] if each["name"] == "config"]
    assert arguments[1] == f"{mount['mountPath']}/rlkd.yaml"
    arguments[1] = str(DOCKER / "rlkd.yaml")
    kinds = (RLKDScriptArguments, RLKDConfig, ModelConfig)
    arguments += ["--bf16", "false", "--use_cpu", "true"]
    _, args, model = parse(arguments, kinds, default_config=ROOT / "recipes" / "rlkd.yaml")[:3]
    assert args.vllm_weight_transfer == "gloo"
    assert args.vllm_server_base_url == "http://rollout:8000"
    assert model.model_name_or_path == words("rollout")[2]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_not_root_and_has_its_volumes_and_a_gpu(name: str) -> None:
    pod = PODS[name]
    (user,) = re.findall(r"^USER (\d+)$", (DOCKER / "Dockerfile.gpu").read_text(), re.MULTILINE)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert {security["runAsUser"], security["runAsGroup"], security["fsGroup"]} == {int(user)}
    volumes = {each["name"]: each for each in pod["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    claims = {path: each["persistentVolumeClaim"] for path, each in mounts.items() if "persistentVolumeClaim" in each}
    assert claims["/cache"] == {"claimName": "rlkd-cache"}
    assert all(("PersistentVolumeClaim", claim["claimName"]) in OBJECTS for claim in claims.values())
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    for each in volumes.values():
        if "configMap" in each:
            assert f"kubectl create configmap {each['configMap']['name']} --from-file=docker/rlkd.yaml" in TEXT
