"""Merged adapters: the same function, faster, and every bit of the weights as before."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config

from trainers.common.decoding_weights import decoding_weights, is_faster_by_columns, layouts, use_layouts


def adapted(base, **settings):
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings))
    return model.eval()


@pytest.fixture
def base(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "dora"])
def test_a_merged_model_computes_the_same_and_is_restored_bit_for_bit(base, kind) -> None:
    if kind == "gpt2":  # whose matrices are transposed
        config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
        model = adapted(AutoModelForCausalLM.from_config(config), target_modules=["c_attn"], fan_in_fan_out=True)
    else:
        model = adapted(base, target_modules="all-linear", use_dora=kind == "dora")
    ids = torch.arange(10)[None]
    before, expected = weights(model), model(input_ids=ids).logits
    with decoding_weights(model):
        changed = [name for name, value in weights(model).items() if not torch.equal(value, before[name])]
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert len(changed) == {"llama": 14, "gpt2": 2, "dora": 0}[kind]
    after = weights(model)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("kind", ["half precision", "a bias of its own"])
def test_an_adapter_that_would_lose_something_is_not_merged(base, kind) -> None:
    if kind == "half precision":
        model = adapted(base.to(torch.bfloat16), target_modules="all-linear")
    else:
        model = adapted(base, target_modules="all-linear", lora_bias=True)  # for layers without one
    before = weights(model)
    with decoding_weights(model):
        assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_gradients_flow_to_the_adapter_afterwards(base) -> None:
    model = adapted(base, target_modules="all-linear")
    with decoding_weights(model), torch.no_grad():
        model(input_ids=torch.arange(10)[None])
    model(input_ids=torch.arange(10)[None]).logits.sum().backward()
    assert all(value.grad is not None for name, value in model.named_parameters() if "lora_B" in name)


def test_an_error_restores_the_weights_too(base) -> None:
    model = adapted(base, target_modules="all-linear")
    before = weights(model)
    with pytest.raises(RuntimeError), decoding_weights(model):
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_an_error_while_merging_restores_all(base) -> None:
    model = adapted(base, target_modules="all-linear")
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    layer.lora_A["second"].weight.data = torch.zeros(4, 3)  # fails once the first one is merged
    before = weights(model)
    with pytest.raises(RuntimeError), decoding_weights(model):
        pass
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_a_layout_that_is_taken_over_is_not_measured(monkeypatch) -> None:
    monkeypatch.setattr("trainers.common.decoding_weights._faster", {})
    weight = torch.zeros(5, 7)
    measured = is_faster_by_columns(weight)
    [[*key, found]] = json.loads(json.dumps(layouts()))
    assert found == measured
    use_layouts([[*key, not measured]])
    assert is_faster_by_columns(weight) == (not measured)
