import pytest
from peft import LoraConfig
from transformers import T5Config

from rlkd.errors import UsageError
from rlkd.memory.models import WeightlessModel
from tests.helpers.tiny_configs import tiny_config, tiny_model_of

NAMES = ["llama", "qwen2", "qwen3", "qwen3_moe", "lfm2", "gemma3", "gpt2"]
LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_bytes_are_those_of_the_loaded_model(name):
    config = tiny_config(name)
    model, estimate = tiny_model_of(config), WeightlessModel(config)
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.weights == size({id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    assert estimate.gradients == size(model.parameters())


@pytest.mark.parametrize("name", ["llama", "qwen3", "lfm2", "gemma3"])
def test_an_adapter_has_the_parameters_that_peft_gives_it(name):
    config = tiny_config(name)
    model, estimate = tiny_model_of(config, LORA), WeightlessModel(config, adapter=LORA)
    assert (estimate.trained, estimate.parameters) == model.get_nb_trainable_parameters()
    assert estimate.adapter_weights == estimate.gradients == 4 * estimate.trained


def test_adapters_of_named_layers_are_counted_as_named():
    config, adapter = tiny_config("qwen2"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, estimate = tiny_model_of(config, adapter), WeightlessModel(config, adapter=adapter)
    assert estimate.trained == model.get_nb_trainable_parameters()[0] > 0
    assert estimate.matrices(only_adapted=True) == 2 * (32 * 32 + 32 * 16) * 4


def test_the_adapter_of_a_half_precision_model_is_in_float32_and_of_a_quantised_one_in_bfloat16():
    half = WeightlessModel(tiny_config("llama"), dtype="bfloat16", adapter=LORA)
    quantised = WeightlessModel(tiny_config("llama"), dtype="bfloat16", adapter=LORA, bits=4)
    assert half.adapter_weights == 4 * half.trained
    assert quantised.adapter_weights == 2 * quantised.trained


def test_linear_layers_but_the_head_are_quantised():
    config = tiny_config("llama")
    plain, four, eight = (WeightlessModel(config, dtype="bfloat16", bits=bits) for bits in (None, 4, 8))
    rows = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)  # of two layers: q, k, v, o, gate, up, down
    count = 2 * 32 * (32 + 16 + 16 + 32 + 48 + 48 + 48)
    assert plain.weights - eight.weights == count * 2 - (count + 4 * rows)
    assert plain.weights - four.weights == count * 2 - (count // 2 + 4 * count // 64)


def test_a_model_that_is_not_trained_has_no_gradients():
    model = WeightlessModel(tiny_config("llama"), trains=False)
    assert (model.trained, model.gradients, model.optimizer("adamw_torch")) == (0, 0, 0)


def test_tied_weights_count_once_and_are_no_matrix_of_their_own():
    tied, untied = WeightlessModel(tiny_config("qwen2")), WeightlessModel(tiny_config("qwen3"))
    assert tied.head is tied.embedding
    assert untied.head is not untied.embedding
    assert untied.matrices() >= tied.matrices() + 4 * 130 * 32


def test_a_configuration_that_no_causal_model_has_is_named():
    with pytest.raises(UsageError, match="'t5'"):
        WeightlessModel(T5Config())
