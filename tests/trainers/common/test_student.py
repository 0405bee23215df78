"""What is known of a student before its weights load: its tokenizer, its context, its end tokens."""

import logging

import pytest

from trainers.common.student import check_turn_end, read_model


@pytest.mark.parametrize(
    ("name", "ends", "context"),
    [
        ("chatml", {"<|im_end|>"}, 2048),
        ("chatml_base", {"<|endoftext|>"}, 2048),
        ("short", {"<|im_end|>"}, 128),
        ("no_system", {"<eos>", "<end_of_turn>"}, 2048),
        ("two_ends", {"<|end|>", "<|eot|>"}, 2048),
        ("base", {"<|end|>"}, 2048),
    ],
)
def test_the_facts_of_a_model_are_read_without_its_weights(template_model, name, ends, context) -> None:
    facts = read_model(template_model(name))
    assert set(facts.tokenizer.convert_ids_to_tokens(sorted(facts.ends))) == ends
    assert facts.context == context


@pytest.mark.parametrize(("name", "warns"), [("chatml", False), ("no_system", False), ("chatml_base", True)])
def test_a_template_that_ends_turns_with_another_token_is_said(template_model, caplog, name, warns) -> None:
    caplog.set_level(logging.WARNING)
    check_turn_end(read_model(template_model(name)))
    assert ("'<|im_end|>', which ends no generation of it" in caplog.text) is warns
