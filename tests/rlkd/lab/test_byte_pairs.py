"""The laboratory's other tokenizer, and models that begin with it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.lab import byte_pairs
from rlkd.lab.byte_pairs import byte_pair_tokenizer, identity, respelled_model
from rlkd.lab.problems import ALL_LENGTHS, dependency_rows
from rlkd.lab.students import tokenizer
from rlkd.models import resolve_model


@pytest.fixture(scope="module")
def pairs():
    return byte_pair_tokenizer()


def test_every_text_of_the_task_is_made_of_known_tokens_and_decodes_exactly(pairs) -> None:
    for row in dependency_rows("test", 100, steps=ALL_LENGTHS):
        for text in (row["question"], *row["rationales"]):
            ids = pairs(text).input_ids
            assert pairs.unk_token_id not in ids
            assert pairs.decode(ids) == text


def test_it_is_always_the_same(pairs) -> None:
    assert byte_pair_tokenizer().get_vocab() == pairs.get_vocab()
    assert len(pairs) == byte_pairs.SIZE


def test_in_a_sentence_tokens_straddle_those_of_the_student_and_in_a_calculation_they_are_the_same(pairs) -> None:
    sentence, calculation = "Ida has 2 times as many as Max.", "Max: 10 - 5 = 5, so"
    words = tokenizer()
    assert words.tokenize(sentence) == [" Ida has", " 2 times as many as", " Max", "."]
    assert pairs.tokenize(sentence) == [" Ida", " has 2 times as many as", " Max", "."]
    assert pairs.tokenize(calculation) == words.tokenize(calculation)


@pytest.mark.slow
def test_a_respelled_model_has_the_layers_of_its_source_and_is_always_the_same(tmp_path, pairs) -> None:
    source = resolve_model("lab-expert")
    for name in "ab":
        respelled_model(tmp_path / name, source)
    before, one, other = (
        AutoModelForCausalLM.from_pretrained(path) for path in (source, *map(tmp_path.joinpath, "ab"))
    )
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
    old, new = before.state_dict(), one.state_dict()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert AutoTokenizer.from_pretrained(tmp_path / "a").get_vocab() == pairs.get_vocab()
    # A word that both have is nearer to its old row than to the others.
    words, rows = tokenizer(), one.get_input_embeddings().weight
    near = torch.cdist(rows[pairs.convert_tokens_to_ids([" Max", " ="])], before.get_input_embeddings().weight)
    assert near.argmin(1).tolist() == words.convert_tokens_to_ids([" Max", " ="])


def test_another_source_or_piece_is_another_respelled_model(monkeypatch) -> None:
    before = identity("one")
    assert before == identity("one") != identity("other")
    monkeypatch.setattr(byte_pairs, "PIECE", r"\S+")
    assert identity("one") != before
