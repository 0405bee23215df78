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

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel
from trl import DistillationTrainer

from rlkd.divergence import Head, weighted_mean
from rlkd.errors import UsageError
from rlkd.teachers.topk import TopKTeacher
from rlkd.teachers.traces import trace_end, trace_ids, trace_text
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
from trainers.common.sharding import is_sharded, rows_of_head, with_whole
from trainers.common.trl_compat import check_distillation, model_for_generation, trl_kernel
from trainers.teachers.batches import as_teacher_reads, padded, padded_batch, rows_of
from trainers.teachers.context import teacher_prompts
from trainers.teachers.models import check_head, common_width, head_of, load_teacher
from trainers.teachers.proposals import (
    DEADLINE,
    Written,
    engine_sampling,
    propose_by_number,
    write_by_engine,
    write_by_vllm,
    write_here,
)
from trainers.teachers.several_teachers import NUMBER, open_several
from trainers.teachers.span_teacher import SpanTeacher
from trainers.teachers.teachers import DenseTeacher, KDTeacher, SparseTeacher
from trainers.teachers.token_weights import TokenWeights, WeightedBatch, batch_metrics
from trainers.validity_kd.config import ValidityKDConfig
from trainers.validity_kd.draws import choose_trace, writes_itself
from trainers.validity_kd.preparation import prepare
from trainers.vllm.checks import keep_server_current

__all__ = ["ValidityKDConfig", "ValidityKDTrainer"]


Result = TypeVar("Result")


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
        tokenizer, opened, scorer = prepared.tokenizer, prepared.opened[0], prepared.scorer
        self._trace_end, self._engines, self._context = prepared.trace_end, prepared.engines, prepared.context
        self._column = prepared.column
        self._teacher_tokenizer = None if prepared.other is None else prepared.other.tokenizer
        train_dataset, eval_dataset = prepared.train_dataset, prepared.eval_dataset
        student, kwargs["peft_config"] = open_student(model, args, kwargs.get("peft_config"))
        if isinstance(model, str) and not isinstance(student, str):  # its base may have another tokenizer
            processing_class = tokenizer
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
        self._width: int | None = None
        self._models: list[Any] = []  # of several teachers, None where one's weights are not here
        self._aligned: Tensor | None = None  # tokens in spans, and tokens, of a micro-batch
        self._base_teaches = False
        student_model: Any = self.model
        width = rows_of_head(student_model)
        if opened is None and self._column is None:
            # Not by TRL, which refuses heads of different width.
            self._base_teaches = teacher == "self" and hasattr(student_model, "disable_adapter")
            if self._base_teaches:
                self.teacher_model = student_model.get_base_model()
            else:
                teacher = copy.deepcopy(student_model) if teacher == "self" else teacher
                self.teacher_model = load_teacher(args, teacher, self.accelerator)
            if not (self._base_teaches and is_sharded(self)):  # it is sharded only later, with the student
                with torch.no_grad(), self._teacher_alone() as alone:
                    ids = list(range(min(8, len(self._tokenizer))))
                    check_head(alone, lambda batch: self._read_apart(alone, batch), ids)
        if self._column is not None:
            several = open_several(
                args,
                self._column,
                prepared.opened,
                student_model,
                self._tokenizer,
                self.accelerator,
                reader=lambda model: partial(self._teacher_hidden, model=model),
                plain_reader=lambda model: partial(self._hidden, model),
                kernel=trl_kernel if args.kernel == "trl" else None,
            )
            self._teacher: KDTeacher = several.teacher
            self._models, self._width = several.models, several.width
            if width > several.first_unknown:  # the rest has no row in a teacher
                self.generation_config.suppress_tokens = list(range(several.first_unknown, width))
        elif prepared.other is not None:
            self._teacher = SpanTeacher(
                self.teacher_model,
                self._teacher_hidden,
                (self._tokenizer, prepared.other.tokenizer),
                student_ends=self.eos_token_ids,
                ends=self._ends(train_dataset),
                student_rows=width,
                k=args.teacher_top_k,
                temperature=args.temperature,
                rows=args.per_device_train_batch_size,
            )
        elif opened is None:
            self._width = common_width(args, student_model, self.teacher_model, self._tokenizer)
            if self._width is not None and width > self._width:  # the rest has no row in the teacher
                self.generation_config.suppress_tokens = list(range(self._width, width))
            self._teacher = DenseTeacher(
                self.teacher_model,
                self._teacher_hidden,
                temperature=args.temperature,
                vocabulary=self._width,
                rows=args.per_device_train_batch_size,
                pad_id=self._tokenizer.pad_token_id,
                kernel=trl_kernel if args.kernel == "trl" else None,
            )
        else:
            known = 1 + max(self._tokenizer.get_vocab().values())
            if width > known:  # the teacher may have no row for the padding
                self.generation_config.suppress_tokens = list(range(known, width))
            self._teacher = SparseTeacher(opened, width)
        self._asks_once = any(one is not None for one in prepared.opened)
        self.token_weights = TokenWeights(
            scorer=scorer,
            expected=args.proposals == "expected",
            weighting=args.step_weighting(scorer.scale if scorer is not None else "log"),
            teacher=self._teacher,
            tokenizer=self._tokenizer,
            propose=self._propose,
            student_hidden=self._student_hidden,
            with_head=lambda compute, hidden: self._with_head(
                self.accelerator.unwrap_model(self.model), compute, hidden
            ),
        )
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
        batch = super()._generate_and_score_completions(inputs) if on_policy else self._teacher_traces(inputs, step)
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
        hidden = self._hidden(unwrapped_student, inputs)[mask]
        weights = inputs["kd_weights"][mask] if "kd_weights" in inputs else torch.ones(len(hidden)).to(hidden.device)
        observed = inputs if self._teacher.fields[0] in inputs else self._teacher.observe(inputs)
        divergence = self.args.divergence_for(on_policy=bool(inputs["on_policy"]))
        per_token, entropy = self._with_head(
            unwrapped_student,
            lambda head, hidden: self._teacher.compare(observed, mask, hidden, head, divergence, weights),
            hidden,
        )
        if isinstance(self._teacher, SpanTeacher):
            self._aligned = self._teacher.aligned(observed, mask)
        count = mask.sum()
        denominator = count if num_items_in_batch is None else num_items_in_batch
        return weighted_mean(per_token, weights, denominator), entropy.sum(), count

    def _teacher_traces(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        """A generation batch of the teacher's traces, laid out as TRL does it with rollouts."""
        pairs = [
            trace_ids(
                self._tokenizer,
                row["prompt"],
                trace_text(choose_trace(row, self.args.seed, step), row.get("answer")),
                self.args.max_completion_length or sys.maxsize,
                chat_template_kwargs=dict(self.chat_template_kwargs),  # type: ignore[arg-type]
                end=self._trace_end,
            )
            for row in rows
        ]
        prompts, traces = [prompt for prompt, _ in pairs], [trace for _, trace in pairs]
        batch: dict[str, Any] = dict(
            padded_batch(prompts, traces, self._tokenizer.pad_token_id, self.accelerator.device)
        )
        lengths = gather(batch["completion_mask"].sum(1))
        batch["num_items_in_batch"] = lengths.sum()
        metrics = self._metrics["train"]
        self.state.num_input_tokens_seen += int(gather(batch["prompt_mask"].sum(1)).sum() + lengths.sum())
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        metrics["traces/mean_length"].append(lengths.float().mean().item())
        ended = torch.tensor([float(ids[-1] in self.eos_token_ids) for ids in traces], device=self.accelerator.device)
        metrics["traces/clipped_ratio"].append(1 - gather(ended).mean().item())
        if self.log_completions:  # TRL does so with rollouts
            for column, ids in (("prompt", prompts), ("completion", traces)):
                self._logs[column].extend(gather_object(self._tokenizer.batch_decode(ids, skip_special_tokens=True)))
        return batch

    def _propose(self, on_policy: bool, prefixes: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[list[int]]:
        """The other model's step after each prefix: the teacher's on the student's rollouts, and vice versa.

        `numbers`: the number of each prefix's teacher.
        """
        longest, device = self.args.max_step_tokens, self.accelerator.device
        tokenizer, config = self._tokenizer, self.generation_config

        def write(number: int, prefixes: Sequence[Sequence[int]]) -> list[Written]:
            engine = self._engines[number]
            if on_policy and engine is not None:
                sampling = engine_sampling(self.args, self.state.global_step)
                return write_by_engine(engine, prefixes, tokenizer, sampling, DEADLINE)
            if on_policy:
                with self._teacher_alone(number) as teacher:
                    return write_here(teacher, prefixes, tokenizer, config, longest, device)
            if self.use_vllm:
                if self.state.global_step != self._last_loaded_step:
                    self.vllm_generation.sync_weights()
                    self._last_loaded_step = self.state.global_step
                return write_by_vllm(self.vllm_generation, prefixes, longest)
            with model_for_generation(self) as student:
                return write_here(student, prefixes, tokenizer, config, longest, device)

        count, numbers = (len(self._engines), numbers) if on_policy else (1, [0] * len(prefixes))
        return propose_by_number(write, count, tokenizer, prefixes, numbers, self.accelerator)

    def _hidden(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """The head's input at the completion's tokens, [B, C, H]."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        return self._get_last_hidden_state(model, ids, mask, batch["completion_ids"].size(1))

    def _read_apart(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """`_hidden` outside the loss: in a call of the whole model, which sharded weights need."""
        called = self.accelerator.unwrap_model(self.model) if self._base_teaches else model
        return with_whole(called, lambda: self._hidden(model, batch))

    def _with_head(self, model: Any, compute: Callable[[Head, Tensor], Result], hidden: Tensor) -> Result:
        """`compute` with the head of the student's model, whole meanwhile, and its hidden states."""
        layer = model.get_output_embeddings()
        return with_whole(layer, lambda states: compute(head_of(model, self._width), states), hidden)

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

    def _ends(self, dataset: Any) -> tuple[int, int]:
        """The ids that end completions of the student and of a teacher with another tokenizer."""
        prompt = next(iter(dataset))["prompt"]
        template = dict(self.chat_template_kwargs)  # type: ignore[arg-type]
        own, other = (trace_end(one, prompt, template) for one in (self._tokenizer, self._teacher_tokenizer))
        own = own if self._trace_end is None else self._trace_end
        if own is None or other is None:
            raise UsageError("student and teacher need an end token (eos_token) each. Set one")
        return own, other

    def _teacher_hidden(self, batch: Mapping[str, Any], model: Any = None) -> Tensor:
        """`model`: the teacher that reads the batch, where there are several."""
        with torch.no_grad(), self.compute_loss_context_manager(), self._teacher_alone() as teacher:
            return self._read_apart(teacher if model is None else model, as_teacher_reads(batch))

    @contextmanager
    def _teacher_alone(self, number: int = 0) -> Iterator[Any]:
        """The teacher's model, ready to read: if it is the student's base, in evaluation mode without the adapter.

        `number`: which of several teachers.
        """
        if not self._base_teaches:
            yield self._models[number] if self._models else self.teacher_model
            return
        student: Any = self.accelerator.unwrap_model(self.model)
        training = student.training
        student.eval()
        try:
            with student.disable_adapter():
                yield self.teacher_model
        finally:
            student.train(training)

    def _student_hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """The student's hidden states, in evaluation mode and a micro-batch at a time."""
        student = self.accelerator.unwrap_model(self.model)
        count, size = len(batch["completion_ids"]), self.args.per_device_train_batch_size
        student.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                return torch.cat([self._read_apart(student, rows_of(batch, i, size)) for i in range(0, count, size)])
        finally:
            student.train()

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
        records: list[dict[str, Any]] = [
            {
                "step": self.state.global_step + 1,
                "id": row.get("id"),
                "policy": "student" if on_policy else "teacher",
                "prompt": row["prompt"],
                "completion": text,
                "answer": row.get("answer"),
                "steps": [],
            }
            for row, text in zip(rows, texts, strict=True)
        ]
        for step in weighted.records:
            shown = {name: value for name, value in vars(step).items() if name not in ("row", "position")}
            records[step.row]["steps"].append(shown)
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
