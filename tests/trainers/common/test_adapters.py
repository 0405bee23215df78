"""The folder of an adapter where a model is named, and the base that saved adapters name."""

import json
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.tiny import training_arguments
from rlkd.engines import Sampling, open_engine, run
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED, EMBEDDED_HUB_ID, base_of_adapter, resolve_model
from trainers import RLKDConfig, RLKDTrainer, RunSFTTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.common.adapters import name_base, open_student

LORA = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
ASK = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def adapter(template_model, tmp_path_factory):
    """A LoRA adapter with weights on `chatml`, as a fine-tuning leaves it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(template_model("chatml")), LoraConfig(**LORA))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(folder)
    AutoTokenizer.from_pretrained(template_model("chatml")).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7]])).logits


def wrapped(folder, base):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()


def test_an_adapter_is_merged_where_a_model_is_named(adapter, template_model) -> None:
    merged = resolve_model(str(adapter))
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(logits(model), logits(wrapped(adapter, template_model("chatml"))), atol=1e-5)
    assert not torch.allclose(logits(model), logits(AutoModelForCausalLM.from_pretrained(template_model("chatml"))))
    assert AutoTokenizer.from_pretrained(merged).chat_template
    assert resolve_model(str(adapter)) == merged


def test_an_engine_answers_with_the_merged_model(adapter, template_model) -> None:
    sampling = Sampling(max_new_tokens=4)
    first, second = (
        run(open_engine(spec).generate([ASK], sampling))[0]
        for spec in (f"transformers:{adapter}", f"transformers:{template_model('chatml')}?adapter={adapter}")
    )
    assert first.text == second.text


@pytest.mark.parametrize("use_peft", [True, False])
@pytest.mark.parametrize("kind", ["rlkd", "kd", "sft"])
def test_the_next_stage_trains_it_further_or_all_weights(adapter, template_model, tmp_path, kind, use_peft) -> None:
    start = wrapped(adapter, template_model("chatml"))
    peft_config = LoraConfig(**LORA | {"r": 4}) if use_peft else None
    rows = [{"prompt": ASK, "answer": "2", "rationales": ["2"], "id": str(i)} for i in range(4)]
    values = training_arguments(tmp_path / "run", per_device_train_batch_size=4, max_steps=1)
    common = {"train_dataset": Dataset.from_list(rows), "peft_config": peft_config}
    if kind == "rlkd":
        args = RLKDConfig(**values, num_generations=4, max_completion_length=4)
        trainer = RLKDTrainer(str(adapter), reward_funcs="accuracy", args=args, **common)
    elif kind == "kd":
        args = ValidityKDConfig(**values, teacher=str(adapter), lmbda=0.0, max_completion_length=4)
        trainer = ValidityKDTrainer(str(adapter), args=args, **common)
    else:
        from trl import SFTConfig

        reply = [{"role": "assistant", "content": "2"}]
        common["train_dataset"] = Dataset.from_list([{"prompt": ASK, "completion": reply}] * 4)
        trainer = RunSFTTrainer(str(adapter), SFTConfig(**values), **common)
    trainer.model.eval()
    assert torch.allclose(logits(trainer.model), logits(start), atol=1e-4)
    trainer.train()
    trainer.save_final()
    saved = tmp_path / "run" / "adapter_config.json"
    assert saved.exists() is use_peft
    if use_peft:
        config = json.loads(saved.read_text())
        assert (config["base_model_name_or_path"], config["r"]) == (template_model("chatml"), 2)
        assert str(tmp_path / "cache") not in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize("use_peft", [True, False])
def test_a_base_of_ones_own_code_loads_where_the_config_trusts_it(
    adapter, template_model, monkeypatch, use_peft
) -> None:
    asked = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda name, **options: (asked.append(options["trust_remote_code"]), load(name, **options))[1],
    )
    args = SimpleNamespace(model_init_kwargs=None, trust_remote_code=True)
    open_student(str(adapter), args, LoraConfig(**LORA) if use_peft else None)
    assert asked == [True]


def test_saved_adapters_name_the_base_as_the_user_did() -> None:
    config = LoraConfig(base_model_name_or_path="/home/me/.cache/rlkd/embedded-1234")
    trained = SimpleNamespace(peft_config={"default": config})
    for given, named in (
        ("embedded-warm", "embedded-warm"),
        (EMBEDDED, EMBEDDED_HUB_ID),
        ("org/model", "org/model"),
        ("/home/me/.cache/huggingface/hub/models--org--model/snapshots/1a2b", "org/model"),
    ):
        name_base(trained, given)
        assert config.base_model_name_or_path == named
    name_base(object(), "org/model")


def test_an_adapter_on_top_of_a_merged_one_names_it_and_is_a_model_too(adapter, template_model, tmp_path) -> None:
    config = LoraConfig(base_model_name_or_path="cache")
    name_base(SimpleNamespace(peft_config={"default": config}), str(adapter), on_top=True)
    assert config.base_model_name_or_path == str(adapter)
    merged = AutoModelForCausalLM.from_pretrained(resolve_model(str(adapter)))
    second = get_peft_model(merged, LoraConfig(**LORA))
    torch.nn.init.normal_(next(p for name, p in second.named_parameters() if "lora_B" in name), std=0.2)
    name_base(second, str(adapter), on_top=True)
    second.save_pretrained(tmp_path / "second")
    found = AutoModelForCausalLM.from_pretrained(resolve_model(str(tmp_path / "second")))
    assert torch.allclose(logits(found), logits(second.eval()), atol=1e-5)


def test_the_embedded_model_is_found_by_its_name_on_the_hub(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": EMBEDDED_HUB_ID}))
    assert base_of_adapter(tmp_path) == EMBEDDED


def test_an_adapter_without_a_base_and_one_that_does_not_merge_are_refused(tmp_path, template_model) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="names no base model"):
        resolve_model(str(tmp_path))
    base = template_model("chatml")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UsageError, match="cannot be merged into its base"):
        resolve_model(str(tmp_path))
