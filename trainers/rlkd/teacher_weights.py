"""Validity weights of teacher KL: how much of the teacher's signal each step of a completion gets.

    steps of the completions -> validities of both models' proposals -> a weight per step -> weights per token (B, C)

The weights are those of distillation on the student's rollouts (`trainers.teachers.token_weights`), with two
differences, both our choice, since the signal is on the sampled token and not on the whole distribution. A teacher
that writes goes on within the student's step, at the token that it finds least likely there: a step of its own could
be another one. And a signal that makes a token likelier has the further factor min(1, V_S / v_0): it reinforces the
student's own step. Tokens outside steps have weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from trainers.teachers.batches import rows_of
from trainers.teachers.models import head_of
from trainers.teachers.proposals import (
    DEADLINE,
    Written,
    engine_sampling,
    propose_by_number,
    write_by_engine,
    write_here,
)
from trainers.teachers.teachers import KDTeacher
from trainers.teachers.token_weights import TokenWeights

if TYPE_CHECKING:
    from trainers.rlkd.preparation import RLKDPreparation

Reader = Callable[[Mapping[str, Any]], Tensor]
"""Returns the hidden states [B, C, H] that predict a batch's completions."""


def teacher_weights(
    trainer: Any,
    prepared: RLKDPreparation,
    teacher: KDTeacher,
    models: Sequence[Any],
    width: int | None,
    reader: Callable[[Any], Reader],
) -> TokenWeights | None:
    """What weighs the steps of a run's completions; None without `validity`.

    Args:
        trainer: the `RLKDTrainer`.
        prepared: has the scorer, and the engines that write the teachers' steps.
        teacher: the teacher, or several as one.
        models: the teachers' models, None where one's weights are not here.
        width: rows of the student's head that the teachers have, too; None for all.
        reader: of a model, what reads a batch without gradients.
    """
    args, tokenizer = trainer.args, getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if args.validity is None:
        return None
    scorer = prepared.scorer

    def student() -> Any:
        model = trainer.accelerator.unwrap_model(trainer.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def student_hidden(batch: Mapping[str, Any]) -> Tensor:
        count, size = len(batch["completion_ids"]), args.per_device_train_batch_size
        read = reader(student())
        trainer.model.eval()
        try:
            return torch.cat([read(rows_of(batch, start, size)) for start in range(0, count, size)])
        finally:
            trainer.model.train()

    def propose(
        on_policy: bool, prefixes: Sequence[Sequence[int]], numbers: Sequence[int], begun: Sequence[Sequence[int]]
    ) -> list[list[int]]:  # the teachers' steps: all completions are the student's
        def write(number: int, prefixes: Sequence[Sequence[int]]) -> list[Written]:
            engine = prepared.engines[number]
            if engine is not None:
                sampling = engine_sampling(args, trainer.state.global_step)
                return write_by_engine(engine, prefixes, tokenizer, sampling, DEADLINE)
            device = trainer.accelerator.device
            return write_here(models[number], prefixes, tokenizer, _sampling(trainer), args.max_step_tokens, device)

        return propose_by_number(write, len(models), tokenizer, prefixes, numbers, trainer.accelerator, begun)

    return TokenWeights(
        scorer=scorer,
        expected=args.proposals == "expected",
        weighting=args.step_weighting(scorer.scale if scorer is not None else "log"),
        teacher=teacher,
        tokenizer=tokenizer,
        propose=propose,
        student_hidden=student_hidden,
        with_head=lambda compute, hidden: compute(head_of(student(), width), hidden),
        resumes=True,
    )


def _sampling(trainer: Any) -> GenerationConfig:
    """How a teacher's model here writes its steps: sampled as the rollouts are."""
    args = trainer.args
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    return GenerationConfig(
        do_sample=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=trainer.eos_token_ids,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        disable_compile=True,
    )
