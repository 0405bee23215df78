"""Models that are not there, or that cannot be loaded as the config asks: named before any weights load."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import BitsAndBytesConfig

from rlkd.errors import UsageError
from trainers.common import models
from trainers.common.models import check_model, check_student, loading_options


def settings(**changes):
    return SimpleNamespace(**{"model_init_kwargs": None, "use_vllm": False, "trust_remote_code": False} | changes)


@pytest.fixture
def with_bitsandbytes(monkeypatch):
    monkeypatch.setattr(models, "check_bitsandbytes", lambda key: None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "runs/there/is/none",
            "model_name_or_path 'runs/there/is/none' cannot be read: there is no folder .*/runs/there",
        ),
        ("./none", "there is no folder"),
        ("~/there-is-none", "there is no folder"),
        ("some/model-of-nobody", "'some/model-of-nobody' cannot be read: .*Name a folder .*reachable hub id"),
        ("nobody", "'nobody' cannot be read: .*embedded-warm"),
    ],
)
def test_a_model_that_is_not_there_is_named_in_one_sentence(name, message) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_model(name, "model_name_or_path")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_and_one_of_an_unknown_kind_are_named(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: .*config\.json"):
        check_model(str(tmp_path), "reward_funcs")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobodys"}))
    with pytest.raises(UsageError, match="nobodys"):
        check_model(str(tmp_path), "reward_funcs")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError, match="and no weights"):
        check_model(str(tmp_path), "reward_funcs")


def test_models_adapters_and_loaded_models_pass(tiny_model, tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": tiny_model}))
    shutil.copy(f"{tiny_model}/model.safetensors", tmp_path / "adapter_model.safetensors")
    for model in (tiny_model, str(tmp_path), object()):
        assert check_model(model, "model_name_or_path") is None


def test_an_adapter_whose_base_is_not_there_is_named_with_its_base(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/no/such/base"}))
    with pytest.raises(
        UsageError, match=rf"x '{tmp_path}' is an adapter, and its base '/no/such/base' cannot be read"
    ):
        check_model(str(tmp_path), "x")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="names no base model"):
        check_model(str(tmp_path), "x")


@pytest.mark.parametrize(
    "given",
    [
        {"load_in_4bit": True},
        {"load_in_8bit": True},
        {"quantization_config": {"load_in_4bit": True}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
)
def test_four_and_eight_bit_need_bitsandbytes(monkeypatch, given) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"teacher_model_init_kwargs: .* pip install bitsandbytes"):
        loading_options(given, "teacher_model_init_kwargs")


def test_short_keys_become_a_quantization_config(with_bitsandbytes) -> None:
    found = loading_options({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "dtype": "bfloat16"}, "x")
    assert found["dtype"] == "bfloat16"
    quantised = found["quantization_config"]
    assert set(found) == {"dtype", "quantization_config"}
    assert (quantised["load_in_4bit"], quantised["bnb_4bit_quant_type"]) == (True, "nf4")
    assert quantised["bnb_4bit_compute_dtype"] == "bfloat16"
    json.dumps(found)


def test_what_is_not_quantised_stays_as_it_is() -> None:
    assert loading_options({"load_in_4bit": False, "dtype": "auto"}, "x") == {"dtype": "auto"}
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert loading_options(gptq, "x") == gptq


def test_two_forms_of_quantisation_at_once_are_refused(with_bitsandbytes) -> None:
    with pytest.raises(UsageError, match="leave one of them out"):
        loading_options({"load_in_4bit": True, "quantization_config": {"load_in_8bit": True}}, "model_init_kwargs")


@pytest.mark.parametrize(
    ("changes", "adapter", "message"),
    [
        (
            {"model_init_kwargs": {"load_in_4bit": True}},
            None,
            "cannot be trained without an adapter. Set use_peft: true",
        ),
        ({"model_init_kwargs": {"quantization_config": {"load_in_8bit": True}}}, None, "Set use_peft: true"),
        ({"model_init_kwargs": {"load_in_4bit": True}, "use_vllm": True}, "lora", "in 4 or 8 bit with use_vllm"),
        ({"use_vllm": True}, "prompt", "virtual tokens do not merge"),
    ],
)
def test_a_student_that_cannot_be_trained_or_sent_is_refused(
    tiny_model, with_bitsandbytes, changes, adapter, message
) -> None:
    config = None if adapter is None else SimpleNamespace(is_prompt_learning=adapter == "prompt")
    with pytest.raises(UsageError, match=message):
        check_student(settings(**changes), tiny_model, config)


def test_a_quantised_student_with_an_adapter_passes_in_the_form_that_loads(tiny_model, with_bitsandbytes) -> None:
    args = settings(model_init_kwargs={"load_in_4bit": True})
    check_student(args, tiny_model, SimpleNamespace(is_prompt_learning=False))
    assert args.model_init_kwargs["quantization_config"]["load_in_4bit"] is True
    check_student(settings(), SimpleNamespace(is_quantized=True, peft_config={"default": 1}))
    with pytest.raises(UsageError, match="without an adapter"):
        check_student(settings(), SimpleNamespace(is_quantized=True))


def test_weights_that_are_not_whole_are_named_before_they_load(tiny_model, tmp_path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "model")}))
    with pytest.raises(UsageError, match=r"is a damaged adapter: .* has a config and no weights"):
        check_model(str(tmp_path / "adapter"), "teacher")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    for name in ("model", "adapter"):
        with pytest.raises(UsageError, match=r"model\.safetensors is truncated: .* bytes.*hf download"):
            check_model(str(tmp_path / name), "teacher")


def test_a_student_in_8_bit_is_not_sharded(tiny_model, tmp_path, with_bitsandbytes, monkeypatch) -> None:
    adapter = SimpleNamespace(is_prompt_learning=False)
    eight = {"model_init_kwargs": {"load_in_8bit": True}, "fsdp": None, "deepspeed_plugin": None}
    check_student(settings(**eight), tiny_model, adapter)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    config = BitsAndBytesConfig(load_in_8bit=True)
    stored = tmp_path / "model"
    shutil.copytree(tiny_model, stored)
    facts = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**facts, "quantization_config": config.to_dict()}))
    loaded = SimpleNamespace(
        is_quantized=True, peft_config={"default": 1}, config=SimpleNamespace(quantization_config=config)
    )
    plain = {**eight, "model_init_kwargs": None}
    for changes, model in (
        (eight, tiny_model),
        ({**eight, "model_init_kwargs": {"quantization_config": config}}, tiny_model),
        (plain, str(stored)),
        (plain, loaded),
    ):
        with pytest.raises(UsageError, match=r"a student in 8 bit with FSDP2: .* Set load_in_4bit"):
            check_student(settings(**changes), model, adapter)
    check_student(settings(**plain), tiny_model, adapter)
