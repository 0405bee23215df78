"""The thread that owns a model under vLLM: it steps vLLM's engine, and takes in requests between two steps."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import json
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlkd.engines.base import EngineError
from rlkd.engines.local import WAY_OUT
from rlkd.models import resolve_model

T = TypeVar("T")

_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class PromptPart:
    """One request to vLLM: the prompt's ids (none: nothing to request), and its sampling parameters.

    `scored`: how many ids at the end count. `tokens`: ids whose log-probability after the prompt is requested.
    """

    ids: list[int]
    params: Any
    scored: int = 0
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class VLLMJob(Generic[T]):
    """One request of a call: how it is made once the model is there, and how its output is read, None without ids."""

    prepare: Callable[[VLLMModel], PromptPart]
    read: Callable[[PromptPart, Any], T]


@dataclass(eq=False)
class VLLMCall:
    """The requests of one call. `over`: the caller no longer waits."""

    jobs: list[VLLMJob]
    sampled: bool
    results: list[Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]
    open: int = 0
    over: bool = False

    def finish(self) -> None:
        """Wake the caller."""

        def wake() -> None:
            if not self.done.done():
                self.done.set_result(None)

        with contextlib.suppress(RuntimeError):  # its loop has been closed
            self.loop.call_soon_threadsafe(wake)


@dataclass(frozen=True)
class VLLMModel:
    """A model that vLLM has loaded."""

    engine: Any  # vllm.v1.engine.llm_engine.LLMEngine
    tokenizer: Any
    context: int
    adapter: Any  # vllm.lora.request.LoRARequest, or None
    chat_template_kwargs: dict[str, Any] | None = None

    def add(self, name: str, part: PromptPart) -> None:
        """Give vLLM a request. Raises what its checks raise."""
        given: Any = {"prompt_token_ids": part.ids}
        renderer: Any = getattr(self.engine, "renderer", None)
        if hasattr(renderer, "render_cmpl"):  # recent versions want the prompt in their own form
            [given] = renderer.render_cmpl([given])
        self.engine.add_request(name, given, part.params, lora_request=self.adapter)


class VLLMThread:
    """The thread that owns the model. `None` in its inbox ends it, once all earlier calls are answered."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.inbox: queue.SimpleQueue[VLLMCall | None] = queue.SimpleQueue()
        self.loaded: VLLMModel | None = None
        self.waiting: deque[VLLMCall] = deque()
        self.running: dict[str, tuple[VLLMCall, int, PromptPart]] = {}
        self.numbers = itertools.count()
        self.ending = False
        self.thread = threading.Thread(target=self._serve, name=f"rlkd-{settings.name}", daemon=True)
        self.thread.start()
        _threads.add(self)

    def _serve(self) -> None:
        while True:
            try:
                if not self._take_in():
                    break
                self._abort_stale()
                self._admit()
                if self.running:
                    self._step()
            except BaseException as error:  # a thread that died, of SystemExit too, would let every caller wait
                self._fail(error.with_traceback(None))
        self._unload()

    def _fail(self, error: BaseException) -> None:
        """Answer the running calls, else the first that waits, with the error. The next one loads the model again."""
        calls = {id(call): call for call, *_ in self.running.values()}
        if not calls and self.waiting:
            calls[0] = self.waiting.popleft()
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

    def _abort_stale(self) -> None:
        self.waiting = deque(call for call in self.waiting if not call.over)
        stale = [name for name, (call, *_) in self.running.items() if call.over]
        if stale and self.loaded is not None:
            self.loaded.engine.abort_request(stale)
        for name in stale:
            del self.running[name]

    def _admit(self) -> None:
        """Give vLLM the calls that may join what runs: all sampled, or none."""
        while self.waiting:
            call = self.waiting[0]
            if self.running and next(iter(self.running.values()))[0].sampled != call.sampled:
                return
            try:
                if self.loaded is None and not call.over:
                    self.loaded = load(self.settings)
            except EngineError as error:
                call.results[:] = [error.with_traceback(None)] * len(call.jobs)
                call.finish()
            else:
                if self.loaded is not None and not call.over:  # loading may take longer than the caller waits
                    self._add(call, self.loaded)
            self.waiting.popleft()  # last, so that `_fail` finds a call whose turn it was

    def _add(self, call: VLLMCall, loaded: VLLMModel) -> None:
        call.open = len(call.jobs)
        for index, job in enumerate(call.jobs):
            try:
                part = job.prepare(loaded)
                if part.ids:
                    name = str(next(self.numbers))
                    loaded.add(name, part)
                    self.running[name] = (call, index, part)
            except Exception as error:  # of the tokenizer or of vLLM's checks: this request cannot be answered
                what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                call.results[index] = EngineError(self.settings.name, what)
                self._count_down(call)
            else:
                if not part.ids:
                    self._finish(call, index, part, None)

    def _step(self) -> None:
        loaded = self.loaded
        if loaded is None:
            return
        sampled = next(iter(self.running.values()))[0].sampled
        with _random_state_put_back() if sampled else contextlib.nullcontext():
            outputs = loaded.engine.step()
        for output in outputs:
            if output.finished and output.request_id in self.running:
                self._finish(*self.running.pop(output.request_id), output)

    def _finish(self, call: VLLMCall, index: int, part: PromptPart, output: Any) -> None:
        try:
            call.results[index] = call.jobs[index].read(part, output)
        except Exception as error:
            what = f"vLLM's output does not fit the request ({type(error).__name__}: {error})."
            call.results[index] = EngineError(self.settings.name, what)
        self._count_down(call)

    def _count_down(self, call: VLLMCall) -> None:
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


_threads: weakref.WeakSet[VLLMThread] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """End the threads before the interpreter goes: one inside torch at that time would bring the process down."""
    threads = list(_threads)
    for each in threads:
        each.ending = True
        for call in [*each.waiting, *(call for call, *_ in list(each.running.values()))]:
            call.over = True
        each.inbox.put(None)
    for each in threads:
        each.thread.join(timeout=10)


def load(settings: Any) -> VLLMModel:
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
            tokenizer = llm.get_tokenizer()
            return VLLMModel(llm.llm_engine, tokenizer, context, lora, settings.chat_template_kwargs)
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
