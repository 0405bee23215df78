"""The laboratory's models with another tokenizer: byte pairs that lie across the words of the students' vocabulary.

    student     | Ida has| 2 times as many as| Max|.|
    byte pairs  | Ida| has 2 times as many as| Max|.|

The merges are learnt from the laboratory's texts, inside pieces of several words and numbers, but without a name or
punctuation. So the tokens of a sentence straddle the student's, and most tokens of a calculation are the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from rlkd.lab.problems import ALL_LENGTHS, dependency_rows
from rlkd.lab.students import END, PAD, SEED, SPECIAL_TOKENS, UNKNOWN, finished, line_starts, whole_text

SIZE = 256
"""Tokens; with as many, the texts of the task have as many tokens as with the student's vocabulary."""
TEXTS = 3_000
"""Problems from which the merges are learnt."""
PIECE = r" ?[A-Z][a-z]+|(?: ?[a-z0-9]+)+| ?[^\sA-Za-z0-9]+|\s"


def byte_pair_tokenizer() -> Any:
    """The tokenizer; the same at every call. Decoding gives the text back."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Split
    from tokenizers.trainers import BpeTrainer

    pairs = Tokenizer(BPE(unk_token=UNKNOWN))
    pairs.pre_tokenizer = Split(Regex(PIECE), "isolated")
    pairs.normalizer, pairs.decoder = line_starts(), whole_text()
    rows = dependency_rows("pretraining", TEXTS, steps=ALL_LENGTHS)
    texts = [text for row in rows for text in (row["question"], *row["rationales"])]
    learning = BpeTrainer(vocab_size=SIZE, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    pairs.train_from_iterator(texts, learning)
    return finished(pairs)


def identity(source: str) -> str:
    """Eight characters that differ if a respelled model differs; `source` identifies the model that it begins with."""
    parts = json.dumps([source, SIZE, TEXTS, PIECE, SEED])
    return hashlib.sha256(parts.encode()).hexdigest()[:8]


def respelled_model(folder: Path, source: Path) -> None:
    """Write the model of the folder `source` with the byte pairs as its tokens, which it does not know yet.

    Always the same weights. Layers are those of the source; a token begins with the mean of the source's words in its
    text, where there are any, and some noise.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(source)
    words, pairs = AutoTokenizer.from_pretrained(source), byte_pair_tokenizer()
    before = model.get_input_embeddings().weight.detach().clone()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model.resize_token_embeddings(len(pairs), mean_resizing=False)
        rows = torch.randn(len(pairs), before.shape[1]) * before.std() / 2
    for token, index in pairs.get_vocab().items():
        known = [i for i in words(token.strip(" "), add_special_tokens=False).input_ids if i != words.unk_token_id]
        if known:
            rows[index] += before[known].mean(0)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(rows)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = (pairs.convert_tokens_to_ids(token) for token in (END, PAD))
    model.save_pretrained(folder)
    pairs.save_pretrained(folder)
