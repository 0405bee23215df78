"""Tiny random models with the chat templates of public families, written anew: shapes, not copies.

| name | like | its ways |
| --- | --- | --- |
| `chatml` | Qwen2.5 | a system role; ends a turn with the end token |
| `thinking` | Qwen3 | the same; `enable_thinking: false` writes an empty thought |
| `think_special` | - | the same, with think tags that are special tokens |
| `no_system` | Gemma | BOS, refuses a system message, two end tokens, `<eos>` never in a conversation |
| `opens_thought` | R1-distill | BOS, opens `<think>` in the prompt |
| `two_ends` | Llama 3 | BOS, two end tokens, no padding token |
| `base` | a base model | BOS, no template |
| `chatml_base` | Qwen2.5's base models | the vocabulary and template of `chatml`, another end token |
| `short` | - | `chatml` with room for 128 tokens |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML = _TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING = _TURNS + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
OPENS_THOUGHT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == "
    "'assistant' %}<|Assistant|>{{ m.content }}{{ eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
TWO_ENDS = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n\n{% endif %}"
)
_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin|>", "<|end|>", "<|head|>", "<|eot|>")


@dataclass(frozen=True)
class TemplateModel:
    """Special tokens, end, padding and BOS tokens, the template, added plain tokens, all end tokens, the context."""

    special: tuple[str, ...]
    end: str
    pad: str | None
    bos: str | None = None
    template: str | None = CHATML
    plain: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    context: int = 2048


MODELS = {
    "chatml": TemplateModel(_CHAT, "<|im_end|>", "<|endoftext|>"),
    "chatml_base": TemplateModel(_CHAT, "<|endoftext|>", "<|endoftext|>"),
    "short": TemplateModel(_CHAT, "<|im_end|>", "<|endoftext|>", context=128),
    "thinking": TemplateModel(_CHAT, "<|im_end|>", "<|endoftext|>", template=THINKING, plain=("<think>", "</think>")),
    "think_special": TemplateModel((*_CHAT, "<think>", "</think>"), "<|im_end|>", "<|endoftext|>", template=THINKING),
    "no_system": TemplateModel(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<pad>",
        "<bos>",
        NO_SYSTEM,
        ends=("<eos>", "<end_of_turn>"),
    ),
    "opens_thought": TemplateModel(
        ("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        "<|end|>",
        "<|end|>",
        "<|begin|>",
        OPENS_THOUGHT,
        ("<think>", "</think>"),
    ),
    "two_ends": TemplateModel(_LLAMA, "<|eot|>", None, "<|begin|>", TWO_ENDS, ends=("<|end|>", "<|eot|>")),
    "base": TemplateModel(_LLAMA, "<|end|>", None, "<|begin|>", None),
}


def make_tokenizer(name: str) -> Any:
    """The tokenizer of a model, over single bytes; a text gets the BOS token, as in these families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    kind = MODELS[name]
    entries = [*kind.special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(kind.special))
    if kind.bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{kind.bos} $A", special_tokens=[(kind.bos, made.token_to_id(kind.bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=kind.bos, eos_token=kind.end, pad_token=kind.pad
    )
    tokenizer.add_tokens(list(kind.plain))
    tokenizer.chat_template = kind.template
    return tokenizer


def save_template_model(name: str, folder: Path) -> str:
    """Save the model with its tokenizer; return the folder. Leaves the random state as it is."""
    from transformers import GenerationConfig

    from benchmarks.tiny import save_llama

    kind, tokenizer = MODELS[name], make_tokenizer(name)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in kind.ends or (kind.end,)]
    save_llama(folder, tokenizer, max_position_embeddings=kind.context, eos_token_id=ends, tie_word_embeddings=True)
    GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    return str(folder)
