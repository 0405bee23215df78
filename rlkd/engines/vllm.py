"""An engine that runs a model in this process with vLLM, in a thread that takes in requests between two steps.

Callers at the same time are batched together, and a deadline or a cancellation ends a request at the next step.
vLLM draws from the global random state, which is restored after each such step, so sampled and other calls are never
in one batch. The checkpoint's generation config is ignored but for its end tokens.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from rlkd.engines.base import (
    Completion,
    EngineError,
    Prompt,
    Sampling,
    TokenScores,
    answer_distinct,
    check_choices,
    check_prompts,
)
from rlkd.engines.local import Dtype, LocalEngine
from rlkd.engines.tokens import check_room, encode_continuation, encode_prompt
from rlkd.engines.vllm_thread import PromptPart, VLLMCall, VLLMJob, VLLMModel, VLLMThread

T = TypeVar("T")


class VLLMEngine(LocalEngine):
    """A frozen causal language model in this process, under vLLM.

    `dtype` `auto` is the checkpoint's own, and float32 on a CPU. `max_model_len` bounds prompt and completion
    together, by default the model's context. `gpu_memory_utilization` is the share of a GPU's memory,
    `tensor_parallel_size` the number of GPUs, `adapter` a PEFT adapter, applied to every request. `enforce_eager`
    None: only on a CPU. `chat_template_kwargs` are arguments of the chat template, a mapping or JSON.
    """

    guided = True
    concurrency = None

    def __init__(
        self,
        model: str,
        *,
        dtype: Dtype = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
        adapter: str | None = None,
        enforce_eager: bool | None = None,
        chat_template_kwargs: dict[str, Any] | str | None = None,
    ) -> None:
        super().__init__("vllm", model, dtype, adapter, chat_template_kwargs)
        if max_model_len is not None and max_model_len < 2:
            raise ValueError(f"max_model_len={max_model_len!r}: expected None or a whole number of at least 2")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization={gpu_memory_utilization!r}: expected a share, above 0 and up to 1"
            )
        if tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size={tensor_parallel_size!r}: expected a number of GPUs, at least 1")
        self.max_model_len = max_model_len
        self.gpu_memory_utilization = gpu_memory_utilization
        self.tensor_parallel_size = tensor_parallel_size
        self.enforce_eager = enforce_eager
        self._starting = threading.Lock()
        self._thread: VLLMThread | None = None

    def __repr__(self) -> str:
        return f"<VLLMEngine {self.name}{'' if self._thread else ', not loaded'}>"

    async def _complete_all(
        self, sampling: Sampling, deadline: float | None, prompts: list[Prompt]
    ) -> list[Completion | EngineError]:
        prepared = [partial(_prepare_text, prompt, sampling, index) for index, prompt in enumerate(prompts)]
        jobs = [VLLMJob(each, _read_completion) for each in prepared]
        return await self._answer(jobs, sampling.temperature > 0, deadline)

    async def _score_all(
        self, deadline: float | None, requests: list[tuple[Prompt, str]]
    ) -> list[TokenScores | EngineError]:
        jobs = [VLLMJob(partial(_prepare_score, prompt, text), _read_score) for prompt, text in requests]
        return await self._answer(jobs, False, deadline)

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice: the sum over its tokens."""
        prompts, choices = check_prompts(prompts), check_choices(choices)
        began = time.monotonic()

        async def answer(prompts: list[Prompt]) -> list[tuple[float, ...] | EngineError]:
            jobs = [VLLMJob(partial(_prepare_choice, prompt, choices), _read_choice) for prompt in prompts]
            return await self._answer(jobs, False, deadline)

        results = await answer_distinct(prompts, answer)
        if () not in results:
            return results
        left = None if deadline is None else max(0.0, deadline - (time.monotonic() - began))
        return await super().choose(prompts, choices, deadline=left)

    async def close(self) -> None:
        """Free the weights, once the requests before have their answers. A later request loads them again."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.inbox.put(None)
            await asyncio.to_thread(thread.thread.join)

    async def _answer(self, jobs: list[VLLMJob[T]], sampled: bool, deadline: float | None) -> list[T | EngineError]:
        if not jobs:
            return []
        loop = asyncio.get_running_loop()
        call = VLLMCall(jobs, sampled, [None] * len(jobs), loop, loop.create_future())
        with self._starting:
            # Not alive: it ended with the interpreter's threads, or this process was forked from the one that has it.
            if self._thread is None or not self._thread.thread.is_alive():
                self._thread = VLLMThread(copy.copy(self))  # without a reference to this one, so that it ends with it
                weakref.finalize(self, self._thread.inbox.put, None)
            self._thread.inbox.put(call)
        try:
            async with asyncio.timeout(deadline):
                await call.done
        except TimeoutError:
            pass
        finally:
            call.over = True
        late = EngineError.deadline_passed(self.name, deadline)
        return [late if item is None else item for item in list(call.results)]


def _prepare_text(prompt: Prompt, sampling: Sampling, index: int, loaded: VLLMModel) -> PromptPart:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    ids = encode_prompt(loaded.tokenizer, prompt, loaded.chat_template_kwargs)
    check_room(loaded.context, len(ids), sampling.max_new_tokens, "max_new_tokens asks for")
    seed = None
    if sampling.temperature > 0:
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed + index
    schema = sampling.json_schema
    params = SamplingParams(
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
        stop=list(sampling.stop),
        seed=seed,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return PromptPart(ids, params)


def _prepare_score(prompt: Prompt, text: str, loaded: VLLMModel) -> PromptPart:
    start, ids = (
        encode_prompt(loaded.tokenizer, prompt, loaded.chat_template_kwargs),
        encode_continuation(loaded.tokenizer, text),
    )
    check_room(loaded.context, len(start), len(ids), "the continuation has")
    return PromptPart(start + ids if ids else [], _prompt_only(prompt_logprobs=0), len(ids))


def _prepare_choice(prompt: Prompt, choices: list[str], loaded: VLLMModel) -> PromptPart:
    """Without ids where a choice has several tokens, or this version of vLLM cannot name tokens."""
    from vllm.sampling_params import SamplingParams

    whole = [encode_continuation(loaded.tokenizer, choice) for choice in choices]
    if not all(len(ids) == 1 for ids in whole) or "logprob_token_ids" not in SamplingParams.__struct_fields__:
        return PromptPart([], None)
    start = encode_prompt(loaded.tokenizer, prompt, loaded.chat_template_kwargs)
    check_room(loaded.context, len(start), 1, "the choice has")
    tokens = tuple(token for [token] in whole)
    return PromptPart(start, _prompt_only(logprob_token_ids=list(tokens)), tokens=tokens)


def _prompt_only(**settings: Any) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    # One new token, whose value is dropped: vLLM takes no `max_tokens` 0.
    kind = RequestOutputKind.FINAL_ONLY
    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, output_kind=kind, **settings)


def _read_completion(part: PromptPart, output: Any) -> Completion:
    written = output.outputs[0]
    if written.finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {written.finish_reason!r}")
    return Completion(written.text, written.finish_reason, len(written.token_ids))


def _read_score(part: PromptPart, output: Any) -> TokenScores:
    if output is None:  # an empty continuation
        return TokenScores(())
    rows = list(zip(part.ids, output.prompt_logprobs, strict=True))[-part.scored :]
    return TokenScores(tuple(float(table[token].logprob) for token, table in rows))


def _read_choice(part: PromptPart, output: Any) -> tuple[float, ...]:
    return tuple(float(output.outputs[0].logprobs[0][token].logprob) for token in part.tokens)
