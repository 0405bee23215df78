"""What lets TRL's asynchronous trainer run without a GPU, and how completions are read."""

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from trl.chat_template_utils import parse_response, qwen3_template
from trl.experimental.async_grpo import async_grpo_trainer, packing

from rlkd.errors import UsageError
from trainers.async_grpo.rollouts import packed_attention, whole_text
from trainers.common.trl_compat import async_with, check_async_trl


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def sample(tokens: list[int], trained: int, group: int) -> dict:
    """A completion of the last `trained` tokens."""
    ids = torch.tensor(tokens)
    mask = torch.zeros_like(ids)
    mask[-trained:] = 1
    zeros = torch.zeros(len(tokens))
    return {"input_ids": ids, "completion_mask": mask, "old_log_probs": zeros, "advantage": 1.0, "group_id": group}


@pytest.mark.parametrize("window", [None, 3])
def test_each_token_sees_its_own_path_and_no_other(window) -> None:
    # Two completions "p q r | a b c" and "p q r | d e" with the prompt packed once, grouped-query heads 4 over 2.
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16)
    first, second = [0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7]
    out, weights = packed_attention(
        None,
        query,
        key,
        value,
        None,
        tree_kv_index=torch.tensor([0, 1, 2, *first, *second]),
        tree_cu_seqlens_q=torch.tensor([0, 3, 6, 8]),
        tree_cu_seqlens_k=torch.tensor([0, 3, 9, 14]),
        scaling=0.3,
        sliding_window=window,
    )
    assert weights is None
    assert out.shape == (1, 8, 4, 16)
    for path in (first, second):
        for place, token in enumerate(path):
            seen = path[max(0, place + 1 - (window or 99)) : place + 1]
            for head in range(4):
                scores = 0.3 * (key[0, head // 2, seen] @ query[0, head, token])
                expected = torch.softmax(scores, dim=0) @ value[0, head // 2, seen]
                torch.testing.assert_close(out[0, token, head], expected, atol=1e-6, rtol=1e-5)


def test_a_packed_row_gives_the_log_probabilities_of_its_completions_one_by_one(tiny_model, no_cuda) -> None:
    with async_with(packed_attention):
        packing.register_tree_attention()
    packed = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=packing.TREE_ATTENTION)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    samples = [
        sample([2, 20, 21, 3, 30, 31, 32], 3, 0),
        sample([2, 20, 21, 3, 30, 40], 2, 0),
        sample([2, 20, 21, 3, 50], 1, 0),
        sample([2, 60, 3, 30, 31], 2, 1),
    ]
    row = packing.TreeRow()
    for one in samples:
        row.add(one)
    given = row.pack()
    longest = given.pop("tree_max_seqlens").tolist()
    with torch.no_grad():
        logits = packed(
            input_ids=given["input_ids"][None],
            position_ids=given["position_ids"][None],
            tree_kv_index=given["tree_kv_index"],
            tree_cu_seqlens_q=given["tree_cu_seqlens_q"],
            tree_cu_seqlens_k=given["tree_cu_seqlens_k"],
            tree_max_seqlen_q=longest[0],
            tree_max_seqlen_k=longest[1],
        ).logits[0]
        found = logits.log_softmax(-1)[given["token_index"]]
        for i, one in enumerate(samples):
            ids = one["input_ids"]
            expected = plain(ids[None]).logits[0].log_softmax(-1)[one["completion_mask"].nonzero().flatten() - 1]
            torch.testing.assert_close(found[given["segment_id"] == i], expected, atol=1e-5, rtol=1e-5)
    assert len(given["input_ids"]) < sum(len(one["input_ids"]) for one in samples)


def test_capped_scores_are_refused() -> None:
    ones = torch.ones(1, 1, 1, 1)
    ends = torch.tensor([0, 1])
    with pytest.raises(UsageError, match="softcap 30"):
        packed_attention(
            None,
            ones,
            ones,
            ones,
            None,
            tree_kv_index=torch.tensor([0]),
            tree_cu_seqlens_q=ends,
            tree_cu_seqlens_k=ends,
            softcap=30.0,
        )


def test_without_cuda_trl_does_not_look_up_the_speed_of_a_gpu(no_cuda) -> None:
    asked = async_grpo_trainer.get_peak_flops_per_device
    with async_with(packed_attention):
        assert async_grpo_trainer.get_peak_flops_per_device(None, "float32") is None
    assert async_grpo_trainer.get_peak_flops_per_device is asked
    assert AttentionInterface()[packing.TREE_ATTENTION] is packed_attention


def test_with_cuda_nothing_is_replaced(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = async_grpo_trainer.get_peak_flops_per_device
    packing.register_tree_attention()
    with async_with(packed_attention):
        assert async_grpo_trainer.get_peak_flops_per_device is asked
    assert AttentionInterface()[packing.TREE_ATTENTION] is packing.tree_attention


def test_the_trl_that_is_installed_is_the_one_we_know() -> None:
    assert check_async_trl() is None


def test_another_trl_is_refused_by_what_has_changed(monkeypatch) -> None:
    monkeypatch.setattr(packing, "tree_attention", lambda module, query, key, value, block_mask: None)
    with pytest.raises(UsageError, match=r"packing.tree_attention takes.*trl==1\.16\.0"):
        check_async_trl()


@pytest.mark.parametrize(
    "text",
    [
        "<think>two\n and two</think>\n\n<answer>4</answer>\n",
        "  4 ",
        "",
        "a <tool_call>{}</tool_call> b",
        "é日本 #### 4",
    ],
)
def test_rewards_read_the_whole_text(tiny_model, text) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.response_template = whole_text([tokenizer.eos_token])
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "<think>?"}], add_generation_prompt=True, return_dict=False
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    read = parse_response(tokenizer, ids, prefix=prompt)
    # As TRL's synchronous trainer reads it.
    assert read == {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
    assert read["content"] == text


def test_trls_own_template_would_take_the_thinking_away(tiny_model) -> None:
    # Why there is one of ours: as soon as this no longer holds, ours can go.
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.response_template = qwen3_template
    ids = tokenizer("<think>two</think> 4", add_special_tokens=False)["input_ids"]
    assert "two" not in parse_response(tokenizer, ids, prefix=ids[:0] or [2])["content"]
