"""The common part of the engines that load a model into this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlkd.engines.base import CheckedEngine, EngineError, identified
from rlkd.engines.tokens import template_arguments, template_suffix
from rlkd.models import is_adapter, resolve_model
from rlkd.weights import AGAIN, weights_fault

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

WAY_OUT = "Give a folder written by save_pretrained, or a hub id in the local cache or within reach."


@dataclass(frozen=True)
class ModelInProcess:
    """The model of an engine that takes memory of this process or its GPU, as far as known before it loads.

    `dtype` may be `auto`. `device`: None for the best one. `batch_tokens`: limit of rows x (prompt + new tokens).
    """

    model: str
    dtype: str
    device: str | None
    batch_tokens: int


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
