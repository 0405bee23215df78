"""Generation of the step that is not in the trace (`proposals: generate`).

At every step boundary of a batch, the trace has one of the two proposals. The other one is generated here under the
same prefix, for all boundaries in one call: on the student's rollouts by the teacher (its model in this process, or an
engine), on the teacher's traces by the student (its model, or the vLLM worker of its rollouts).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather
from transformers import StoppingCriteria, StoppingCriteriaList

from rlkd.engines import Completion, Engine, EngineError, Sampling, run
from rlkd.errors import warn_of_failures
from trainers.teachers.batches import padded
from trainers.teachers.draws import draw
from trainers.teachers.token_steps import token_steps

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """A model's text after a prefix, and whether the token limit truncated it; a request that failed is such, too."""

    ids: list[int]
    truncated: bool = False


Writer = Callable[[Sequence[Sequence[int]]], list[Written]]
"""Prefixes (ids of prompt and trace so far) in, the model's text after each out; no ids where it failed."""

# Prefixes per batch of a model in this process.
ROWS = 32
# Seconds for all steps of a batch that an engine proposes; unfinished ones count as not proposed.
DEADLINE = 600.0


def propose_by_number(
    write: Callable[[int, Sequence[Sequence[int]]], list[Written]],
    count: int,
    tokenizer: Any,
    prefixes: Sequence[Sequence[int]],
    numbers: Sequence[int],
    accelerator: Any,
    begun: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """As `propose`, by the teacher of each prefix: `numbers` has its number, `count` is that of the teachers."""
    steps: dict[int, list[int]] = {}
    for number in range(count):
        own = [index for index, one in enumerate(numbers) if one == number]
        chosen = [prefixes[index] for index in own]
        parts = None if begun is None else [begun[index] for index in own]
        written = propose(partial(write, number), tokenizer, chosen, accelerator, [tokenizer.eos_token_id], parts)
        steps |= dict(zip(own, written, strict=True))
    return [steps[index] for index in range(len(prefixes))]


def engine_sampling(args: Any, step: int) -> Sampling:
    """How an engine writes the teacher's steps: sampled as the rollouts are, at most one line."""
    return Sampling(
        max_new_tokens=args.max_step_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        stop=("\n",),
        seed=draw(args.seed, step, "proposals").getrandbits(31),
    )


def propose(
    writer: Writer,
    tokenizer: Any,
    prefixes: Sequence[Sequence[int]],
    accelerator: Any,
    filler: Sequence[int],
    begun: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """The step that `writer` proposes after each prefix, as ids; empty where it wrote no whole one.

    `begun`: for each prefix the ids with which the step begins, and from which `writer` goes on; it may end the step
    there. None: it begins each step itself.

    Must be called on every process. Processes have different numbers of boundaries, and a rollout server splits its
    completions evenly: processes with fewer add `filler` (ids of any prompt) and drop the results.
    """
    count = torch.tensor([len(prefixes)], device=accelerator.device)
    most = int(gather(count).max())
    if most == 0:
        return []
    parts = [()] * len(prefixes) if begun is None else begun
    whole = [[*prefix, *part] for prefix, part in zip(prefixes, parts, strict=True)]
    texts = writer([*whole, *[list(filler)] * (most - len(prefixes))])[: len(prefixes)]
    return [
        first_step(tokenizer, [*part, *ids], truncated) for part, (ids, truncated) in zip(parts, texts, strict=True)
    ]


def first_step(tokenizer: Any, ids: Sequence[int], truncated: bool = False) -> list[int]:
    """The ids up to the end of the first step in them, with the white space before it and without that after it.

    Without a step (the closing `#### 72`), the first non-blank line counts, without end tokens.
    `truncated`: whether the token limit ended the text; a step that reaches its end is incomplete then: empty.
    """
    steps = token_steps(tokenizer, ids)
    if steps:
        return [] if truncated and steps[0].open else list(ids[: steps[0].end])
    special = set(tokenizer.all_special_ids)
    plain = [token for token in ids if token not in special]
    if truncated and not tokenizer.decode(plain)[-1:].isspace():
        return []
    while plain and not tokenizer.decode(plain[-1:]).strip():
        plain.pop()
    return plain


def write_here(
    model: Any,
    prefixes: Sequence[Sequence[int]],
    tokenizer: Any,
    generation_config: Any,
    max_new_tokens: int,
    device: Any,
) -> list[Written]:
    """The text of a model in this process after each prefix, at most one line, sampled like the rollouts.

    The model is in evaluation mode meanwhile; the random state of the process is used, as for rollouts.
    """
    config = copy.deepcopy(generation_config)
    config.max_new_tokens = max_new_tokens
    order = sorted(range(len(prefixes)), key=lambda index: len(prefixes[index]))
    written: dict[int, Written] = {}
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), ROWS):
            indices = order[start : start + ROWS]
            ids, mask = padded([prefixes[index] for index in indices], tokenizer.pad_token_id, left=True)
            width = ids.shape[1]
            with torch.no_grad():
                generated = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([_AfterOneLine(tokenizer, width)]),
                )
            ends = {tokenizer.pad_token_id, *_listed(config.eos_token_id)}
            for index, row_ids in zip(indices, generated[:, width:].tolist(), strict=True):
                stop = next((i for i, token in enumerate(row_ids) if token in ends), len(row_ids))
                written[index] = Written(row_ids[:stop], stop >= max_new_tokens)
    finally:
        model.train(training)
    return [written[index] for index in range(len(prefixes))]


def write_by_engine(
    engine: Engine, prefixes: Sequence[Sequence[int]], tokenizer: Any, sampling: Sampling, deadline: float | None
) -> list[Written]:
    """An engine's text after each prefix, which is sent as text; nothing where a request failed, which is logged.

    Raises `EngineError` where all failed: without proposals the run would be plain distillation.
    """
    texts = [prefix_text(tokenizer, ids) for ids in prefixes]
    results = run(engine.generate(texts, sampling, deadline=deadline))
    errors = [item for item in results if isinstance(item, EngineError)]
    if errors and len(errors) == len(results):
        first = errors[0]
        what = f"no step was proposed for any of {len(results)} prefixes; the first failed because: {first.what}"
        raise EngineError(first.engine, what, first.way_out)
    consequence = "prefixes have no proposed step and get weight 1"
    warn_of_failures(logger, "proposal_engine", consequence, list(map(str, errors)), len(results))
    return [_written(tokenizer, item) for item in results]


def prefix_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a prefix with its special tokens, except those at the start that an engine's tokenizer adds."""
    added = tokenizer("")["input_ids"]
    begin = len(added) if added and list(ids[: len(added)]) == list(added) else 0
    return str(tokenizer.decode(list(ids[begin:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def write_by_vllm(vllm_generation: Any, prefixes: Sequence[Sequence[int]], max_new_tokens: int) -> list[Written]:
    """The text of TRL's vLLM worker after each prefix, at most one line.

    The worker reads its limits when it is called, so they are changed for this call.
    """
    saved = vllm_generation.max_completion_length, vllm_generation.generation_kwargs
    vllm_generation.max_completion_length = max_new_tokens
    vllm_generation.generation_kwargs = {**(saved[1] or {}), "stop": ["\n"], "include_stop_str_in_output": True}
    try:
        _, completion_ids, _, _ = vllm_generation.generate(
            prompts=[list(ids) for ids in prefixes], images=None, num_generations=1
        )
    finally:
        vllm_generation.max_completion_length, vllm_generation.generation_kwargs = saved
    return [Written(list(ids), len(ids) >= max_new_tokens) for ids in completion_ids]


class _AfterOneLine(StoppingCriteria):
    """Ends a row after its first line that is not blank."""

    def __init__(self, tokenizer: Any, start: int):
        self.tokenizer = tokenizer
        self.start = start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor(["\n" in text.lstrip() for text in texts], device=input_ids.device)


def _written(tokenizer: Any, item: Completion | EngineError) -> Written:
    if isinstance(item, EngineError):
        return Written([], truncated=True)
    if not item.text.strip():
        return Written([])
    truncated = item.finish_reason == "length"
    # The engine's text lacks the line end that stopped it. Some vocabularies have one token for the full stop and the
    # line end, which the traces then contain, too.
    text = item.text if truncated else item.text + "\n"
    return Written(list(tokenizer(text, add_special_tokens=False)["input_ids"]), truncated)


def _listed(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
