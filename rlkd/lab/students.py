"""The laboratory's students: small LFM2 models with a vocabulary of the task's own words.

A student starts untrained (`untrained_student`); `recipes/sft.py --config recipes/lab/student.yaml` trains it from
scratch. The result is an ordinary checkpoint, shipped as the model `lab-student`. With further words
(`widened_student`) it goes on to the problems with several strategies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rlkd.lab.problems import LARGEST, NAMES, THINGS
from rlkd.lab.solutions import STEP_NAMES

SEED = 0
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention"] * 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
"""Of the student's config: our choice of 0.9 million parameters, see `untrained_student`."""
# One message after the other; no system role of its own, as the task needs none.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|assistant|>' if message['role'] == 'assistant' else '<|user|>' }}{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN, "<|user|>", "<|assistant|>")
# A name with its verb; a relation; a word, number or sign with the space before it; or a single white space. That what
# is said of a quantity follows its owner directly makes it easy to look up.
PIECE = (
    r" [A-Z][a-z]+ has| [0-9]+ (?:more than|fewer than|times as many as)| as many as"
    r"| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s"
)
WORDS = ("How", "many", "does", "have", "as many as", "so", "and", "together", "What", "is", "said", "of")
PUNCTUATION = (".", ":", "?", ",")
RELATION_WORDS = ("more than", "fewer than", "times as many as")
SIGNS = ("+", "-", "*", "=", "####")
STRATEGY_WORDS = (
    *("buy", "buys", "bags", "with", "in", "each", "bag", "things", "gives", "to", "are", "left", "they"),
    *("fills", "boxes", "box", "more"),
    *dict.fromkeys(chain.from_iterable(STEP_NAMES.values())),
)
"""What the problems with several strategies need besides: words of the questions, and names of steps."""


def vocabulary() -> list[str]:
    """The tokens: special ones, punctuation, then words, numbers and signs with the space before them."""
    numbers = (str(number) for number in range(LARGEST * 3 + 1))
    owners = (f"{name} has" for name in NAMES)
    relations = (f"{number} {relation}" for number in range(2, 10) for relation in RELATION_WORDS)
    pieces = dict.fromkeys(chain(WORDS, NAMES, owners, relations, THINGS, SIGNS, numbers))
    return [*SPECIAL_TOKENS, "\n", " ", *PUNCTUATION, *(f" {piece}" for piece in pieces)]


def tokenizer(further: Sequence[str] = ()) -> Any:
    """The tokenizer: one token per word or number, the same at the start of a line; decoding gives the text back.

    `further` words come after the others.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split

    tokens = [*vocabulary(), *(f" {word}" for word in further)]
    words = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    words.pre_tokenizer = Split(Regex(PIECE), "isolated")
    words.normalizer, words.decoder = line_starts(), whole_text()
    return finished(words)


def line_starts() -> Any:
    """The normalizer after which a word at the start of a line has a space before it, as any other."""
    from tokenizers import normalizers

    return normalizers.Sequence([normalizers.Replace("\n", "\n "), normalizers.Prepend(" ")])


def whole_text() -> Any:
    """The decoder that takes these spaces away."""
    from tokenizers import decoders

    return decoders.Sequence([decoders.Fuse(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0)])


def finished(made: Any) -> Any:
    """A tokenizer of this laboratory as transformers takes it, with its special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    finished = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        clean_up_tokenization_spaces=False,
    )
    finished.chat_template = CHAT_TEMPLATE
    return finished


def identity() -> str:
    """Eight characters that differ if the untrained student differs in shape, vocabulary or seed."""
    parts = json.dumps([SHAPE, vocabulary(), PIECE, CHAT_TEMPLATE, SEED])
    return hashlib.sha256(parts.encode()).hexdigest()[:8]


def widened_student(folder: Path, student: Path) -> None:
    """Write the laboratory's student with the `STRATEGY_WORDS` besides, which it does not know yet; always the same.

    `student`: the folder of its checkpoint.
    """
    import torch
    from transformers import AutoModelForCausalLM

    words = tokenizer(STRATEGY_WORDS)
    model = AutoModelForCausalLM.from_pretrained(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model.resize_token_embeddings(len(words), mean_resizing=False)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def untrained_student(folder: Path) -> None:
    """Write an untrained student to `folder`; the same weights at every call.

    Our choice: so small that a step of reinforcement learning takes a second or two on a core, and with a short
    convolution below each attention layer. With them the student learns to find a name in the question from several
    times fewer examples than with attention alone (a Llama and a Qwen2 of this size were tried).
    """
    import torch
    from transformers import GenerationConfig, Lfm2Config, Lfm2ForCausalLM

    words = tokenizer()
    ids = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        student = Lfm2ForCausalLM(Lfm2Config(vocab_size=len(words), **SHAPE, **ids))
    student.generation_config = GenerationConfig(**ids)
    student.save_pretrained(folder)
    words.save_pretrained(folder)
