"""The memory of an RLKD run before it starts: generation, rewards, log-probabilities and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rewards.build import names_model
from rlkd.engines.local import ModelUse
from rlkd.memory.plan import MemoryPhase, MemoryPlan
from rlkd.registry import split_alias
from trainers.common.memory import (
    generating,
    joined,
    logprob_logits,
    read_student,
    reward_model_bytes,
    takes_fast_path_on,
    training_phases,
    used_model_bytes,
)
from trainers.teachers.memory import dense_teachers, scorer_bytes

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def memory_plan(
    args: RLKDConfig,
    model: Any,
    peft_config: Any = None,
    *,
    prompt_tokens: int,
    rewards: Sequence[Any] | None = None,
    scorer: Any = None,
    device: str | None = None,
    gpu_bytes: int | None = None,
) -> MemoryPlan:
    """The estimate for a run with these arguments of `RLKDTrainer`; no weights are loaded.

    Args:
        args: the config.
        model: the student, by name or loaded.
        peft_config: the adapter to train.
        prompt_tokens: length of the longest prompt in tokens.
        rewards: the rewards as they were built; by default those that the config names.
        scorer: the validity scorer of `teacher_kl` as it was built; by default that of the config.
        device: `cpu` or `cuda`; by default the run's.
        gpu_bytes: memory of the GPU, of which vLLM in the same process takes its share; by default that of this
            machine's.

    All completions are taken to be as long as `max_completion_length`, and all rows to be trained on: an upper bound,
    close where completions run to the limit. Raises `UsageError` where there is no estimate.
    """
    import trainers.rlkd.trainer  # noqa: F401  (its libraries are part of the process)
    from rlkd.memory.passes import cache_bytes, reading_pass
    from trainers.teachers.proposals import ROWS

    student = read_student(args, model, peft_config, device)
    device, notes = student.device, list(student.notes)
    assert args.steps_per_generation is not None  # TRL has filled them in
    assert args.num_generations is not None
    completion = args.max_completion_length or 0
    micro_batch = args.per_device_train_batch_size
    rows = micro_batch * args.steps_per_generation
    groups = max(1, rows // args.num_generations)
    tokens = prompt_tokens + completion

    fixed = dict(student.fixed)
    if args.beta and peft_config is None:
        fixed["reference weights"] = student.model.weights
    if rewards is None:
        rewards = args.build_rewards([one for one in args.reward_funcs if not names_model(one)])
        models = [split_alias(one)[1] for one in args.reward_funcs if names_model(one)]
    else:
        models = [split_alias(one)[1] for one in rewards if isinstance(one, str)]
    fixed["reward models"] = reward_model_bytes(models, args, device)
    uses = [use for reward in rewards for use in _models_of(reward)]
    weights, caches = used_model_bytes(uses, device, rows=rows, tokens=tokens)
    fixed = joined(fixed, weights)

    dense = None
    scorer_caches: dict[str, int] = {}
    if args.teacher_kl:
        dense, fixed["teacher weights"] = dense_teachers(args, args.teachers or args.teacher, device)
        weights, scorer_caches = scorer_bytes(args, scorer, device, rows=rows, tokens=tokens)
        fixed = joined(fixed, weights)

    phases = [
        generating(student, args, fixed, notes, shape=(rows, groups, prompt_tokens, completion), gpu_bytes=gpu_bytes),
        MemoryPhase("rewards", {**fixed, **caches}),
    ]
    corrects = args.use_vllm and args.vllm_importance_sampling_correction
    if (
        args.beta
        or args.teacher_kl
        or corrects
        or args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations)
    ):
        read = reading_pass(student.model, micro_batch, tokens).most
        logits = logprob_logits(student.model, micro_batch * tokens, device, trains=False)
        phases.append(MemoryPhase("log-probabilities", {**fixed, "activations": read, "logits": logits}))
    observed = {}
    if dense is not None:
        observed["teacher states"] = rows * completion * dense.width * dense.number
        read = reading_pass(dense, micro_batch, tokens).most
        phases.append(MemoryPhase("teacher", {**fixed, **observed, "activations": read}))
    if scorer_caches:
        phases.append(MemoryPhase("weighting", {**fixed, **observed, **scorer_caches}))
    if dense is not None and args.needs_scorer and args.proposals == "generate":
        cache = cache_bytes(dense, ROWS, tokens + args.max_step_tokens)
        phases.append(MemoryPhase("proposals", {**fixed, **observed, "KV cache": cache}))
    shape, positions = _micro_batch(args, device, micro_batch, rows, groups, prompt_tokens, student.model.width)
    phases += training_phases(
        student,
        fixed,
        shape=shape,
        accumulated=args.gradient_accumulation_steps > 1,
        loss_logits=logprob_logits(student.model, positions, device, trains=True),
    )
    setting = f"{student.setting}, {micro_batch} x {tokens} tokens in a micro-batch"
    return MemoryPlan(device, setting, tuple(phases), tuple(notes))


def _micro_batch(
    args: Any, device: str, micro_batch: int, rows: int, groups: int, prompt: int, width: int
) -> tuple[tuple[int, int], int]:
    """Rows and tokens of a micro-batch as the model reads it, and the positions whose logits are computed.

    On the fast path a group stands behind its prompt in one sequence, where that is cheaper
    (`trainers/rlkd/shared_prompts.py`). Which rows meet in a smaller micro-batch is drawn, so it is taken without.
    """
    from trainers.rlkd.shared_prompts import WORTHWHILE

    completion = args.max_completion_length or 0
    plain = (micro_batch, prompt + completion)
    if micro_batch == rows and takes_fast_path_on(args, device):
        packed = (groups, prompt - 1 + rows // groups * (1 + completion))

        def cost(shape: tuple[int, int]) -> int:
            return shape[0] * shape[1] * (6 * width + shape[1])

        if cost(packed) <= WORTHWHILE * cost(plain):
            return packed, rows * completion + 1
    # On a GPU, logits of completions alone are computed.
    return plain, micro_batch * (completion if device != "cpu" else prompt + completion)


def _models_of(reward: Any) -> Sequence[ModelUse]:
    """The models that a reward holds in this process."""
    uses: Sequence[ModelUse] = getattr(getattr(reward, "function", reward), "models_in_process", ())
    return uses
