from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import rlkd.assets
from benchmarks.tiny import byte_tokenizer
from rlkd.models import EMBEDDED, ModelUnavailable, resolve_model

# How Qwen's vocabularies divide a text: single digits, and punctuation together with the line ends behind it.
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def like_qwen() -> PreTrainedTokenizerFast:
    text = "She has 3 + 4 = 7 teachers.\n\nSo each is 70 / 7 = 10 dollars.\nThen the cost is 10.\n\n#### 10\n é 漢"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_end|>"]
    made.train_from_iterator(
        [text] * 5, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, special_tokens=special)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def embedded() -> PreTrainedTokenizerFast:
    try:
        return AutoTokenizer.from_pretrained(resolve_model(EMBEDDED))
    except ModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be fetched here: {error}")


def of_the_laboratory() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(rlkd.assets.__file__).parent / "lab-student")


TOKENIZERS = {
    "like Qwen": like_qwen,
    "SmolLM2": embedded,
    "the laboratory": of_the_laboratory,
    "bytes": byte_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    """Tokenizers of several families. All but the laboratory's, whose words are few, give back the text they read."""
    return TOKENIZERS[request.param]()
