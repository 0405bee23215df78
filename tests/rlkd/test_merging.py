"""An adapter merged into its base: what is written computes what both compute, and says by how much it differs."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.merging import TOLERANCE, MergeCheck, merge, tokenizer_source
from tests.helpers.adapters import save_adapter

PROBE = list(range(5, 40))


@pytest.fixture(scope="module")
def base(template_model) -> str:
    """`chatml`, whose head is tied to its embedding."""
    return template_model("chatml")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([PROBE])).logits


def test_the_written_model_computes_what_base_and_adapter_compute(base, adapter, tmp_path) -> None:
    found = merge(base, adapter, tmp_path / "merged", probe=PROBE)
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    expected, plain = logits(wrapped), logits(AutoModelForCausalLM.from_pretrained(base))
    written = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert found.difference == (written - expected).abs().max()
    assert found.effect == (expected - plain).abs().max() > 100 * found.difference
    assert found.largest == max(expected.abs().max(), plain.abs().max())
    assert found.is_equal
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert needed <= names
    assert not [name for name in names if name.startswith("adapter") or name.endswith((".bin", ".pt"))]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_dtype_and_still_equal_within_its_limit(base, tmp_path, dtype) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", std=0.05)
    found = merge(base, adapter, tmp_path / "merged", dtype=dtype, probe=PROBE)
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged/model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    assert found.dtype == dtype
    assert 0 < found.difference <= found.tolerance == TOLERANCE[dtype] * found.largest


def test_a_head_trained_apart_from_its_tied_embedding_is_in_the_file(base, tmp_path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    found = merge(base, adapter, tmp_path / "merged", probe=PROBE)
    assert found.is_equal
    assert found.effect > 0.1
    assert "lm_head.weight" in load_file(tmp_path / "merged/model.safetensors")


def test_a_difference_beyond_the_limit_is_none_of_rounding() -> None:
    assert MergeCheck(difference=0.9e-3, largest=10.0, effect=1.0, dtype="float32").is_equal
    assert not MergeCheck(difference=1.1e-3, largest=10.0, effect=1.0, dtype="float32").is_equal
    assert MergeCheck(difference=0.4, largest=10.0, effect=1.0, dtype="bfloat16").is_equal


def test_without_a_probe_nothing_is_compared(base, adapter, tmp_path) -> None:
    assert merge(base, adapter, tmp_path / "merged") is None
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_the_tokenizer_is_the_adapters_own_where_it_has_one(base, adapter, tmp_path) -> None:
    assert tokenizer_source(adapter, base) == str(adapter)
    assert tokenizer_source(tmp_path, base) == base
