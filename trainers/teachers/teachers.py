"""The teacher as the trainer uses it: with its weights in this process, or by the k likeliest tokens of a position.

| `teacher`                 | known of a position | divergence                               |
| ------------------------- | ------------------- | ---------------------------------------- |
| a model, `self`           | its hidden state    | over the whole vocabulary                |
| an engine                 | k log-probabilities | over the k tokens and one for all others |
| a folder, a teacher cache | k log-probabilities | over the k tokens and one for all others |

`observe` makes the tensors of a batch once (they travel with the batch, shuffled and split by TRL like all others),
`compare` computes the divergence of a micro-batch for the loss, `statistics` the inputs of validities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkd.divergence import (
    Divergence,
    DivergenceKernel,
    Head,
    TokenStatistics,
    chunked_divergence,
    token_statistics,
    topk_divergence,
    topk_statistics,
)
from rlkd.engines import is_engine_spec
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.teachers.local import check_logits, logit_settings
from rlkd.teachers.topk import TopKTeacher
from trainers.common.sharding import rows_of_head, shard_frozen, sharding_of, with_whole_frozen

Result = TypeVar("Result")
Batch = Mapping[str, Any]
"""Tensors: `prompt_ids`, `prompt_mask` [B, P] padded on the left, `completion_ids`, `completion_mask` [B, C].

`teacher_prompt_ids`, `teacher_prompt_mask` [B, P_t]: the teacher's prompts, where they are not the student's.
"""

WITH_WEIGHTS = ("model", "self")
"""The kinds of teachers whose weights are in this process."""


class KDTeacher(Protocol):
    """The interface of a teacher to the trainer."""

    fields: tuple[str, ...]
    """The names of the tensors that `observe` makes."""

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's tensors for the completions of a batch, [B, C, ...] each, without gradients."""

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Divergence and student's entropy of the N tokens where `mask` [B, C] is set, [N] each.

        `student_hidden` [N, H_s]; `weights` [N], later factors of the divergence.
        """

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Statistics of the N tokens `taken` where `mask` is set, under the teacher and, if given, a student."""

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """The teacher's log-probabilities of the tokens `start` to the last of each sequence.

        `numbers`: the number of each sequence's teacher, where there are several.
        """


class DenseTeacher:
    """A teacher whose weights are in this process.

    Args:
        model: the model, prepared for this process.
        hidden_states: returns the teacher's hidden states [B, C, H_t] of a batch's completions.
        temperature: sampling temperature of the run, which log-probabilities are taken at.
        vocabulary: rows of both heads that are compared; None for all.
        rows: rows per forward pass.
        pad_id: id of the padding token.
        kernel: replaces `rlkd.divergence`.
    """

    fields: tuple[str, ...] = ("teacher_hidden",)

    def __init__(
        self,
        model: Any,
        hidden_states: Callable[[Batch], Tensor],
        *,
        temperature: float,
        vocabulary: int | None,
        rows: int,
        pad_id: int,
        kernel: DivergenceKernel | None = None,
    ):
        self.model = model
        self.hidden_states = hidden_states
        self.temperature = temperature
        self.vocabulary = vocabulary
        self.rows = rows
        self.pad_id = pad_id
        self.kernel = kernel

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's hidden states, a few rows at a time."""
        count = len(batch["completion_ids"])
        parts = [self.hidden_states(rows_of(batch, start, self.rows)) for start in range(0, count, self.rows)]
        return {"teacher_hidden": torch.cat(parts)}

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Over the whole vocabulary."""
        return self._with_head(
            lambda teacher: chunked_divergence(
                student_hidden,
                head,
                self._states(states, mask, teacher),
                teacher,
                divergence,
                anticipated_weights=weights,
                kernel=self.kernel,
            )
        )

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """At the temperature of the run."""
        return self._with_head(
            lambda teacher: token_statistics(
                student_hidden, head, self._states(states, mask, teacher), teacher, taken, self.temperature
            )
        )

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """At the temperature of the run; sequences of similar length share a forward pass."""
        result: dict[int, list[float]] = {}
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        device = self.model.get_output_embeddings().weight.device
        for start in range(0, len(order), self.rows):
            indices = order[start : start + self.rows]
            prompts = [list(sequences[index][: starts[index]]) for index in indices]
            steps = [list(sequences[index][starts[index] :]) for index in indices]
            batch = padded_batch(prompts, steps, self.pad_id, device)
            mask = batch["completion_mask"].bool()
            states = {"teacher_hidden": self.hidden_states(batch)}
            values = self.statistics(states, mask, batch["completion_ids"][mask], None, None).teacher_logprob.tolist()
            for index, step in zip(indices, steps, strict=True):
                result[index], values = values[: len(step)], values[len(step) :]
        return [result[index] for index in range(len(sequences))]

    def _with_head(self, compute: Callable[[Head], Result]) -> Result:
        layer = self.model.get_output_embeddings()
        return with_whole_frozen(layer, lambda: compute(head_of(self.model, self.vocabulary)))

    def _states(self, states: Batch, mask: Tensor, head: Head) -> Tensor:
        """Its hidden states where `mask` is set, [N, H_t]; beside a wider teacher they are padded."""
        hidden: Tensor = states["teacher_hidden"].to(mask.device)[mask][:, : head.weight.shape[1]]
        return hidden


class SparseTeacher:
    """A teacher known by the k likeliest tokens of each position, at temperature 1: an engine or a cache.

    `vocabulary`: rows of the student's head. Ids beyond it, which only pad a wider head, count as other tokens.
    """

    fields: tuple[str, ...] = ("teacher_ids", "teacher_logprobs", "teacher_taken")

    def __init__(self, teacher: TopKTeacher, vocabulary: int):
        self.teacher = teacher
        self.vocabulary = vocabulary

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Ids [B, C, k], log-probabilities [B, C, k], and that of the token in the trace [B, C]."""
        batch = as_teacher_reads(batch)
        ids = batch["completion_ids"]
        prompts = unpadded(batch["prompt_ids"], batch["prompt_mask"])
        completions = unpadded(ids, batch["completion_mask"])
        rows = [index for index, completion in enumerate(completions) if completion]
        tops = self.teacher.top_k(
            [prompts[index] + completions[index] for index in rows], [len(prompts[index]) for index in rows]
        )
        k = max((top.ids.shape[1] for top in tops), default=1)
        # An entry of log-probability -inf is padding.
        top_ids = torch.zeros(*ids.shape, k, dtype=torch.int32)
        logprobs = torch.full((*ids.shape, k), -torch.inf)
        taken = torch.zeros(ids.shape)
        for index, top in zip(rows, tops, strict=True):
            length, width = top.ids.shape
            top_ids[index, :length, :width] = top.ids
            logprobs[index, :length, :width] = top.logprobs
            taken[index, :length] = top.taken
        beyond = top_ids >= self.vocabulary
        top_ids[beyond], logprobs[beyond] = 0, -torch.inf
        return {
            name: tensor.to(ids.device) for name, tensor in zip(self.fields, (top_ids, logprobs, taken), strict=True)
        }

    def compare(
        self,
        states: Batch,
        mask: Tensor,
        student_hidden: Tensor,
        head: Head,
        divergence: Divergence,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Over the k tokens and one outcome for all others."""
        ids, logprobs = states["teacher_ids"][mask].long(), states["teacher_logprobs"][mask]
        return topk_divergence(student_hidden, head, ids, logprobs, divergence, anticipated_weights=weights)

    def statistics(
        self, states: Batch, mask: Tensor, taken: Tensor, student_hidden: Tensor | None, head: Head | None
    ) -> TokenStatistics:
        """Entropies and divergences are lower bounds, over k + 1 outcomes."""
        ids, logprobs = states["teacher_ids"][mask].long(), states["teacher_logprobs"][mask]
        student_taken = None if student_hidden is None else taken
        return topk_statistics(ids, logprobs, states["teacher_taken"][mask], student_hidden, head, student_taken)

    def logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], numbers: Sequence[int] = ()
    ) -> list[list[float]]:
        """At temperature 1."""
        return [top.taken.tolist() for top in self.teacher.top_k(sequences, starts)]


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


def as_teacher_reads(batch: Batch) -> Batch:
    """The batch with the teacher's prompts in the place of the student's."""
    own = {
        f"prompt_{part}": batch[f"teacher_prompt_{part}"] for part in ("ids", "mask") if "teacher_prompt_ids" in batch
    }
    return {**batch, **own}


def rows_of(batch: Batch, start: int, count: int) -> dict[str, Any]:
    """The rows [start, start + count) of a batch's tensors."""
    return {
        name: value[start : start + count] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


def padded_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: Any
) -> dict[str, Tensor]:
    """Ids and masks in TRL's layout: prompts [B, P] padded on the left, completions [B, C] on the right."""
    batch: dict[str, Tensor] = {}
    for name, rows, left in (("prompt", prompts, True), ("completion", completions, False)):
        ids, mask = padded(rows, pad_id, left=left)
        batch |= {f"{name}_ids": ids.to(device), f"{name}_mask": mask.to(device)}
    return batch


def padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask of the rows, [rows, longest] each, padded on the right or on the left."""
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        own = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, own] = torch.tensor(row, dtype=torch.long)
        mask[index, own] = 1
    return ids, mask


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The ids of each row where its mask is set."""
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def load_teacher(args: Any, teacher: Any, accelerator: Any) -> Any:
    """The teacher, a model or its name, ready to read on the run's device, and sharded if the student is.

    Raises `UsageError` if it does not load.
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


def kind_of_teacher(teacher: Any) -> str:
    """The kind of a run's teacher: `engine`, `cache`, `top_k` (an object of that protocol), `self` or `model`."""
    if not isinstance(teacher, str):
        return "top_k" if hasattr(teacher, "top_k") and hasattr(teacher, "vocabulary") else "model"
    if teacher == "self":
        return "self"
    # A cache has an index, a folder of `save_pretrained` a config.
    folder = Path(teacher).expanduser()
    if (folder / "index.json").is_file() and not (folder / "config.json").is_file():
        return "cache"
    return "engine" if is_engine_spec(teacher) and not folder.is_dir() else "model"
