"""Random models, their tokenizer, data and training arguments, small enough for a CPU; the tests build on them too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# torch and transformers are imported in the functions: some callers set up their processes first.

SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(vocabulary: int = 0) -> Any:
    """A chat tokenizer over single bytes; words that no text encodes to fill it up to `vocabulary` entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    entries += [f"w{i}" for i in range(vocabulary - len(entries))]
    tokenizer = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_llama(folder: str | Path, tokenizer: Any = None, *, seed: int = 0, **changes: Any) -> str:
    """Save a random Llama with its tokenizer; return the folder. Leaves the random state of the caller as it is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer or byte_tokenizer()
    hidden = changes.get("hidden_size", 32)
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": changes.get("num_attention_heads", 2),
        "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(**config | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def questions(text: str = "Ann has {a} shells and finds {b} more. How many are there?") -> Any:
    """A dataset of sixteen sums as chats, with an answer column."""
    from datasets import Dataset

    chats = [[{"role": "user", "content": text.format(a=17 * i + 3, b=5 * i + 11)}] for i in range(16)]
    return Dataset.from_dict({"prompt": chats, "answer": [str(22 * i + 14) for i in range(16)]})


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that depends on the text only, and differs within a group: a constant one would train nothing."""
    return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


def training_arguments(output: str | Path, **changes: Any) -> dict[str, Any]:
    """Arguments of a TRL config for a short run on the CPU that saves and reports nothing."""
    values = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
    }
    return values | changes
