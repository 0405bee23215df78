"""The model card that each trainer writes with its model, and what of a run goes to the hub."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from trl import SFTConfig

from benchmarks.tiny import training_arguments
from tests.helpers import ROOT
from tests.helpers.fake_hub import FakeHub
from trainers import RLKDConfig, RLKDTrainer, RunSFTTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.common.card_facts import facts_of
from trainers.common.model_card import RunOrigin

ASK = [{"role": "user", "content": "1+1?"}]
ROWS = [{"prompt": ASK, "answer": "2", "rationales": ["1 + 1 = 2"], "id": str(i)} for i in range(4)]
REWARDS = {
    "reward_funcs": ["accuracy", "structure"],
    "reward_weights": [1.0, 0.5],
    "reward_kwargs": {"structure": {"alignment": "ordered"}},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def settings(tmp_path):
    return training_arguments(
        tmp_path / "run", per_device_train_batch_size=4, max_steps=1, save_strategy="steps", save_steps=1
    )


def test_rewards_structure_model_and_teacher_of_rlkd_are_on_the_card(settings, template_model, tmp_path) -> None:
    distils = {"teacher_kl": 0.5, "teacher_kl_clip": 3.0, "teacher": template_model("chatml")}
    args = RLKDConfig(
        **settings, **REWARDS, **distils, num_generations=4, max_completion_length=4, shuffle_rewards={"accuracy": 7}
    )
    trainer = RLKDTrainer(
        template_model("chatml"),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_final()
    text = (tmp_path / "run" / "README.md").read_text()
    for shown in (
        "**A control run** (`shuffle_rewards: {'accuracy': 7}`)",
        "| `accuracy` | 1 | - |",
        "| `structure` | 0.5 | `alignment: ordered` |",
        "| structure model | rules |",
        "| judge | deterministic |",
        "| teacher | the traces of the rows |",
        f"| teacher_kl | 0.5 to {template_model('chatml')}, clipped at 3 nats |",
        "| weights trained | an adapter (LORA, rank 2, alpha 8) |",
        "| optimizer steps | 1 |",
        f"| seed | {args.seed} |",
        "a method introduced in [Distilling the Implicit Multi-Branch Structure",
        "TRL: 1.",
    ):
        assert shown in text
    assert str(tmp_path / "cache") not in text
    # PEFT's own card, with a folder of this machine as base, is not what a checkpoint keeps.
    checkpoint = ModelCard.load(tmp_path / "run" / "checkpoint-1" / "README.md")
    assert checkpoint.data.base_model is None
    assert "optimizer steps" in checkpoint.text


def test_teacher_scorer_and_control_of_a_distillation_are_on_the_card(settings, template_model, tmp_path) -> None:
    args = ValidityKDConfig(
        **settings, teacher=template_model("chatml"), lmbda=0.0, control="uniform", max_completion_length=4
    )
    trainer = ValidityKDTrainer(template_model("chatml"), args=args, train_dataset=Dataset.from_list(ROWS))
    trainer.train()
    trainer.save_final()
    text = (tmp_path / "run" / "README.md").read_text()
    assert f"| teacher | {template_model('chatml')} |" in text  # as it was given
    assert "| validity | likelihood |" in text
    assert "**A control run** (`control: uniform`)" in text
    assert "All weights of" in text


def test_each_saved_model_has_the_facts_of_its_step(settings, template_model, tmp_path) -> None:
    reply = [{"role": "assistant", "content": "2"}]
    rows = Dataset.from_list([{"prompt": ASK, "completion": reply}] * 4)
    trainer = RunSFTTrainer(template_model("chatml"), SFTConfig(**settings), train_dataset=rows)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("# The card of an earlier run\n")
    for step in (1, 2):
        trainer.state.global_step = step
        trainer.save_model(str(tmp_path / "run" / f"checkpoint-{step}"))
        text = (tmp_path / "run" / f"checkpoint-{step}" / "README.md").read_text()
        assert f"| optimizer steps | {step} |" in text
        assert "earlier run" not in text


def test_a_card_that_cannot_be_written_ends_no_run(settings, template_model, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("trainers.common.card_facts.compose", lambda *given: 1 / 0)
    reply = [{"role": "assistant", "content": "2"}]
    rows = Dataset.from_list([{"prompt": ASK, "completion": reply}] * 4)
    trainer = RunSFTTrainer(template_model("chatml"), SFTConfig(**settings), train_dataset=rows)
    trainer.train()
    trainer.save_final()
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert "the model card has no facts of the run: ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (None, None),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "4 bit"),
        ({"load_in_8bit": True}, "8 bit"),
        ({"quant_method": "gptq"}, "gptq"),
    ],
)
def test_how_the_base_was_loaded_is_noted(settings, stored, shown) -> None:
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=stored))
    trainer = SimpleNamespace(
        args=SFTConfig(**settings),
        model=model,
        state=SimpleNamespace(global_step=3),
        origin=RunOrigin(settings={"copies": 2}),
        student_name="org/model",
        reward_names=list,
        _name="SFT",
    )
    found = facts_of(trainer)
    assert found.quantized == shown == found.settings["weights loaded in"]
    assert (found.name, found.settings["copies"]) == ("run", 2)


PUSH = """
import sys
from datasets import Dataset
from trl import SFTConfig
from peft import LoraConfig
from trainers import RunSFTTrainer
from trainers.common.preflight import check_settings

values = {values}
args = SFTConfig(**values, push_to_hub=True, hub_model_id="my-student", hub_token="hf_secretsecretsecretsecret")
check_settings(args, None)
reply = [{{"role": "assistant", "content": "2"}}]
rows = Dataset.from_list([{{"prompt": [{{"role": "user", "content": "1+1?"}}], "completion": reply}}] * 4)
lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = RunSFTTrainer({model!r}, args, train_dataset=rows, peft_config=lora)
trainer.rollouts.append([{{"step": 1, "completion": "private"}}])
trainer.train()
trainer.save_final()
"""


@pytest.mark.slow
def test_a_run_pushes_its_model_and_card_and_no_private_text(settings, template_model, tmp_path) -> None:
    hub = FakeHub()
    code = PUSH.format(values=settings, model=template_model("chatml"))
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    hub.shut_down()
    assert done.returncode == 0, done.stderr[-3000:]
    needed = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "metrics.jsonl"}
    assert needed <= hub.files.keys()
    private = ("rollouts", "training_args.bin", "checkpoint-", "eval.jsonl")
    assert not [name for name in hub.files if any(part in name for part in private)]
    assert not [name for name, content in hub.files.items() if b"hf_secret" in content or b"private" in content]
    assert "library_name: peft" in hub.files["README.md"].decode()
    config = json.loads(hub.files["adapter_config.json"])
    assert config["base_model_name_or_path"] == template_model("chatml")
