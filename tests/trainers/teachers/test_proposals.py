"""Steps that the other model writes."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from rlkd.engines import Completion, EngineError, Sampling
from rlkd.engines.transformers import TransformersEngine
from trainers.teachers.proposals import (
    Written,
    first_step,
    prefix_text,
    propose,
    write_by_engine,
    write_by_vllm,
    write_here,
)
from trainers.teachers.token_steps import token_steps


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("So it is 10. Then more. And more", "So it is 10."),
        ("So it is 10.\nThen", "So it is 10."),
        ("So it is 10.\n\n", "So it is 10."),
        ("\nSo it is", "\nSo it is"),
        ("#### 10<|end|>", "#### 10"),
        ("#### 10\n", "#### 10"),
        ("<|end|>", ""),
        (" \n", ""),
        ("", ""),
    ],
)
def test_a_proposal_is_truncated_at_the_end_of_its_first_step(tokenizer, written, expected) -> None:
    step = tokenizer.decode(first_step(tokenizer, ids_of(tokenizer, written)))
    assert step == expected


@pytest.mark.parametrize(
    ("written", "whole"),
    [
        ("So it is 10. Then", True),
        ("So it is 10.\n", True),
        ("So it is 1", False),
        ("So it is 10.<|end|>", True),
        ("#### 1", False),
        ("#### 10\n", True),
    ],
)
def test_a_step_that_the_token_limit_truncated_is_not_proposed(tokenizer, written, whole) -> None:
    ids = ids_of(tokenizer, written)
    assert bool(first_step(tokenizer, ids, truncated=True)) == whole
    assert first_step(tokenizer, ids)


def test_what_an_engine_proposes_has_the_tokens_of_the_same_step_in_a_trace(tiny_model) -> None:
    # One token for the full stop and the line end, as Qwen's vocabulary has it; "\n" alone in that of the others.
    tokens = ["<|pad|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), ".\u010a"]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[(".", "\u010a")])
    made = Tokenizer(bpe)
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        decoders.ByteLevel(),
    )
    merged = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|pad|>", eos_token="<|end|>")
    for tokenizer in (merged, AutoTokenizer.from_pretrained(tiny_model)):
        trace = ids_of(tokenizer, "One.\nTwo.\n#### 2")
        first = token_steps(tokenizer, trace)[0]

        class Engine:
            async def generate(self, prompts, sampling, *, deadline):
                return [Completion("One.", "stop", 5)]

        [written] = write_by_engine(Engine(), [[5]], tokenizer, Sampling(), None)
        assert first_step(tokenizer, *written) == trace[first.start : first.end]


def test_an_engine_that_fails_on_every_prefix_ends_the_run_with_the_cause(tokenizer) -> None:
    class Gone:
        async def generate(self, prompts, sampling, *, deadline):
            return [EngineError("http://h:1/v1", "cannot be reached.", "Start it.") for _ in prompts]

    with pytest.raises(
        EngineError, match=r"any of 2 prefixes; the first failed because: cannot be reached. Start it."
    ):
        write_by_engine(Gone(), [[5], [6]], tokenizer, Sampling(), None)


class OneProcess:
    device = "cpu"


def test_a_process_without_boundaries_writes_nothing(tokenizer) -> None:
    assert propose(lambda prefixes: pytest.fail("asked"), tokenizer, [], OneProcess(), [1]) == []


@pytest.mark.parametrize(
    ("begun", "written", "step"),
    [
        ("", Written("So 3."), "So 3."),
        ("3 + 4 is ", Written("7.\nNext."), "3 + 4 is 7."),
        ("3 + 4 is 7", Written(". Then she has 4 apples left in the", truncated=True), "3 + 4 is 7."),
        ("She has 3 apples", Written("\nNext."), "She has 3 apples"),
        ("She has 3 apples", Written(""), "She has 3 apples"),  # ended there
        ("She has 3", Written(" apples in", truncated=True), ""),
        ("She has 3", Written("", truncated=True), ""),  # as a request that failed
    ],
)
def test_a_step_that_is_begun_goes_on_and_may_end_at_once(tokenizer, monkeypatch, begun, written, step) -> None:
    monkeypatch.setattr("trainers.teachers.proposals.gather", lambda count: count)
    asked = []

    def writer(prefixes):
        asked.extend(prefixes)
        return [Written(ids_of(tokenizer, written.ids), written.truncated)]

    prefix, part = ids_of(tokenizer, "How many?"), ids_of(tokenizer, begun)
    [found] = propose(writer, tokenizer, [prefix], OneProcess(), [1], [part])
    assert asked == [[*prefix, *part]]
    assert tokenizer.decode(found) == step


def test_a_model_in_this_process_writes_a_line_after_each_prefix_whatever_the_batch(tiny_model) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    greedy = GenerationConfig(do_sample=False, eos_token_id=[1], pad_token_id=0)
    prefixes = [ids_of(tokenizer, text) for text in ("One.", "One and two.", "1 + 1 =", "x")]
    found = write_here(model, prefixes, tokenizer, greedy, 12, "cpu")
    assert [cut for _, cut in found] == [len(ids) == 12 for ids, _ in found]
    for prefix, (written, _) in zip(prefixes, found, strict=True):
        expected = model.generate(
            input_ids=torch.tensor([prefix]), max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0
        )[0, len(prefix) :].tolist()
        text = tokenizer.decode(expected)
        newline = next((i for i, token in enumerate(expected) if "\n" in tokenizer.decode(token)), None)
        assert written == (expected if newline is None or not text[:newline].strip() else expected[: newline + 1])
    assert not model.training


def test_an_engine_gets_the_prefix_as_text_and_what_fails_proposes_nothing_and_is_logged(tiny_model, caplog) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    engine = TransformersEngine(tiny_model)
    prefixes = [ids_of(tokenizer, "<|user|>1 + 1?<|end|><|assistant|>One."), [5] * 4095]
    assert prefix_text(tokenizer, prefixes[0]) == "<|user|>1 + 1?<|end|><|assistant|>One."
    found = write_by_engine(engine, prefixes, tokenizer, Sampling(max_new_tokens=6), None)
    assert found[1].ids == []  # beyond the model's context
    assert "1 of 2 prefixes have no proposed step" in caplog.text
    assert "the model's context is 4096" in caplog.text
    assert found[0].truncated
    here = write_here(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        prefixes[:1],
        tokenizer,
        GenerationConfig(do_sample=False, eos_token_id=[1], pad_token_id=0),
        6,
        "cpu",
    )
    assert tokenizer.decode(found[0].ids) == tokenizer.decode(here[0].ids, skip_special_tokens=True)


def test_the_vllm_worker_has_its_own_limits_back_also_after_an_error() -> None:
    class Worker:
        max_completion_length = 512
        generation_kwargs = {"seed": 1}  # noqa: RUF012

        def generate(self, prompts, images, num_generations):
            assert self.max_completion_length == 7
            assert self.generation_kwargs == {"seed": 1, "stop": ["\n"], "include_stop_str_in_output": True}
            if prompts == [[9]]:
                raise RuntimeError("the server is gone")
            return prompts, [[token + 1 for token in prompt] for prompt in prompts], None, None

    worker = Worker()
    assert write_by_vllm(worker, [[1, 2], [3]], 7) == [([2, 3], False), ([4], False)]
    assert write_by_vllm(worker, [[1] * 7], 7) == [([2] * 7, True)]
    with pytest.raises(RuntimeError):
        write_by_vllm(worker, [[9]], 7)
    assert (worker.max_completion_length, worker.generation_kwargs) == (512, {"seed": 1})
