"""Tiny process reward models with random weights, in the forms in which such models are published."""

from pathlib import Path


def save_process_models(base: str, folder: Path) -> dict[str, str]:
    """Save a token classifier and a sequence classifier of two classes with the config of `base`."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForSequenceClassification, LlamaForTokenClassification

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    tokenizer.chat_template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}\n{% endfor %}"
    made = {}
    for name, kind in (("token", LlamaForTokenClassification), ("sequence", LlamaForSequenceClassification)):
        config = AutoConfig.from_pretrained(base, num_labels=2, initializer_range=0.3)
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        config.max_position_embeddings = 1024
        torch.manual_seed(1)
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made[name] = str(folder / name)
    return made
