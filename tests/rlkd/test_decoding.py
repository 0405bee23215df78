"""Generation without repeated work: the same tokens and scores as `generate`, whatever the architecture."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlkd.decoding import decode, greedy, has_relative_positions, keeps_every_state, unsupported

VOCABULARY, LIMIT = 64, 90
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=None),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [5, 6, 7, 8, 9, 10, 11], [20, 21, 22, 23], [30], [12, 13]]


@pytest.fixture(params=CONFIGS)
def model(request):
    return build(CONFIGS[request.param])


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # far from the start, where all tokens are as likely
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model


def batch(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def by_generate(model, prompts, ends):
    ids, mask = batch(prompts)
    settings = {"do_sample": False, "max_new_tokens": LIMIT, "eos_token_id": ends or None, "pad_token_id": 0}
    rows = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :].tolist()
    stops = [next((at + 1 for at, token in enumerate(row) if token in ends), LIMIT) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


@pytest.mark.parametrize("ends", [[], [3, 14, 25, 36, 47, 58]])
def test_greedy_tokens_are_those_of_generate(model, ends) -> None:
    expected = by_generate(model, PROMPTS, ends)
    assert decode(model, PROMPTS, pick=greedy, ends=ends, limit=LIMIT, pad_id=0) == expected
    assert len(set(map(len, expected))) > 2 or not ends  # rows end at different times


def test_scores_are_those_of_a_pass_over_the_whole_text(model) -> None:
    logprobs = {row: [] for row in range(len(PROMPTS))}
    random = torch.Generator().manual_seed(1)

    def draw(scores, ids, rows):
        tokens = torch.multinomial(scores.softmax(-1), 1, generator=random)[:, 0]
        for row, token, values in zip(rows.tolist(), tokens, scores.log_softmax(-1), strict=True):
            logprobs[row].append(values[token].item())
        return tokens

    written = decode(model, PROMPTS, pick=draw, ends=[3, 14, 25], limit=LIMIT, pad_id=0)
    assert len(set(map(len, written))) > 2
    for row, (prompt, tokens) in enumerate(zip(PROMPTS, written, strict=True)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0]
        values = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs[row]), values, atol=1e-5, rtol=0)


def test_equal_prompts_are_read_once_and_ended_rows_leave_the_batch() -> None:
    model, sizes = build(CONFIGS["llama"]), []
    model.model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].shape), with_kwargs=True
    )
    lengths = [3, 1, 5, 2, 5, 1]
    written = decode(
        model,
        PROMPTS,
        pick=greedy,
        ends=(),
        limit=10,
        pad_id=0,
        stop=lambda ids, rows: torch.tensor([lengths[row] <= ids.shape[1] - 7 for row in rows]),
    )
    assert list(map(len, written)) == lengths
    assert [tuple(size) for size in sizes] == [(4, 7), (4, 1), (3, 1), (2, 1), (2, 1)]


def test_models_with_other_states_are_left_to_generate() -> None:
    assert unsupported(build(CONFIGS["llama"])) is None
    for config in (Gemma2Config(**SIZES, head_dim=8), MistralConfig(**SIZES, sliding_window=8)):
        assert "sliding window" in (unsupported(AutoModelForCausalLM.from_config(config)) or "")


@pytest.mark.parametrize(
    ("rotary", "keeps"),
    [
        (None, True),
        ({"rope_type": "default", "rope_theta": 10000.0}, True),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, True),
        ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, False),
    ],
)
def test_only_rotary_positions_that_are_the_same_in_every_pass_let_a_beginning_be_shared(rotary, keeps):
    assert keeps_every_state(LlamaConfig(rope_parameters=rotary)) is keeps


@pytest.mark.parametrize(
    ("config", "relative"),
    [
        *((config, name != "gpt2") for name, config in CONFIGS.items()),
        (FalconConfig(alibi=True), False),
    ],
    ids=[*CONFIGS, "alibi"],
)
def test_rotary_positions_are_relative(config, relative) -> None:
    assert has_relative_positions(config) is relative
