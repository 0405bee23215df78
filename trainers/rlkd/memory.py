"""The memory of an RLKD run before it starts: generation, rewards, log-probabilities and training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rewards.build import names_model
from rlkd.engines.local import ModelInProcess
from rlkd.memory.plan import MemoryPhase, MemoryPlan
from rlkd.registry import split_alias
from trainers.common.memory import (
    generating,
    logprob_logits,
    read_frozen,
    read_student,
    reward_model_bytes,
    takes_fast_path_on,
    training_phases,
)
from trainers.teachers.memory import dense_teachers

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig


def memory_plan(
    args: RLKDConfig,
    model: Any,
    peft_config: Any = None,
    *,
    prompt_tokens: int,
    rewards: Sequence[Any] | None = None,
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
        device: `cpu` or `cuda`; by default the run's.
        gpu_bytes: memory of the GPU, of which vLLM in the same process takes its share; by default that of this
            machine's.

    All completions are taken to be as long as `max_completion_length`, and all rows to be trained on: an upper bound,
    close where completions run to the limit. Raises `UsageError` where there is no estimate.
    """
    import trainers.rlkd.trainer  # noqa: F401  (its libraries are part of the process)
    from rlkd.memory.passes import cache_bytes, reading_pass

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
    caches = 0
    for engine, new in _engines(rewards):
        held = getattr(engine, "in_process", None)
        if held is None or (held.device or device).partition(":")[0] != device:
            continue
        frozen = read_frozen(held.model, dtype=held.dtype, device=device)
        # On a CPU in float32 its matrices are stored anew for generation, and the pages of the file stay mapped.
        copies = 2 if device == "cpu" and held.dtype in ("auto", "float32") else 1
        fixed["structure model"] = fixed.get("structure model", 0) + copies * frozen.weights
        # A batch fits batch_tokens; the states of its prompts are there twice, as read and as they are continued.
        batch = max(1, min(rows, held.batch_tokens // (tokens + new)))
        caches += cache_bytes(frozen, batch, tokens + new) + cache_bytes(frozen, batch, tokens)

    dense = None
    if args.teacher_kl:
        dense, fixed["teacher weights"] = dense_teachers(args, args.teachers or args.teacher, device)

    for held in _classifiers(rewards):
        if (held.device or device).partition(":")[0] == device:
            # With the head of a language model, which is at least as large as that of a classifier.
            weights = read_frozen(held.model, dtype=held.dtype, device=device).weights
            fixed["process reward model"] = fixed.get("process reward model", 0) + weights

    phases = [
        generating(student, args, fixed, notes, shape=(rows, groups, prompt_tokens, completion), gpu_bytes=gpu_bytes),
        MemoryPhase("rewards", {**fixed, "structure model's cache": caches}),
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
    if dense is not None:
        states = rows * completion * dense.width * dense.number
        read = reading_pass(dense, micro_batch, tokens).most
        phases.append(MemoryPhase("teacher", {**fixed, "teacher states": states, "activations": read}))
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


def _engines(rewards: Sequence[Any]) -> Iterable[tuple[Any, int]]:
    """The engines of structure rewards, each once, with the most tokens that a request writes."""
    found: dict[int, tuple[Any, int]] = {}
    for reward in rewards:
        gsrm = getattr(getattr(reward, "function", None), "gsrm", None)
        for part in (getattr(gsrm, "decomposer", None), getattr(gsrm, "judge", None)):
            engine = getattr(part, "engine", None)
            if engine is not None:
                found.setdefault(id(engine), (engine, getattr(part, "max_new_tokens", 1)))
    return found.values()


def _classifiers(rewards: Sequence[Any]) -> list[ModelInProcess]:
    """The models that rewards hold in this process themselves, such as `prm`."""
    held = [getattr(getattr(reward, "function", None), "in_process", None) for reward in rewards]
    return [one for one in held if isinstance(one, ModelInProcess)]
