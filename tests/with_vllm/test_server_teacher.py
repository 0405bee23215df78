"""A top-k teacher behind a real `vllm serve` against the same model in this process, live and through the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlkd.data.rows import build_prompt
from rlkd.data.samples import sample_rows
from rlkd.engines import EngineError
from rlkd.teachers.cache import CachedTeacher, CachedTrace, build_cache
from rlkd.teachers.coding import quantised
from rlkd.teachers.engine import EngineTeacher
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.topk import TopK
from rlkd.teachers.traces import trace_ids, trace_text
from tests.helpers.vllm_server import MAX_LOGPROBS, VLLMServer

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def tokenizer(smollm: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


@pytest.fixture(scope="module")
def traces(tokenizer: Any) -> list[CachedTrace]:
    """Solutions of GSM8K questions, and one with tokens that the teacher never expects."""
    made = []
    for row in sample_rows("test")[:4]:
        text = trace_text(row["rationales"][0], row["answer"])
        prompt, completion = trace_ids(tokenizer, build_prompt(row["question"]), text, 64)
        made.append(CachedTrace(row["id"], prompt + completion, len(prompt)))
    prompt, completion = trace_ids(tokenizer, "2 + 2 =", " 漢字 🙂 <|im_start|> zzz", 64)
    return [*made, CachedTrace("odd", prompt + completion, len(prompt))]


@pytest.fixture(scope="module")
def local(smollm: str, tokenizer: Any, traces: list[CachedTrace]) -> list[TopK]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    return LocalTeacher(model, tokenizer, MAX_LOGPROBS).top_k([t.ids for t in traces], [t.start for t in traces])


def assert_close(found: list[TopK], expected: list[TopK], most: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids.shape == other.ids.shape
        torch.testing.assert_close(one.logprobs, other.logprobs, atol=most, rtol=0)
        torch.testing.assert_close(one.taken, other.taken, atol=most, rtol=0)
        # Neighbours whose log-probabilities differ by less than rounding may stand the other way round.
        assert (one.ids == other.ids).float().mean() > 0.98
        assert torch.equal(one.ids[:, 0], other.ids[:, 0])


def spec(server: VLLMServer) -> str:
    return f"{server.url}/v1#{server.model}"


def test_a_served_teacher_says_what_the_model_in_this_process_says(plain_server, tokenizer, traces, local) -> None:
    teacher = EngineTeacher(spec(plain_server), MAX_LOGPROBS, tokenizer=tokenizer, concurrency=4)
    found = teacher.top_k([t.ids for t in traces], [t.start for t in traces])
    assert_close(found, local, 1e-3)
    assert any((top.taken < top.logprobs[:, -1]).any() for top in found)  # tokens beyond the k are told, too


def test_a_cache_from_a_server_gives_back_what_the_server_said(
    plain_server, tokenizer, traces, local, tmp_path
) -> None:
    teacher = EngineTeacher(spec(plain_server), MAX_LOGPROBS, tokenizer=tokenizer)
    folder = tmp_path / "cache"
    build_cache(folder, teacher, traces, vocabulary_size=len(tokenizer), made_by={})
    cached = CachedTeacher(folder, tokenizer=tokenizer, k=MAX_LOGPROBS)
    assert cached.name == f"vllm:{plain_server.model}"
    found = cached.top_k([t.ids for t in traces], [t.start for t in traces])
    assert_close(found, [quantised(top) for top in local], 2e-3)


def test_more_log_probabilities_than_the_server_allows_name_its_option(plain_server, tokenizer, traces) -> None:
    teacher = EngineTeacher(spec(plain_server), MAX_LOGPROBS + 1, tokenizer=tokenizer)
    with pytest.raises(EngineError, match=rf"max allowed: {MAX_LOGPROBS}.*--max-logprobs {MAX_LOGPROBS + 1}"):
        teacher.top_k([traces[0].ids], [traces[0].start])


def test_a_model_that_is_not_served_is_named(plain_server, tokenizer, traces) -> None:
    teacher = EngineTeacher(f"{plain_server.url}/v1#absent", 4, tokenizer=tokenizer)
    with pytest.raises(EngineError, match=rf"absent.*The server offers: {Path(plain_server.model)}"):
        teacher.top_k([traces[0].ids], [traces[0].start])


def test_a_student_with_another_tokenizer_is_refused(plain_server, tiny_model, traces) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_model)
    teacher = EngineTeacher(spec(plain_server), 4, tokenizer=other)
    with pytest.raises(EngineError, match="the server's tokenizer is not the student's"):
        teacher.top_k([traces[0].ids], [traces[0].start])


def test_a_trace_beyond_the_context_is_named(plain_server, tokenizer) -> None:
    teacher = EngineTeacher(spec(plain_server), 4, tokenizer=tokenizer)
    with pytest.raises(EngineError, match=r"sequence 1 of 2 \(600 tokens\).*512"):
        teacher.top_k([[5] * 8, [5] * 600], [1, 1])
