"""What an RLKD run needs before its model loads, checked: rewards, the student's facts, and rows that fit it.

The trainer and the dry run share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from rewards import Reward
from rewards.build import names_model
from rewards.composite import check_combination, check_gated
from rlkd.engines import Engine
from rlkd.errors import UsageError
from rlkd.registry import split_alias
from rlkd.teachers.topk import TopKTeacher
from trainers.common.models import check_model, check_student
from trainers.common.prompts import PromptCheck
from trainers.common.refusals import Catch
from trainers.common.student import ModelFacts, check_turn_end, model_sources, read_model, reading_options
from trainers.rlkd.preflight import check_batch, check_reading, check_run, check_step_credit, check_teacher_kl
from trainers.rlkd.resampling import check_resampling
from trainers.rlkd.shuffled_rewards import check_shuffled
from trainers.teachers.column import TeacherColumn, distinct_teachers
from trainers.teachers.compatibility import check_teacher
from trainers.teachers.kinds import kind_of_teacher
from trainers.teachers.preflight import open_proposal_engine, open_top_k, ready_scorer

if TYPE_CHECKING:
    from trainers.rlkd.config import RLKDConfig

RewardLike = str | Callable[..., Any] | PreTrainedModel


@dataclass(frozen=True)
class RLKDPreparation:
    """Rewards and their names in metrics, the student, and the datasets without rows that are left out.

    `teachers`: for each teacher of `teacher_kl` itself, where its weights are not loaded here. `column`: which of
    several scores a row. `scorer`: that of validity weights. `engines`: for each teacher what writes its steps.
    """

    rewards: list[Any]
    names: list[str]
    student: ModelFacts
    train_dataset: Any
    eval_dataset: Any
    teachers: Sequence[TopKTeacher | None] = (None,)
    column: TeacherColumn | None = None
    scorer: Any = None
    engines: Sequence[Engine | None] = (None,)


def prepare(
    args: RLKDConfig,
    model: Any,
    reward_funcs: RewardLike | Sequence[RewardLike] | None,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    peft_config: Any = None,
    reader: Any = None,
    has_environment: bool = False,
    catch: Catch = nullcontext,
    loads: bool = True,
) -> RLKDPreparation:
    """Check everything that needs no weights; raises `UsageError`, unless `catch` keeps it.

    `reader`: the student's tokenizer or processor, None for the model's own. `loads`: whether a teacher that is an
    engine in this process may load its model to be tried.
    """
    rewards: list[Any] = []
    names: list[str] = []
    with catch():
        rewards = _build_rewards(reward_funcs, args)
        names = [_name_of(reward) for reward in rewards]
        check_combination(names, args.reward_weights, args.gates())
        check_gated(rewards, args.gates())
        check_step_credit(args, rewards)
        check_shuffled(args.shuffle_rewards, names)  # type: ignore[arg-type]  # __post_init__ has read the text
    with catch():
        check_teacher_kl(args)
    with catch():
        check_resampling(args, train_dataset, has_environment=has_environment)
    check_run(args, rewards, train_dataset, eval_dataset, has_environment=has_environment, catch=catch)
    with catch():
        check_student(args, model, peft_config)
    facts = ModelFacts(str(model), None, None, frozenset())
    template: Any = args.chat_template_kwargs
    with catch():
        facts = read_model(model, reader, **reading_options(args))
    with catch():
        source = model_sources(model)[1] if isinstance(model, str) else model
        rewards = list(check_reading(args, rewards, source, reader, train_dataset, eval_dataset))
    column, teachers = None, distinct_teachers(args.teachers or args.teacher)
    opened: list[TopKTeacher | None] = [None] * len(teachers)
    scorer, engines = None, list[Engine | None]([None] * len(teachers))
    if args.teacher_kl:
        with catch():
            if (column := args.column_of(args.teachers)) is not None:
                column.check(train_dataset, "train_dataset")
            for number, one in enumerate(teachers):
                facts, opened[number] = _checked_teacher(args, facts, one, train_dataset, loads)
        with catch():
            scorer = ready_scorer(args, list(map(kind_of_teacher, teachers)))
            engines = [open_proposal_engine(args, one) for one in opened]
    fit = PromptCheck(
        facts, args.max_completion_length or 0, template=template, leave_out=args.filter_overlong_prompts
    )
    with catch():
        train_dataset, eval_dataset = fit.fitted_datasets(train_dataset, eval_dataset)
        check_batch(args, train_dataset)
    check_turn_end(facts, template)
    datasets = train_dataset, eval_dataset
    return RLKDPreparation(rewards, names, facts, *datasets, opened, column, scorer, engines)


def _checked_teacher(
    args: RLKDConfig, student: ModelFacts, teacher: str, train_dataset: Any, loads: bool
) -> tuple[ModelFacts, TopKTeacher | None]:
    """The student's facts, with the shorter context of the two, and a teacher whose weights are not loaded here."""
    if student.tokenizer is None:
        raise UsageError(
            f"teacher_kl: the student {student.name} has no tokenizer of its own (it takes images, or is not there), "
            f"and the teacher reads the ids of its tokens. Name a model of text, or set teacher_kl: 0"
        )
    if kind_of_teacher(teacher) != "model":
        k = 1 if args.validity is None else args.teacher_top_k
        return student, open_top_k(args, teacher, student.tokenizer, k=k, loads=loads)
    facts, _ = check_teacher(args, student, teacher, train_dataset)
    check_model(teacher, "teacher", revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code)
    return facts, None


def _build_rewards(
    reward_funcs: RewardLike | Sequence[RewardLike] | None, args: RLKDConfig
) -> list[Reward | str | PreTrainedModel]:
    """The rewards of a run, in order; reward models and their names stay as they are, for TRL."""
    if reward_funcs is None:
        args.check_reward_funcs()
        reward_funcs = args.reward_funcs
    listed: list[Any] = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    is_model = [isinstance(one, PreTrainedModel) or names_model(one) for one in listed]
    rewards: list[Any] = args.build_rewards([one for one, model in zip(listed, is_model, strict=True) if not model])
    for index, (one, model) in enumerate(zip(listed, is_model, strict=True)):
        if model:
            rewards.insert(index, one)
    return rewards


def _name_of(reward: Reward | str | PreTrainedModel) -> str:
    """The name of a reward in metrics: for a reward model its alias, or the last part of its path, as in TRL."""
    if isinstance(reward, Reward):
        return reward.__name__
    alias, path = split_alias(reward) if isinstance(reward, str) else (None, str(reward.config._name_or_path))
    return alias or path.rstrip("/").rpartition("/")[2] or "model"
