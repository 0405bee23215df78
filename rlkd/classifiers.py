"""Models with a classification head in this process: their facts from a checkpoint, and their scores at given tokens.

Code from a checkpoint is never executed, so models that need `trust_remote_code` do not load here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlkd.devices import own_device
from rlkd.errors import UsageError
from rlkd.models import resolve_model

_HEADS = ("ForTokenClassification", "ForSequenceClassification")
_WAY_OUT = "Give a checkpoint with a classification head, written by save_pretrained."


@dataclass(frozen=True)
class ClassifierFacts:
    """What the config and the tokenizer of a checkpoint say, without its weights.

    `per_token`: whether the head classifies tokens, else sequences. `good`: index of the class that means good.
    `context`: tokens that fit.
    """

    name: str
    path: str
    config: Any
    tokenizer: Any
    per_token: bool
    good: int
    context: float


@dataclass(frozen=True)
class Classifier:
    """A frozen model with a classification head, ready to be read."""

    facts: ClassifierFacts
    model: Any
    pad_id: int | None

    def good_shares(self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[list[float]]:
        """The probability of the good class at `places` (indices of tokens) of each row of ids, in one pass.

        A head for sequences has one value per row, at its last token; a head of one output is read as a logit.
        """
        import torch

        width = max(map(len, rows))
        pad, device = self.pad_id or 0, self.model.device
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        with torch.inference_mode():
            logits = self.model(input_ids=ids, attention_mask=mask).logits.float()
        good = logits[..., 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[..., self.facts.good]
        if not self.facts.per_token:  # (rows,)
            return [[value] for value in good.tolist()]
        return [good[row, list(own)].tolist() for row, own in enumerate(places)]  # (rows, width)


def read_classifier(name: str, good: str | int | None = None, *, role: str = "prm") -> ClassifierFacts:
    """The facts of a checkpoint: a folder or a hub id.

    `good`: the good class by name or number; None: the second of two, or the only one. Raises `UsageError` that begins
    with `role` where it is no classifier, lacks the class or does not load.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        path = resolve_model(name)
        config = AutoConfig.from_pretrained(path)
        architecture = str((config.architectures or ["model without architecture"])[0])
        if not architecture.endswith(_HEADS):
            own = getattr(config, "auto_map", None)
            code = " Its head is code in the checkpoint, which is never executed here." if own else ""
            expected = f"expected one that ends in {' or '.join(_HEADS)}"
            raise UsageError(f"{role}: {name} is a {architecture}; {expected}.{code} {_WAY_OUT}")
        tokenizer = AutoTokenizer.from_pretrained(path)
    except UsageError:
        raise
    except Exception as error:  # whatever transformers and the hub's client raise
        raise _does_not_load(role, name, error) from error
    return ClassifierFacts(
        name=name,
        path=path,
        config=config,
        tokenizer=tokenizer,
        per_token=architecture.endswith(_HEADS[0]),
        good=_good_class(role, name, config, good),
        context=getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf,
    )


def load_classifier(
    facts: ClassifierFacts, *, device: str | None = None, dtype: str = "auto", role: str = "prm"
) -> Classifier:
    """The model, in evaluation; `auto` is float32 on a CPU and the checkpoint's type elsewhere.

    Raises `UsageError` where the weights do not load, or some would be random.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    import rlkd.lfm2  # noqa: F401 (a head that transformers lacks)

    kind: Any = AutoModelForTokenClassification if facts.per_token else AutoModelForSequenceClassification
    chosen = torch.device(device or own_device())
    if dtype == "auto" and chosen.type == "cpu":
        dtype = "float32"
    try:
        with torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []):
            model, report = kind.from_pretrained(
                facts.path, config=facts.config, dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # whatever transformers, safetensors and the hub's client raise
        raise _does_not_load(role, facts.name, error) from error
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{role}: {facts.name} lacks the weights {missing[:3]}, which would be random. {_WAY_OUT}")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = facts.tokenizer.pad_token_id
    return Classifier(facts, model.to(chosen).eval().requires_grad_(False), model.config.pad_token_id)


def _does_not_load(role: str, name: str, error: Exception) -> UsageError:
    return UsageError(f"{role}: {name} does not load ({type(error).__name__}: {error}). {_WAY_OUT}")


def _good_class(role: str, name: str, config: Any, good: str | int | None) -> int:
    names = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    if good is None:
        if config.num_labels > 2:
            raise UsageError(f"{role}: {name} has the classes {names}: set `good` to the one that means good")
        return int(config.num_labels) - 1
    found = [index for index, label in names.items() if good in (index, label)]
    if not found or (config.num_labels == 1 and found != [0]):
        raise UsageError(f"{role}: {name} has no class {good!r}; it has {names}")
    return found[0]
