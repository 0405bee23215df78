"""Supervised fine-tuning with the files of a run, weights of examples, and adapters as they are shipped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl import SFTTrainer

from rlkd.errors import UsageError
from trainers.common.adapters import name_base, open_student
from trainers.common.arguments import say
from trainers.common.example_weights import (
    RATIONALE_TOKENS,
    WEIGHT,
    WeightCollator,
    WeightedModel,
    check_weighted_loss,
    check_weighting,
    loss_weights,
    rationale_tokens,
)
from trainers.common.run_files import RunFiles
from trainers.common.trl_compat import check_kernels


class RunSFTTrainer(RunFiles, SFTTrainer):
    """TRL's SFTTrainer with `metrics.jsonl` and an exact resume.

    `model` may be embedded, or the folder of an adapter (`trainers.common.adapters`). `base_model`: its name in the
    config of an adapter, by default `model`. `chat_template_kwargs`: arguments of the chat template in evaluations; in
    training, each example has its own. `round_adapter`: round a trained adapter to bfloat16 after the last step: half
    the size. Examples are weighted by the column `WEIGHT` of the training data, if there is one, and by their loss at
    `weight_temperature` (`trainers.common.example_weights`); with `shuffle_weights`, a control, each
    has the weight of its neighbour in the batch (the only example of a last batch, its own).
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        base_model: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        round_adapter: bool = False,
        weight_temperature: float | None = None,
        shuffle_weights: bool = False,
        peft_config: Any = None,
        **kwargs: Any,
    ):
        check_kernels()
        column, loss = WEIGHT in _columns(kwargs.get("train_dataset")), kwargs.get("compute_loss_func")
        check_weighting(args, weight_temperature, shuffle_weights, column=column, compute_loss_func=loss)
        student, peft_config = open_student(model, args, peft_config)
        super().__init__(student, args, peft_config=peft_config, **kwargs)
        self.weight_temperature, self.shuffle_weights = weight_temperature, shuffle_weights
        if weight_temperature is not None:
            examples: Any = self.train_dataset
            split = partial(_with_rationale_tokens, self.processing_class)
            self.train_dataset = examples.map(split, num_proc=self.args.dataset_num_proc)
        if {WEIGHT, RATIONALE_TOKENS} & set(getattr(self.train_dataset, "column_names", None) or ()):
            self._check_weighted_loss()
            self.data_collator = WeightCollator(self.data_collator)
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        name_base(self.model, base_model or model)
        self._rounds = bool(round_adapter and getattr(self.model, "peft_config", None))
        self.open_run_files(student=base_model or model)
        if self._rounds:
            self.add_callback(_Rounding(self))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss; in training with weights, that of `trainers.common.example_weights`."""
        given, parts = inputs.pop(WEIGHT, None), inputs.pop(RATIONALE_TOKENS, None)

        def weights_of(log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            weights = log_probs.new_ones(len(log_probs)) if given is None else given
            if self.weight_temperature is not None:
                weights = weights * loss_weights(log_probs, mask, parts, self.weight_temperature)
            mean = self.accelerator.gather_for_metrics(weights.float().mean()).mean()
            self._metrics["train"]["example_weight"].append(mean.item())
            return weights.roll(1) if self.shuffle_weights else weights

        student: Any = self.model
        if student.training and (given is not None or parts is not None):
            model = WeightedModel(model, weights_of)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _check_weighted_loss(self) -> None:
        """Check that TRL's loss follows weights, on known numbers in place of the student's; see there."""
        student: Any = self.model
        before = student.training, self._metrics, self._total_train_tokens
        device = self.accelerator.device

        def loss_of(model: Any) -> torch.Tensor:
            batch = {"attention_mask": torch.ones(2, 4, dtype=torch.long, device=device)}
            loss: torch.Tensor = SFTTrainer.compute_loss(self, model, batch)
            return loss

        student.training, self._metrics = True, {"train": defaultdict(list), "eval": defaultdict(list)}
        try:
            check_weighted_loss(loss_of, device)
        finally:
            student.training, self._metrics, self._total_train_tokens = before

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in (WEIGHT, RATIONALE_TOKENS) if name not in columns]

    def save_final(self) -> None:
        """Save the model or its adapter as safetensors."""
        super().save_final()
        if self._rounds and self.accelerator.is_main_process:
            path = Path(self.args.output_dir or ".") / "adapter_model.safetensors"
            tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})
        self.accelerator.wait_for_everyone()


def _columns(examples: Any) -> Collection[str]:
    names = getattr(examples, "column_names", None)
    if names is None:  # a list, or a stream, which may not know its columns
        return next(iter(() if examples is None else examples), ())
    return list(names)


def _with_rationale_tokens(tokenizer: Any, example: Mapping[str, Any]) -> dict[str, int]:
    return {RATIONALE_TOKENS: rationale_tokens(tokenizer, example["labels"])}


class _Rounding(TrainerCallback):
    """Rounds the trained parameters after the last step, so that the last checkpoint and the evaluation match the
    saved adapter. To be added before callbacks that evaluate."""

    def __init__(self, trainer: RunSFTTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            model: Any = self.trainer.model
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(parameter.to(torch.bfloat16))


def check_examples(trainer: Any, given: int) -> None:
    """Check the tokenised examples: how many were dropped or truncated, and whether they teach an end.

    Raises `UsageError` where no example is left, or none ends with a token that ends a generation.
    """
    made, args = trainer.train_dataset, trainer.args
    if not len(made):
        raise UsageError(
            f"none of the {given} examples fits max_length {args.max_length}: their prompts alone are longer. "
            f"Raise --max_length."
        )
    cut = sum(len(ids) >= args.max_length for ids in made["input_ids"]) if args.max_length and not args.packing else 0
    if given - len(made) + cut and not args.packing:
        say(
            args,
            f"max_length {args.max_length}: {given - len(made)} of {given} examples are dropped, as their prompts "
            f"alone are longer, and {cut} are truncated, so that they do not teach where an answer ends.",
        )
    tokenizer, settings = trainer.processing_class, trainer.model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    known = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if not any(known & set(labels) for labels in made["labels"]):
        raise UsageError(
            f"no example teaches the model to end: none of its end tokens "
            f"{tokenizer.convert_ids_to_tokens(sorted(known))} is among the tokens with a loss. The chat template "
            f"closes a turn with another token; name it: --eos_token TOKEN (or raise --max_length)."
        )
