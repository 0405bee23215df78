"""Configurations of tiny models of several architectures, and the models themselves."""

from typing import Any

SIZES = {
    "vocab_size": 130,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def tiny_config(name: str, **changes: Any) -> Any:
    """The configuration of a tiny model by the name of its architecture."""
    import transformers

    sizes = SIZES | changes
    if name == "llama":
        return transformers.LlamaConfig(**sizes)
    if name == "qwen2":
        return transformers.Qwen2Config(**sizes, tie_word_embeddings=True)
    if name == "qwen3":
        return transformers.Qwen3Config(**sizes)
    if name == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **sizes, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1
        )
    if name == "lfm2":
        return transformers.Lfm2Config(**sizes, layer_types=["conv", "full_attention"])
    if name == "gemma3":
        kinds = ["sliding_attention", "full_attention"]
        return transformers.Gemma3TextConfig(**sizes, sliding_window=16, layer_types=kinds)
    assert name == "gpt2", name
    return transformers.GPT2Config(vocab_size=130, n_embd=32, n_layer=2, n_head=4)


def tiny_model_of(config: Any, adapter: Any = None) -> Any:
    """The model of a configuration, random, with an adapter of PEFT if one is given."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        return model if adapter is None else get_peft_model(model, adapter)
