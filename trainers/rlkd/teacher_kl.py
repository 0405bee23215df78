"""Teacher KL: on-policy distillation as an advantage of each token, beside the advantages of rewards.

For a token y of a completion that the student sampled, with w the config's `teacher_kl`:

    A_t = A + w * v_t * (log pi_teacher(y_t | before) - log pi_student(y_t | before))

v_t is 1, or with `validity` the weight of the token's step (`trainers.rlkd.teacher_weights`). Both log-probabilities
are at the sampling temperature and have no gradient. In expectation over the student's samples
the added term lowers the reverse KL(student || teacher) of each token, and ignores later tokens. Where rewards do not
differ, the policy gradient is that of on-policy distillation on the sampled token. Adding it to GRPO's advantages
after these are normalised is our choice.

>>> student, teacher = torch.tensor([[-1.0, -0.5, -2.0]]), torch.tensor([[-3.0, -0.5, -1.0]])
>>> teacher_advantages(student, teacher, torch.tensor([[True, True, False]]), weight=0.5, clip=1.5)
tensor([[-0.7500,  0.0000,  0.0000]])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.common.failures import ScorerWatch
from trainers.common.sharding import with_whole
from trainers.rlkd.teacher_weights import teacher_weights
from trainers.teachers.column import TeacherColumn
from trainers.teachers.models import check_head, common_width, load_teacher
from trainers.teachers.several_teachers import NUMBER, open_several
from trainers.teachers.teachers import DenseTeacher, KDTeacher, SparseTeacher
from trainers.teachers.token_weights import TokenWeights
from trainers.teachers.weighted_batch import WeightedBatch, batch_metrics

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig
    from trainers.rlkd.preparation import RLKDPreparation


def teacher_advantages(
    student_BC: Tensor,
    teacher_BC: Tensor,
    mask_BC: Tensor,
    *,
    weight: float,
    clip: float | None = None,
    validity_BC: Tensor | None = None,
    raising_BC: Tensor | None = None,
) -> Tensor:
    """What each token gets beside the advantage of its completion, (B, C); 0 for tokens outside the mask.

    Args:
        student_BC, teacher_BC: log-probabilities of the sampled tokens, in nats.
        mask_BC: the tokens in the loss.
        weight: factor of the difference.
        clip: largest size of the difference, in nats; None for no limit.
        validity_BC: a further factor of each token's difference; None for 1.
        raising_BC: the same for tokens that become likelier, whose difference is positive; None for `validity_BC`.
    """
    gap_BC = teacher_BC - student_BC
    if clip is not None:
        gap_BC = gap_BC.clamp(-clip, clip)
    added_BC = weight * gap_BC.masked_fill(~mask_BC, 0.0)
    if validity_BC is None:
        return added_BC
    return added_BC * (validity_BC if raising_BC is None else torch.where(gap_BC > 0, raising_BC, validity_BC))


@dataclass(frozen=True)
class TeacherSignal:
    """The advantages of a batch's tokens (B, C), and for each completion the mean of its teacher KL, for the rollouts.

    `counts`, of this process: tokens in the loss, the sum of their log pi_student - log pi_teacher, and how many of
    them were clipped. `weighted`: the weights of the steps behind it, if any.
    """

    advantages: Tensor
    means: list[float | None]
    counts: Tensor
    weighted: WeightedBatch | None = None


class TeacherKL:
    """Adds the teacher's signal to the advantages of a batch.

    Args:
        args: the run's config, whose `teacher_kl` is above 0.
        teacher: the teacher, as distillation uses it.
        column: which of several teachers scores a row; None for one teacher.
        weights: makes the validity weights of tokens; None for 1 everywhere.
    """

    def __init__(
        self,
        args: RLKDConfig,
        teacher: KDTeacher,
        column: TeacherColumn | None = None,
        weights: TokenWeights | None = None,
    ):
        self.args = args
        self.teacher = teacher
        self.column = column
        self.weights = weights
        watched = [str(args.validity)] if weights is not None else []
        self.failures = ScorerWatch(watched, args.max_failure_rate, args.failure_window)

    @classmethod
    def of(cls, trainer: Any, prepared: RLKDPreparation) -> TeacherKL | None:
        """The signal of a run, if any; loads teachers whose weights are to be in this process.

        Raises `UsageError` where one does not load or does not fit. A student whose head is wider than a teacher's
        vocabulary no longer samples the ids beyond it.
        """
        args, tokenizer = trainer.args, getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        if not args.teacher_kl:
            return None

        def reader(model: Any) -> Callable[[Mapping[str, Any]], Tensor]:
            return _hidden_states_of(model, trainer.compute_loss_context_manager)

        width, known = trainer.model.config.get_text_config().vocab_size, 1 + max(tokenizer.get_vocab().values())
        models: list[Any] = [None]
        common: int | None = None
        opened, column = prepared.teachers[0], prepared.column
        if column is not None:
            several = open_several(
                args,
                column,
                prepared.teachers,
                trainer.accelerator.unwrap_model(trainer.model),
                tokenizer,
                trainer.accelerator,
                reader=reader,
                plain_reader=lambda model: _hidden_states_of(model, nullcontext),
            )
            models, common, first = several.models, several.width, several.first_unknown
            teacher: KDTeacher = several.teacher
        elif opened is not None:
            first, teacher = known, SparseTeacher(opened, width)
        else:
            models = [model := load_teacher(args, args.teacher, trainer.accelerator)]
            # Compared without autocast, whose rounding would count as another head.
            check_head(model, _hidden_states_of(model, nullcontext), list(range(min(8, known))))
            common = common_width(args, trainer.accelerator.unwrap_model(trainer.model), model, tokenizer)
            first = width if common is None else common
            teacher = DenseTeacher(
                model,
                reader(model),
                temperature=args.temperature,
                vocabulary=common,
                rows=args.per_device_train_batch_size,
                pad_id=tokenizer.pad_token_id,
            )
        if width > first and not trainer.use_vllm:  # which takes no such setting here
            trainer.generation_config.suppress_tokens = list(range(first, width))
        return cls(args, teacher, column, teacher_weights(trainer, prepared, teacher, models, common, reader))

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], output: Mapping[str, Any], student_BC: Tensor, step: int
    ) -> TeacherSignal:
        """The advantages of the tokens of `output`, TRL's scored batch of these rows of this process.

        `student_BC`: log-probabilities of its completions' tokens under the student. `step`: that of the batch. Raises
        the errors of teacher and scorer.
        """
        mask_BC = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask_BC = mask_BC & output["tool_mask"].bool()
        ids_BC, advantages = output["completion_ids"], output["advantages"]
        if self.column is not None:
            output = {**output, NUMBER: torch.tensor(self.column.numbers(rows), device=ids_BC.device)}
        weighted = None if self.weights is None else self.weights(rows, output, on_policy=True, step=step)
        observed = {} if weighted is None else weighted.observed
        observed = observed or self.teacher.observe(output)
        found = self.teacher.statistics(observed, mask_BC, ids_BC[mask_BC], None, None).teacher_logprob
        teacher_BC = torch.zeros_like(student_BC, dtype=torch.float32)
        teacher_BC[mask_BC] = found.to(teacher_BC)
        added = teacher_advantages(
            student_BC.float(),
            teacher_BC,
            mask_BC,
            weight=self.args.teacher_kl,
            clip=self.args.teacher_kl_clip,
            validity_BC=None if weighted is None else weighted.weights,
            raising_BC=None if weighted is None else weighted.raising,
        )
        kl_BC = (student_BC.float() - teacher_BC).masked_fill(~mask_BC, 0.0)
        tokens_B = mask_BC.sum(dim=1)
        means = [
            total / count if count else None
            for total, count in zip(kl_BC.sum(dim=1).tolist(), tokens_B.tolist(), strict=True)
        ]
        clip = self.args.teacher_kl_clip
        clipped = 0 if clip is None else int((kl_BC.abs() > clip).sum())
        counts = [int(tokens_B.sum()), float(kl_BC.double().sum()), clipped]
        advantages = (advantages[:, None] if advantages.dim() == 1 else advantages) + added.to(advantages)
        counted = torch.tensor(counts, dtype=torch.float64, device=advantages.device)
        return TeacherSignal(advantages, means, counted, weighted)

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """The metrics of the counts of all processes."""
        tokens, kl, clipped = counts.tolist()
        if not tokens:
            return {}
        metrics = {"teacher_kl/mean": kl / tokens}
        return metrics if self.args.teacher_kl_clip is None else metrics | {"teacher_kl/clipped": clipped / tokens}

    def weight_metrics(
        self, signal: TeacherSignal, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], output: Mapping[str, Any]
    ) -> dict[str, float]:
        """The metrics of the weights of all processes; must be called on every one. Ends a run of failing scores."""
        if signal.weighted is None:
            return {}
        tally = signal.weighted.tally
        worst = self.failures.add([tally.failed], tally.asked)
        if worst is not None:
            name, failed, total = worst
            self.failures.end_run(f"validity scorer {name!r}", failed, total, "questions", tally.cause)
        loss_mask = output["completion_mask"] * output.get("tool_mask", 1)
        found = batch_metrics(signal.weighted, rows, texts, loss_mask, True)
        return {name: value for name, value in found.items() if name.startswith(("kd_weight/", "validity/"))}


def _hidden_states_of(model: Any, context: Callable[[], Any]) -> Callable[[Mapping[str, Any]], Tensor]:
    """Returns the hidden states [B, C, H] that predict a batch's completions, without gradients."""

    def hidden_states(batch: Mapping[str, Any]) -> Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        first = batch["prompt_ids"].shape[1] - 1

        def read() -> Tensor:
            states: Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return states[:, first:-1]

        with torch.no_grad(), context():
            return with_whole(model, read)

    return hidden_states
