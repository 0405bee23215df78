"""LoRA on weights in 4 bit, by bitsandbytes itself, which has kernels for CPUs."""

import shlex
from pathlib import Path

import pytest
import torch
from trl import ModelConfig, SFTConfig

from recipes import gsrm, rlkd, validity_kd
from rlkd.merge_command import merge_adapter
from tests.helpers import ROOT
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

LORA = "--use_peft true --lora_r 4 --lora_dropout 0 --lora_target_modules all-linear --learning_rate 1e-3"
SMALL = f"{LORA} --max_steps 2 --per_device_train_batch_size 8 --eval_rows 2 --eval_samples 0 --seed 3 --save_steps 2"
FOUR_BIT = "--load_in_4bit true --bnb_4bit_quant_type nf4"


def parsed(recipe, kind, config: str, arguments: str):
    """The recipe's own dataclass, the trainer's and that of the model, as the command line makes them."""
    kinds = (recipe, kind, ModelConfig)
    return parse(shlex.split(arguments), kinds, default_config=ROOT / "recipes" / config)[:3]


def quantised_layers(model) -> dict[str, torch.nn.Module]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)}
    assert all(layer.weight.dtype == torch.uint8 for layer in found.values())
    return found


def stored(layers) -> dict[str, torch.Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


def rlkd_trainer(folder: Path, more: str) -> RLKDTrainer:
    own, args, model = parsed(
        rlkd.RLKDScriptArguments, RLKDConfig, "rlkd.yaml", f"{SMALL} --num_generations 4 --output_dir {folder} {more}"
    )
    return RLKDTrainer(**rlkd.trainer_settings(own, args, model, own.train_rows()[:16]))


def kd_trainer(folder: Path, more: str) -> ValidityKDTrainer:
    own, args, model = parsed(
        validity_kd.ValidityKDScriptArguments,
        ValidityKDConfig,
        "lab/validity_kd.yaml",
        f"{SMALL} --lmbda 0 --output_dir {folder} {more}",
    )
    return ValidityKDTrainer(**validity_kd.trainer_settings(own, args, model, own.train_rows()[:16]))


def test_rlkd_trains_an_adapter_on_4_bit_weights_which_merges_into_full_precision(tmp_path) -> None:
    trainer = rlkd_trainer(tmp_path / "run", FOUR_BIT)
    layers = quantised_layers(trainer.model)
    before = stored(layers)
    bytes_now = sum(weight.numel() for weight in before.values())
    full = sum(layer.in_features * layer.out_features * 4 for layer in layers.values())
    assert len(layers) >= 16
    assert bytes_now * 8 == full  # half a byte for a number, against four
    adapter = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if "lora_" in name}
    trainer.train()
    trainer.save_model()
    assert all(torch.equal(weight, before[name]) for name, weight in stored(layers).items())
    changed = [
        name for name, value in trainer.model.named_parameters() if name in adapter and (value != adapter[name]).any()
    ]
    assert changed
    assert [entry["step"] for entry in read_steps(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert "quantized_base: 4 bit" in (tmp_path / "run" / "README.md").read_text()
    lines = merge_adapter(tmp_path / "run", tmp_path / "merged")
    assert "in 4 bit, and is merged into its full precision" in lines[0]
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size > 0


def test_an_evaluation_leaves_the_gradients_of_4_bit_weights_as_they_were(tmp_path) -> None:
    model = rlkd_trainer(tmp_path / "run", FOUR_BIT).model
    torch.manual_seed(0)
    ids = torch.randint(5, 150, (2, 20))
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients()
    assert len(before) >= 32
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_distillation_from_a_4_bit_teacher_has_nearly_the_loss_of_full_precision(tmp_path) -> None:
    full = kd_trainer(tmp_path / "full", "")
    full.train()
    small = kd_trainer(tmp_path / "small", f"{FOUR_BIT} --teacher_model_init_kwargs '{{\"load_in_4bit\": true}}'")
    assert quantised_layers(small.model)
    assert quantised_layers(small.teacher_model)
    small.train()
    losses = [read_steps(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("full", "small")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.25)


def test_structure_models_train_on_4_bit_weights(tmp_path, tiny_model) -> None:
    own, args, model = parsed(
        gsrm.GSRMScriptArguments,
        SFTConfig,
        "gsrm.yaml",
        f"{LORA} {FOUR_BIT} --model_name_or_path {tiny_model} --max_steps 2 --copies 2 --logging_steps 1 "
        f"--fine_grained true --output_dir {tmp_path / 'run'}",
    )
    gsrm.main(own, args, model)
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_size > 0
    assert [entry["step"] for entry in read_steps(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
