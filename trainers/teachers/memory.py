"""The memory of teachers and of validity scorers before a run starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlkd.validity.contract import load_scorer
from trainers.common.memory import file_bytes, read_frozen, used_model_bytes
from trainers.teachers.arguments import TeacherArguments
from trainers.teachers.column import distinct_teachers
from trainers.teachers.kinds import kind_of_teacher

if TYPE_CHECKING:
    from rlkd.memory.models import WeightlessModel


def dense_teachers(args: Any, teacher: Any, device: str) -> tuple[WeightlessModel | None, int]:
    """Of the teachers whose weights are in this process the widest, None without any, and the bytes of all of them."""
    found = [dense_teacher(args, one, device) for one in distinct_teachers(teacher)]
    dense = [one for one in found if one is not None]
    widest = max(dense, key=lambda one: one.width * one.number, default=None)
    return widest, sum(one.weights + file_bytes(one, device) for one in dense)


def dense_teacher(args: Any, teacher: Any, device: str) -> WeightlessModel | None:
    """The teacher whose weights are in this process, without them; None for a server, a cache or other top-k ones."""
    from rlkd.memory.models import WeightlessModel

    if teacher is None or kind_of_teacher(teacher) != "model":
        return None
    if not isinstance(teacher, str):
        return WeightlessModel(teacher.config, dtype=str(teacher.dtype).removeprefix("torch."), trains=False)
    given = dict(args.teacher_model_init_kwargs or {})
    return read_frozen(
        teacher,
        dtype=str(given.get("dtype") or "auto").removeprefix("torch."),
        device=device,
        settings=given,
        revision=args.teacher_model_revision,
        trust_remote_code=args.trust_remote_code,
    )


def scorer_bytes(
    args: TeacherArguments, scorer: Any, device: str, *, rows: int, tokens: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of the weights of a scorer's models in this process, and of their caches, as `used_model_bytes`.

    `scorer`: None for the one that the config names, if it needs one.
    """
    if scorer is None and args.needs_scorer:
        scorer = load_scorer(str(args.validity), args.scorer_parameters)
    return used_model_bytes(getattr(scorer, "models_in_process", ()), device, rows=rows, tokens=tokens)
