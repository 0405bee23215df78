"""The common part of the engines that load a model into this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlkd.engines.base import CheckedEngine, Engine, EngineError, identified
from rlkd.engines.tokens import template_arguments, template_suffix
from rlkd.models import is_adapter, resolve_model
from rlkd.weights import AGAIN, weights_fault

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

WAY_OUT = "Give a folder written by save_pretrained, or a hub id in the local cache or within reach."


@dataclass(frozen=True)
class ModelInProcess:
    """A model that takes memory of this process or its GPU, as far as known before it loads.

    `dtype` may be `auto`. `device`: None for the best one. `batch_tokens`: limit of rows x (prompt + new tokens).
    `column_major`: whether its matrices are stored anew for generation where that helps (float32 on a CPU).
    """

    model: str
    dtype: str
    device: str | None
    batch_tokens: int
    column_major: bool = False


@dataclass(frozen=True)
class ModelUse:
    """A model in this process, and the requests that its owner sends it: rewards and scorers list theirs.

    The attribute is `models_in_process`; the estimate of memory reads it.

    Args:
        role: what the model is for, in plain words.
        new_tokens: most tokens that a request adds to its prompt; 0 for a model that keeps no states of tokens.
        requests: most requests for one completion; None where their number is unknown, and full batches are likely.
    """

    role: str
    model: ModelInProcess
    new_tokens: int = 0
    requests: int | None = 1


def models_used(role: str, engines: Iterable[tuple[Engine, int]], *, requests: int | None = 1) -> list[ModelUse]:
    """The models of those engines that hold one in this process; an engine that is given twice counts once.

    `engines`: each with the most new tokens of a request (1 where texts are scored or chosen).
    """
    uses: dict[int, ModelUse] = {}
    for engine, new_tokens in engines:
        model = getattr(engine, "in_process", None)
        if model is not None:
            uses.setdefault(id(engine), ModelUse(role, model, new_tokens, requests))
    return list(uses.values())


class LocalEngine(CheckedEngine):
    """A frozen causal language model in this process: a folder, a hub id, or a name of `rlkd.models`."""

    def __init__(
        self,
        scheme: str,
        model: str,
        dtype: Dtype,
        adapter: str | None,
        chat_template_kwargs: dict[str, Any] | str | None,
    ) -> None:
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
        self.model = self.tokenizer = str(model)
        self.dtype = dtype
        self.adapter = None if adapter is None else str(adapter)
        # Results that are cached under this name depend on the weights and, in rounding, on their type.
        self.name = f"{scheme}:{identified(self.model)}"
        self.name += f"+{identified(self.adapter)}" if self.adapter else ""
        self.name += f"@{dtype}" if dtype != "auto" else ""
        self.chat_template_kwargs = template_arguments(chat_template_kwargs)
        self.name += template_suffix(self.chat_template_kwargs)

    async def check_ready(self) -> None:
        """Raise `EngineError` where the configuration or tokenizer does not load, or a weight file is not whole."""
        await asyncio.to_thread(self._check_ready)

    def _check_ready(self) -> None:
        from transformers import AutoConfig, AutoTokenizer

        try:
            if is_adapter(self.model):
                self._check_weights(self.model)
            path = resolve_model(self.model)
            parts: list[Any] = [AutoConfig, AutoTokenizer]
            for part in parts:
                part.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise EngineError(self.name, f"the model cannot be read: {error}.", WAY_OUT) from None
        self._check_weights(path)

    def _check_weights(self, model: str) -> None:
        if fault := weights_fault(model):
            raise EngineError(self.name, f"{fault}.", f"{AGAIN}.")
