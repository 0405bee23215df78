"""`rlkd merge`: an adapter becomes an ordinary model in a new folder, or a message says why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny import save_llama
from rlkd import cli
from rlkd.chat import run_settings
from rlkd.errors import UsageError
from rlkd.merge_command import merge_adapter
from tests.helpers.adapters import save_adapter


@pytest.fixture(scope="module")
def base(template_model) -> str:
    return template_model("chatml")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))


def logits(folder) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[5, 6, 7]])).logits


def refused(adapter, out, match: str, **options) -> None:
    """The merge is refused, and leaves no trace beside what was there."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UsageError, match=match):
        merge_adapter(adapter, out, **options)
    assert sorted(path for path in out.parent.iterdir() if path.name != "cache") == [
        path for path in before if path.name != "cache"
    ]


def test_the_command_writes_the_model_and_says_how_equal_it_is(adapter, base, tmp_path, capsys) -> None:
    out = tmp_path / "models" / "merged"
    assert cli.main(["merge", str(adapter), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "logits:  equal to those of base and adapter up to" in shown
    assert f"model:   {out}" in shown
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert not torch.allclose(logits(out), logits(base), atol=1e-2)


def test_an_adapter_on_an_adapter_is_merged_with_both(adapter, base, tmp_path) -> None:
    first = tmp_path / "first"
    merge_adapter(adapter, first)
    second = save_adapter(str(first), tmp_path / "second", seed=2)
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    merge_adapter(second, tmp_path / "on-adapter")
    merge_adapter(second, tmp_path / "on-merged", base=str(first))
    assert torch.allclose(logits(tmp_path / "on-adapter"), logits(tmp_path / "on-merged"), atol=1e-5)
    assert not torch.allclose(logits(tmp_path / "on-adapter"), logits(first), atol=1e-2)


def test_the_merged_model_is_asked_with_the_prompt_of_the_run(adapter, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "checkpoint-3")
    record = {
        "system_prompt": "Be brief.",
        "few_shot_examples": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_length": 8,
    }
    (run / "evaluation.json").write_text(json.dumps(record))
    merge_adapter(run / "checkpoint-3", tmp_path / "merged")
    assert run_settings(tmp_path / "merged") == run_settings(run)
    assert run_settings(run)["system_prompt"] == "Be brief."


def test_a_used_folder_is_not_overwritten_and_an_empty_one_is_taken(adapter, tmp_path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    refused(adapter, tmp_path / "used", "exists and is not empty; nothing is overwritten")
    (tmp_path / "empty").mkdir()
    merge_adapter(adapter, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()


def test_a_shipped_adapter_has_a_name(tmp_path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["merge", "embedded-warm", "--out", str(tmp_path)]) == 1
    assert f"--out {tmp_path} exists and is not empty" in capsys.readouterr().err


def test_what_is_no_adapter_is_named(adapter, base, tmp_path) -> None:
    out = tmp_path / "out"
    refused(tmp_path / "none", out, "there is no folder")
    refused(tmp_path, out, "has no adapter_config.json")
    refused(Path(base), out, "is a whole model already")
    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, out, "pickled weights are not read")
    assert not out.exists()


def test_a_base_that_is_elsewhere_is_asked_for(adapter, base, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(adapter, moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "/home/you/models/base"})
    )
    refused(moved, tmp_path / "out", "the base '/home/you/models/base' .* cannot be read: .* --base FOLDER_OR_HUB_ID")
    merge_adapter(moved, tmp_path / "out", base=base)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_base_that_does_not_fit_is_named(adapter, tmp_path) -> None:
    wide = save_llama(tmp_path / "wide", hidden_size=64)
    refused(adapter, tmp_path / "out", "cannot be merged into", base=wide)
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused_with_the_way_out(adapter, base, tmp_path) -> None:
    small = tmp_path / "small"
    shutil.copytree(base, small)
    config = json.loads((small / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (small / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    refused(adapter, tmp_path / "out", r"stored quantised \(bitsandbytes\).* --base", base=str(small))
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_4_bit_run_merges_into_full_precision_with_a_warning(adapter, tmp_path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(adapter, trained)
    (trained / "README.md").write_text(
        "---\nquantized_base: 4 bit\nlibrary_name: peft\ntags:\n- lora\n---\n\n# mine\n"
    )
    lines = merge_adapter(trained, tmp_path / "out")
    assert lines[0].startswith("warning: the adapter was trained on ")
    assert "in 4 bit, and is merged into its full precision" in lines[0]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "merged into its base" in card


def test_a_merge_that_computes_something_else_writes_nothing(base, tmp_path) -> None:
    # The head is the embedding, and merging into one changes both.
    tied = save_adapter(base, tmp_path / "tied", target_modules=["lm_head"])
    refused(tied, tmp_path / "out", "differs from base and adapter: a logit by .* nothing was written")
    assert not (tmp_path / "out").exists()
