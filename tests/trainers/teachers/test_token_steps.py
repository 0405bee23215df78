"""Steps among the tokens of a completion."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd.steps import sentences
from trainers.common.token_spans import token_spans
from trainers.teachers.token_steps import token_steps


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_steps_tile_the_tokens_up_to_the_closing_answer(tokenizer) -> None:
    text = "She has 3 + 4 = 7 teachers. So each gift is 70 / 7 = 10 dollars.\n\nThen the cost is 10.\n#### 10<|end|>"
    ids = ids_of(tokenizer, text)
    steps = token_steps(tokenizer, ids)
    assert [step.text.strip() for step in steps] == sentences(text.removesuffix("<|end|>"))
    assert steps[0].start == 0
    assert all(one.stop == other.start for one, other in pairwise(steps))
    assert tokenizer.decode(ids[steps[-1].stop :]) == "#### 10<|end|>"
    for step in steps:
        assert tokenizer.decode(ids[step.start : step.stop]) == step.text
        assert tokenizer.decode(ids[: step.start]) == step.prefix
    # White space between two steps goes with the first of them.
    assert steps[1].text.endswith("dollars.\n\n")


def test_tool_output_belongs_to_no_step_and_ends_the_one_that_it_interrupts(tokenizer) -> None:
    parts = [("She has 7. So", 1), (" the tool says 10. It", 0), (" is 10 dollars. Then 10.", 1), (" 12 more.", 0)]
    ids = [token for text, _ in parts for token in ids_of(tokenizer, text)]
    written = [wrote for text, wrote in parts for _ in ids_of(tokenizer, text)]
    steps = token_steps(tokenizer, ids, written)
    assert [step.text.strip() for step in steps] == ["She has 7.", "So", "is 10 dollars.", "Then 10."]
    assert all(all(written[step.start : step.stop]) for step in steps)
    for step in steps:
        assert tokenizer.decode(ids[step.start : step.stop]) == step.text
        assert tokenizer.decode(ids[: step.start]) == step.prefix
    assert token_steps(tokenizer, ids, [1] * len(ids)) == token_steps(tokenizer, ids)
    assert token_steps(tokenizer, ids, [0] * len(ids)) == []


@pytest.mark.parametrize("text", ["", "#### 10<|end|>", "<|end|>", " \n ", "---\n<|end|>"])
def test_a_completion_without_a_sentence_has_no_steps(tokenizer, text) -> None:
    assert token_steps(tokenizer, ids_of(tokenizer, text)) == []


@settings(deadline=None)
@given(st.text(alphabet="ab1. \n=漢🙂é!?#", max_size=60), st.integers(0, 2**32))
def test_any_text_in_any_tokens_keeps_its_characters_and_its_sentences(tokenizer, text, seed) -> None:
    # Not what the tokenizer would make of it: pieces that were cut at random.
    draw = random.Random(seed)
    pieces, rest = [], text
    while rest:
        cut = draw.randint(1, min(4, len(rest)))
        pieces.append(rest[:cut])
        rest = rest[cut:]
    ids = [token for piece in pieces for token in ids_of(tokenizer, piece)]
    found, spans = token_spans(tokenizer, ids)
    assert found == text
    assert len(spans) == len(ids)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans))
    steps = token_steps(tokenizer, ids)
    assert all(step.start < step.stop for step in steps)
    assert all(one.stop <= other.start for one, other in pairwise(steps))
    assert all(step.prefix + step.text == text[: len(step.prefix) + len(step.text)] for step in steps)
    expected = sentences(text)
    assert len(steps) <= len(expected)
    if len(steps) == len(expected):
        for step, sentence in zip(steps, expected, strict=True):
            assert sentence in step.text or step.text.strip() in sentence


def test_bytes_that_are_no_character_do_not_lose_the_others(tokenizer) -> None:
    broken = ids_of(tokenizer, "é")[:1]
    ids = [*ids_of(tokenizer, "One. "), *broken, *ids_of(tokenizer, "Two words. Three.")]
    text, spans = token_spans(tokenizer, ids)
    assert len(spans) == len(ids)
    assert text.startswith("One. ")
    assert text.endswith("Two words. Three.")
    assert [step.text.strip() for step in token_steps(tokenizer, ids)][-1] == "Three."


def test_a_long_completion_is_read_in_linear_time(tokenizer, monkeypatch) -> None:
    decoded = []
    inner = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **k: decoded.append(len(ids)) or inner(ids, **k), raising=False
    )
    ids = ids_of(tokenizer, "She has 3 + 4 = 7 teachers. ") * 100
    token_spans(tokenizer, ids)
    assert sum(decoded) < 10 * len(ids)


def test_white_space_behind_a_step_is_not_scored_and_a_step_with_nothing_behind_it_is_open(tokenizer) -> None:
    ids = ids_of(tokenizer, "She has 7.\n\nSo it is 10.\nThen it")
    first, second, third = token_steps(tokenizer, ids)
    assert tokenizer.decode(ids[first.start : first.end]) == "She has 7."
    assert tokenizer.decode(ids[second.start : second.end]) == "So it is 10."
    assert first.end < first.stop == second.start
    assert (first.open, second.open, third.open) == (False, False, True)
    assert third.end == third.stop == len(ids)
    for behind in ("<|end|>", "\n", "\n#### 10"):
        assert not token_steps(tokenizer, [*ids, *ids_of(tokenizer, behind)])[-1].open
