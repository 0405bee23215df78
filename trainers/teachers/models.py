"""A teacher's model in this process: loading it, and its last layer beside the student's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkd.divergence import Head
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.teachers.local import check_logits, logit_settings
from trainers.common.sharding import rows_of_head, shard_frozen, sharding_of, with_whole_frozen
from trainers.teachers.batches import Batch, padded_batch


def load_teacher(args: Any, teacher: Any, accelerator: Any) -> Any:
    """The teacher, a model or its name, ready to read on the run's device, and sharded if the student is.

    Raises `UsageError` if it does not load, for `teacher_model_init_kwargs` with a loaded model, and for a last layer
    that is on another device than the student's.
    """
    device = accelerator.device
    if isinstance(teacher, str):
        # On a CPU float32, whatever dtype the checkpoint has, as in `recipes/teacher_cache.py`.
        settings = {
            "revision": args.teacher_model_revision,
            "trust_remote_code": args.trust_remote_code,
            **dict(args.teacher_model_init_kwargs or {}),
        }
        settings["dtype"] = settings.get("dtype") or ("float32" if device.type == "cpu" else "auto")
        try:
            found = resolve_model(teacher, trust_remote_code=settings["trust_remote_code"])
            teacher = AutoModelForCausalLM.from_pretrained(found, **settings)
        except (OSError, ValueError) as error:
            raise UsageError(f"the teacher {teacher!r} does not load: {error}") from error
    elif args.teacher_model_init_kwargs:
        raise UsageError("teacher_model_init_kwargs are for a teacher by name; this one is a loaded model")
    if sharding_of(args) is not None:
        return shard_frozen(teacher.requires_grad_(False), accelerator)
    if getattr(teacher, "hf_device_map", None) is None and not getattr(teacher, "is_quantized", False):
        teacher.to(device)
    own, students = teacher.get_output_embeddings().weight.device, torch.empty(0, device=device).device
    if own != students:
        raise UsageError(
            f"the teacher's last layer is on {own} and the student on {students}; the loss needs both on one device. "
            f"Leave device_map out of teacher_model_init_kwargs, or serve the teacher with vLLM"
        )
    return teacher.eval().requires_grad_(False)


def head_of(model: Any, vocabulary: int | None = None) -> Head:
    """The last layer of a causal language model, cut to its first `vocabulary` rows if the rest only pads.

    Where the model's weights are sharded over processes, only within `trainers.common.sharding.with_whole`.
    """
    layer = model.get_output_embeddings()
    scale, softcap = logit_settings(model.config)
    bias = getattr(layer, "bias", None)
    return Head(layer.weight[:vocabulary], None if bias is None else bias[:vocabulary], scale, softcap)


def check_head(model: Any, hidden_states: Callable[[Batch], Tensor], ids: Sequence[int]) -> None:
    """Raise `UsageError` where `head_of` does not give a teacher's own logits, by one short forward pass.

    An adapter on the last layer, or a scale under an unknown name, would silently make it another teacher.

    Args:
        model: the teacher.
        hidden_states: as for `DenseTeacher`.
        ids: at least two tokens, any.
    """
    layer = model.get_output_embeddings()
    device = layer.weight.device
    batch = padded_batch([ids[:1]], [ids[1:]], 0, device)
    hidden = hidden_states(batch)[0]

    def logits() -> Tensor:
        head = head_of(model)
        product = (hidden.to(head.weight.dtype) @ head.weight.T).float()
        if head.bias is not None:
            product = product + head.bias.float()
        product = product * head.scale
        return product if head.softcap is None else head.softcap * (product / head.softcap).tanh()

    with torch.no_grad():
        ours = with_whole_frozen(layer, logits)
        theirs = model(input_ids=torch.tensor([list(ids)], device=device)).logits[0, :-1].float()
    check_logits(
        ours, theirs, layer.weight.dtype, f"{model.config._name_or_path or 'passed'} ({type(model).__name__})"
    )


def common_width(args: Any, student: Any, teacher: Any, tokenizer: Any) -> int | None:
    """Rows of both heads that are compared where one is padded; None where both have the same number.

    Raises `UsageError` for a head with fewer rows than the tokenizer has ids, and for vLLM with a wider student.
    """
    widths = [rows_of_head(model) for model in (student, teacher)]
    if widths[0] == widths[1]:
        return None
    known = 1 + max(tokenizer.get_vocab().values())
    heads = f"the student's head has {widths[0]} rows and the teacher's {widths[1]}"
    if min(widths) < known:
        raise UsageError(
            f"{heads}, but the student's tokenizer has {known} ids: the teacher has another vocabulary, or one head "
            f"was cut. Use a teacher of the student's family"
        )
    if widths[0] > min(widths) and args.use_vllm:
        raise UsageError(
            f"{heads}: padding must not be generated, which vLLM cannot be configured for here. Set use_vllm: false, "
            f"or use a teacher whose head is as wide"
        )
    return min(widths)
