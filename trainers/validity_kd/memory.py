"""The memory of validity-calibrated distillation before it starts: rollouts, the teacher, weighting and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlkd.memory.plan import MemoryPhase, MemoryPlan
from trainers.common.memory import generating, joined, read_student, training_phases
from trainers.teachers.column import distinct_teachers
from trainers.teachers.kinds import WITH_WEIGHTS, kind_of_teacher
from trainers.teachers.memory import dense_teachers, scorer_bytes

if TYPE_CHECKING:
    from rlkd.memory.models import WeightlessModel
    from trainers.validity_kd.config import ValidityKDConfig


def memory_plan(
    args: ValidityKDConfig,
    model: Any,
    peft_config: Any = None,
    *,
    prompt_tokens: int,
    teacher: Any = None,
    scorer: Any = None,
    device: str | None = None,
    gpu_bytes: int | None = None,
) -> MemoryPlan:
    """The estimate for a run with these arguments of `ValidityKDTrainer`; no weights are loaded.

    Arguments as for `trainers.rlkd.memory.memory_plan`; `teacher`: as `teacher_model` of the trainer, by default
    `args.teacher`; `scorer`: the validity scorer as it was built, by default that of the config. Completions and
    traces are taken to be as long as `max_completion_length`. Raises `UsageError` where there is no estimate.
    """
    import trainers.validity_kd.trainer  # noqa: F401  (its libraries are part of the process)
    from rlkd.memory.passes import cache_bytes, reading_pass
    from trainers.teachers.proposals import ROWS

    student = read_student(args, model, peft_config, device)
    device, notes = student.device, list(student.notes)
    completion = args.max_completion_length or 0
    micro_batch = args.per_device_train_batch_size
    rows = micro_batch * args.gradient_accumulation_steps
    tokens = prompt_tokens + completion

    fixed = dict(student.fixed)
    teacher = (args.teachers or args.teacher) if teacher is None else teacher
    dense, fixed["teacher weights"] = dense_teachers(args, teacher, device)
    if teacher == "self":  # a frozen copy, or the base below an adapter
        dense = student.model
        fixed["teacher weights"] = 0 if student.fixed["adapter"] else student.fixed["student weights"]
    scorer_weights, scorer_caches = scorer_bytes(args, scorer, device, rows=rows, tokens=tokens)
    fixed = joined(fixed, scorer_weights)
    observed = {}
    # Where one of several teachers is asked, and does not compute, what all of them observed is kept for the loss.
    asked = dense is None or any(kind_of_teacher(one) not in WITH_WEIGHTS for one in distinct_teachers(teacher))
    if asked:  # k ids of four bytes and k log-probabilities, and the token's own
        observed["teacher top k"] = rows * completion * (args.teacher_top_k * 8 + 4)
    if dense is not None:
        observed["teacher states"] = rows * completion * dense.width * dense.number
    if args.teacher_context is not None:
        notes.append("the teacher's prompts are longer by the context, which is not counted")
    tiles = _tiles(student.model, micro_batch * completion, device)
    phases = []
    if args.lmbda > 0:
        shape = (rows, rows, prompt_tokens, completion)
        phases.append(generating(student, args, fixed, notes, shape=shape, gpu_bytes=gpu_bytes))
    readers = [student.model] if dense is None else [student.model, dense]
    read = max(reading_pass(one, micro_batch, tokens).most for one in readers)
    own = {"student states": rows * completion * student.model.width * student.model.number}
    phases.append(MemoryPhase("reading", {**fixed, **observed, **own, "activations": read}))
    if args.needs_scorer:
        phases.append(MemoryPhase("weighting", {**fixed, **observed, **own, "logits": tiles, **scorer_caches}))
        if args.proposals == "generate":
            cache = max(cache_bytes(one, ROWS, tokens + args.max_step_tokens) for one in readers)
            phases.append(MemoryPhase("proposals", {**fixed, **observed, "KV cache": cache}))
    kept = observed if args.keep_teacher_states or asked else {}
    hidden = 4 * micro_batch * completion * student.model.width  # the gradient of the hidden states, in float32
    phases += training_phases(
        student,
        {**fixed, **kept},
        shape=(micro_batch, tokens),
        accumulated=args.gradient_accumulation_steps > 1,
        loss_logits=tiles + hidden,
    )
    setting = f"{student.setting}, {micro_batch} x {tokens} tokens in a micro-batch"
    return MemoryPlan(device, setting, tuple(phases), tuple(notes))


def _tiles(model: WeightlessModel, positions: int, device: str) -> int:
    """Bytes of the two tiles of logits that the divergence and the statistics work on (`rlkd/divergence/tiles.py`)."""
    from rlkd.divergence.tiles import TILE_ENTRIES

    most = TILE_ENTRIES["cpu" if device == "cpu" else "other"] // model.vocabulary
    return 2 * 4 * model.vocabulary * min(positions, max(1, most))
