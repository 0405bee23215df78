"""The weights of a distillation's steps: what scores them, and which model writes the step that is not in a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.engines import Engine
from trainers.common.trl_compat import model_for_generation
from trainers.teachers.proposals import (
    DEADLINE,
    Written,
    engine_sampling,
    propose_by_number,
    write_by_engine,
    write_by_vllm,
    write_here,
)
from trainers.teachers.teachers import KDTeacher
from trainers.teachers.token_weights import Proposer, TokenWeights
from trainers.validity_kd.preparation import KDPreparation
from trainers.validity_kd.reader import ModelReader


def step_weights(trainer: Any, reader: ModelReader, prepared: KDPreparation, teacher: KDTeacher) -> TokenWeights:
    """What makes the weights of a `ValidityKDTrainer`'s tokens."""
    args, scorer = trainer.args, prepared.scorer
    return TokenWeights(
        scorer=scorer,
        expected=args.proposals == "expected",
        weighting=args.step_weighting(scorer.scale if scorer is not None else "log"),
        teacher=teacher,
        tokenizer=trainer._tokenizer,
        propose=_proposer(trainer, reader, prepared.engines),
        student_hidden=reader.student_hidden,
        with_head=lambda compute, hidden: reader.with_head(reader.student, compute, hidden),
    )


def _proposer(trainer: Any, reader: ModelReader, engines: Sequence[Engine | None]) -> Proposer:
    """Writes the other model's step: the teacher's on the student's rollouts, and vice versa."""
    args, tokenizer = trainer.args, trainer._tokenizer
    longest, device = args.max_step_tokens, trainer.accelerator.device

    def propose(on_policy: bool, prefixes: Sequence[Sequence[int]], numbers: Sequence[int]) -> list[list[int]]:
        def write(number: int, prefixes: Sequence[Sequence[int]]) -> list[Written]:
            engine, config = engines[number], trainer.generation_config
            if on_policy and engine is not None:
                sampling = engine_sampling(args, trainer.state.global_step)
                return write_by_engine(engine, prefixes, tokenizer, sampling, DEADLINE)
            if on_policy:
                with reader.teacher_alone(number) as teacher:
                    return write_here(teacher, prefixes, tokenizer, config, longest, device)
            if trainer.use_vllm:
                if trainer.state.global_step != trainer._last_loaded_step:
                    trainer.vllm_generation.sync_weights()
                    trainer._last_loaded_step = trainer.state.global_step
                return write_by_vllm(trainer.vllm_generation, prefixes, longest)
            with model_for_generation(trainer) as student:
                return write_here(student, prefixes, tokenizer, config, longest, device)

        count, numbers = (len(engines), numbers) if on_policy else (1, [0] * len(prefixes))
        return propose_by_number(write, count, tokenizer, prefixes, numbers, trainer.accelerator)

    return propose
