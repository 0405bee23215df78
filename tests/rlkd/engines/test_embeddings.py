import asyncio
import pickle

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from rlkd.engines import EngineError
from rlkd.engines.embeddings import SentenceEncoder
from rlkd.gsrm import EmbeddingJudge, Verdict
from rlkd.structure import Step, Structure

TEXTS = ["how many apples", "how many", "apples and pears and apples and pears", "pears", "", "how many apples"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A random BERT of one layer over a dozen words, saved as a folder."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "how", "many", "apples", "and", "pears", "left"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            initializer_range=0.5,
        )
        BertModel(config).save_pretrained(folder)
    return str(folder)


def encode(encoder, texts):
    return asyncio.run(encoder.encode(texts))


def test_vectors_have_length_one_and_the_order_of_their_texts(tiny_bert):
    encoder = SentenceEncoder(tiny_bert, device="cpu")
    vectors = encode(encoder, TEXTS)
    assert vectors.shape == (6, 16)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(6), atol=1e-5)
    assert torch.equal(vectors[0], vectors[5])
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert torch.allclose(encode(SentenceEncoder(tiny_bert, device="cpu"), [text])[0], vector, atol=1e-5)


def test_a_vector_is_the_normalised_mean_over_the_tokens(tiny_bert):
    tokenizer, model = BertTokenizerFast.from_pretrained(tiny_bert), BertModel.from_pretrained(tiny_bert).eval()
    with torch.no_grad():
        mean = model(**tokenizer(TEXTS[2], return_tensors="pt")).last_hidden_state[0].mean(0)
    [vector] = encode(SentenceEncoder(tiny_bert, device="cpu"), [TEXTS[2]])
    assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_neither_order_nor_size_of_the_batches_matters(tiny_bert, batch_tokens):
    expected = encode(SentenceEncoder(tiny_bert, device="cpu"), TEXTS)
    encoder = SentenceEncoder(tiny_bert, device="cpu", batch_tokens=batch_tokens)
    forward = encode(encoder, TEXTS)
    assert torch.allclose(forward, expected, atol=1e-5)
    backward = encode(SentenceEncoder(tiny_bert, device="cpu", batch_tokens=batch_tokens), TEXTS[::-1])
    assert torch.equal(backward.flip(0), forward)


def test_a_known_text_is_not_computed_again_and_the_oldest_are_forgotten(tiny_bert):
    encoder = SentenceEncoder(tiny_bert, device="cpu", cache_size=2)
    [first] = encode(encoder, ["how"])
    encode(encoder, ["many"])
    encoder._loaded = (None, None)  # so any computation would fail now
    assert torch.equal(encode(encoder, ["how", "how"])[0], first)
    encoder._loaded = None
    encode(encoder, ["left"])
    assert list(encoder._kept) == ["how", "left"]


def test_a_text_beyond_the_context_is_truncated(tiny_bert):
    encoder = SentenceEncoder(tiny_bert, device="cpu")
    long, longer = encode(encoder, ["apples " * 14, "apples " * 500])
    assert torch.equal(long, longer)


def test_no_texts_give_no_vectors_and_need_no_model():
    assert len(encode(SentenceEncoder("some/model"), [])) == 0


def test_the_random_state_is_left_alone(tiny_bert):
    before = torch.random.get_rng_state()
    encode(SentenceEncoder(tiny_bert, device="cpu"), TEXTS)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_encoder_pickles_as_its_arguments(tiny_bert):
    encoder = SentenceEncoder(tiny_bert, device="cpu", batch_tokens=7, cache_size=9)
    encode(encoder, TEXTS)
    data = pickle.dumps(encoder)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert (copy.model, copy.device, copy.batch_tokens, copy.cache_size) == (tiny_bert, "cpu", 7, 9)
    assert torch.equal(encode(copy, TEXTS), encode(encoder, TEXTS))


def test_a_model_that_is_not_there_is_an_engine_error_that_names_it(tmp_path):
    with pytest.raises(EngineError, match=r"embeddings:.*nowhere.*does not load"):
        encode(SentenceEncoder(str(tmp_path / "nowhere")), ["how"])


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="batch_tokens=0"):
        SentenceEncoder("some/model", batch_tokens=0)


def test_a_judge_uses_the_encoder(tiny_bert):
    judge = EmbeddingJudge(tiny_bert, threshold=1.0 - 1e-4, device="cpu")
    student = Structure([Step("many pears", "48/2", "24"), Step("how many apples left", "3*4", "12")])
    teacher = Structure([Step("many pears?", "48/2", "24"), Step("pears", "9*9", "81")])
    assert asyncio.run(judge.judge([(student, teacher)])) == [[Verdict(True, True, True), Verdict(False, None, None)]]
