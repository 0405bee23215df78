"""The trainer of validity-calibrated distillation: the loss of each step is weighted by its validity.

It is TRL's DistillationTrainer, with these differences:

1. a generation batch holds the student's rollouts or, by a coin (`lmbda`), the teacher's traces from `rationales`;
2. each step of a trace gets a weight from the validities of the teacher's and the student's step after the same
   prefix (`rlkd.validity`), and the divergence of its tokens is multiplied by it;
3. the divergence may be a skewed one, and the teacher may be known by its k likeliest tokens only (a server, a cache);
4. heads of different width are compared over their common rows, teachers with another tokenizer on spans of text;
5. invalid settings fail before the model loads, every trace is written to a file with the weights of its steps, and a
   resumed run continues without gap or duplicate.

With weights of 1 (`control: uniform`) on the student's rollouts (`lmbda: 1`) and `fast_path: never` it trains as
DistillationTrainer does.

The idea is that of arXiv 2605.04078, of which only the abstract is known; every formula is our choice
(`docs/validity.md`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationTrainer

from rlkd.divergence import weighted_mean
from rlkd.teachers.topk import TopKTeacher
from rlkd.validity import Tally, ValidityError
from trainers.common.adapters import name_base, open_student
from trainers.common.alarms import (
    ALL_TRUNCATED,
    EQUAL_WEIGHTS,
    FEW_ALIGNED,
    Alarms,
    all_truncated,
    few_are_aligned,
    weights_are_equal,
)
from trainers.common.failures import FailureWatch
from trainers.common.fast_generation import FastRollouts
from trainers.common.generation import FittedPrompts
from trainers.common.row_order import RowOrder
from trainers.common.run_files import RunFiles
from trainers.common.trl_compat import check_distillation
from trainers.teachers.batches import padded
from trainers.teachers.context import teacher_prompts
from trainers.teachers.several_teachers import NUMBER
from trainers.teachers.span_teacher import SpanTeacher
from trainers.teachers.weighted_batch import WeightedBatch, batch_metrics, step_records
from trainers.validity_kd.config import ValidityKDConfig
from trainers.validity_kd.draws import writes_itself
from trainers.validity_kd.preparation import prepare
from trainers.validity_kd.reader import ModelReader
from trainers.validity_kd.step_weights import step_weights
from trainers.validity_kd.teacher import open_teacher
from trainers.validity_kd.traces import trace_batch
from trainers.vllm.checks import keep_server_current

__all__ = ["ValidityKDConfig", "ValidityKDTrainer"]


class ValidityKDTrainer(RowOrder, RunFiles, FittedPrompts, FastRollouts, DistillationTrainer):
    """Distillation in which steps are weighted by their validity.

    Takes the arguments of `DistillationTrainer`. `model` and the teacher may be embedded models by name (`embedded`).
    `teacher_model` is a model or its name, the spec of an engine, the folder of a teacher cache, or any
    `rlkd.teachers.topk.TopKTeacher`, or a mapping from the values of `args.teacher_column` to such teachers; by
    default `args.teacher` or `args.teachers` names it.

    Raises `UsageError` before weights load where the run cannot work (`trainers.validity_kd.preflight`).
    """

    args: ValidityKDConfig

    _tag_names = ["trl", "distillation", "validity-kd"]  # noqa: RUF012 (TRL's form)
    _name = "Validity-calibrated distillation"

    def __init__(
        self,
        model: str | PreTrainedModel,
        teacher_model: str | PreTrainedModel | TopKTeacher | Mapping[str, Any] | None = None,
        args: ValidityKDConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: Any = None,
        tools: Any = None,
        **kwargs: Any,
    ):
        check_distillation()
        args = args or ValidityKDConfig("validity-kd-output")
        teacher: Any = (args.teachers or args.teacher) if teacher_model is None else teacher_model
        prepared = prepare(
            args,
            model,
            teacher,
            train_dataset,
            eval_dataset,
            tokenizer=processing_class,
            tools=tools,
            peft_config=kwargs.get("peft_config"),
        )
        self._trace_end, self._context, self._column = prepared.trace_end, prepared.context, prepared.column
        self._teacher_tokenizer = None if prepared.other is None else prepared.other.tokenizer
        train_dataset, eval_dataset = prepared.train_dataset, prepared.eval_dataset
        student, kwargs["peft_config"] = open_student(model, args, kwargs.get("peft_config"))
        if isinstance(model, str) and not isinstance(student, str):  # its base may have another tokenizer
            processing_class = prepared.tokenizer
        with _vllm_side(args):
            super().__init__(
                model=student,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                tools=tools,
                **kwargs,
            )
        keep_server_current(self)
        self.redirect_loss()
        self._aligned: Tensor | None = None  # tokens in spans, and tokens, of a micro-batch
        self._reader = ModelReader(self)
        self._teacher = open_teacher(self, self._reader, prepared, teacher)
        self._asks_once = any(one is not None for one in prepared.opened)
        self.token_weights = step_weights(self, self._reader, prepared, self._teacher)
        name_base(self.model, model)
        self.open_run_files(student=model)
        alarms = Alarms({EQUAL_WEIGHTS: weights_are_equal, ALL_TRUNCATED: all_truncated, FEW_ALIGNED: few_are_aligned})
        self._failures = FailureWatch([str(args.validity)], args.max_failure_rate, args.failure_window)
        self.add_callback(alarms)
        self.add_callback(self._failures)
        self.keep("weighting", self.token_weights.weighting)
        self.keep("alarms", alarms)
        self.keep("failures", self._failures)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as `RunFiles.train` does; raise `ValidityError` where the validity scorer failed too often."""
        result = super().train(*args, **kwargs)
        if self._failures.error:
            checkpoint = self.metrics_path.parent / f"checkpoint-{self.state.global_step}"
            raise ValidityError(self._failures.explain(checkpoint))
        return result

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._is_training():
            batch = super()._generate_and_score_completions(inputs) | {"on_policy": self._flag(True)}
            return batch | self._teacher_prompts(inputs)
        step = self.state.global_step
        on_policy = writes_itself(self.args.lmbda, self.args.seed, step)
        if on_policy:
            batch = super()._generate_and_score_completions(inputs)
        else:
            batch = trace_batch(self, inputs, step, self._trace_end)
        batch |= self._teacher_prompts(inputs)
        weighted = self.token_weights(inputs, batch, on_policy=on_policy, step=step)
        self._count_failures(weighted.tally)
        loss_mask = _loss_mask(batch)
        batch |= {"on_policy": self._flag(on_policy), "kd_weights": weighted.weights}
        if weighted.observed and (self.args.keep_teacher_states or self._asks_once):
            batch |= weighted.observed
        if self.args.normalise == "weights":
            batch["num_items_in_batch"] = gather((weighted.weights * loss_mask).sum()).sum()
        self._log_batch(inputs, batch, weighted, on_policy, loss_mask)
        return batch

    def _count_failures(self, tally: Tally) -> None:
        """End the run where the scorer failed too often; equal on all processes."""
        worst = self._failures.add([tally.failed], tally.asked)
        if worst is not None:
            name, failed, total = worst
            self._failures.end_run(f"validity scorer {name!r}", failed, total, "questions", tally.cause)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; logs the share of aligned tokens outside the wrapped forward pass, where processes may meet."""
        loss = super().compute_loss(*args, **kwargs)
        if self._aligned is not None:
            inside, tokens = gather(self._aligned.unsqueeze(0)).sum(0).tolist()
            mode = "train" if self._is_training() else "eval"
            self._metrics[mode]["teacher/aligned"].append(inside / max(1, tokens))
        return loss

    def _compute_loss(
        self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted loss of a micro-batch, the sum of the student's entropies, and the number of tokens."""
        mask = _loss_mask(inputs).bool()
        hidden = self._reader.hidden(unwrapped_student, inputs)[mask]
        weights = inputs["kd_weights"][mask] if "kd_weights" in inputs else torch.ones(len(hidden)).to(hidden.device)
        observed = inputs if self._teacher.fields[0] in inputs else self._teacher.observe(inputs)
        divergence = self.args.divergence_for(on_policy=bool(inputs["on_policy"]))
        per_token, entropy = self._reader.with_head(
            unwrapped_student,
            lambda head, hidden: self._teacher.compare(observed, mask, hidden, head, divergence, weights),
            hidden,
        )
        if isinstance(self._teacher, SpanTeacher):
            self._aligned = self._teacher.aligned(observed, mask)
        count = mask.sum()
        denominator = count if num_items_in_batch is None else num_items_in_batch
        return weighted_mean(per_token, weights, denominator), entropy.sum(), count

    def _teacher_prompts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The teacher's own prompts, [B, P_t] padded on the left, where they are not the student's.

        With several teachers also the number of each row's.
        """
        numbers = {}
        if self._column is not None:
            numbers = {NUMBER: torch.tensor(self._column.numbers(rows), device=self.accelerator.device)}
        if self._context is None and self._teacher_tokenizer is None:
            return numbers
        tokenizer = self._teacher_tokenizer or self._tokenizer
        template: Any = dict(self.chat_template_kwargs)  # type: ignore[arg-type]
        ids = teacher_prompts(self._context, rows, self.state.global_step, tokenizer, template)
        padded_ids, mask = padded(ids, tokenizer.pad_token_id or 0, left=True)
        device = self.accelerator.device
        return {"teacher_prompt_ids": padded_ids.to(device), "teacher_prompt_mask": mask.to(device), **numbers}

    def _log_batch(
        self,
        rows: Sequence[Mapping[str, Any]],
        batch: Mapping[str, Any],
        weighted: WeightedBatch,
        on_policy: bool,
        loss_mask: Tensor,
    ) -> None:
        pairs = zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        texts = self._tokenizer.batch_decode([ids[mask.bool()] for ids, mask in pairs], skip_special_tokens=True)
        logged = batch_metrics(weighted, rows, texts, loss_mask, on_policy) | {"kd/on_policy": float(on_policy)}
        for name, value in logged.items():
            self._metrics["train"][name].append(value)
        if not self.args.save_rollouts:
            return
        policy, steps = "student" if on_policy else "teacher", step_records(weighted, len(rows))
        records = [
            {
                "step": self.state.global_step + 1,
                "id": row.get("id"),
                "policy": policy,
                "prompt": row["prompt"],
                "completion": text,
                "answer": row.get("answer"),
                "steps": own,
            }
            for row, text, own in zip(rows, texts, steps, strict=True)
        ]
        self.rollouts.append(records)

    def _flag(self, value: bool) -> Tensor:
        return torch.tensor(value, device=self.accelerator.device)

    def _is_training(self) -> bool:
        """Whether this is a training batch: TRL's own criterion."""
        return bool(self.model is not None and self.model.training)


def _loss_mask(batch: Mapping[str, Any]) -> Tensor:
    """1 for the tokens of the loss, (B, C): those of the completion, without the output of tools."""
    mask: Tensor = batch["completion_mask"]
    return mask * batch["tool_mask"] if "tool_mask" in batch else mask


def _vllm_side(args: ValidityKDConfig) -> Any:
    if not args.use_vllm:
        return nullcontext()
    from trainers.vllm.rollout_engine import rollout_engine

    return rollout_engine(args)  # type: ignore[arg-type]
