"""A top-k teacher whose model is in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlkd.devices import best_device
from rlkd.engines.base import identified
from rlkd.engines.tokens import batches_by_length
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.teachers.topk import LOWEST, TopK, check_k, checked_sequences
from rlkd.teachers.vocabulary import common_vocabulary, vocabulary_fingerprint

if TYPE_CHECKING:
    import torch

# Entries of logits that are converted to float32 at a time (64 MiB), whatever the length of a sequence.
_LOGITS_AT_A_TIME = 2**24
# Largest difference of probabilities that rounding explains; a wrong head is off by far more.
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


class LocalTeacher:
    """A `TopKTeacher` whose model is in this process, neither trained nor changed; raises `UsageError` for a bad k.

    The forward pass stops before the head, which then gets a few positions at a time (64 MiB of logits). Each pass
    compares these logits with the model's own at the last position of each row. `name`: identity of the weights in
    caches; by default their folder or hub id. `batch_tokens`: limit of rows x longest sequence; a longer sequence is
    alone.
    """

    def __init__(
        self, model: Any, tokenizer: Any, k: int, *, name: str | None = None, batch_tokens: int = 8192
    ) -> None:
        check_k(k)
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

        checked = checked_sequences(sequences, starts)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, checked), default=0)
        if context is not None and longest > context:
            raise UsageError(f"a sequence of {longest} tokens: the context of the teacher {self.name} is {context}")
        tops: dict[int, TopK] = {}
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for batch in batches_by_length([len(sequence) for sequence in checked], self.batch_tokens):
                    hidden = self._hidden([checked[index] for index in batch])
                    for row, index in enumerate(batch):
                        tops[index] = self._top_k(hidden[row], checked[index], starts[index])
        finally:
            self.model.train(training)
        return [tops[index] for index in range(len(checked))]

    def _hidden(self, sequences: list[list[int]]) -> torch.Tensor:
        """The head's input, [rows, longest, H]; padding is at the end, where no token attends to it."""
        import torch

        device = self.model.get_input_embeddings().weight.device
        width = max(map(len, sequences))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in sequences], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences], device=device)
        last = mask.sum(1) - 1
        captured: list[torch.Tensor] = []

        def intercept(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            captured.append(inputs[0])
            rows = torch.arange(len(sequences), device=inputs[0].device)
            return inputs[0][rows, last.to(inputs[0].device)][:, None], *inputs[1:]

        hook = self._head.register_forward_pre_hook(intercept)
        try:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
        finally:
            hook.remove()
        [hidden] = captured
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


def check_logits(ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype, teacher: str) -> None:
    """Raise `UsageError` where logits computed from a teacher's last layer are not its own; both [n, V], float32.

    `dtype`: dtype of that layer, whose rounding is tolerated. `teacher`: name for the message.
    """
    gap = float((ours.log_softmax(-1).exp() - theirs.log_softmax(-1).exp()).abs().max())
    if not gap <= _TOLERANCE.get(str(dtype).removeprefix("torch."), 2e-1):
        raise UsageError(
            f"the teacher {teacher} changes its logits in an unsupported way: probabilities differ by up to "
            f"{gap:.3g}. Merge an adapter on its last layer into the weights; otherwise serve it with vLLM and name "
            f"the server"
        )


def logit_settings(config: Any) -> tuple[float, float | None]:
    """The scale that a model multiplies its head's output by, and the soft cap after that, if any.

    The names in transformers' configs are `logit_scale` (Cohere), `output_multiplier`, `lm_head_multiplier`
    (Falcon-H1), `logits_scaling` (Granite divides by it, HyperCLOVA X multiplies), `final_logit_softcapping` (Gemma).
    """
    config = config.get_text_config()
    named = (getattr(config, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((value for value in named if value is not None), None)
    if scale is None and getattr(config, "logits_scaling", None) is not None:
        scale = config.logits_scaling if config.model_type == "hyperclovax" else 1 / config.logits_scaling
    return (1.0 if scale is None else float(scale)), getattr(config, "final_logit_softcapping", None)


class LazyLocalTeacher:
    """A `LocalTeacher` by name that loads at the first call, so that a complete cache loads no model.

    `dtype` `auto` is float32 on a CPU, where few have bfloat16, and the checkpoint's elsewhere. It is part of the
    teacher's name, so that no cache mixes two. Raises `UsageError` for a teacher with another vocabulary.
    """

    def __init__(self, name: str, tokenizer: Any, k: int, *, dtype: str = "auto", batch_tokens: int = 8192) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self._path = resolve_model(name)
        common_vocabulary(tokenizer, AutoTokenizer.from_pretrained(self._path))
        config = AutoConfig.from_pretrained(self._path)
        if dtype == "auto":
            saved = config.dtype or config.get_text_config().dtype
            dtype = "float32" if best_device() == "cpu" or saved is None else str(saved).removeprefix("torch.")
        self.name = f"transformers:{identified(name)}@{dtype}"
        self.k = k
        self.vocabulary = vocabulary_fingerprint(tokenizer)
        self.vocabulary_size: int = config.get_text_config().vocab_size
        self._dtype = dtype
        self._settings = tokenizer, batch_tokens
        self._loaded: LocalTeacher | None = None

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`."""
        if self._loaded is None:
            from transformers import AutoModelForCausalLM

            model: Any = AutoModelForCausalLM.from_pretrained(self._path, dtype=self._dtype, use_safetensors=True)
            tokenizer, batch_tokens = self._settings
            self._loaded = LocalTeacher(model.to(best_device()), tokenizer, self.k, batch_tokens=batch_tokens)
        return self._loaded.top_k(sequences, starts)
