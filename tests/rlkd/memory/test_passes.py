import pytest
import torch
from peft import LoraConfig

from rlkd.memory import passes
from rlkd.memory.live import LiveBytes
from rlkd.memory.models import WeightlessModel
from tests.helpers.tiny_configs import tiny_config, tiny_model_of

NAMES = ["llama", "qwen3", "lfm2", "gemma3"]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_the_cache_is_as_large_as_a_real_one(name):
    config = tiny_config(name)
    model = tiny_model_of(config).eval()
    with torch.no_grad():
        cache = model(torch.zeros(1, 40, dtype=torch.long), use_cache=True).past_key_values
    storages = {one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors_of(cache)}
    assert passes.cache_bytes(WeightlessModel(config, trains=False), 3, 40) == 3 * sum(storages.values())


def tensors_of(cache):
    for layer in cache.layers:
        for value in vars(layer).values():
            yield from (
                one for one in (value if isinstance(value, list) else [value]) if isinstance(one, torch.Tensor)
            )


@pytest.mark.parametrize("adapter", [None, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pass_without_data_counts_what_a_real_one_keeps(name, adapter):
    config = tiny_config(name)
    model = tiny_model_of(config, adapter).train()
    plain = model.get_base_model() if adapter else model
    ids, mask = torch.zeros(2, 24, dtype=torch.long), torch.ones(2, 24, dtype=torch.long)
    mask[0, :3] = 0
    with LiveBytes() as held:
        for tensor in (*model.parameters(), *model.buffers()):
            held.know(tensor)
        hidden = plain.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        kept = held.now
    found = passes.training_pass(WeightlessModel(config, adapter=adapter), 2, 24)
    assert found.traced
    assert hidden.requires_grad
    assert found.kept == pytest.approx(kept, rel=0.02)
    assert found.most > found.kept


def test_a_few_layers_stand_for_all(monkeypatch):
    model = WeightlessModel(tiny_config("llama", num_hidden_layers=10))
    short = passes.training_pass(model, 2, 24).kept, passes.reading_pass(model, 2, 24, cached=True).kept
    monkeypatch.setattr(passes, "_period", lambda model, layers: len(layers))
    whole = passes.training_pass(model, 2, 24).kept, passes.reading_pass(model, 2, 24, cached=True).kept
    assert short == whole


def test_checkpointing_keeps_less_and_half_precision_half():
    config = tiny_config("llama", num_hidden_layers=8)
    most = {
        name: passes.training_pass(WeightlessModel(config, **options), 4, 64).most
        for name, options in {
            "plain": {},
            "checkpointing": {"checkpointing": True},
            "bfloat16": {"dtype": "bfloat16"},
            "autocast": {"autocast": "bfloat16"},
        }.items()
    }
    assert most["checkpointing"] < most["plain"] / 2
    assert most["bfloat16"] < 0.7 * most["plain"]
    assert most["autocast"] < most["plain"]


def test_activations_grow_with_the_rows():
    model = WeightlessModel(tiny_config("llama"))
    assert passes.training_pass(model, 4, 32).kept == pytest.approx(
        2 * passes.training_pass(model, 2, 32).kept, rel=0.05
    )


def test_a_pass_leaves_the_model_as_it_was():
    model = WeightlessModel(tiny_config("llama"))
    passes.training_pass(model, 1, 8)
    passes.reading_pass(model, 1, 8)
    assert model.plain.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.all_parameters)
    assert len(model.plain.model.layers) == 2


def test_a_model_that_needs_its_data_gets_the_rough_formula(monkeypatch):
    monkeypatch.setattr(passes, "_inputs", lambda model, rows, tokens: 1 / 0)
    model = WeightlessModel(tiny_config("llama"))
    found = passes.training_pass(model, 2, 10)
    assert not found.traced
    assert found.kept == 2 * 17 * 20 * 32 * 4
    assert passes.cache_bytes(model, 2, 10) == 2 * 2 * 2 * 16 * 10 * 4
