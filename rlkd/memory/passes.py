"""The memory of a model's passes: what a forward pass keeps for the backward pass, and the cache of generation.

The passes run without data (`rlkd.memory.live`), mostly over the first layers only: what one more of them adds counts
for all others of its kind.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from rlkd.memory.heap import HeapReplay
from rlkd.memory.live import LiveBytes
from rlkd.memory.models import WeightlessModel

# Numbers per token, layer and width that a pass keeps for its backward pass, where a model cannot be run without data:
# 34 bytes in half precision, without the scores of attention (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1).
_NUMBERS_PER_TOKEN = 17


@dataclass(frozen=True)
class PassBytes:
    """Bytes that a pass takes besides weights and gradients.

    `kept`: what is there when the forward pass has ended: for training what the backward pass needs, for generation
    the cache. `most`: the most at any time. `traced`: False for the rough formula, of a model that does not run
    without data.
    """

    kept: int
    most: int
    traced: bool = True


def training_pass(model: WeightlessModel, rows: int, tokens: int, *, resident: bool = False) -> PassBytes:
    """A forward and a backward pass over rows x tokens, without the head, and without gradients of weights.

    `resident`: count what the process takes from the system on a CPU, where it is more than the tensors need
    (`rlkd.memory.heap`).
    """

    def run(heap: HeapReplay | None) -> tuple[int, int]:
        inner = model.plain.get_input_embeddings()
        embedded = inner.weight.requires_grad
        inner.weight.requires_grad_(False)
        # Its gradient is counted apart: `most` is what the layers need.
        hook = (
            inner.register_forward_hook(lambda module, inputs, output: output.requires_grad_()) if embedded else None
        )
        trained = [parameter for parameter in model.all_parameters if parameter.requires_grad]
        try:
            with _counted(model, heap) as held, torch.enable_grad():
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
                gradients = held.now
                with _autocast(model):
                    hidden = model.plain.base_model(**_inputs(model, rows, tokens), use_cache=False)[0]
                kept = held.now - gradients
                hidden.backward(torch.empty_like(hidden))
                return kept, held.most - gradients
        finally:
            for parameter in trained:
                parameter.grad = None
            inner.weight.requires_grad_(embedded)
            if hook is not None:
                hook.remove()

    found = None
    if resident:
        with suppress(OSError):
            heap = HeapReplay()
            found = _traced(model, lambda: run(heap), whole=True)
    return found or _traced(model, lambda: run(None)) or _training_formula(model, rows, tokens)


def reading_pass(model: WeightlessModel, rows: int, tokens: int, *, cached: bool = False) -> PassBytes:
    """A forward pass without gradients over rows x tokens, with the logits of the last position only.

    `cached`: keep the states of the tokens, as generation does: `kept` are the bytes of this cache.
    """

    def run() -> tuple[int, int]:
        plain, training = model.plain, model.plain.training
        options: dict[str, Any] = {"logits_to_keep": 1, "use_cache": cached}
        accepted = inspect.signature(plain.forward).parameters
        plain.eval()
        try:
            with _counted(model) as held, torch.no_grad(), _autocast(model):
                inputs = _inputs(model, rows, tokens)
                result = plain(**inputs, **{name: value for name, value in options.items() if name in accepted})
                cache = result.past_key_values if cached else None
                del result, inputs
                kept = held.now
                del cache
                return kept if cached else 0, held.most
        finally:
            plain.train(training)

    return _traced(model, run) or _reading_formula(model, rows, tokens, cached)


def cache_bytes(model: WeightlessModel, rows: int, tokens: int) -> int:
    """Bytes of the states that generation keeps of rows x tokens: keys and values, or whatever the model has."""
    return reading_pass(model, 1, tokens, cached=True).kept * rows


@contextmanager
def _counted(model: WeightlessModel, heap: HeapReplay | None = None) -> Iterator[LiveBytes]:
    held = LiveBytes(heap)
    for tensor in (*model.all_parameters, *model.plain.buffers()):
        held.know(tensor)
    with held:
        yield held


def _autocast(model: WeightlessModel) -> Any:
    return nullcontext() if model.autocast is None else torch.autocast("cpu", getattr(torch, model.autocast))


def _inputs(model: WeightlessModel, rows: int, tokens: int) -> dict[str, Any]:
    inputs = {"input_ids": torch.zeros(rows, tokens, dtype=torch.long)}
    return inputs | ({"attention_mask": torch.ones(rows, tokens, dtype=torch.long)} if model.masked else {})


def _traced(model: WeightlessModel, run: Callable[[], tuple[int, int]], *, whole: bool = False) -> PassBytes | None:
    """The result of a pass without data, None where the model looks at its data.

    `whole`: with all layers, not a few that stand for them: what a heap takes depends on all before it.
    """
    layers = _layers(model)
    count, period = len(layers), _period(model, layers)
    some = (count,) if whole or count <= 3 * period else (period, 2 * period)
    try:
        with model.fake:
            found = []
            for number in some:
                with _shortened(layers, number):
                    found.append(run())
    except Exception:  # of any kind: a custom kernel, a length that depends on values
        return None
    kept, most = found[0]
    if len(found) == 2:
        more = (count - period) / period
        kept, most = (int(one + (two - one) * more) for one, two in zip(*found, strict=True))
    return PassBytes(kept, most + model.dequantised)


def _layers(model: WeightlessModel) -> Any:
    """The list of the model's decoder layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [one for one in model.plain.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == count]
    return lists[0] if len(lists) == 1 else torch.nn.ModuleList()


def _period(model: WeightlessModel, layers: Any) -> int:
    """The number of layers after which their kinds repeat; all where they do not."""
    named = getattr(model.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    kinds = [(kind, *(p.shape for p in layer.parameters())) for kind, layer in zip(named, layers, strict=True)]
    lengths = range(1, len(kinds))
    return next(
        (n for n in lengths if all(one == two for one, two in zip(kinds, kinds[n:], strict=False))), 1 + len(kinds)
    )


@contextmanager
def _shortened(layers: Any, count: int) -> Iterator[None]:
    """Within this context, the model has its first `count` layers only."""
    every = layers._modules
    layers._modules = OrderedDict(list(every.items())[:count])
    try:
        yield
    finally:
        layers._modules = every


def _training_formula(model: WeightlessModel, rows: int, tokens: int) -> PassBytes:
    states = rows * tokens * model.width * model.number
    layers, one = model.config.get_text_config().num_hidden_layers, _NUMBERS_PER_TOKEN * states
    kept = layers * (states if model.checkpointing else one)
    return PassBytes(kept, kept + one + model.dequantised, traced=False)


def _reading_formula(model: WeightlessModel, rows: int, tokens: int, cached: bool) -> PassBytes:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    states = 2 * config.num_hidden_layers * heads * size * rows * tokens * model.number if cached else 0
    one = _NUMBERS_PER_TOKEN * rows * tokens * model.width * model.number
    return PassBytes(states, states + one + model.dequantised, traced=False)
