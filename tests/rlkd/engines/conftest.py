"""A tiny random model that behaves like a chat model, and a loopback server that answers with it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.tiny import save_llama
from rlkd.engines.transformers import TransformersEngine
from tests.helpers.loopback import LoopbackServer
from tests.helpers.quick_retries import shorten_pauses

CONTEXT = 192
CORPUS = [
    "She sold 48/2 = 24 clips in May. Altogether she sold 48 + 24 = 72 clips, yes or no?",
    "The answer is supported by the question: yes. Supported, unsupported, maybe, true or false.",
    "How many eggs are left? 16 - 3 - 4 = 9 eggs, at 2 dollars each: 18 dollars a day.",
]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """Two Llama layers with tied embeddings, whose padding token is its end token, as SmolLM2's is."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    changes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    # Wide weights, so that greedy text varies and near-ties are rare.
    changes |= {"max_position_embeddings": CONTEXT, "initializer_range": 0.2, "pad_token_id": None}
    save_llama(folder, fast, seed=7, **changes)
    return folder


@pytest.fixture(scope="session")
def context() -> int:
    return CONTEXT


@pytest.fixture(scope="session")
def engine(model_folder) -> TransformersEngine:
    return TransformersEngine(str(model_folder), device="cpu")


@pytest.fixture(scope="session")
def _server(engine):
    server = LoopbackServer(engine)
    yield server
    server.shut_down()


@pytest.fixture
def server(_server, monkeypatch):
    """The loopback server, with nothing wrong with it, and pauses between attempts cut short."""
    shorten_pauses(monkeypatch)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _server.reset()
    yield _server
    _server.reset()
