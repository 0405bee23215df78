"""Merges an adapter into the weights of its base, so that the result is a model which everything loads.

What is computed stays the same up to rounding, which `MergeCheck` measures: the logits of base and adapter against
those of the merged model as it is read back from its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of a logit that rounding explains, as a share of the largest logit, by the dtype of the weights.

Our choice: float32 and bfloat16 round by up to 6e-8 and 4e-3 per operation, which adds up over the layers.
"""


@dataclass(frozen=True)
class MergeCheck:
    """What merging changed: logits of the merged model against those of base and adapter.

    `difference`: the largest difference of a logit; `largest`: the largest logit of the two, or of the base alone;
    `effect`: the most that the adapter itself moves a logit of the base; `dtype`: of the weights.
    """

    difference: float
    largest: float
    effect: float
    dtype: str

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains."""
        return TOLERANCE[self.dtype] * self.largest

    @property
    def is_equal(self) -> bool:
        """Whether the merged model computes what base and adapter compute."""
        return self.difference <= self.tolerance


def merge(
    base: str | Path,
    adapter: Path,
    out: Path,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    probe: Sequence[int] | None = None,
) -> MergeCheck | None:
    """Write the base with the adapter merged to the folder `out`: safetensors, configs, tokenizer, chat template.

    `dtype`: of the result, `auto` for the base's own. `probe`: ids of a text, on which the logits are compared; None
    skips the comparison. Raises whatever PEFT and transformers raise where the two do not fit.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    def load(folder: str | Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=trust_remote_code).eval()

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(input_ids=torch.tensor([list(probe or ())])).logits.float()
        return found

    transformers_logging.disable_progress_bar()
    model: Any = PeftModel.from_pretrained(load(base), str(adapter)).eval()
    if probe:
        adapted = logits(model)
        with model.disable_adapter():
            plain = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    _untie_a_trained_head(merged)
    merged.save_pretrained(out)
    source = tokenizer_source(adapter, base)
    AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code).save_pretrained(out)
    found = None
    if probe:
        del model, merged
        saved = load(out)
        found = MergeCheck(
            difference=(logits(saved) - adapted).abs().max().item(),
            largest=max(adapted.abs().max().item(), plain.abs().max().item()),
            effect=(adapted - plain).abs().max().item(),
            dtype=str(saved.dtype).removeprefix("torch."),
        )
    transformers_logging.enable_progress_bar()
    return found


def tokenizer_source(adapter: Path, base: str | Path) -> str:
    """Where an adapter's tokenizer is: in its own folder, as trainers save it, or with its base."""
    return str(adapter if (adapter / "tokenizer_config.json").is_file() else base)


def _untie_a_trained_head(model: Any) -> None:
    """Without this, a head that was trained apart from the embedding it was tied to would not be saved."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is embedding.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
