"""An engine that runs a model in this process with transformers.

    TransformersEngine("embedded")
    TransformersEngine("path/or/hub-id", adapter="path/to/lora", device="cuda:1", batch_tokens=65536)

Weights are read on the first request. The work runs in a worker thread, one call at a time, so that an event loop
stays free and two callers never share the model.

Greedy text does not depend on what else is in the batch, up to rounding: in float32 on a CPU the difference is about
1e-5 in a logit; in bfloat16 on a GPU it can turn a near-tie between two tokens.

Our choices. Every setting of the checkpoint's own generation config is ignored except its end tokens, so that
`Sampling` says all there is. A prompt must leave room for `max_new_tokens` in the model's context, as vLLM demands
too: nothing is cut silently. Sampling draws from generators of its own, one a request, so the global random state is
neither read nor changed, and a request's draws do not depend on its batch.

Requests of `score` and `choose` that begin with the same tokens (one question with many rationales, one prompt with
two choices) share the work on them: it is done once, and each request goes on from there.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from rlkd.devices import best_device
from rlkd.engines.base import (
    Completion,
    EngineError,
    Prompt,
    RankedScores,
    Sampling,
    TokenScores,
    check_prompts,
    check_requests,
    distinct,
)
from rlkd.engines.local import WAY_OUT, Dtype, LocalEngine
from rlkd.engines.tokens import check_room, encode_continuation, encode_prompt
from rlkd.models import resolve_model

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
S = TypeVar("S")

# Scoring keeps a row of logits for each token of a continuation: at most this many numbers a batch (1 GiB in float32).
_LOGITS_PER_BATCH = 2**28

# Reading a shared beginning by itself costs a pass of the model, so it must be worth one; and its states are copied
# into every batch, so that a group must end somewhere.
_SHORTEST_SHARED, _LARGEST_GROUP = 16, 64
# In scoring, at most this share of a batch is padding, unless the batch has no more tokens than a small one.
_MOST_PADDING, _SMALL_BATCH = 0.05, 128
# Tokens of a batch in scoring on a CPU: more leave its caches, and are slower for it (measured: by 4 to 10 %).
_CPU_BATCH = 640


class TransformersEngine(LocalEngine):
    """A frozen causal language model, in this process.

    `model` is a folder, a hub id, or `embedded`. `dtype` is a torch type by name; `auto` is the checkpoint's own, and
    float32 on a CPU. `device` defaults to cuda, else mps, else cpu. `batch_tokens` bounds rows x (prompt + new tokens)
    of a batch, padding included; one request always fits. `adapter` is a PEFT adapter, merged into the weights.
    `column_major` stores the matrices transposed where that helps (float32 on a CPU: decoding is 1.2 to 1.4 times as
    fast, logits equal to 3e-5). Code from a checkpoint is never executed, and only safetensors are read.
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
    ) -> None:
        super().__init__("transformers", model, dtype, adapter)
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens={batch_tokens!r}: expected a whole number of at least 1")
        self.device = device
        self.batch_tokens = batch_tokens
        self.column_major = column_major
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def __repr__(self) -> str:
        return f"<TransformersEngine {self.name}{'' if self._loaded else ', not loaded'}>"

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, deadline: float | None = None
    ) -> list[Completion | EngineError]:
        """Complete every prompt. Greedy requests that are equal are computed once."""
        prompts = check_prompts(prompts)
        unique, where = distinct(prompts) if sampling.temperature == 0 else (prompts, list(range(len(prompts))))
        found = await self._work(len(unique), deadline, lambda job: self._generate(job, unique, sampling))
        return [found[place] for place in where]

    async def score(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[TokenScores | EngineError]:
        """Return the log-probabilities of every continuation; `tokens.py` says where a continuation begins."""
        unique, where = distinct(check_requests(requests))
        found = await self._work(len(unique), deadline, lambda job: self._score(job, unique))
        return [found[place] for place in where]

    async def score_with_ranks(
        self, requests: Sequence[tuple[Prompt, str]], *, deadline: float | None = None
    ) -> list[RankedScores | EngineError]:
        """`score`, with the rank of every token: one more than the number of tokens that are likelier."""
        unique, where = distinct(check_requests(requests))
        found = await self._work(len(unique), deadline, lambda job: self._score(job, unique, ranks=True))
        results: list[Any] = [found[place] for place in where]
        return results

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
        self, count: int, deadline: float | None, work: Callable[[_Job], list[T | EngineError | None]]
    ) -> list[T | EngineError]:
        """Run `work` in a thread, under the lock. `None` in its result is a request the deadline overtook."""
        if count == 0:
            return []
        limit = _Limit(deadline)
        try:
            results = await asyncio.to_thread(self._locked, count, limit, work)
        except asyncio.CancelledError:
            limit.cancelled = True  # the thread cannot be killed: it stops at its next step
            raise
        late = EngineError.deadline_passed(self.name, deadline)
        return [late if item is None else item for item in results]

    def _locked(
        self, count: int, limit: _Limit, work: Callable[[_Job], list[T | EngineError | None]]
    ) -> list[T | EngineError | None]:
        while not self._lock.acquire(timeout=0.05):
            if limit.over():
                return [None] * count
        try:
            if limit.over():
                return [None] * count
            try:
                if self._loaded is None:
                    self._loaded = self._load()
            except EngineError as error:
                return [error.with_traceback(None)] * count
            return work(_Job(self._loaded, limit))
        finally:
            self._lock.release()

    def _load(self) -> _Loaded:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        device = torch.device(self.device or best_device())
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

        ends = {tokenizer.eos_token_id}
        configured = model.generation_config.eos_token_id
        ends |= set(configured) if isinstance(configured, list) else {configured}
        end_ids = sorted(end for end in ends if end is not None)
        # Attention masks are explicit and a row is read up to its end only: any padding id does, an end token's too.
        pad_id = tokenizer.pad_token_id
        if pad_id is None:
            pad_id = end_ids[0] if end_ids else 0
        model.generation_config = GenerationConfig(eos_token_id=end_ids or None, pad_token_id=pad_id)
        config = model.config.get_text_config()
        accepted = inspect.signature(model.forward).parameters
        return _Loaded(
            model=model,
            tokenizer=tokenizer,
            device=device,
            context=getattr(config, "max_position_embeddings", None),
            vocabulary=config.vocab_size,
            end_ids=frozenset(end_ids),
            pad_id=pad_id,
            takes_positions="position_ids" in accepted,
            takes_logits_to_keep="logits_to_keep" in accepted,
            shares_beginnings={"position_ids", "logits_to_keep", "past_key_values"} <= accepted.keys()
            and _keeps_every_state(model.config),
        )

    def _generate(self, job: _Job, prompts: list[Prompt], sampling: Sampling) -> list[Completion | EngineError | None]:
        results: list[Completion | EngineError | None] = [None] * len(prompts)
        rows = []
        for index, prompt in enumerate(prompts):
            try:
                ids = encode_prompt(job.loaded.tokenizer, prompt)
                check_room(job.loaded.context, len(ids), sampling.max_new_tokens, "max_new_tokens asks for")
            except ValueError as error:
                results[index] = EngineError(self.name, str(error))
                continue
            rows.append(_Row(index, ids, len(ids)))

        def fits(batch: list[_Row]) -> bool:
            return len(batch) * (max(len(row.ids) for row in batch) + sampling.max_new_tokens) <= self.batch_tokens

        self._run_batches(job, rows, fits, partial(_generate_batch, sampling=sampling), results)
        return results

    def _score(
        self, job: _Job, requests: list[tuple[Prompt, str]], *, ranks: bool = False
    ) -> list[TokenScores | EngineError | None]:
        results: list[TokenScores | EngineError | None] = [None] * len(requests)
        rows = []
        for index, (prompt, text) in enumerate(requests):
            try:
                start = encode_prompt(job.loaded.tokenizer, prompt)
                continuation = encode_continuation(job.loaded.tokenizer, text)
                check_room(job.loaded.context, len(start), len(continuation), "the continuation has")
            except ValueError as error:
                results[index] = EngineError(self.name, str(error))
                continue
            if continuation:
                rows.append(_Row(index, start + continuation, len(start)))
            else:
                results[index] = RankedScores(()) if ranks else TokenScores(())

        def fits(batch: list[_Row], before: int = 0) -> bool:
            longest = max(len(row.ids) for row in batch)
            logits = len(batch) * max(len(row.ids) - row.prompt for row in batch) * job.loaded.vocabulary
            room = len(batch) * (before + longest) <= self.batch_tokens and logits <= _LOGITS_PER_BATCH
            room = room and (job.loaded.device.type != "cpu" or len(batch) * longest <= _CPU_BATCH)
            return room and _is_dense(longest, [len(row.ids) for row in batch])

        compute = partial(_score_batch, ranks=True) if ranks else _score_batch
        groups, alone = _shared_beginnings(rows) if job.loaded.shares_beginnings else ([], rows)
        self._run_batches(job, alone, fits, compute, results)
        # Groups are read together whose shared part is about as long, and then their rows by the length of the rest.
        groups.sort(key=lambda group: group.shared)
        for some in _batches(groups, self._reads_together):
            beginnings = _Beginnings(some)
            self._run_batches(
                job,
                beginnings.rows,
                partial(fits, before=some[-1].shared),
                partial(compute, beginnings=beginnings),
                results,
            )
        return results

    def _reads_together(self, groups: list[_Group]) -> bool:
        """Whether the beginnings of these groups, shortest first, may be one batch."""
        longest = groups[-1].shared
        return len(groups) * longest <= self.batch_tokens and _is_dense(longest, [group.shared for group in groups])

    def _run_batches(
        self,
        job: _Job,
        rows: list[_Row],
        fits: Callable[[list[_Row]], bool],
        compute: Callable[[_Job, list[_Row]], list[Any]],
        results: list[Any],
    ) -> None:
        """Fill `results` batch by batch, shortest rows first, so that a deadline leaves the most results."""
        import torch

        for batch in _batches(sorted(rows, key=lambda row: len(row.ids)), fits):
            if job.limit.over():
                return
            try:
                with torch.inference_mode():
                    found = compute(job, batch)
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


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    vocabulary: int
    end_ids: frozenset[int]
    pad_id: int
    takes_positions: bool
    takes_logits_to_keep: bool
    shares_beginnings: bool


class _Limit:
    """When the work must stop: at the deadline, or as soon as its caller is cancelled."""

    def __init__(self, deadline: float | None) -> None:
        self.end = None if deadline is None else time.monotonic() + deadline
        self.cancelled = False

    def over(self) -> bool:
        return self.cancelled or (self.end is not None and time.monotonic() >= self.end)


@dataclass(frozen=True)
class _Job:
    loaded: _Loaded
    limit: _Limit


@dataclass(frozen=True)
class _Row:
    """One request of a batch: its place in the call, its ids, and how many of them are the prompt's."""

    index: int
    ids: list[int]
    prompt: int


@dataclass(frozen=True)
class _Group:
    """Requests whose first `shared` ids are the same."""

    rows: list[_Row]
    shared: int


class _Beginnings:
    """The shared beginnings of some groups: read once, when first needed, and put before the rest of each request.

    `rows`: the requests without their beginnings.
    """

    def __init__(self, groups: list[_Group]) -> None:
        self.groups = groups
        self.place = {row.index: place for place, group in enumerate(groups) for row in group.rows}
        self.rows = [
            _Row(row.index, row.ids[group.shared :], row.prompt - group.shared)
            for group in groups
            for row in group.rows
        ]
        self._read: tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor] | None = None

    def before(self, job: _Job, rows: list[_Row]) -> tuple[Any, torch.Tensor]:
        """The states of the beginnings of these rows as a cache, and their mask, (rows, longest beginning)."""
        import torch
        from transformers import DynamicCache

        if self._read is None:
            shared = [_Row(0, group.rows[0].ids[: group.shared], 0) for group in self.groups]
            ids, mask = _pad_left(job, shared)
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
            cache = job.loaded.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            self._read = [(layer.keys, layer.values) for layer in cache.layers], mask
        states, mask = self._read
        places = torch.tensor([self.place[row.index] for row in rows], device=mask.device)
        own = DynamicCache()
        for layer, (keys, values) in enumerate(states):  # each (groups, heads, longest beginning, width)
            own.update(keys[places], values[places], layer)
        return own, mask[places]


def _store_column_major(model: Any) -> None:
    """Store every linear layer's matrix transposed in memory. Shapes and values stay, and tied weights stay tied."""
    import torch

    for module in model.modules():
        if type(module) is torch.nn.Linear:
            # `.data` of the one Parameter that tied layers share: the embedding sees the same storage.
            module.weight.data = module.weight.data.t().contiguous().t()


def _keeps_every_state(config: Any) -> bool:
    """Whether a text read in two parts, with padding between them, is read as it is in one.

    Not so with a sliding window, which counts padding too, nor where a recurrent state stands for what has been read,
    nor with rotary positions whose frequencies depend on the longest position of a pass: the first part, read alone,
    would get others.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=config).layers
    keeps = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    # One entry of settings, or one for each kind of layer.
    rotary = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [str(each.get("rope_type")) for each in (rotary, *rotary.values()) if isinstance(each, Mapping)]
    return keeps and not any("dynamic" in kind or kind == "longrope" for kind in kinds)


def _shared_beginnings(rows: list[_Row]) -> tuple[list[_Group], list[_Row]]:
    """Divide requests into groups with a beginning in common, such that the most tokens are saved, and the rest.

    A beginning ends before the last token of a prompt, which predicts the first of the continuation. In sorted order
    a group is a run of neighbours, and a group of n with m ids in common saves (n - 1) m; the best division of a list
    ends with some run, after the best division of what is before it. At most `_LARGEST_GROUP` steps a request.
    """
    rows = sorted(rows, key=lambda row: (row.ids, row.prompt))
    common = [0]  # of a request and the one before it
    for left, right in itertools.pairwise(rows):
        most = min(left.prompt, right.prompt) - 1
        pairs = enumerate(zip(left.ids[:most], right.ids[:most], strict=True))
        common.append(next((place for place, (mine, theirs) in pairs if mine != theirs), most))
    # Of the first k requests: the most tokens saved, and how many are in the last run and what they share.
    best = [(0, 0, 0)]
    for end in range(1, len(rows) + 1):
        found = (best[-1][0], 1, 0)
        shared = len(rows[end - 1].ids)
        for size in range(2, min(end, _LARGEST_GROUP) + 1):
            shared = min(shared, common[end - size + 1])
            if shared < _SHORTEST_SHARED:
                break
            saved = best[end - size][0] + (size - 1) * shared
            if saved > found[0]:
                found = (saved, size, shared)
        best.append(found)
    groups, alone = [], []
    end = len(rows)
    while end:
        _, size, shared = best[end]
        if size > 1:
            groups.append(_Group(rows[end - size : end], shared))
        else:
            alone.append(rows[end - 1])
        end -= size
    return groups, alone


def _is_dense(longest: int, lengths: list[int]) -> bool:
    """Whether a batch of rows of these lengths has little padding: a computation that has much to do is slowed by it.

    A small batch may have any: it costs less than another pass.
    """
    padded = longest * len(lengths)
    return padded <= _SMALL_BATCH or padded * (1 - _MOST_PADDING) <= sum(lengths)


def _batches(rows: list[S], fits: Callable[[list[S]], bool]) -> Iterator[list[S]]:
    """Cut the rows into runs that fit; a row that fits no batch is one by itself."""
    batch: list[S] = []
    for row in rows:
        if batch and not fits([*batch, row]):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad_left(job: _Job, rows: list[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, each (rows, longest)."""
    import torch

    width = max(len(row.ids) for row in rows)
    ids = [[job.loaded.pad_id] * (width - len(row.ids)) + row.ids for row in rows]
    mask = [[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]
    return torch.tensor(ids, device=job.loaded.device), torch.tensor(mask, device=job.loaded.device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Return the positions of the tokens that a mask has, (rows, width); padding counts for none."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _generate_batch(job: _Job, rows: list[_Row], *, sampling: Sampling) -> list[Completion | None]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    loaded = job.loaded
    ids, mask = _pad_left(job, rows)
    watch = _Watch(job, ids.shape[1], sampling.stop)
    draw = LogitsProcessorList([_Draw(sampling, rows)] if sampling.temperature > 0 else [])
    settings = GenerationConfig(
        do_sample=False,  # `_Draw` does the sampling
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(loaded.end_ids) or None,
        pad_token_id=loaded.pad_id,
    )
    output = loaded.model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=draw,
        stopping_criteria=StoppingCriteriaList([watch]),
    )
    written = output[:, ids.shape[1] :].tolist()
    return [_completion(loaded, tokens, sampling, watch.stopped_at.get(place)) for place, tokens in enumerate(written)]


def _completion(loaded: _Loaded, tokens: list[int], sampling: Sampling, stopped_at: int | None) -> Completion | None:
    """Read one row of output: its tokens up to the end token, the stop string or the limit. None if it has no end."""
    tokens = tokens[:stopped_at]
    end = next((place for place, token in enumerate(tokens) if token in loaded.end_ids), None)
    if end is None and stopped_at is None and len(tokens) < sampling.max_new_tokens:
        return None
    used = len(tokens) if end is None else end + 1
    text = loaded.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cuts = [place for place in (text.find(stop) for stop in sampling.stop) if place >= 0]
    if cuts:
        return Completion(text[: min(cuts)], "stop", used)
    return Completion(text, "length" if end is None and stopped_at is None else "stop", used)


class _Watch:
    """A stopping criterion: the time limit for the batch, and the stop strings for each row.

    transformers has `stop_strings`, but it reads the prompt's tail too: a stop string that begins in the prompt and
    ends in the completion would stop a row there, though its completion does not contain it.
    """

    def __init__(self, job: _Job, prompt_width: int, stop: tuple[str, ...]) -> None:
        self.job = job
        self.prompt_width = prompt_width
        self.stop = stop
        # A token is at least a byte, so a stop string that ends in the newest token begins within this many. The slack
        # is for characters of several tokens.
        self.tail = max((len(text.encode()) for text in stop), default=0) + 8
        self.stopped_at: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        done = torch.full((input_ids.shape[0],), self.job.limit.over(), device=input_ids.device, dtype=torch.bool)
        if self.stop:
            written = input_ids.shape[1] - self.prompt_width
            tails = input_ids[:, self.prompt_width :][:, -self.tail :].tolist()
            for row, tail in enumerate(tails):
                if row not in self.stopped_at:
                    text = self.job.loaded.tokenizer.decode(
                        tail, skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                    if any(stop in text for stop in self.stop):
                        self.stopped_at[row] = written
            done[list(self.stopped_at)] = True
        return done


class _Draw:
    """A logits processor that turns greedy decoding into sampling: it leaves one possible token in every row.

    Each row has a generator of its own and uses one uniform number a token (inverse of the cumulative distribution),
    so its draws depend on the seed and its place in the call alone.
    """

    def __init__(self, sampling: Sampling, rows: list[_Row]) -> None:
        self.sampling = sampling
        seed = sampling.seed
        self.generators = [random.Random(None if seed is None else f"{seed}:{row.index}") for row in rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        top = scores.max(dim=-1, keepdim=True).values
        weights = ((scores - top).float() / self.sampling.temperature).softmax(dim=-1)  # (rows, vocabulary)
        order = None
        if self.sampling.top_p < 1:
            weights, order = weights.sort(dim=-1, descending=True, stable=True)
            before = weights.cumsum(dim=-1) - weights
            # The smallest set of tokens that reaches top_p; the likeliest token always stays.
            outside = before >= self.sampling.top_p
            outside[:, 0] = False
            weights = weights.masked_fill(outside, 0.0)
        cumulative = weights.cumsum(dim=-1)
        # Just below 1, so that rounding never selects a token of weight 0 after the last.
        draws = [min(generator.random(), 1 - 1e-6) for generator in self.generators]
        uniform = torch.tensor(draws, device=scores.device, dtype=cumulative.dtype)[:, None]
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        if order is not None:
            chosen = order.gather(-1, chosen)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)


def _score_batch(
    job: _Job, rows: list[_Row], *, ranks: bool = False, beginnings: _Beginnings | None = None
) -> list[TokenScores]:
    import torch

    loaded = job.loaded
    ids, mask = _pad_left(job, rows)
    # The rows end together, and nothing is predicted from a last token: what predicts a continuation now stands last.
    ids, mask = ids[:, :-1], mask[:, :-1]
    kept = max(len(row.ids) - row.prompt for row in rows)
    inputs: dict[str, Any] = {"use_cache": False}
    if beginnings is not None:
        past, before = beginnings.before(job, rows)
        mask = torch.cat([before, mask], dim=-1)
        inputs = {"past_key_values": past, "use_cache": True}
    inputs |= {"input_ids": ids, "attention_mask": mask}
    if loaded.takes_positions:
        inputs["position_ids"] = _positions(mask)[:, -ids.shape[1] :]
    if loaded.takes_logits_to_keep:
        # As a tensor: a number would cut out a view, on which the product with the vocabulary is several times slower.
        inputs["logits_to_keep"] = torch.arange(ids.shape[1] - kept, ids.shape[1], device=loaded.device)
    logits = loaded.model(**inputs).logits[:, -kept:]  # (rows, kept, vocabulary)
    results: list[TokenScores] = []
    for place, row in enumerate(rows):
        length = len(row.ids) - row.prompt
        predicted = logits[place, -length:].float()  # (length, vocabulary)
        targets = torch.tensor(row.ids[row.prompt :], device=loaded.device)
        chosen = predicted.gather(-1, targets[:, None])  # (length, 1)
        values = tuple((chosen[:, 0] - predicted.logsumexp(dim=-1)).tolist())
        if ranks:
            results.append(RankedScores(values, tuple((1 + (predicted > chosen).sum(dim=-1)).tolist())))
        else:
            results.append(TokenScores(values))
    return results
