"""The loss of fine-tuning with weights of examples: against a loop over rows, and in TRL's training loop."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from rlkd.data.example_weights import scaled_weights
from rlkd.errors import UsageError
from trainers.common.card_facts import facts_of
from trainers.common.example_weights import IGNORED, WEIGHT
from trainers.common.run_files import read_steps
from trainers.common.sft import RunSFTTrainer

# Of different lengths, the last one without an answer.
TEXTS = ["2 + 3 = 5\n#### 5", "4\n#### 4", "one and two and three are six, so\n#### 6", "no idea"]
# A token is a character; one without an answer is a rationale up to its end token.
RATIONALE_TOKENS = [text.index("####") if "####" in text else len(text) + 1 for text in TEXTS]
WEIGHTS = [0.25, 1.75, 0.0, 2.0]
RATE = 0.5


def trainer_of(
    model: str, folder: Path, weights: list[float] | None = None, *, batch: int = 4, steps: int = 1, **kwargs: Any
) -> RunSFTTrainer:
    """A trainer for plain gradient descent on `TEXTS`, all of them in each step."""
    examples = [{"prompt": f"{number}? ", "completion": text} for number, text in enumerate(TEXTS)]
    if weights is not None:
        examples = [{**example, WEIGHT: weight} for example, weight in zip(examples, weights, strict=True)]
    args = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=4 // batch,
        max_steps=steps,
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_grad_norm=0.0,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return RunSFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(model),
        **kwargs,
    )


def trained(trainer: RunSFTTrainer) -> dict[str, torch.Tensor]:
    """The student's parameters after training."""
    trainer.train()
    model: Any = trainer.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def slow_losses(trainer: RunSFTTrainer) -> list[list[torch.Tensor]]:
    """The losses of the completion tokens of each example, one example at a time, with their gradients."""
    model: Any = trainer.model
    losses = []
    for example in trainer.train_dataset:
        logs = model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        labels = enumerate(example["labels"])
        losses.append([-logs[place - 1, label] for place, label in labels if label != IGNORED])
    return losses


def slow_loss_weight(losses: list[torch.Tensor], rationale: int, temperature: float) -> float:
    means = [sum(map(float, part)) / len(part) for part in (losses[:rationale], losses[rationale:]) if part]
    return math.exp(-sum(means) / len(means) / temperature)


@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize("column", [None, WEIGHTS])
def test_the_weighted_loss_and_its_gradient_are_those_of_a_loop_over_rows(
    tiny_model, tmp_path, column, temperature
) -> None:
    trainer = trainer_of(tiny_model, tmp_path, column, weight_temperature=temperature)
    losses = slow_losses(trainer)
    weights = column or [1.0] * 4
    if temperature is not None:
        parts = zip(losses, RATIONALE_TOKENS, strict=True)
        own = [slow_loss_weight(each, rationale, temperature) for each, rationale in parts]
        weights = [weight * factor for weight, factor in zip(weights, own, strict=True)]
    count = sum(map(len, losses))
    expected = sum(weight * sum(each) for weight, each in zip(weights, losses, strict=True)) / count
    expected.backward()
    start = [
        (name, parameter.detach().clone(), parameter.grad) for name, parameter in trainer.model.named_parameters()
    ]
    trainer.model.zero_grad()

    batch = trainer.data_collator(list(trainer.train_dataset))
    found = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=torch.tensor(count))
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)

    after = trained(trainer)
    for name, before, gradient in start:
        torch.testing.assert_close(after[name], before - RATE * gradient, atol=1e-6, rtol=0)
    if column or temperature:
        [line] = read_steps(trainer.metrics_path)
        assert line["example_weight"] == pytest.approx(sum(weights) / 4, abs=1e-5)


def test_in_a_control_run_an_example_has_the_weight_of_its_neighbour(tiny_model, tmp_path) -> None:
    trainer = trainer_of(tiny_model, tmp_path / "control", WEIGHTS, shuffle_weights=True)
    assert facts_of(trainer).origin.controls == {"shuffle_weights": True}
    control = trained(trainer)
    rolled = trained(trainer_of(tiny_model, tmp_path / "rolled", [WEIGHTS[-1], *WEIGHTS[:-1]]))
    assert all(control[name].equal(rolled[name]) for name in rolled)
    with pytest.raises(UsageError, match="per_device_train_batch_size is 1"):
        trainer_of(tiny_model, tmp_path, WEIGHTS, batch=1, shuffle_weights=True)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_equal_weights_are_the_plain_loss_bit_for_bit(tiny_model, tmp_path, weight) -> None:
    plain = trained(trainer_of(tiny_model, tmp_path / "plain", steps=3))
    weighted = trained(trainer_of(tiny_model, tmp_path / "weighted", scaled_weights([weight] * 4), steps=3))
    assert all(weighted[name].equal(plain[name]) for name in plain)
    losses = [
        [line["loss"] for line in read_steps(tmp_path / name / "metrics.jsonl")] for name in ("plain", "weighted")
    ]
    assert losses[0] == losses[1]


def test_the_check_of_the_loss_leaves_no_trace_in_the_trainer(tiny_model, tmp_path) -> None:
    trainer = trainer_of(tiny_model, tmp_path, WEIGHTS)
    assert not trainer.model.training
    assert not any(trainer._metrics.values())
    assert trainer._total_train_tokens == 0


@pytest.mark.parametrize(
    ("patched", "message"),
    [
        (lambda trl_loss: lambda *args, **kwargs: trl_loss(*args, **kwargs) * 3, "is 7 .* not 2.33333"),
        (
            lambda trl_loss: (
                lambda self, model, *args, **kwargs: trl_loss(self, getattr(model, "model", model), *args, **kwargs)
            ),
            "is 2.33333 .*0.5, 1.5.* not 2.5",
        ),
    ],
)
def test_a_trl_with_another_loss_is_refused_before_training(
    tiny_model, tmp_path, monkeypatch, patched, message
) -> None:
    monkeypatch.setattr(SFTTrainer, "compute_loss", patched(SFTTrainer.compute_loss))
    trainer_of(tiny_model, tmp_path / "plain")
    with pytest.raises(UsageError, match=message):
        trainer_of(tiny_model, tmp_path / "weighted", WEIGHTS)


def test_what_does_not_go_with_weights_is_refused_before_the_model_loads(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainers.common.sft.open_student", None)
    with pytest.raises(UsageError, match="compute_loss_func"):
        trainer_of(tiny_model, tmp_path, WEIGHTS, compute_loss_func=lambda outputs, labels, **_: outputs.logits.sum())
    with pytest.raises(UsageError, match="shuffle_weights: there are no weights"):
        trainer_of(tiny_model, tmp_path, shuffle_weights=True)


def test_accumulated_batches_train_as_one_batch(tiny_model, tmp_path) -> None:
    """With weights that differ between the accumulated batches, and completions of different lengths."""
    runs = [
        trained(trainer_of(tiny_model, tmp_path / str(size), WEIGHTS, batch=size, steps=2, weight_temperature=2.0))
        for size in (4, 2, 1)
    ]
    plain = trained(trainer_of(tiny_model, tmp_path / "plain", steps=2))
    for name, parameter in runs[0].items():
        for other in runs[1:]:
            torch.testing.assert_close(other[name], parameter, atol=1e-6, rtol=0)
    assert any(not torch.allclose(runs[0][name], plain[name], atol=1e-4) for name in plain)
