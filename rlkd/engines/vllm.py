"""An engine that runs a model in this process with vLLM.

    VLLMEngine("embedded")
    VLLMEngine("path/or/hub-id", adapter="path/to/lora", gpu_memory_utilization=0.4)

The model is loaded at the first request, into a thread of its own that steps vLLM's engine and takes in new requests
between two steps. So callers at the same time are batched together, a deadline or a cancellation ends a request at the
next step, and an event loop stays free. On a CPU the defaults are float32, no compilation, 1 GiB of KV cache and the
threads that torch has; vLLM's own (bfloat16, compiled, a share of all memory, pinned cores) are for machines that do
nothing else. `VLLM_CPU_KVCACHE_SPACE` and `VLLM_CPU_OMP_THREADS_BIND` in the environment come first.

Our choices. The checkpoint's generation config is ignored but for its end tokens. Request number i of a sampled call
has the seed `seed + i`, as at a server. vLLM draws from the global random state beside a request's own: it is put back
after each such step, so a caller who waits finds it as it was; sampled and other calls are never in one batch.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import os
import queue
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlkd.engines.base import (
    Completion,
    EngineError,
    Prompt,
    Sampling,
    TokenScores,
    check_choices,
    check_prompts,
    check_requests,
    distinct,
)
from rlkd.engines.local import WAY_OUT, Dtype, LocalEngine
from rlkd.engines.tokens import check_room, encode_continuation, encode_prompt
from rlkd.models import resolve_model

T = TypeVar("T")

_OPTIONS = ("dtype", "max_model_len", "gpu_memory_utilization", "tensor_parallel_size", "adapter", "enforce_eager")
_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


class VLLMEngine(LocalEngine):
    """A frozen causal language model in this process, under vLLM.

    `model` is a folder, a hub id, or a name of `rlkd.models`. `dtype` is a torch type by name; `auto` is the
    checkpoint's own, and float32 on a CPU. `max_model_len` bounds prompt and completion together, by default the
    model's context. `gpu_memory_utilization` is the share of a GPU's memory to take, `tensor_parallel_size` the number
    of GPUs. `adapter` is a PEFT adapter, applied to every request. `enforce_eager` turns compilation off; None does so
    on a CPU.
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
    ) -> None:
        super().__init__("vllm", model, dtype, adapter)
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
        self._worker: _Worker | None = None

    def __repr__(self) -> str:
        return f"<VLLMEngine {self.name}{'' if self._worker else ', not loaded'}>"

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt. Greedy requests that are equal are computed once."""
        prompts = check_prompts(prompts)
        sampled = sampling.temperature > 0
        unique, where = (prompts, list(range(len(prompts)))) if sampled else distinct(prompts)
        jobs = [
            _Job(partial(_prepare_text, prompt, sampling, place), _read_completion)
            for place, prompt in enumerate(unique)
        ]
        found = await self._answer(jobs, sampled, deadline)
        return [found[place] for place in where]

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[TokenScores | EngineError]:
        """Return the log-probabilities of every continuation; `tokens.py` says where a continuation begins."""
        unique, where = distinct(check_requests(requests))
        jobs = [_Job(partial(_prepare_scores, prompt, [text]), _read_score) for prompt, text in unique]
        found = await self._answer(jobs, False, deadline)
        return [found[place] for place in where]

    async def choose(
        self, prompts: Sequence[Prompt], choices: Sequence[str], *, deadline: float | None = None
    ) -> list[tuple[float, ...] | EngineError]:
        """Return the log-probability of every choice: the sum over its tokens."""
        unique, where = distinct(check_prompts(prompts))
        choices = check_choices(choices)
        jobs = [_Job(partial(_prepare_choices, prompt, choices), _read_choices) for prompt in unique]
        found = await self._answer(jobs, False, deadline)
        return [found[place] for place in where]

    async def close(self) -> None:
        """Free the weights, once the requests before have their answers. A later request loads them again."""
        with self._starting:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.inbox.put(None)
            await asyncio.to_thread(worker.thread.join)

    async def _answer(self, jobs: list[_Job[T]], sampled: bool, deadline: float | None) -> list[T | EngineError]:
        if not jobs:
            return []
        loop = asyncio.get_running_loop()
        call = _Call(jobs, sampled, [None] * len(jobs), loop, loop.create_future())
        with self._starting:
            # Not alive: it ended with the interpreter's threads, or this process was forked from the one that has it.
            if self._worker is None or not self._worker.thread.is_alive():
                self._worker = _Worker(_Settings(self.name, self.model, *(getattr(self, key) for key in _OPTIONS)))
                weakref.finalize(self, self._worker.inbox.put, None)
            self._worker.inbox.put(call)
        try:
            async with asyncio.timeout(deadline):
                await call.done
        except TimeoutError:
            pass
        finally:
            call.over = True
        late = EngineError.deadline_passed(self.name, deadline)
        return [late if item is None else item for item in list(call.results)]


@dataclass(frozen=True)
class _Part:
    """One request to vLLM: the prompt's ids, and its sampling parameters.

    `scored`: how many ids at the end count. `tokens`: ids whose log-probability after the prompt is asked for.
    """

    ids: list[int]
    params: Any
    scored: int = 0
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Job(Generic[T]):
    """One request of a call: how it becomes parts once the model is there, and how their outputs are read."""

    prepare: Callable[[_Loaded], list[_Part]]
    read: Callable[[list[_Part], list[Any]], T]


@dataclass(eq=False)
class _Call:
    """The requests of one call. `over`: the caller no longer waits."""

    jobs: list[_Job]
    sampled: bool
    results: list[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    open: int = 0
    over: bool = False

    def finish(self) -> None:
        def wake() -> None:
            if not self.done.done():
                self.done.set_result(None)

        with contextlib.suppress(RuntimeError):  # its loop has been closed
            self.loop.call_soon_threadsafe(wake)


@dataclass(eq=False)
class _Running:
    """A job that vLLM is working on."""

    call: _Call
    place: int
    parts: list[_Part]
    outputs: list[Any]
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Loaded:
    engine: Any  # vllm.v1.engine.llm_engine.LLMEngine
    tokenizer: Any
    context: int
    adapter: Any  # vllm.lora.request.LoRARequest, or None

    def add(self, name: str, part: _Part) -> None:
        """Give vLLM a request. Raises what its checks raise."""
        given: Any = {"prompt_token_ids": part.ids}
        renderer: Any = getattr(self.engine, "renderer", None)
        if hasattr(renderer, "render_cmpl"):  # recent versions want the prompt in their own form
            [given] = renderer.render_cmpl([given])
        self.engine.add_request(name, given, part.params, lora_request=self.adapter)


@dataclass(frozen=True)
class _Settings:
    """What loading needs of the engine. The worker holds this and not the engine, so that it ends with it."""

    name: str
    model: str
    dtype: str
    max_model_len: int | None
    gpu_memory_utilization: float
    tensor_parallel_size: int
    adapter: str | None
    enforce_eager: bool | None


class _Worker:
    """The thread that owns the model. `None` in its inbox ends it, once what came before is answered."""

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self.inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.loaded: _Loaded | None = None
        self.waiting: deque[_Call] = deque()
        self.running: dict[str, tuple[_Running, int]] = {}
        self.numbers = itertools.count()
        self.ending = False
        self.thread = threading.Thread(target=self._serve, name=f"rlkd-{settings.name}", daemon=True)
        self.thread.start()
        _workers.add(self)

    def _serve(self) -> None:
        while True:
            try:
                if not self._take_in():
                    break
                self._abort_what_nobody_waits_for()
                self._admit()
                if self.running:
                    self._step()
            except BaseException as error:  # a thread that died, of SystemExit too, would let every caller wait
                self._fail_all(error.with_traceback(None))
        self._unload()

    def _fail_all(self, error: BaseException) -> None:
        """Answer all calls with the error where they have no result yet. The next one loads the model again."""
        calls = {id(call): call for call in [*self.waiting, *(job.call for job, _ in self.running.values())]}
        self.waiting.clear()
        self.running.clear()
        for call in calls.values():
            failed = EngineError(self.settings.name, f"vLLM failed ({type(error).__name__}: {error}).")
            call.results[:] = [failed if item is None else item for item in call.results]
            call.finish()
        self._unload()

    def _take_in(self) -> bool:
        """Read the inbox, waiting only if there is nothing else to do. False when it is time to end."""
        while not self.ending:
            try:
                call = self.inbox.get(block=not self.running and not self.waiting)
            except queue.Empty:
                break
            if call is None:
                self.ending = True
            else:
                self.waiting.append(call)
        return bool(self.running or self.waiting) or not self.ending

    def _abort_what_nobody_waits_for(self) -> None:
        self.waiting = deque(call for call in self.waiting if not call.over)
        stale = [name for name, (job, _) in self.running.items() if job.call.over]
        if stale and self.loaded is not None:
            self.loaded.engine.abort_request(stale)
        for name in stale:
            del self.running[name]

    def _admit(self) -> None:
        """Give vLLM the calls that may join what runs: all sampled, or none."""
        while self.waiting:
            call = self.waiting[0]
            if self.running and next(iter(self.running.values()))[0].call.sampled != call.sampled:
                return
            try:
                if self.loaded is None and not call.over:
                    self.loaded = _load(self.settings)
            except EngineError as error:
                call.results[:] = [error.with_traceback(None)] * len(call.jobs)
                call.finish()
            else:
                if self.loaded is not None and not call.over:  # loading may take longer than the caller waits
                    self._add(call, self.loaded)
            self.waiting.popleft()  # last, so that `_fail_all` finds a call whose turn it was

    def _add(self, call: _Call, loaded: _Loaded) -> None:
        call.open = len(call.jobs)
        for place, job in enumerate(call.jobs):
            running = None
            try:
                parts = job.prepare(loaded)
                running = _Running(call, place, parts, [None] * len(parts))
                for at, part in enumerate(parts):
                    if not part.ids:  # an empty continuation
                        continue
                    name = str(next(self.numbers))
                    loaded.add(name, part)
                    running.names.append(name)
                    self.running[name] = (running, at)
            except Exception as error:  # of the tokenizer or of vLLM's checks: this request cannot be answered
                self._fail(call, place, running, error)
                continue
            if not running.names:
                self._finish(running)

    def _fail(self, call: _Call, place: int, running: _Running | None, error: Exception) -> None:
        for name in running.names if running else []:
            self.running.pop(name, None)
            if self.loaded is not None:
                self.loaded.engine.abort_request([name])
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        call.results[place] = EngineError(self.settings.name, what)
        self._count_down(call)

    def _step(self) -> None:
        loaded = self.loaded
        if loaded is None:
            return
        sampled = next(iter(self.running.values()))[0].call.sampled
        try:
            with _random_state_put_back() if sampled else contextlib.nullcontext():
                outputs = loaded.engine.step()
        except Exception as error:  # the engine is broken: what runs is lost, the next call loads the model again
            failed = EngineError(self.settings.name, f"vLLM failed ({type(error).__name__}: {error}).")
            jobs = {id(job): job for job, _ in self.running.values()}
            self.running.clear()
            for job in jobs.values():
                job.call.results[job.place] = failed
                self._count_down(job.call)
            self._unload()
            return
        for output in outputs:
            if not output.finished or output.request_id not in self.running:
                continue
            job, at = self.running.pop(output.request_id)
            job.outputs[at] = output
            job.names.remove(output.request_id)
            if not job.names:
                self._finish(job)

    def _finish(self, job: _Running) -> None:
        try:
            job.call.results[job.place] = job.call.jobs[job.place].read(job.parts, job.outputs)
        except Exception as error:
            what = f"vLLM's output is not what was asked for ({type(error).__name__}: {error})."
            job.call.results[job.place] = EngineError(self.settings.name, what)
        self._count_down(job.call)

    def _count_down(self, call: _Call) -> None:
        call.open -= 1
        if call.open == 0:
            call.finish()

    def _unload(self) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is None:
            return
        import gc

        import torch

        with contextlib.suppress(Exception):
            loaded.engine.engine_core.shutdown()
        del loaded
        gc.collect()
        with contextlib.suppress(Exception):  # of a device in error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


_workers: weakref.WeakSet[_Worker] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """End the threads before the interpreter goes: one inside torch at that time would bring the process down."""
    workers = list(_workers)
    for worker in workers:
        worker.ending = True
        for call in [*worker.waiting, *(job.call for job, _ in list(worker.running.values()))]:
            call.over = True
        worker.inbox.put(None)
    for worker in workers:
        worker.thread.join(timeout=10)


def _load(settings: _Settings) -> _Loaded:
    """Load the model. Raises `EngineError`."""
    with _environment({"VLLM_LOGGING_LEVEL": "WARNING"}):
        try:
            import vllm
            from vllm.platforms import current_platform
        except Exception as error:  # missing, or broken in this environment
            raise EngineError(
                settings.name,
                f"vLLM cannot be imported ({type(error).__name__}: {error}).",
                'Install it, pip install "rlkd[vllm]", or name another engine: transformers:MODEL or '
                "http://HOST:PORT/v1.",
            ) from None
    on_cpu = current_platform.is_cpu()
    eager = on_cpu if settings.enforce_eager is None else settings.enforce_eager
    arguments: dict[str, Any] = {
        "dtype": "float32" if on_cpu and settings.dtype == "auto" else settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": eager,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if on_cpu:
        # A prompt that is read in parts has its generator set back, which a CPU's cannot be: the engine (0.30) ends.
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    lora = None
    with _environment({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | (_ON_CPU if on_cpu else {})), _random_state_put_back():
        try:
            if settings.adapter is not None:
                from vllm.lora.request import LoRARequest

                folder = Path(settings.adapter)
                config = json.loads((folder / "adapter_config.json").read_text())
                rank = int(config["r"])
                # vLLM knows some ranks only; a larger one costs memory and nothing else.
                room = next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
                arguments |= {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
                # Left to itself vLLM prepares the output layer too, and on a CPU (0.30) two requests in one batch,
                # one of them with `prompt_logprobs`, then end the engine.
                if isinstance(config.get("target_modules"), list):
                    arguments["lora_target_modules"] = sorted(config["target_modules"])
                lora = LoRARequest(folder.name or "adapter", 1, str(folder))
            llm = vllm.LLM(model=resolve_model(settings.model), **arguments)
            context = int(llm.llm_engine.model_config.max_model_len)
            return _Loaded(llm.llm_engine, llm.get_tokenizer(), context, lora)
        except Exception as error:
            raise EngineError(
                settings.name,
                f"the model does not load ({type(error).__name__}: {error}).",
                f"{WAY_OUT} On a GPU that is in use, a smaller gpu_memory_utilization.",
            ) from None


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set for as long as vLLM reads them: processes started later do not inherit them."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _random_state_put_back() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and torch. vLLM seeds them when it loads a model."""
    import random

    import numpy
    import torch

    python, arrays, tensors = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


def _prepare_text(prompt: Prompt, sampling: Sampling, place: int, loaded: _Loaded) -> list[_Part]:
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    ids = encode_prompt(loaded.tokenizer, prompt)
    check_room(loaded.context, len(ids), sampling.max_new_tokens, "max_new_tokens asks for")
    seed = None
    if sampling.temperature > 0:
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed + place
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
    return [_Part(ids, params)]


def _prepare_scores(prompt: Prompt, texts: Sequence[str], loaded: _Loaded) -> list[_Part]:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    start = encode_prompt(loaded.tokenizer, prompt)
    # One new token, whose value is dropped: vLLM takes no `max_tokens` 0.
    params = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    parts = []
    for text in texts:
        ids = encode_continuation(loaded.tokenizer, text)
        check_room(loaded.context, len(start), len(ids), "the continuation has")
        parts.append(_Part(start + ids if ids else [], params, len(ids)))
    return parts


def _prepare_choices(prompt: Prompt, choices: list[str], loaded: _Loaded) -> list[_Part]:
    """One part for choices of one token each, where this version of vLLM can name them; else one for each choice."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    whole = [encode_continuation(loaded.tokenizer, choice) for choice in choices]
    if not all(len(ids) == 1 for ids in whole) or "logprob_token_ids" not in SamplingParams.__struct_fields__:
        return _prepare_scores(prompt, choices, loaded)
    start = encode_prompt(loaded.tokenizer, prompt)
    check_room(loaded.context, len(start), 1, "the choice has")
    tokens = tuple(token for [token] in whole)
    params = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(tokens),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return [_Part(start, params, tokens=tokens)]


def _read_completion(parts: list[_Part], outputs: list[Any]) -> Completion:
    [output] = outputs
    written = output.outputs[0]
    if written.finish_reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {written.finish_reason!r}")
    return Completion(written.text, written.finish_reason, len(written.token_ids))


def _read_scores(parts: list[_Part], outputs: list[Any]) -> list[TokenScores]:
    scores = []
    for part, output in zip(parts, outputs, strict=True):
        if output is None:  # an empty continuation
            scores.append(TokenScores(()))
            continue
        rows = list(zip(part.ids, output.prompt_logprobs, strict=True))[-part.scored :]
        scores.append(TokenScores(tuple(float(table[token].logprob) for token, table in rows)))
    return scores


def _read_score(parts: list[_Part], outputs: list[Any]) -> TokenScores:
    [score] = _read_scores(parts, outputs)
    return score


def _read_choices(parts: list[_Part], outputs: list[Any]) -> tuple[float, ...]:
    if parts[0].tokens:
        table = outputs[0].outputs[0].logprobs[0]
        return tuple(float(table[token].logprob) for token in parts[0].tokens)
    return tuple(score.total for score in _read_scores(parts, outputs))
