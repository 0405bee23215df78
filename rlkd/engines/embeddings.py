"""Sentence embeddings in this process: texts to unit vectors, by mean pooling over the tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rlkd.engines.base import EngineError
from rlkd.engines.tokens import batches_by_length

if TYPE_CHECKING:
    import torch


class SentenceEncoder:
    """A frozen text encoder: `model` is a folder or hub id that transformers' `AutoModel` reads from safetensors.

    `device` defaults to cuda, else mps, else cpu. `batch_tokens` bounds rows x longest row of a batch. `cache_size`
    texts keep their vectors, those used last: so the vector of a text is the same in whatever batch it comes again.
    Batches are made by length, so vectors depend on the other texts by rounding only (about 1e-6 on a CPU).
    """

    def __init__(
        self, model: str, *, device: str | None = None, batch_tokens: int = 4096, cache_size: int = 50_000
    ) -> None:
        if batch_tokens < 1 or cache_size < 0:
            raise ValueError(
                f"batch_tokens={batch_tokens}, cache_size={cache_size}: expected at least 1 and at least 0"
            )
        self.model = str(model)
        self.device = device
        self.batch_tokens = batch_tokens
        self.cache_size = cache_size
        self.name = f"embeddings:{self.model}"
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._kept: dict[str, torch.Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        settings = ("device", "batch_tokens", "cache_size")
        return partial(type(self), self.model, **{name: getattr(self, name) for name in settings}), ()

    async def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """The unit vectors of the texts, (texts, width) in float32 on the CPU.

        Equal texts are computed once; where all are known, or there are none, the model is not even loaded.
        A text beyond the model's context is truncated. Raises `EngineError` where the model does not load or fails.
        """
        return await asyncio.to_thread(self._encode, list(texts))

    def _encode(self, texts: list[str]) -> torch.Tensor:
        import torch

        with self._lock:
            found = {text: self._kept.pop(text) for text in dict.fromkeys(texts) if text in self._kept}
            new = sorted({text for text in texts if text not in found})
            try:
                if new:
                    self._loaded = self._loaded or self._load()
                    with torch.inference_mode():
                        for batch, vectors in self._batches(new, *self._loaded):
                            found |= zip(batch, vectors, strict=True)
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(self.name, f"the model failed ({type(error).__name__}: {error}).") from None
            finally:
                self._kept |= found  # popped before and put last: the first in the dict is the one unused for longest
                for text in list(self._kept)[: max(0, len(self._kept) - self.cache_size)]:
                    del self._kept[text]
        return torch.stack([found[text] for text in texts]) if texts else torch.zeros((0, 0))

    def _batches(self, texts: list[str], model: Any, tokenizer: Any) -> Iterator[tuple[list[str], torch.Tensor]]:
        import torch

        context = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 512)
        ids = {text: tokenizer(text, truncation=True, max_length=context)["input_ids"] for text in texts}
        for indices in batches_by_length([len(ids[text]) for text in texts], self.batch_tokens):
            batch = [texts[index] for index in indices]
            width = max(1, *(len(ids[text]) for text in batch))
            padding = tokenizer.pad_token_id or 0
            rows = torch.tensor([ids[text] + [padding] * (width - len(ids[text])) for text in batch])
            mask = torch.tensor([[1] * len(ids[text]) + [0] * (width - len(ids[text])) for text in batch])
            rows, mask = rows.to(model.device), mask.to(model.device)
            states = model(input_ids=rows, attention_mask=mask).last_hidden_state.float()  # (rows, width, hidden)
            weights = mask.unsqueeze(-1).float()
            means = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
            yield batch, torch.nn.functional.normalize(means, dim=1).cpu()

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from rlkd.devices import own_device

        device = torch.device(self.device or own_device())
        # Building a model may draw random weights before it reads the real ones.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.model)
                model = AutoModel.from_pretrained(self.model, use_safetensors=True)
            except Exception as error:
                raise EngineError(
                    self.name,
                    f"the model does not load ({type(error).__name__}: {error}).",
                    "Give a folder with a checkpoint, or a hub id in the local cache or within reach.",
                ) from None
        return model.to(device).eval().requires_grad_(False), tokenizer
