"""Training with sharded weights is training with whole ones: FSDP2 and DeepSpeed ZeRO stage 3, in two processes."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.two_processes import CONFIGS, environment_of
from rlkd.errors import UsageError
from tests.helpers.sharded import save_other_weights, train, train_in_two_processes, with_keys
from tests.helpers.tiny_configs import tiny_config, tiny_model_of
from trainers.common.run_files import read_steps
from trainers.common.sharding import check_sharding, refuse_sharded, sharding_of, within

WHOLE = {"per_device_train_batch_size": 8, "use_cpu": True}
SHARDED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SHORT = {"kd": {"trainer": "kd"}, "rlkd": {"trainer": "rlkd"}}
LONG = {
    "kd-lora": {"trainer": "kd", "lora": True},
    "kd-tied": {"trainer": "kd", "model": "tied"},
    "kd-other": {"trainer": "kd", "teacher": "other"},
    "kd-self": {"trainer": "kd", "lora": True, "teacher": "self", "settings": {"teacher_context": "answer"}},
    "rlkd-lora": {"trainer": "rlkd", "lora": True},
    "rlkd-tied": {"trainer": "rlkd", "model": "tied"},
}
KEYS = {"loss", "grad_norm", "entropy", "reward", "teacher_kl/mean", "kd_weight/mean", "traces/tau"}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install rlkd[deepspeed]"
)
zero3 = pytest.param("zero3", marks=[pytest.mark.slow, pytest.mark.nightly, needs_deepspeed])


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> dict[str, str]:
    """Folders of a student, of one whose head is its embedding, of a teacher, and of one with other layers."""
    from benchmarks.tiny import save_llama

    teacher = save_other_weights(tiny_model, tmp_path_factory.mktemp("teacher"))
    tied = save_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)
    other = tmp_path_factory.mktemp("other")
    tiny_model_of(tiny_config("qwen2", vocab_size=AutoConfig.from_pretrained(tiny_model).vocab_size)).save_pretrained(
        other
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(other)
    return {"student": tiny_model, "tied": tied, "teacher": teacher, "other": str(other)}


def jobs_of(cases: dict[str, Any], models: dict[str, str], folder: Path, settings: dict[str, Any]) -> list[dict]:
    jobs = []
    for name, case in cases.items():
        job = {"model": "student", "teacher": "teacher", **case, "folder": str(folder / name)}
        job |= {key: models.get(job[key], job[key]) for key in ("model", "teacher")}
        jobs.append(job | {"settings": {**settings, **case.get("settings", {})}})
    return jobs


def config_of(kind: str, folder: Path) -> Path:
    return with_keys(f"{kind}.yaml", folder)


def shares_held(kind: str, cases: dict[str, Any], models: dict[str, str], tmp_path: Path) -> list[float]:
    """Train each case in one process with whole weights and in two with sharded ones, to the same losses and weights.

    Returns the share of the parameters that each process held.
    """
    shares: list[float] = []
    for job in jobs_of(cases, models, tmp_path / "whole", WHOLE):
        train(**job)
    train_in_two_processes(config_of(kind, tmp_path), jobs_of(cases, models, tmp_path, SHARDED), tmp_path)
    for name in cases:
        one, two = tmp_path / "whole" / name, tmp_path / name
        entries = [[e for e in read_steps(folder / "metrics.jsonl") if "loss" in e] for folder in (one, two)]
        assert len(entries[0]) == len(entries[1]) == 3
        for expected, found in zip(*entries, strict=True):
            assert expected["grad_norm"] > 1e-3
            for key in KEYS & expected.keys():
                assert found[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-7), (name, key)
        for path in one.glob("*.safetensors"):
            weights, expected_weights = load_file(two / path.name), load_file(path)
            assert weights.keys() - expected_weights.keys() <= {"lm_head.weight"}  # a tied one is saved twice
            for key, expected in expected_weights.items():
                assert torch.allclose(weights[key], expected, rtol=1e-5, atol=1e-6), (name, key)
        share = json.loads((two / "share.json").read_text())
        shares += [held / share["whole"] for held in share["held"]]
    return shares


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", zero3])
def test_sharded_weights_train_as_whole_ones(kind, models, tmp_path) -> None:
    shares = shares_held(kind, SHORT, models, tmp_path)
    assert len(shares) == 2 * len(SHORT)
    assert max(shares) < 0.55


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fsdp2", zero3])
def test_sharded_adapters_and_tied_heads_train_as_whole_ones(kind, models, tmp_path) -> None:
    shares = shares_held(kind, LONG, models, tmp_path)
    assert len(shares) == 2 * len(LONG)
    assert max(shares) < 0.55


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fsdp2", zero3])
@pytest.mark.parametrize("lora", [False, True])
def test_a_sharded_run_resumes_to_the_weights_of_an_undisturbed_one(kind, lora, models, tmp_path) -> None:
    settings = {**SHARDED, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch"}
    settings |= {"learning_rate": 1e-3}
    cases = {name: {**case, "lora": lora} for name, case in SHORT.items()}
    config = config_of(kind, tmp_path)
    jobs = jobs_of(cases, models, tmp_path, settings)
    train_in_two_processes(config, jobs, tmp_path)
    before = {}
    for name in cases:
        [weights] = (tmp_path / name).glob("*model.safetensors")
        before[name] = load_file(weights), read_steps(tmp_path / name / "metrics.jsonl")[-1]
        shutil.rmtree(tmp_path / name / "checkpoint-4")
        weights.unlink()
    train_in_two_processes(config, [{**job, "resume": True} for job in jobs], tmp_path)
    for name, (expected, metrics) in before.items():
        [weights] = (tmp_path / name).glob("*model.safetensors")
        found = load_file(weights)
        assert found.keys() == expected.keys()
        for key, weight in found.items():
            assert torch.allclose(weight, expected[key], rtol=1e-6, atol=1e-8), (name, key)
        assert read_steps(tmp_path / name / "metrics.jsonl")[-1]["loss"] == pytest.approx(metrics["loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fsdp2", zero3])
def test_sharded_students_write(kind, models, tmp_path) -> None:
    """Rollouts, and a model that transformers loads."""
    short = {"max_steps": 2, "max_completion_length": 12}
    cases = {
        "rlkd": {"trainer": "rlkd", "settings": {**short, "generate": True}},
        "kd": {"trainer": "kd", "settings": {**short, "lmbda": 1.0}},
    }
    train_in_two_processes(config_of(kind, tmp_path), jobs_of(cases, models, tmp_path, SHARDED), tmp_path)
    for name in cases:
        assert len(read_steps(tmp_path / name / "rollouts" / "rank1.jsonl")) == 8, name
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        trained = dict(AutoModelForCausalLM.from_pretrained(models["student"]).named_parameters())
        assert any(not torch.equal(weight, trained[key]) for key, weight in loaded.named_parameters())


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["fsdp2", zero3])
def test_adapters_on_sharded_weights_in_4_bit_train_as_on_whole_ones(kind, models, tmp_path) -> None:
    """The adapter is in bfloat16, as TRL has it on quantised weights, and so are its gradients."""
    pytest.importorskip("bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "float32"}
    case = {"4-bit": {"trainer": "kd", "lora": True, "settings": {"model_init_kwargs": four}}}
    [job] = jobs_of(case, models, tmp_path / "whole", WHOLE)
    expected = train(**job)
    train_in_two_processes(config_of(kind, tmp_path), jobs_of(case, models, tmp_path, SHARDED), tmp_path)
    found = [entry for entry in read_steps(tmp_path / "4-bit" / "metrics.jsonl") if "loss" in entry]
    assert len(found) == len(expected) == 3
    for one, two in zip(expected, found, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=0.02)
    name = "adapter_model.safetensors"
    whole, sharded = (load_file(folder / "4-bit" / name) for folder in (tmp_path / "whole", tmp_path))
    assert whole.keys() == sharded.keys()
    for key in (key for key in whole if "lora_B" in key):  # zero before the first step
        assert (sharded[key] - whole[key]).norm() < 0.02 * whole[key].norm(), key
    share = json.loads((tmp_path / "4-bit" / "share.json").read_text())
    assert max(share["held"]) < 0.55 * share["whole"]


def arguments(**values: Any) -> Any:
    return SimpleNamespace(
        **{"fsdp": None, "deepspeed_plugin": None, "fast_path": "auto", "kernel": "chunked"} | values
    )


def test_the_files_for_accelerate_say_what_their_names_promise(monkeypatch) -> None:
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True, raising=False)
    found = {path.stem: environment_of(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    assert sorted(found) == ["ddp", "fsdp2", "multi_node", "zero3"]
    assert {name for name, told in found.items() if told.get("ACCELERATE_USE_FSDP") == "true"} == {
        "fsdp2",
        "multi_node",
    }
    assert all(found[name]["FSDP_VERSION"] == "2" for name in ("fsdp2", "multi_node"))
    assert found["zero3"]["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert {told["ACCELERATE_MIXED_PRECISION"] for told in found.values()} == {"no"}  # left to the run's config


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1 .*fsdp_version: 2"),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"},
            "parallelism_config_cp_size 2: .*context parallelism",
        ),
        (
            {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_SP_SIZE": "4"},
            "parallelism_config_sp_size 4: .*sequence parallelism",
        ),
    ],
)
def test_what_the_losses_are_not_ready_for_is_refused(monkeypatch, environment, message) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match=message):
        check_sharding(arguments())


def test_a_loss_that_does_not_read_the_head_may_run_under_the_first_fsdp(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_sharding(arguments(), reads_head=False)
    with pytest.raises(UsageError, match=r"vllm_adapter_sync with FSDP version 1.* Set fsdp_version: 2"):
        check_sharding(arguments(vllm_adapter_sync=True), reads_head=False)
    with pytest.raises(UsageError, match="fast_path: always with FSDP1"):
        check_sharding(arguments(fast_path="always"), reads_head=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fast_path": "always"}, "fast_path: always with FSDP2"),
        ({"kernel": "trl"}, "kernel: trl with FSDP2: .*kernel: chunked"),
    ],
)
def test_settings_that_need_whole_layers_are_refused_with_sharded_ones(monkeypatch, changes, message) -> None:
    check_sharding(arguments(**changes))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_sharding(arguments())
    with pytest.raises(UsageError, match=message):
        check_sharding(arguments(**changes))


def test_zero_stages_one_and_two_leave_the_weights_whole() -> None:
    stages = {stage: sharding_of(arguments(deepspeed_plugin=SimpleNamespace(zero_stage=stage))) for stage in (1, 2, 3)}
    assert stages == {1: None, 2: None, 3: "zero3"}
    refuse_sharded(arguments(), "a teacher in 4 bit", "Serve it")
    with pytest.raises(UsageError, match=r"a teacher in 4 bit with DeepSpeed ZeRO stage 3: .* Serve it"):
        refuse_sharded(arguments(deepspeed_plugin=SimpleNamespace(zero_stage=3)), "a teacher in 4 bit", "Serve it")


def test_a_computation_within_a_layer_runs_between_its_hooks_and_leaves_no_trace() -> None:
    layer, seen = torch.nn.Linear(3, 2), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    hidden = torch.ones(1, 3)
    found = within(layer, lambda states: (seen.append("within"), states @ layer.weight.T)[1], hidden)
    assert seen == ["before", "within", "after"]
    assert torch.equal(found, hidden @ layer.weight.T)
    with torch.no_grad():
        assert within(layer, lambda: {"any": "type"}) == {"any": "type"}
    with pytest.raises(RuntimeError, match="no luck"):
        within(layer, lambda: (_ for _ in ()).throw(RuntimeError("no luck")))
    assert "forward" not in vars(layer)
    assert torch.equal(layer(hidden), hidden @ layer.weight.T + layer.bias)
