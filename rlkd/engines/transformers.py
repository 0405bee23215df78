"""An engine that runs a model in this process with transformers.

    TransformersEngine("embedded")
    TransformersEngine("path/or/hub-id", adapter="path/to/lora", device="cuda:1", batch_tokens=65536)

Weights are read on the first request. The work runs in a worker thread, one call at a time, so that an event loop
stays free and two callers never share the model.

Greedy text does not depend on what else is in the batch, up to rounding: in float32 on a CPU the difference is about
1e-5 in a logit; in bfloat16 on a GPU it can turn a near-tie between two tokens.

Our choices. Every setting of the checkpoint's own generation config is ignored except its end tokens, so that
`Sampling` says all there is. A prompt must leave room for `max_new_tokens` in the model's context, as vLLM demands
too: nothing is truncated silently. Sampling draws from generators of its own, one per request, so the global random
state is neither read nor changed, and a request's draws do not depend on its batch.

Requests of `score` and `choose` that begin with the same tokens (one question with many rationales, one prompt with
two choices) share the work on them: it is done once, and each request goes on from there.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from rlkd.context import context_length
from rlkd.devices import own_device
from rlkd.engines.base import (
    Completion,
    Contrast,
    EngineError,
    Prompt,
    RankedScores,
    Sampling,
    TokenScores,
    answer_distinct,
    check_requests,
)
from rlkd.engines.completions import generate_batch
from rlkd.engines.local import WAY_OUT, Dtype, LocalEngine, ModelInProcess
from rlkd.engines.passes import (
    LoadedModel,
    PrefixGroup,
    SharedPrefixes,
    TimeLimit,
    TokenRow,
    is_dense,
    score_batch,
    shared_prefixes,
)
from rlkd.engines.tokens import batches, check_room, encode_continuation, encode_prompt
from rlkd.models import resolve_model
from rlkd.rendering import turn_end

T = TypeVar("T")
S = TypeVar("S")

# Scoring keeps a row of logits for each token of a continuation: at most this many numbers a batch (1 GiB in float32).
_LOGITS_PER_BATCH = 2**28
# Tokens of a batch in scoring on a CPU: more leave its caches, and are slower for it (measured: by 4 to 10 %).
_CPU_BATCH = 640


class TransformersEngine(LocalEngine):
    """A frozen causal language model, in this process.

    `dtype` `auto` is the checkpoint's own, and float32 on a CPU. `device` defaults to cuda, else mps, else cpu.
    `batch_tokens` bounds rows x (prompt + new tokens) of a batch, padding included; one request always fits. `adapter`
    is a PEFT adapter, merged into the weights. `column_major` stores the matrices transposed where that helps (float32
    on a CPU: decoding is 1.2 to 1.4 times as fast, logits equal to 3e-5). `chat_template_kwargs` are arguments of the
    chat template, a mapping or JSON. Only safetensors are read, and no code.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: Dtype = "auto",
        device: str | None = None,
        batch_tokens: int = 8192,
        adapter: str | None = None,
        column_major: bool = True,
        chat_template_kwargs: dict[str, Any] | str | None = None,
    ) -> None:
        super().__init__("transformers", model, dtype, adapter, chat_template_kwargs)
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens={batch_tokens!r}: expected a whole number of at least 1")
        self.device = device
        self.batch_tokens = batch_tokens
        self.column_major = column_major
        self._lock = threading.Lock()
        self._loaded: LoadedModel | None = None

    def __repr__(self) -> str:
        return f"<TransformersEngine {self.name}{'' if self._loaded else ', not loaded'}>"

    @property
    def in_process(self) -> ModelInProcess:
        """What is known of the model before it loads."""
        return ModelInProcess(self.model, self.dtype, self.device, self.batch_tokens, self.column_major)

    async def _complete_all(
        self, sampling: Sampling, deadline: float | None, prompts: list[Prompt]
    ) -> list[Completion | EngineError]:
        return await self._work(len(prompts), deadline, partial(self._generate, prompts, sampling))

    async def _score_all(
        self, deadline: float | None, requests: list[tuple[Prompt, str]]
    ) -> list[TokenScores | EngineError]:
        return await self._work(len(requests), deadline, partial(self._score, requests))

    async def score_with_ranks(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[RankedScores | EngineError]:
        """`score`, with the rank of every token: one more than the number of tokens that are likelier."""
        ranked: Any = partial(self._score, ranks=True)
        return await answer_distinct(
            check_requests(requests), lambda unique: self._work(len(unique), deadline, partial(ranked, unique))
        )

    async def generate_contrasted(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        sampling: Sampling,
        contrast: Contrast,
        *,
        deadline: float | None = None,
    ) -> list[Completion | EngineError]:
        """A completion of the first prompt of each pair, contrasted with the second.

        What the second prompt makes likely too becomes less likely. At weight 0, and with a second prompt equal to the
        first, greedy completions are those of the first prompt.
        """
        work = partial(self._contrast, list(pairs), sampling, contrast)
        return await self._work(len(pairs), deadline, work)

    async def close(self) -> None:
        """Free the weights. A later request reads them again."""

        def drop() -> None:
            with self._lock:
                loaded, self._loaded = self._loaded, None
                if loaded is not None and loaded.device.type == "cuda":
                    import torch

                    del loaded
                    torch.cuda.empty_cache()

        await asyncio.to_thread(drop)

    async def _work(
        self,
        count: int,
        deadline: float | None,
        work: Callable[[LoadedModel, TimeLimit], list[T | EngineError | None]],
    ) -> list[T | EngineError]:
        """Run `work` in a thread, under the lock. `None` in its result is a request the deadline overtook."""
        if count == 0:
            return []
        limit = TimeLimit(deadline)
        try:
            results = await asyncio.to_thread(self._locked, limit, work) or [None] * count
        except EngineError as error:
            return [error.with_traceback(None)] * count
        except asyncio.CancelledError:
            limit.cancelled = True  # the thread cannot be killed: it stops at its next step
            raise
        late = EngineError.deadline_passed(self.name, deadline)
        return [late if item is None else item for item in results]

    def _locked(
        self, limit: TimeLimit, work: Callable[[LoadedModel, TimeLimit], list[T | EngineError | None]]
    ) -> list[T | EngineError | None] | None:
        while not self._lock.acquire(timeout=0.05):
            if limit.over():
                return None
        try:
            if limit.over():
                return None
            self._loaded = self._loaded or self._load()
            return work(self._loaded, limit)
        finally:
            self._lock.release()

    def _load(self) -> LoadedModel:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        from rlkd.decoding import unsupported

        device = torch.device(self.device or own_device())
        on_cpu = device.type == "cpu"
        dtype = "float32" if self.dtype == "auto" and on_cpu else self.dtype
        # Building a model may draw random weights before it reads the real ones.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                path = resolve_model(self.model)
                tokenizer = AutoTokenizer.from_pretrained(path)
                read: Any = AutoModelForCausalLM.from_pretrained  # its annotation knows no loading info
                model, report = read(path, dtype=dtype, use_safetensors=True, output_loading_info=True)
                if self.adapter:
                    from peft import PeftModel

                    model = PeftModel.from_pretrained(model, self.adapter).merge_and_unload()
            except Exception as error:
                raise EngineError(
                    self.name,
                    f"the model does not load ({type(error).__name__}: {error}).",
                    WAY_OUT,
                ) from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise EngineError(
                self.name,
                f"the checkpoint lacks {len(missing)} weights, such as {missing[0]!r}; they would be random.",
                "Give a checkpoint of a causal language model.",
            )
        model = model.to(device).eval().requires_grad_(False)
        if self.column_major and on_cpu and dtype == "float32":
            _store_column_major(model)

        configured = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, turn_end(tokenizer)}
        ends |= {*(configured if isinstance(configured, list) else [configured])}
        end_ids = sorted(ends - {None})
        # Attention masks are explicit and a row is read up to its end only: any padding id does, an end token's too.
        pad_id = next(iter(end_ids), 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model.generation_config = GenerationConfig(eos_token_id=end_ids or None, pad_token_id=pad_id)
        config = model.config.get_text_config()
        accepted = inspect.signature(model.forward).parameters
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            device=device,
            context=context_length(model.config),
            vocabulary=config.vocab_size,
            end_ids=frozenset(end_ids),
            pad_id=pad_id,
            takes_positions="position_ids" in accepted,
            takes_logits_to_keep="logits_to_keep" in accepted,
            shares_prefixes=unsupported(model) is None,
        )

    def _generate(
        self, prompts: list[Prompt], sampling: Sampling, loaded: LoadedModel, limit: TimeLimit
    ) -> list[Completion | EngineError | None]:
        def encode(prompt: Prompt) -> tuple[list[int], list[int]]:
            ids = encode_prompt(loaded.tokenizer, prompt, self.chat_template_kwargs)
            check_room(loaded.context, len(ids), sampling.max_new_tokens, "max_new_tokens asks for")
            return ids, []

        rows, results = self._rows(prompts, encode)

        def fits(batch: list[TokenRow]) -> bool:
            return len(batch) * (max(len(row.ids) for row in batch) + sampling.max_new_tokens) <= self.batch_tokens

        compute = partial(generate_batch, loaded, sampling=sampling, limit=limit)
        self._run_batches(rows, fits, compute, limit, results)
        return results

    def _contrast(
        self,
        pairs: list[tuple[Prompt, Prompt]],
        sampling: Sampling,
        contrast: Contrast,
        loaded: LoadedModel,
        limit: TimeLimit,
    ) -> list[Completion | EngineError | None]:
        def encode(pair: tuple[Prompt, Prompt]) -> tuple[list[int], list[int]]:
            first, second = (encode_prompt(loaded.tokenizer, prompt, self.chat_template_kwargs) for prompt in pair)
            longest = max(len(first), len(second))
            check_room(loaded.context, longest, sampling.max_new_tokens, "max_new_tokens asks for")
            return first, second

        # A row holds both prompts of a pair; `prompt` is where the second one begins.
        rows, results = self._rows(pairs, encode)

        def fits(batch: list[TokenRow]) -> bool:
            longest = max(max(row.prompt, len(row.ids) - row.prompt) for row in batch)
            return 2 * len(batch) * (longest + sampling.max_new_tokens) <= self.batch_tokens

        def compute(batch: list[TokenRow]) -> list[Completion | None]:
            parts = [(row.index, part) for row in batch for part in (row.ids[: row.prompt], row.ids[row.prompt :])]
            both = [TokenRow(index, ids, len(ids)) for index, ids in parts]
            return generate_batch(loaded, both, sampling=sampling, limit=limit, contrast=contrast)[::2]

        self._run_batches(rows, fits, compute, limit, results)
        return results

    def _score(
        self, requests: list[tuple[Prompt, str]], loaded: LoadedModel, limit: TimeLimit, *, ranks: bool = False
    ) -> list[TokenScores | EngineError | None]:
        def encode(request: tuple[Prompt, str]) -> tuple[list[int], list[int]]:
            start = encode_prompt(loaded.tokenizer, request[0], self.chat_template_kwargs)
            continuation = encode_continuation(loaded.tokenizer, request[1])
            check_room(loaded.context, len(start), len(continuation), "the continuation has")
            return start, continuation

        rows, results = self._rows(requests, encode)
        for row in rows:
            if len(row.ids) == row.prompt:  # an empty continuation
                results[row.index] = RankedScores(()) if ranks else TokenScores(())
        rows = [row for row in rows if len(row.ids) > row.prompt]

        def fits(batch: list[TokenRow], before: int = 0) -> bool:
            longest = max(len(row.ids) for row in batch)
            logits = len(batch) * max(len(row.ids) - row.prompt for row in batch) * loaded.vocabulary
            room = len(batch) * (before + longest) <= self.batch_tokens and logits <= _LOGITS_PER_BATCH
            room = room and (loaded.device.type != "cpu" or len(batch) * longest <= _CPU_BATCH)
            return room and is_dense(longest, [len(row.ids) for row in batch])

        compute = partial(score_batch, loaded, ranks=ranks)
        groups, alone = shared_prefixes(rows) if loaded.shares_prefixes else ([], rows)
        self._run_batches(alone, fits, compute, limit, results)
        # Groups are read together whose shared part is about as long, and then their rows by the length of the rest.
        groups.sort(key=lambda group: group.shared)
        for some in batches(groups, self._reads_together):
            prefixes = SharedPrefixes(some)
            fits_after = partial(fits, before=some[-1].shared)
            self._run_batches(prefixes.rows, fits_after, partial(compute, prefixes=prefixes), limit, results)
        return results

    def _rows(
        self, requests: Sequence[S], encode: Callable[[S], tuple[list[int], list[int]]]
    ) -> tuple[list[TokenRow], list[Any]]:
        """The requests as rows, and the results with an error for each that cannot be encoded, else None."""
        rows: list[TokenRow] = []
        results: list[EngineError | None] = []
        for index, request in enumerate(requests):
            try:
                start, continuation = encode(request)
            except ValueError as error:
                results.append(EngineError(self.name, str(error)))
            else:
                results.append(None)
                rows.append(TokenRow(index, start + continuation, len(start)))
        return rows, results

    def _reads_together(self, groups: list[PrefixGroup]) -> bool:
        longest = groups[-1].shared
        return len(groups) * longest <= self.batch_tokens and is_dense(longest, [group.shared for group in groups])

    def _run_batches(
        self,
        rows: list[TokenRow],
        fits: Callable[[list[TokenRow]], bool],
        compute: Callable[[list[TokenRow]], list[Any]],
        limit: TimeLimit,
        results: list[Any],
    ) -> None:
        """Fill `results` batch by batch, shortest rows first, so that a deadline leaves the most results."""
        import torch

        for batch in batches(sorted(rows, key=lambda row: len(row.ids)), fits):
            if limit.over():
                return
            try:
                with torch.inference_mode():
                    found = compute(batch)
            except torch.OutOfMemoryError as error:
                out = EngineError(
                    self.name,
                    f"out of memory with a batch of {len(batch)} rows ({error}).",
                    f"Lower batch_tokens={self.batch_tokens}.",
                )
                found = [out] * len(batch)
            except Exception as error:
                failed = EngineError(self.name, f"the model failed ({type(error).__name__}: {error}).")
                found = [failed] * len(batch)
            for row, item in zip(batch, found, strict=True):
                results[row.index] = item


def _store_column_major(model: Any) -> None:
    """Store every linear layer's matrix transposed in memory. Shapes and values stay, and tied weights stay tied."""
    import torch

    for module in model.modules():
        if type(module) is torch.nn.Linear:
            # `.data` of the one Parameter that tied layers share: the embedding sees the same storage.
            module.weight.data = module.weight.data.t().contiguous().t()
