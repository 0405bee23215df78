"""Teachers that give the k likeliest tokens at each position: a model in this process, or a vLLM server.

    >>> teacher = local_teacher(model, tokenizer, k=64)  # doctest: +SKIP
    >>> teacher = server_teacher("http://127.0.0.1:8000/v1#qwen", k=64, tokenizer=student_tokenizer)  # doctest: +SKIP
    >>> prompt, completion = trace_ids(student_tokenizer, messages, rationale, 512)  # doctest: +SKIP
    >>> [top] = teacher.top_k([prompt + completion], [len(prompt)])  # doctest: +SKIP
    >>> top.ids.shape  # (tokens of the completion, k)  # doctest: +SKIP
    torch.Size([87, 64])

A third one, `CachedTeacher` of `rlkd.teachers.cache`, reads what one of these has worked out before.

What they give is at temperature 1, over the whole vocabulary: the k probabilities do not sum to 1, and what is missing
is the tail's. So no other temperature can be made of it (`check_temperature`).

Teacher and student must mean the same by the same id, up to rows that only pad a head (`common_vocabulary`). And a
teacher's trace must be tokenised in one way wherever it is scored or trained on: that of `trace_ids`.

Imports no model library until something is asked of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlkd.answers import extract_answer
from rlkd.engines import Engine, EngineError, TopLogprobsEngine, open_engine, run
from rlkd.engines.base import identified
from rlkd.errors import UsageError
from rlkd.registry import SpecError
from rlkd.steps import strip_calculator_marks

if TYPE_CHECKING:
    import torch

    from rlkd.engines.base import Prompt

LOWEST = -9999.0
"""The log-probability that stands for minus infinity, as in vLLM's answers: JSON has no word for that."""

# Logits are turned into float32 for so many numbers at a time (64 MiB), whatever the length of a sequence.
_LOGITS_AT_A_TIME = 2**24
# Apart from rounding, the logits made here are those of the model's own forward; a wrong head is off by far more.
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
# Text on which two tokenizers that are not the same differ: scripts, spaces, digits, code, rare words.
_PROBE = (
    "Natalia sold 48/2 = 24 clips in May.\n\n    total = clips[0] + 1_000.50  # naïve façade, 3 µm, 漢字かな 한국어 "
    "🙂 Straße Привет العربية unquestionably antidisestablishmentarianism \\frac{3}{4} $12,345.67\tif (x >= 10) {}; "
)


@dataclass(frozen=True)
class TopK:
    """What a teacher says about n successive tokens of one sequence, at temperature 1; tensors on the CPU.

    `ids` [n, k] int32: the likeliest tokens, from the likeliest on. `logprobs` [n, k] float32: their natural
    log-probabilities over the whole vocabulary. `taken` [n] float32: that of the token that stands there.
    Raises `ValueError` where the shapes do not fit.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    taken: torch.Tensor

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape != self.logprobs.shape or self.taken.shape != self.ids.shape[:1]:
            raise ValueError(
                f"ids {tuple(self.ids.shape)}, logprobs {tuple(self.logprobs.shape)}, taken "
                f"{tuple(self.taken.shape)}: expected [n, k], [n, k] and [n]"
            )

    def __len__(self) -> int:
        return len(self.taken)


class TopKTeacher(Protocol):
    """A frozen teacher of which the k likeliest tokens are known.

    `name` tells its weights apart, as far as they can be told; `vocabulary` is the `vocabulary_fingerprint` of the
    tokenizer whose ids it takes.
    """

    @property
    def name(self) -> str:
        """The identity of the teacher; no secrets."""

    @property
    def k(self) -> int:
        """How many tokens of each position are known."""

    @property
    def vocabulary(self) -> str:
        """The fingerprint of the ids' tokenizer."""

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """For each sequence of token ids what the teacher says about its tokens `start` to the last, one row each.

        Row j is about token `start + j`, given those before it; `start` is at least 1. Raises what the teacher raises
        (`EngineError` of a server, `CacheError` of a cache): there is no distillation without its teacher.
        """


def trace_ids(
    tokenizer: Any,
    prompt: Prompt,
    rationale: str,
    max_completion_length: int,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of a teacher's trace after it, as a trainer of the student sees them.

    The prompt gets the chat template with the beginning of an answer, as TRL does it (text goes in as it is, with the
    tokenizer's special tokens); the trace is tokenised on its own and ends with the end token. A trace that is longer
    than `max_completion_length` tokens, its end token included, is cut there and does not end, as a rollout that was
    cut off. Raises `UsageError` where the prompt has no tokens, the trace is blank or there is no end token.
    """
    if max_completion_length < 1:
        raise UsageError(f"max_completion_length={max_completion_length}: expected at least 1")
    if not rationale.strip():
        raise UsageError("the rationale is blank: there is nothing to learn from. Leave out such rows")
    if isinstance(prompt, str):
        prompt_ids = tokenizer(prompt)["input_ids"]
    elif not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the prompt is a conversation and the tokenizer has no chat template. Name an instruct model as the "
            "student, or give prompts as texts"
        )
    else:
        prompt_ids = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **(chat_template_kwargs or {})
        )["input_ids"]
    if not len(prompt_ids):
        raise UsageError(f"the prompt {prompt!r} has no tokens: there is nothing to continue")
    end = tokenizer.eos_token_id
    if end is None:
        raise UsageError("the tokenizer has no end token (eos_token): a trace could not end. Set one")
    completion = [*tokenizer(rationale, add_special_tokens=False)["input_ids"], end]
    return list(prompt_ids), completion[:max_completion_length]


def trace_text(rationale: str, answer: str | None = None) -> str:
    """A row's rationale as a student should write it: what `recipes/sft.py` trains on, too.

    Without calculator marks; where it announces no answer and one is known, the line `#### answer` is put at its end.

    >>> trace_text("She sold 48/2 = <<48/2=24>>24 clips.", "24")
    'She sold 48/2 = 24 clips.\\n#### 24'
    """
    text = strip_calculator_marks(rationale).strip()
    return f"{text}\n#### {answer}" if answer is not None and extract_answer(text) is None else text


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Sixteen characters that differ where tokenizers differ in what an id stands for."""
    listed = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(listed, ensure_ascii=True).encode()).hexdigest()[:16]


def same_vocabulary(a: Any, b: Any) -> bool:
    """Whether two tokenizers mean the same by every id that both know; see `common_vocabulary`."""
    return _difference(a, b) is None


def common_vocabulary(student: Any, teacher: Any) -> int:
    """How many ids, from 0 on, two tokenizers share; raises `UsageError` where an id has two meanings.

    Heads with more rows than that only pad: the widths of Qwen2.5's heads differ from 0.5B to 7B (151,936 and
    152,064), their tokenizers know the same 151,665 ids. A token that only one of them knows (a padding token that was
    added) must come after all of the other's.
    """
    difference = _difference(student, teacher)
    if difference is not None:
        raise UsageError(
            f"student and teacher have different tokenizers: {difference}. Distillation on log-probabilities needs "
            f"one vocabulary. Take a teacher of the student's family, or train on the teacher's texts: recipes/sft.py"
        )
    return 1 + min(max(student.get_vocab().values()), max(teacher.get_vocab().values()))


def _difference(a: Any, b: Any) -> str | None:
    first, second = ({place: token for token, place in each.get_vocab().items()} for each in (a, b))
    if not first or not second:
        return f"one of them knows no token ({len(first)} and {len(second)})"
    for place in sorted(first.keys() | second.keys()):
        one, other = first.get(place), second.get(place)
        if one == other or (None in (one, other) and place > min(max(first), max(second))):
            continue
        named = ["no token" if token is None else repr(token) for token in (one, other)]
        sizes = f"{len(first)} and {len(second)} tokens"
        return f"id {place} is {named[0]} for the one and {named[1]} for the other ({sizes})"
    return None


def check_temperature(temperature: float) -> None:
    """Raise `UsageError` for a temperature other than 1: a top-k teacher cannot be asked at another.

    A softmax at another temperature divides by a sum over the whole vocabulary, of which only k terms are known.
    """
    if temperature != 1:
        raise UsageError(
            f"temperature {temperature:g} with a top-k teacher: it knows log-probabilities at temperature 1 and k "
            f"tokens of each position, and those at another temperature depend on all tokens. Set temperature to 1, "
            f"or take a teacher whose weights are in this process"
        )


def local_teacher(
    model: Any, tokenizer: Any, k: int, *, name: str | None = None, batch_tokens: int = 8192
) -> TopKTeacher:
    """A teacher in this process.

    Args:
        model: a causal language model of transformers, with its weights, where they lie. Neither trained nor changed.
        tokenizer: of the ids that it will get.
        k: tokens to keep of each position, at most as many as the head has.
        name: tells the weights apart in caches; by default the folder or hub id that they were read from.
        batch_tokens: bound on rows x longest sequence in one forward; a longer sequence goes alone.

    No more than 64 MiB of logits are made at a time: the forward stops before the head, which then sees a few
    positions at a time. That this gives the model's own logits (a scale, a soft cap) is compared in every forward, on
    the last position of each row. Raises `UsageError` for an impossible k.
    """
    return _LocalTeacher(model, tokenizer, k, name, batch_tokens)


def server_teacher(
    spec: str,
    k: int,
    *,
    tokenizer: Any,
    concurrency: int = 16,
    timeout: float = 300.0,
    retries: int = 4,
    deadline: float | None = None,
    api_key_env: str = "OPENAI_API_KEY",
) -> TopKTeacher:
    """A teacher behind `vllm serve`, or behind several servers with the same model.

        vllm serve MODEL --max-logprobs 64
        server_teacher("http://127.0.0.1:8000/v1#MODEL", 64, tokenizer=student_tokenizer)
        server_teacher("http://node1:8000/v1,http://node2:8000/v1#MODEL", 64, tokenizer=student_tokenizer)

    Args:
        spec: address and model, as for `rlkd.engines.open_engine`; `#MODEL` may be left out where it serves one.
        k: tokens of each position; the server must allow as many (`--max-logprobs`, 20 where it is not given).
        tokenizer: the student's. At the first request the server tokenises a text of many scripts; where its ids are
            others, it has another tokenizer and is refused.
        concurrency: requests at a time to each server.
        timeout, retries: seconds for one attempt and attempts after the first, as of `rlkd.engines.server`.
        deadline: seconds for each call of `top_k`; within it a server that restarts is waited for.

    A request is one sequence, sent as ids (`/v1/completions` with `prompt_logprobs`). Raises `SpecError` for another
    kind of spec and `UsageError` for an impossible k; `top_k` raises `EngineError`.
    """
    options = {"concurrency": concurrency, "timeout": timeout, "retries": retries, "api_key_env": api_key_env}
    return _EngineTeacher(open_engine(spec, defaults=options), k, tokenizer, deadline)


class _LocalTeacher:
    def __init__(self, model: Any, tokenizer: Any, k: int, name: str | None, batch_tokens: int) -> None:
        _check_k(k)
        width = model.get_output_embeddings().weight.shape[0]
        if k > width:
            raise UsageError(f"k={k}: the teacher's head has {width} rows; expected at most as many")
        if batch_tokens < 1:
            raise UsageError(f"batch_tokens={batch_tokens}: expected at least 1")
        self.model = model
        self.k = k
        self.vocabulary = vocabulary_fingerprint(tokenizer)
        self.name = name or f"transformers:{identified(str(model.config._name_or_path) or type(model).__name__)}"
        self.batch_tokens = batch_tokens
        self._head = model.get_output_embeddings()
        self._scale, self._softcap = logit_settings(model.config)

    def __repr__(self) -> str:
        return f"<top-{self.k} teacher {self.name}>"

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`. Raises `UsageError` for a sequence beyond the model's context."""
        import torch

        checked = _checked(sequences, starts)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, checked), default=0)
        if context is not None and longest > context:
            raise UsageError(f"a sequence of {longest} tokens: the context of the teacher {self.name} is {context}")
        found: dict[int, TopK] = {}
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for batch in _by_length(checked, self.batch_tokens):
                    hidden = self._hidden([checked[place] for place in batch])
                    for row, place in enumerate(batch):
                        found[place] = self._top_k(hidden[row], checked[place], starts[place])
        finally:
            self.model.train(training)
        return [found[place] for place in range(len(checked))]

    def _hidden(self, sequences: list[list[int]]) -> torch.Tensor:
        """What goes into the head, [rows, longest, H]. Padding stands behind, where nothing looks at it."""
        import torch

        device = self.model.get_input_embeddings().weight.device
        width = max(map(len, sequences))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in sequences], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences], device=device)
        last = mask.sum(1) - 1
        kept: list[torch.Tensor] = []

        def intercept(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            kept.append(inputs[0])
            rows = torch.arange(len(sequences), device=inputs[0].device)
            return inputs[0][rows, last.to(inputs[0].device)][:, None], *inputs[1:]

        hook = self._head.register_forward_pre_hook(intercept)
        try:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
        finally:
            hook.remove()
        [hidden] = kept
        rows = torch.arange(len(sequences), device=hidden.device)
        ours = self._logits(hidden[rows, last.to(hidden.device)])
        check_logits(ours, logits.float(), self._head.weight.dtype, f"{self.name} ({type(self.model).__name__})")
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of positions [n, H] -> [n, V], in float32."""
        logits = self._head(hidden).float() * self._scale
        return logits if self._softcap is None else self._softcap * (logits / self._softcap).tanh()

    def _top_k(self, hidden: torch.Tensor, sequence: list[int], start: int) -> TopK:
        import torch

        size = max(1, _LOGITS_AT_A_TIME // self._head.weight.shape[0])
        parts = []
        for first in range(start, len(sequence), size):
            stop = min(first + size, len(sequence))
            logprobs = self._logits(hidden[first - 1 : stop - 1]).log_softmax(-1).clamp_(min=LOWEST)
            values, ids = logprobs.topk(self.k, dim=-1)
            taken = logprobs.gather(-1, torch.tensor(sequence[first:stop], device=logprobs.device)[:, None])[:, 0]
            parts.append((ids.int().cpu(), values.cpu(), taken.cpu()))
        return TopK(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _EngineTeacher:
    def __init__(self, engine: Engine, k: int, tokenizer: Any, deadline: float | None) -> None:
        _check_k(k)
        if not isinstance(engine, TopLogprobsEngine):
            raise SpecError(
                f"{engine.name} cannot be a top-k teacher: it gives no log-probabilities of a prompt's tokens. Name a "
                f"vLLM server (http://HOST:PORT/v1#MODEL), or a backend with `encode` and `top_logprobs`"
            )
        self.engine = engine
        self.source: TopLogprobsEngine = engine
        self.k = k
        self.vocabulary = vocabulary_fingerprint(tokenizer)
        self.deadline = deadline
        self._probe: list[int] | None = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])

    @property
    def name(self) -> str:
        """The model's name at a server; where the spec has none the address, until the first request."""
        return f"vllm:{self.engine.identity or self.engine.name}" if self.engine.is_remote else self.engine.name

    def __repr__(self) -> str:
        return f"<top-{self.k} teacher {self.name}>"

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`: all sequences in one call, as many in flight as the engine's concurrency allows."""
        import torch

        checked = _checked(sequences, starts)
        self._check_tokenizer()
        results = []
        found = run(self.source.top_logprobs(checked, list(starts), self.k, deadline=self.deadline))
        for index, item in enumerate(found):
            if isinstance(item, EngineError):
                where = f"sequence {index} of {len(found)} ({len(checked[index])} tokens): {item.what}"
                raise EngineError(item.engine, where, item.way_out)
            ids, logprobs = torch.as_tensor(item.ids), torch.as_tensor(item.logprobs)
            shape = (len(item.taken), self.k)
            taken = torch.as_tensor(item.taken, dtype=torch.float32)
            results.append(TopK(ids.int().reshape(shape), logprobs.float().reshape(shape), taken))
        return results

    def _check_tokenizer(self) -> None:
        """Raise `EngineError` where the engine has another tokenizer: it makes other ids of a text of many scripts."""
        if self._probe is None:
            return
        [found] = run(self.source.encode([_PROBE], deadline=self.deadline))
        if isinstance(found, EngineError):
            raise found
        if found != self._probe:
            pairs = enumerate(zip(found, self._probe, strict=False))
            first = next((index for index, (theirs, ours) in pairs if theirs != ours), 0)
            raise EngineError(
                self.engine.name,
                f"the server's tokenizer is not the student's: for a text of many scripts it has {len(found)} ids and "
                f"the student's {len(self._probe)}; the first that differ are {found[first : first + 3]} and "
                f"{self._probe[first : first + 3]}.",
                "Serve a model with the student's vocabulary, or train on the teacher's texts: recipes/sft.py.",
            )
        self._probe = None


def check_logits(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype, teacher: str) -> None:
    """Raise `UsageError` where logits made from a teacher's last layer here are not its own, [n, V] both, float32.

    `dtype`: of that layer; apart from its rounding the probabilities have to be the same. `teacher`: for the message.
    """
    gap = float((ours.log_softmax(-1).exp() - theirs.log_softmax(-1).exp()).abs().max())
    if not gap <= _TOLERANCE.get(str(dtype).removeprefix("torch."), 2e-1):
        raise UsageError(
            f"the teacher {teacher} does something to its logits that is not known here: probabilities differ by up "
            f"to {gap:.3g}. If it has an adapter on its last layer, merge that into its weights; else serve it with "
            f"vLLM and name the server"
        )


def logit_settings(config: Any) -> tuple[float, float | None]:
    """What a model does to its head's output: the scale to multiply it with, and the soft cap after that, if any.

    Under the names of transformers' configs: `logit_scale` (Cohere), `output_multiplier`, `lm_head_multiplier`
    (Falcon-H1), `logits_scaling` (Granite divides by it, HyperCLOVA X multiplies), `final_logit_softcapping` (Gemma).
    """
    config = config.get_text_config()
    named = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((value for value in named if value is not None), None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return (1.0 if scale is None else float(scale)), getattr(config, "final_logit_softcapping", None)


def _check_k(k: int) -> None:
    if not isinstance(k, int) or k < 1:
        raise UsageError(f"k={k!r}: expected a whole number of at least 1")


def _checked(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[list[int]]:
    """The sequences as lists of Python's own numbers. Raises `ValueError` naming the one that does not fit."""
    if len(sequences) != len(starts):
        raise ValueError(f"{len(sequences)} sequences and {len(starts)} starts: expected one start each")
    checked = [[int(token) for token in sequence] for sequence in sequences]
    for place, (sequence, start) in enumerate(zip(checked, starts, strict=True)):
        if not 1 <= start < len(sequence):
            raise ValueError(
                f"sequence {place} has {len(sequence)} tokens and start {start}: expected at least 1, since nothing "
                f"is known of the first token, and less than its length"
            )
    return checked


def _by_length(sequences: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Places of sequences in batches of similar lengths, rows x longest at most `batch_tokens`, or one alone."""
    batch: list[int] = []
    for place in sorted(range(len(sequences)), key=lambda place: len(sequences[place])):
        if batch and (len(batch) + 1) * len(sequences[place]) > batch_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
