"""Random models with the shapes of Qwen2.5, made on the device from a seed, and the rows that they are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import byte_tokenizer, questions


@dataclass(frozen=True)
class Shape:
    """A Qwen2 configuration: the numbers that set the cost of a step."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 2
    vocab_size: int = 151_936


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, vocab_size=1024),
    "small": Shape(256, 768, 4, 4),
    "0.5b": Shape(896, 4864, 24, 14),
    "1.5b": Shape(1536, 8960, 28, 12),
}


def build_model(shape: Shape, device: str, dtype: str | None = None, seed: int = 0) -> Any:
    """A random Qwen2 on a device; bf16 on a GPU and fp32 on a CPU unless `dtype` says otherwise."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**vars(shape), tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    torch.manual_seed(seed)
    with torch.device(device):
        dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
        return Qwen2ForCausalLM._from_config(config, dtype=getattr(torch, dtype))


def save_model(shape: Shape, folder: Path, device: str, dtype: str, seed: int = 0) -> str:
    """Save a random model with its tokenizer; returns the folder."""
    build_model(shape, device, dtype, seed).save_pretrained(folder)
    byte_tokenizer(shape.vocab_size).save_pretrained(folder)
    return str(folder)


def lora() -> Any:
    """LoRA r16 on all linear layers."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def sums() -> Any:
    """Sixteen sums as chats of some hundred tokens, with an answer column."""
    return questions("Ann has {a} shells and finds {b} more on the beach, then counts them twice. How many are there?")


def traces() -> Any:
    """The sums with a trace of the teacher each: two sentences, over and over, some 250 tokens long."""
    text = "There are {c} shells on the beach. Twice that is {d} shells.\n"
    rationales = [[text.format(c=22 * i + 14, d=44 * i + 28) * 4] for i in range(16)]
    return sums().add_column("rationales", rationales)


def longest_prompt(tokenizer: Any, rows: Any) -> int:
    """Tokens of the longest prompt of a dataset of chats."""
    texts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
