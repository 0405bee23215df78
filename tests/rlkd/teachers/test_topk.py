"""Top-k teachers: what they say against a whole softmax, what they refuse, and how traces become ids."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from rlkd.engines import EngineError
from rlkd.errors import UsageError
from rlkd.teachers.engine import EngineTeacher
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.topk import TopK, check_temperature
from rlkd.teachers.traces import trace_ids, trace_text
from rlkd.teachers.vocabulary import common_vocabulary, vocabulary_fingerprint
from tests.helpers.quick_retries import shorten_pauses
from tests.helpers.top_k_server import TopKServer

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 and 3?"}]
SEQUENCES = [list(range(5, 60)), list(range(40, 48)), [7, 7, 7, 7] * 20, [9, 10]]
STARTS = [20, 1, 3, 1]
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def whole(model: Any, sequence: list[int], start: int) -> torch.Tensor:
    """The log-probabilities of all tokens, the obvious way: [n, V] float32."""
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0, start - 1 : -1].float().log_softmax(-1)


def assert_right(top: TopK, expected: torch.Tensor, sequence: list[int], start: int, k: int) -> None:
    best = expected.topk(k)
    torch.testing.assert_close(top.logprobs, best.values, atol=2e-5, rtol=0)
    # By value: two tokens may be equally likely.
    torch.testing.assert_close(expected.gather(-1, top.ids.long()), top.logprobs, atol=2e-5, rtol=0)
    assert all(len(set(row)) == k for row in top.ids.tolist())
    taken = expected.gather(-1, torch.tensor(sequence[start:])[:, None])[:, 0]
    torch.testing.assert_close(top.taken, taken, atol=2e-5, rtol=0)


# In this process


@pytest.mark.parametrize("k", [1, 16, 261])
def test_a_local_teacher_gives_the_largest_of_a_whole_softmax(model, tokenizer, k) -> None:
    teacher = LocalTeacher(model, tokenizer, k)
    tops = teacher.top_k(SEQUENCES, STARTS)
    for top, sequence, start in zip(tops, SEQUENCES, STARTS, strict=True):
        assert top.ids.dtype is torch.int32
        assert top.logprobs.dtype is top.taken.dtype is torch.float32
        assert len(top) == len(sequence) - start
        assert_right(top, whole(model, sequence, start), sequence, start, k)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_what_it_says_does_not_depend_on_the_batch(model, tokenizer, batch_tokens) -> None:
    together = LocalTeacher(model, tokenizer, 8, batch_tokens=batch_tokens).top_k(SEQUENCES, STARTS)
    for top, sequence, start in zip(together, SEQUENCES, STARTS, strict=True):
        assert_right(top, whole(model, sequence, start), sequence, start, 8)


@pytest.mark.parametrize("kept", [1, 300, 1000])
def test_few_logits_at_a_time_give_what_all_at_once_give(model, tokenizer, monkeypatch, kept) -> None:
    monkeypatch.setattr("rlkd.teachers.local._LOGITS_AT_A_TIME", kept)  # 1, 1 and 3 positions
    [top] = LocalTeacher(model, tokenizer, 8).top_k(SEQUENCES[:1], STARTS[:1])
    assert_right(top, whole(model, SEQUENCES[0], STARTS[0]), SEQUENCES[0], STARTS[0], 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CohereForCausalLM(CohereConfig(**TINY, logit_scale=0.5)),
        lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=0.05)),
        lambda: GraniteForCausalLM(GraniteConfig(**TINY, logits_scaling=0.1)),
    ],
    ids=["logit_scale", "softcap", "logits_scaling"],
)
def test_a_head_that_scales_or_caps_its_logits_is_read_as_it_is(make, tokenizer) -> None:
    torch.manual_seed(3)
    odd = make().eval()
    sequence = list(range(3, 30))
    [top] = LocalTeacher(odd, tokenizer, 12).top_k([sequence], [5])
    assert_right(top, whole(odd, sequence, 5), sequence, 5, 12)


def test_a_model_that_does_something_else_to_its_logits_is_refused(tiny_model, tokenizer) -> None:
    odd = AutoModelForCausalLM.from_pretrained(tiny_model)
    forward = type(odd).forward

    class Odd(type(odd)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            output.logits = output.logits * 40
            return output

    odd.__class__ = Odd
    with pytest.raises(UsageError, match=r"changes its logits .* vLLM"):
        LocalTeacher(odd, tokenizer, 4).top_k(SEQUENCES, STARTS)


def test_the_teacher_is_left_as_it_was_and_its_values_may_enter_a_loss(tiny_model, tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    [top] = LocalTeacher(model, tokenizer, 4).top_k(SEQUENCES[:1], STARTS[:1])
    assert model.training
    assert not model.get_output_embeddings()._forward_pre_hooks
    student = torch.ones_like(top.logprobs, requires_grad=True)
    (student * top.logprobs).sum().backward()
    assert torch.equal(student.grad, top.logprobs)


def test_a_local_teacher_refuses_impossible_arguments(model, tokenizer) -> None:
    with pytest.raises(UsageError, match=r"k=262: the teacher's head has 261 rows"):
        LocalTeacher(model, tokenizer, 262)
    with pytest.raises(UsageError, match=r"k=0: expected a whole number of at least 1"):
        LocalTeacher(model, tokenizer, 0)
    teacher = LocalTeacher(model, tokenizer, 4)
    with pytest.raises(ValueError, match=r"sequence 1 has 2 tokens and start 0: expected at least 1"):
        teacher.top_k([[5, 6], [5, 6]], [1, 0])
    with pytest.raises(ValueError, match=r"sequence 0 has 2 tokens and start 2"):
        teacher.top_k([[5, 6]], [2])
    with pytest.raises(ValueError, match=r"2 sequences and 1 starts"):
        teacher.top_k([[5, 6], [5, 6]], [1])
    with pytest.raises(UsageError, match=r"5000 tokens: the context of the teacher .* is 4096"):
        teacher.top_k([[5] * 5000], [1])


@pytest.mark.parametrize(("temperature", "fits"), [(1.0, True), (1, True), (0.7, False), (2.0, False)])
def test_only_temperature_one_is_possible(temperature, fits) -> None:
    if fits:
        check_temperature(temperature)
    else:
        with pytest.raises(UsageError, match=r"temperature (0\.7|2) with a top-k teacher"):
            check_temperature(temperature)


# A server: real HTTP and a real model, in the layout of vLLM


@pytest.fixture
def server(model, tokenizer, monkeypatch) -> Iterator[TopKServer]:
    shorten_pauses(monkeypatch)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = TopKServer(model, tokenizer)
    yield started
    started.http.shutdown()
    started.http.server_close()


def test_a_server_teacher_says_what_the_local_one_says(server, model, tokenizer) -> None:
    teacher = EngineTeacher(f"{server.url}#tiny", 16, tokenizer=tokenizer, concurrency=2)
    for top, sequence, start in zip(teacher.top_k(SEQUENCES, STARTS), SEQUENCES, STARTS, strict=True):
        assert_right(top, whole(model, sequence, start), sequence, start, 16)
        assert (top.logprobs[:, :-1] >= top.logprobs[:, 1:]).all()
    assert teacher.vocabulary == LocalTeacher(model, tokenizer, 16).vocabulary
    assert server.most <= 2
    assert {(body["max_tokens"], body["prompt_logprobs"]) for body in server.requests} == {(1, 16)}


def test_two_replicas_share_the_sequences(server, model, tokenizer) -> None:
    other = TopKServer(model, tokenizer)
    try:
        teacher = EngineTeacher(f"{server.url},{other.url}#tiny", 4, tokenizer=tokenizer)
        tops = teacher.top_k(SEQUENCES * 3, STARTS * 3)
        assert len(server.requests) + len(other.requests) == 12
        assert server.requests
        assert other.requests
        assert_right(tops[-2], whole(model, SEQUENCES[2], 3), SEQUENCES[2], 3, 4)
    finally:
        other.http.shutdown()
        other.http.server_close()


def test_requests_to_a_server_that_is_busy_at_first_are_sent_again(server, tokenizer) -> None:
    server.fault = lambda body: (503, {"error": {"message": "warming up"}}) if len(server.requests) <= 2 else None
    teacher = EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer, concurrency=1)
    assert [len(top) for top in teacher.top_k(SEQUENCES, STARTS)] == [35, 7, 77, 1]
    assert len(server.requests) == 2 + len(SEQUENCES)


def test_a_server_that_stays_busy_is_named_with_the_sequence(server, tokenizer) -> None:
    server.fault = lambda body: (503, {"error": {"message": "out of order"}}) if len(body["prompt"]) == 8 else None
    teacher = EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer, retries=1)
    with pytest.raises(EngineError, match=r"sequence 1 of 4 \(8 tokens\).*503: out of order, 2 attempts"):
        teacher.top_k(SEQUENCES, STARTS)


def test_a_deadline_ends_a_call(server, tokenizer) -> None:
    gate = threading.Event()
    server.fault = lambda body: (503, {"error": {"message": "slow"}}) if gate.wait(5) else None
    teacher = EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer, deadline=0.3)
    try:
        with pytest.raises(EngineError, match=r"the deadline of 0.3 s passed"):
            teacher.top_k(SEQUENCES, STARTS)
    finally:
        gate.set()


def test_more_log_probabilities_than_a_server_allows_name_its_option(server, tokenizer) -> None:
    teacher = EngineTeacher(f"{server.url}#tiny", 21, tokenizer=tokenizer)
    with pytest.raises(EngineError, match=r"prompt logprobs of 21.*max allowed: 20.*--max-logprobs 21 \(or -1\)"):
        teacher.top_k(SEQUENCES, STARTS)
    assert len(server.requests) <= len(SEQUENCES)  # final: never tried again


def test_another_model_is_answered_with_those_that_there_are(server, tokenizer) -> None:
    teacher = EngineTeacher(f"{server.url}#other", 4, tokenizer=tokenizer)
    with pytest.raises(EngineError, match=r"`other` does not exist.*The server offers: tiny"):
        teacher.top_k(SEQUENCES, STARTS)


def test_a_server_with_another_tokenizer_is_refused_before_any_sequence_is_sent(server, tokenizer) -> None:
    other = word_tokenizer(["<|end|>", "Natalia", "sold"])
    teacher = EngineTeacher(f"{server.url}#tiny", 4, tokenizer=other)
    with pytest.raises(EngineError, match=r"the server's tokenizer is not the student's.*first that differ"):
        teacher.top_k([[0, 1]], [1])
    assert not server.requests


def test_a_server_that_is_not_vllm_is_refused(server, tokenizer) -> None:
    server.owner = "somebody"
    with pytest.raises(EngineError, match=r"this is not vLLM.*vllm serve"):
        EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer).top_k(SEQUENCES, STARTS)


def test_answers_that_are_no_log_probabilities_are_refused(server, tokenizer) -> None:
    server.logits = True
    with pytest.raises(EngineError, match=r"no log-probabilities.*--logprobs-mode raw_logprobs"):
        EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer).top_k(SEQUENCES, STARTS)


def test_an_answer_without_the_field_is_refused(server, tokenizer) -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
    answer = {"id": "1", "object": "text_completion", "created": 0, "model": "tiny", "choices": [choice]}
    server.fault = lambda body: (200, answer)
    with pytest.raises(EngineError, match=r"log-probabilities of 0 positions came back, of \d+ expected"):
        EngineTeacher(f"{server.url}#tiny", 4, tokenizer=tokenizer).top_k(SEQUENCES, STARTS)


def test_the_name_of_a_server_teacher_is_the_model_wherever_it_is_served(tokenizer) -> None:
    here, there = (EngineTeacher(f"http://{host}:1/v1#qwen", 4, tokenizer=tokenizer).name for host in ("a", "b"))
    assert here == there == "vllm:qwen"


def test_an_engine_without_log_probabilities_of_a_prompt_is_refused(tokenizer) -> None:
    with pytest.raises(UsageError, match=r"transformers:embedded.* cannot be a top-k teacher.*Name a vLLM server"):
        EngineTeacher("transformers:embedded", 4, tokenizer=tokenizer)


# Vocabularies


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(words)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])), eos_token=words[0]
    )


def test_tokenizers_that_differ_in_added_tokens_at_the_end_share_what_is_before(tokenizer) -> None:
    short, long = word_tokenizer(["a", "b", "c"]), word_tokenizer(["a", "b", "c", "<pad>"])
    assert common_vocabulary(short, long) == common_vocabulary(long, short) == 3
    assert common_vocabulary(tokenizer, tokenizer) == 261


def test_tokenizers_that_mean_different_tokens_by_one_id_are_refused() -> None:
    one, other = word_tokenizer(["a", "b", "c"]), word_tokenizer(["a", "c", "b"])
    with pytest.raises(UsageError, match=r"id 1 is 'b' in the one and 'c' in the other \(3 and 3 tokens\)"):
        common_vocabulary(one, other)
    assert vocabulary_fingerprint(one) != vocabulary_fingerprint(other)
    assert vocabulary_fingerprint(one) == vocabulary_fingerprint(word_tokenizer(["a", "b", "c"]))


# Traces


def test_a_trace_is_the_prompt_as_trl_has_it_the_text_and_the_end(tokenizer) -> None:
    prompt, completion = trace_ids(tokenizer, CHAT, "2 + 3 = 5", 100)
    assert tokenizer.decode(prompt) == "<|system|>Be short.<|end|><|user|>2 and 3?<|end|><|assistant|>"
    rendered = tokenizer.apply_chat_template([CHAT], add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt == rendered["input_ids"][0]
    assert tokenizer.decode(completion) == "2 + 3 = 5<|end|>"
    assert completion[-1] == tokenizer.eos_token_id


def test_a_text_prompt_goes_in_as_it_is(tokenizer) -> None:
    prompt, completion = trace_ids(tokenizer, "2 + 3 = ", "5", 100)
    assert tokenizer.decode(prompt + completion) == "2 + 3 = 5<|end|>"


@pytest.mark.parametrize(("limit", "text"), [(10, "2 + 3 = 5<|end|>"), (9, "2 + 3 = 5"), (3, "2 +")])
def test_a_trace_beyond_the_limit_is_truncated_and_does_not_end(tokenizer, limit, text) -> None:
    _, completion = trace_ids(tokenizer, CHAT, "2 + 3 = 5", limit)
    assert tokenizer.decode(completion) == text


def test_the_arguments_of_the_chat_template_reach_it(tokenizer) -> None:
    template = "{{ 'thinking ' if thinking else 'plain ' }}{{ messages[0].content }}"
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="<|end|>", chat_template=template)
    for thinking, text in ((True, "thinking Hi"), (False, "plain Hi")):
        chat = [{"role": "user", "content": "Hi"}]
        prompt, _ = trace_ids(other, chat, "a", 9, chat_template_kwargs={"thinking": thinking})
        assert other.decode(prompt) == text


def test_impossible_traces_are_refused(tokenizer) -> None:
    with pytest.raises(UsageError, match="the rationale is blank"):
        trace_ids(tokenizer, CHAT, " \n", 9)
    with pytest.raises(UsageError, match="max_completion_length=0: expected at least 1"):
        trace_ids(tokenizer, CHAT, "a", 0)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    with pytest.raises(UsageError, match="the tokenizer has no chat template"):
        trace_ids(bare, CHAT, "a", 9)
    with pytest.raises(UsageError, match="no end token"):
        trace_ids(bare, "Q", "a", 9)
    with pytest.raises(UsageError, match="has no tokens"):
        trace_ids(tokenizer, "", "a", 9)


@pytest.mark.parametrize(
    ("rationale", "answer", "text"),
    [
        ("2 + 3 = <<2+3=5>>5", "5", "2 + 3 = 5\n#### 5"),
        ("2 + 3 = 5\nA: 5", "5.0", "2 + 3 = 5\nA: 5\n#### 5.0"),
        ("2 + 3 = 12 apples.", "15", "2 + 3 = 12 apples."),
        ("#### 12", "15", "#### 12"),
        ("He has 5 apples and 6 pears.", "5", "He has 5 apples and 6 pears."),
        ("He has some.", "5", "He has some."),
        ("It is Paris.", "Paris", "It is Paris."),
        # The row's answer may be a worked solution.
        ("3 + 2 = 5", "2 + 3 = <<2+3=5>>5\n#### 5", "3 + 2 = 5\n#### 5"),
        ("It is \\boxed{5}", "5", "It is \\boxed{5}"),
        (" 2 + 3 \n", None, "2 + 3"),
    ],
)
def test_the_text_of_a_trace_has_no_marks_and_announces_its_own_answer_once(rationale, answer, text) -> None:
    assert trace_text(rationale, answer) == text
