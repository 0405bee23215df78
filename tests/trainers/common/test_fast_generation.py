"""The fast `generate` of a trainer: tokens and distribution of the model's own, or its own where it must be."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.tiny import letters, questions, save_llama, training_arguments
from rlkd.decoding import decode
from trainers import RLKDConfig, RLKDTrainer
from trainers.common import fast_generation, fast_path
from trainers.common.fast_generation import generate

IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12], [0, 0, 5, 6, 7]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path_factory.mktemp("model"), num_hidden_layers=1))
    for parameter in loaded.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return loaded.eval()


def settings(**changes):
    values = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, "top_k": 0}
    return GenerationConfig(**values | changes, disable_compile=True)


def never(**given):
    raise AssertionError("the model's own generate was called")


@pytest.mark.parametrize("changes", [{}, {"repetition_penalty": 1.7}, {"suppress_tokens": [3, 4, 5, 6, 7, 8]}])
def test_greedy_tokens_are_those_of_the_model_s_own_generate(model, changes) -> None:
    config = settings(**changes)
    expected = model.generate(input_ids=IDS, attention_mask=MASK, generation_config=config)
    assert torch.equal(generate(model, never, IDS, MASK, config), expected)


def test_ended_rows_are_padded_to_the_longest(model) -> None:
    free = generate(model, never, IDS, MASK, settings())
    config = settings(eos_token_id=[int(free[1, 7])])
    expected = model.generate(input_ids=IDS, attention_mask=MASK, generation_config=config)
    assert torch.equal(generate(model, never, IDS, MASK, config), expected)


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"repetition_penalty": 3.0}]
)
def test_draws_follow_the_distribution_of_the_model_s_own_generate(model, changes) -> None:
    config = settings(do_sample=True, max_new_tokens=1, **changes)
    rows = 4000
    ids, mask = IDS[:1].repeat(rows, 1), MASK[:1].repeat(rows, 1)
    torch.manual_seed(0)
    ours = generate(model, never, ids, mask, config)[:, -1].bincount(minlength=300)
    theirs = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, -1].bincount(
        minlength=300
    )
    common = (ours + theirs) > 20
    # Two samples of the same distribution: the sum of squared differences is about the number of tokens.
    difference = ((ours - theirs) ** 2 / (ours + theirs))[common].sum().item()
    assert difference < int(common.sum()) + 4 * (2 * int(common.sum())) ** 0.5
    assert ((ours == 0) | (theirs > 0) | (ours < 10)).all()


def test_the_same_seed_draws_the_same(model) -> None:
    config = settings(do_sample=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(generate(model, never, IDS, MASK, config))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][0], drawn[0][2])  # the same prompt, another draw


@pytest.mark.parametrize(
    ("changes", "others"),
    [({"num_beams": 2}, {}), ({"no_repeat_ngram_size": 2}, {}), ({}, {"pixel_values": torch.zeros(1)})],
)
def test_other_settings_and_inputs_are_left_to_the_model(model, changes, others) -> None:
    called = []
    generate(model, lambda **given: called.append(given) or IDS, IDS, MASK, settings(**changes), **others)
    assert called[0].keys() >= {"input_ids", "attention_mask", "generation_config", *others}


@pytest.fixture
def trainer(tiny_model, tmp_path, request):
    args = training_arguments(tmp_path, per_device_train_batch_size=4, num_generations=4, max_completion_length=8)
    config = RLKDConfig(**args | {"max_steps": 1}, fast_path=request.param)
    return RLKDTrainer(tiny_model, reward_funcs=letters, args=config, train_dataset=questions())


@pytest.mark.parametrize("trainer", ["auto", "never"], indirect=True)
def test_a_trainer_generates_by_the_setting(trainer, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        fast_generation, "decode", lambda *args, **given: calls.append(given) or decode(*args, **given)
    )
    trainer.train()
    assert bool(calls) is (trainer.args.fast_path == "auto")
    assert "generate" not in vars(trainer.model)


@pytest.mark.parametrize("trainer", ["auto"], indirect=True)
def test_the_reason_for_the_model_s_own_generate_is_logged_once(trainer, monkeypatch, caplog) -> None:
    monkeypatch.setattr("trainers.common.fast_generation.unsupported", lambda model: "it is a toy")
    monkeypatch.setattr(fast_path, "_said", set())
    own = trainer.model.generate
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with fast_generation.fast_generation(trainer):
                assert trainer.model.generate == own
    assert caplog.text.count("it is a toy") == 1
