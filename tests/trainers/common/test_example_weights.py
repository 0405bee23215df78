"""Weights of examples in the loss: the formula against a loop, the split into rationale and answer, and refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from rlkd.errors import UsageError
from trainers.common.example_weights import (
    IGNORED,
    check_weighted_loss,
    check_weighting,
    loss_weights,
    rationale_tokens,
)


def slow_weight(losses: list[float], rationale: int, temperature: float) -> float:
    means = [sum(part) / len(part) for part in (losses[:rationale], losses[rationale:]) if part]
    return math.exp(-sum(means) / len(means) / temperature)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_a_weight_is_that_of_a_loop_over_tokens(temperature) -> None:
    generator = torch.Generator().manual_seed(3)
    log_probs = -torch.rand(5, 9, generator=generator) * 3
    mask = torch.rand(5, 9, generator=generator) < 0.6
    log_probs = log_probs.masked_fill(~mask, 0)
    counts = mask.sum(dim=1).tolist()
    rationale = [0, counts[1], 1, counts[3] - 1, 2]
    found = loss_weights(log_probs, mask, torch.tensor(rationale), temperature)
    losses = [
        [-float(value) for value, counted in zip(*pair, strict=True) if counted]
        for pair in zip(log_probs, mask, strict=True)
    ]
    expected = [slow_weight(own, start, temperature) for own, start in zip(losses, rationale, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_an_example_without_tokens_has_a_weight_of_1() -> None:
    none = torch.zeros(1, 4)
    assert loss_weights(none, none.bool(), torch.tensor([0]), 1.0).tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 3 = 5\n#### 5", "#### 5"),
        ("So he has\n\\boxed{5}\n", "\\boxed{5}\n"),
        ("The answer is 5.\nThat is all.", "The answer is 5.\nThat is all."),
        ("Für 3 µm: 漢字\n#### 5", "#### 5"),
        ("nothing is found here", ""),
    ],
)
def test_the_answer_begins_with_the_last_line_that_announces_one(tiny_model, text, answer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    after = [] if not answer else [tokenizer.eos_token_id]
    labels = [IGNORED, IGNORED, *ids, *after, IGNORED]
    count = rationale_tokens(tokenizer, labels)
    assert tokenizer.decode(ids[count:]) == answer
    assert count == len(ids) - len(tokenizer(answer, add_special_tokens=False)["input_ids"])


def plain(**changes) -> SimpleNamespace:
    settings = {"packing": False, "padding_free": False, "loss_type": "nll", "label_smoothing_factor": 0.0}
    return SimpleNamespace(**settings | {"parallelism_config": None} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": True},
        {"padding_free": True},
        {"loss_type": "dft"},
        {"label_smoothing_factor": 0.1},
        {"parallelism_config": SimpleNamespace(sp_enabled=True, cp_enabled=False)},
        {"parallelism_config": SimpleNamespace(sp_enabled=False, cp_enabled=True)},
    ],
)
def test_a_loss_without_examples_is_refused_and_the_default_is_not(changes) -> None:
    check_weighting(plain(), None)
    with pytest.raises(UsageError, match=f"and {next(iter(changes))}: .* Leave one of the two out"):
        check_weighting(plain(**changes), None)


@pytest.mark.parametrize("name", ["CP", "SP"])
def test_sequences_that_the_launcher_divides_are_refused(monkeypatch, name) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "1")
    check_weighting(plain(), None)
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", "2")
    check_weighting(plain(), None, column=False)
    with pytest.raises(UsageError, match=r"and parallelism_config: .* Leave one of the two out"):
        check_weighting(plain(), None)


def test_weights_that_are_not_there_cannot_change_places() -> None:
    check_weighting(plain(per_device_train_batch_size=2), 1.0, True, column=False)
    with pytest.raises(UsageError, match="shuffle_weights: there are no weights"):
        check_weighting(plain(per_device_train_batch_size=2), None, True, column=False)


def mean_of_tokens(model) -> torch.Tensor:
    output = model(fused_lm_head=True)
    return -output.log_probs.sum() / output.label_mask.sum()


def mean_of_examples(model) -> torch.Tensor:
    output = model(fused_lm_head=True)
    return (-output.log_probs.sum(dim=1) / output.label_mask.sum(dim=1)).mean()


@pytest.mark.parametrize(
    ("loss_of", "found"),
    [
        (lambda model: -model().log_probs.sum() / model().label_mask.sum(), "2.33333 .* not 2.5"),  # no fused head
        (lambda model: mean_of_tokens(model) * 2, "4.66667 .* not 2.33333"),
        (mean_of_examples, "2.75 .* not 2.33333"),
    ],
)
def test_a_loss_that_does_not_follow_the_weights_is_refused(loss_of, found) -> None:
    check_weighted_loss(mean_of_tokens)
    with pytest.raises(UsageError, match=found):
        check_weighted_loss(loss_of)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_of_0_or_less_is_refused_and_one_above_is_not(temperature) -> None:
    check_weighting(plain(), 1.0)
    with pytest.raises(UsageError, match="expected a number above 0"):
        check_weighting(plain(), temperature)
