"""Steps that the other model really writes (`proposals: generate`).

At every boundary of every trace of a batch, one of the two proposals stands in the trace. The other one is written
here under the same prefix, for all boundaries in one call: on the student's rollouts by the teacher (its model in this
process, or an engine), on the teacher's traces by the student (its model, or the vLLM worker of its rollouts).
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather
from transformers import StoppingCriteria, StoppingCriteriaList

from rlkd.engines import Completion, Engine, EngineError, Sampling, run
from trainers.validity_kd.token_spans import token_steps

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """What a model wrote after a prefix, and whether it was cut off by the limit on tokens."""

    ids: list[int]
    cut: bool = False


Writer = Callable[[Sequence[Sequence[int]]], list[Written]]
"""Prefixes (ids of prompt and trace so far) in, what the model wrote after each out; no ids where it failed."""

# Prefixes that share a forward pass of a model in this process.
ROWS = 32


def propose(
    writer: Writer, tokenizer: Any, prefixes: Sequence[Sequence[int]], accelerator: Any, filler: Sequence[int]
) -> list[list[int]]:
    """The step that `writer` proposes after each prefix, as ids; empty where it wrote none to the end.

    To be called on every process. Processes have different numbers of boundaries, and a rollout server deals out its
    completions by equal shares: those with fewer ask for `filler` (ids of any prompt) as well and drop the answers.
    """
    count = torch.tensor([len(prefixes)], device=accelerator.device)
    most = int(gather(count).max())
    if most == 0:
        return []
    asked = [*map(list, prefixes), *[list(filler)] * (most - len(prefixes))]
    return [first_step(tokenizer, *written) for written in writer(asked)[: len(prefixes)]]


def first_step(tokenizer: Any, ids: Sequence[int], cut: bool = False) -> list[int]:
    """The ids up to the end of the first step in them, with the white space before it and without that behind it.

    Where there is no step (the closing `#### 72`), the first line that holds something is taken, without end tokens.
    `cut`: whether the limit on tokens ended the text; a step that reaches to its end is no whole one then, and empty.
    """
    steps = token_steps(tokenizer, ids)
    if steps:
        return [] if cut and steps[0].open else list(ids[: steps[0].end])
    special = set(tokenizer.all_special_ids)
    plain = [token for token in ids if token not in special]
    if cut and not tokenizer.decode(plain)[-1:].isspace():
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
    """What a model in this process writes after each prefix, at most one line, sampled as the rollouts are.

    The model is in evaluation mode meanwhile; the random state of the process is used, as for rollouts.
    """
    config = copy.deepcopy(generation_config)
    config.max_new_tokens = max_new_tokens
    order = sorted(range(len(prefixes)), key=lambda place: len(prefixes[place]))
    written: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            width = max(len(prefixes[place]) for place in places)
            ids = torch.full((len(places), width), tokenizer.pad_token_id, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, place in enumerate(places):
                ids[row, width - len(prefixes[place]) :] = torch.tensor(prefixes[place])
                mask[row, width - len(prefixes[place]) :] = 1
            with torch.no_grad():
                found = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    stopping_criteria=StoppingCriteriaList([_AfterOneLine(tokenizer, width)]),
                )
            ends = {tokenizer.pad_token_id, *_listed(config.eos_token_id)}
            for place, row_ids in zip(places, found[:, width:].tolist(), strict=True):
                stop = next((i for i, token in enumerate(row_ids) if token in ends), len(row_ids))
                written[place] = row_ids[:stop]
    finally:
        model.train(training)
    rows = [written[place] for place in range(len(prefixes))]
    return [Written(ids, len(ids) >= max_new_tokens) for ids in rows]


def write_by_engine(
    engine: Engine, prefixes: Sequence[Sequence[int]], tokenizer: Any, sampling: Sampling, deadline: float | None
) -> list[Written]:
    """What an engine writes after each prefix, which it gets as text; nothing where it failed, which is logged.

    Raises `EngineError` where it failed on every prefix: without proposals this would be plain distillation.
    """
    texts = [prefix_text(tokenizer, ids) for ids in prefixes]
    found = run(engine.generate(texts, sampling, deadline=deadline))
    errors = [item for item in found if isinstance(item, EngineError)]
    if errors:
        [(cause, times)] = Counter(map(str, errors)).most_common(1)
        if len(errors) == len(found):
            first = errors[0]
            what = f"no step was proposed for any of {len(found)} prefixes, {times} times because: {first.what}"
            raise EngineError(first.engine, what, first.way_out)
        logger.warning(
            "proposal_engine: no step was proposed for %d of %d prefixes, which get weight 1; %d times because: %s",
            len(errors),
            len(found),
            times,
            cause,
        )
    return [_written(tokenizer, item) for item in found]


def prefix_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a prefix with its special tokens, but for those at the start that an engine's tokenizer adds."""
    added = tokenizer("")["input_ids"]
    begin = len(added) if added and list(ids[: len(added)]) == list(added) else 0
    return str(tokenizer.decode(list(ids[begin:]), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def write_by_vllm(vllm_generation: Any, prefixes: Sequence[Sequence[int]], max_new_tokens: int) -> list[Written]:
    """What TRL's vLLM worker of the rollouts writes after each prefix, at most one line.

    It reads its limits when it is called, so they are others for the time of this call.
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
    """Ends a row when it has written a line that is not blank."""

    def __init__(self, tokenizer: Any, start: int):
        self.tokenizer = tokenizer
        self.start = start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor(["\n" in text.lstrip() for text in texts], device=input_ids.device)


def _written(tokenizer: Any, item: Completion | EngineError) -> Written:
    if isinstance(item, EngineError) or not item.text.strip():
        return Written([])
    cut = item.finish_reason == "length"
    # The line end that stopped the engine is left out of its text. Some vocabularies have one token for it and the
    # full stop before it, as the traces then have, too.
    text = item.text if cut else item.text + "\n"
    return Written(list(tokenizer(text, add_special_tokens=False)["input_ids"]), cut)


def _listed(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
