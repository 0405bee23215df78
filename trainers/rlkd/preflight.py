"""Checks of an RLKD run before any model loads, for mistakes that would show late or never."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rewards import Reward, RewardError
from rewards.lengths import SoftOverlong
from rewards.structure import StructureReward
from rlkd.errors import UsageError
from rlkd.registry import split_alias
from rlkd.teachers.topk import check_temperature
from trainers.common.gold import check_reward_columns
from trainers.common.model_card import masked
from trainers.common.models import check_model
from trainers.common.preflight import (
    check_columns,
    check_settings,
    check_size,
    check_unused_columns,
    has_images,
    named_datasets,
)
from trainers.common.refusals import Catch
from trainers.common.sharding import check_sharding, refuse_sharded
from trainers.common.student import reading_options
from trainers.common.think_tags import fitted_to_prompts, opens_thought, warn_of_special_tags
from trainers.rlkd.step_credit import scores_steps
from trainers.teachers.column import distinct_teachers
from trainers.teachers.kinds import kind_of_teacher
from trainers.teachers.preflight import check_teacher_options
from trainers.vllm.checks import check_installed
from trainers.vllm.sampling import check_sampling

if TYPE_CHECKING:
    from trainers.async_grpo.config import RLKDAsyncConfig
    from trainers.rlkd.config import RLKDConfig

logger = logging.getLogger(__name__)


def check_run(
    args: RLKDConfig,
    rewards: Sequence[Any],
    train_dataset: Any,
    eval_dataset: Any,
    *,
    has_environment: bool = False,
    catch: Catch = nullcontext,
) -> None:
    """Check config, data and the servers that rewards need; raises `UsageError` (`RewardError`).

    `catch` may keep the error and go on. `has_environment`: TRL's environments write the prompts, so the data may have
    none.
    """
    with catch():
        check_unused_columns(args, "the columns that rewards need")
    with catch():
        check_settings(args, eval_dataset)
    with catch():
        check_sharding(args, reads_head=bool(args.teacher_kl))
    if args.use_vllm:
        with catch():
            check_installed()
        with catch():
            check_sampling(args)
    own = [reward for reward in rewards if isinstance(reward, Reward)]
    for reward in own:
        with catch():
            _check_length_limit(args, reward)
    for part, dataset in named_datasets(train_dataset, eval_dataset):
        columns = None
        with catch():
            columns = check_columns(dataset, part, needs_prompt=not has_environment)
        for reward in own if columns is not None else ():
            with catch():
                check_reward_columns(reward, dataset, columns or (), part)
        if part == "train_dataset":
            with catch():
                check_batch(args, dataset)
    _warn_of_sums(args, own)
    for reward in rewards:
        with catch():
            if isinstance(reward, Reward):
                reward.check_ready()
            elif isinstance(reward, str):
                # With the student's options, as TRL loads it.
                check_model(split_alias(reward)[1], "reward_funcs", **reading_options(args))


def check_step_credit(args: RLKDConfig, rewards: Sequence[Any]) -> None:
    """Raise `UsageError` where no reward scores steps, or the loss takes no advantages of tokens."""
    if args.step_credit == "none":
        return
    if not any(map(scores_steps, rewards)):
        names = ", ".join(str(getattr(reward, "__name__", reward)) for reward in rewards)
        raise UsageError(
            f"step_credit {args.step_credit!r}: no reward of this run ({names}) scores steps. Add structure to "
            f"reward_funcs, or set step_credit: none"
        )
    _check_token_advantages(args, f"step_credit {args.step_credit!r}", "step_credit: none")


def check_teacher_kl(args: RLKDConfig) -> None:
    """Raise `UsageError` where the loss takes no advantages of tokens, or the teacher gives no log-probabilities."""
    if not args.teacher_kl:
        if args.teachers or args.teacher:
            logger.warning(
                "teacher %s is not used: teacher_kl is 0. Set teacher_kl: 0.5 to learn from it",
                masked(args.teachers or args.teacher),
            )
        return
    _check_token_advantages(args, f"teacher_kl {args.teacher_kl:g}", "teacher_kl: 0")
    kinds = []
    for teacher in distinct_teachers(args.teachers or args.teacher):
        kinds.append(kind_of_teacher(teacher))
        if kinds[-1] == "self":
            raise UsageError("teacher: self is for distillation (recipes/validity_kd.py). Name a model as teacher")
        if kinds[-1] == "cache":
            raise UsageError(
                f"teacher_kl with the teacher cache {masked(teacher)}: it has no log-probabilities of the student's "
                f"completions. Name a model, or a server: http://HOST:PORT/v1#MODEL"
            )
    if args.validity is not None:
        refuse_sharded(args, "teacher_kl with validity", "Leave validity out")
    if args.teachers:
        refuse_sharded(args, "several teachers", "Name one teacher")
    if set(kinds) != {"model"}:
        check_temperature(args.temperature)
    check_teacher_options(args, kinds)


def _check_token_advantages(args: RLKDConfig, key: str, off: str) -> None:
    """Raise `UsageError` where the loss takes no advantages of tokens; `key`: what needs them, `off`: without them."""
    refused = [
        (
            f"loss_type {args.loss_type!r}",
            args.loss_type in ("sapo", "vespo"),
            "its shape depends on the sign of a completion's advantage",
            "loss_type: dapo (or grpo, bnpo, dr_grpo, cispo, luspo)",
        ),
        (
            f"importance_sampling_level {args.importance_sampling_level!r}",
            args.importance_sampling_level != "token",
            "all tokens of a completion share one ratio, and only the sum of their advantages would count",
            "importance_sampling_level: token",
        ),
        (
            f"top_entropy_quantile {args.top_entropy_quantile:g}",
            args.top_entropy_quantile < 1,
            "it leaves tokens out of the loss, and with them their advantages",
            "top_entropy_quantile: 1.0",
        ),
        (
            f"off_policy_mask_threshold {args.off_policy_mask_threshold}",
            args.off_policy_mask_threshold is not None,
            "it drops completions by the sign of their advantage, and would drop single tokens",
            "off_policy_mask_threshold: null",
        ),
    ]
    for setting, holds, reason, way_out in refused:
        if holds:
            raise UsageError(f"{key} with {setting}: {reason}. Set {way_out}, or {off}")


def check_batch(args: RLKDConfig, dataset: Any) -> None:
    """Raise `UsageError` where the training data have fewer prompts than one generation batch."""
    assert args.generation_batch_size is not None  # TRL has filled both in
    assert args.num_generations is not None
    check_size(
        dataset,
        "train_dataset",
        args.generation_batch_size // args.num_generations,
        f"generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}; "
        f"generation_batch_size is per_device_train_batch_size x processes x steps_per_generation",
        also=", or raise num_generations",
    )


def _warn_of_sums(args: RLKDConfig, rewards: Sequence[Reward]) -> None:
    if args.scale_rewards != "none" or args.process_index:
        return
    for reward in rewards:
        if isinstance(reward.function, StructureReward) and reward.function.gsrm.alignment.name == "sum":
            logger.warning(
                "scale_rewards: none with the alignment `sum` of reward %r: advantages, and so the updates, grow with "
                "the number of the teacher's steps. Scale rewards (scale_rewards: group), or take another alignment "
                "(teacher, ordered).",
                reward.__name__,
            )


def check_reading(
    args: RLKDConfig | RLKDAsyncConfig,
    rewards: Sequence[Any],
    student: Any,
    reader: Any,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    removes_special: bool = True,
) -> Sequence[Any]:
    """Check prompts and images as the student reads them; raises `UsageError`.

    Returns the rewards, with `prefilled` where prompts end with `<think>`; logs what was set, and what is to be set by
    hand. `student`: a model or its name. `reader`: its tokenizer or processor, None for the model's own.
    `removes_special`: whether the text that rewards read lacks the special tokens of a completion.
    """
    name = student if isinstance(student, str) else str(student.config._name_or_path)
    reader = reader or _reader(name, args)
    if reader is None:
        return rewards
    for part, dataset in named_datasets(train_dataset, eval_dataset):
        check_images(dataset, part, reads_images=hasattr(reader, "image_processor"))
    tokenizer = getattr(reader, "tokenizer", reader)
    if removes_special and args.process_index == 0:
        warn_of_special_tags(tokenizer, name)
    if not hasattr(train_dataset, "__len__") or "prompt" not in train_dataset.column_names:
        return rewards
    opened = opens_thought(tokenizer, train_dataset[0]["prompt"], args.chat_template_kwargs)  # type: ignore[arg-type]
    chosen, notes = fitted_to_prompts(rewards, opened=opened)
    for note in notes if args.process_index == 0 else ():
        logger.warning("%s: %s", name, note)
    return chosen


def _reader(name: str, args: RLKDConfig | RLKDAsyncConfig) -> Any:
    """The processor of a model, for a text model its tokenizer; None where there is none to be found."""
    from transformers import AutoProcessor

    settings: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type]
    try:
        return AutoProcessor.from_pretrained(
            name, revision=settings.get("revision"), trust_remote_code=args.trust_remote_code
        )
    except Exception:  # a model without a name; TRL says what it lacks
        return None


def check_images(dataset: Any, part: str, *, reads_images: bool) -> None:
    """Check the columns that TRL reads images from; raises `UsageError`.

    `reads_images`: whether the student takes images.
    """
    for name in sorted({"image", "images"} & set(getattr(dataset, "column_names", None) or ())):
        if has_images(dataset, name):
            if not reads_images:
                raise UsageError(
                    f"{part} has images in the column {name!r}, and the student reads text only. Remove or rename the "
                    f"column, or name a model that takes images"
                )
        elif dataset.data.column(name).null_count:  # TRL takes lists without elements for no image
            raise UsageError(f"{part}: the column {name!r} is empty, and TRL would look for images in it. Remove it")


def _check_length_limit(args: RLKDConfig, reward: Reward) -> None:
    if not isinstance(reward.function, SoftOverlong):
        return
    longest, limit = reward.function.max_completion_len, args.max_completion_length
    start = longest - reward.function.soft_punish_cache
    if limit is not None and start >= limit:
        raise RewardError(
            f"reward {reward.__name__!r} punishes completions of more than {start} tokens (max_completion_len "
            f"{longest} - soft_punish_cache {reward.function.soft_punish_cache}), and max_completion_length {limit} "
            f"allows none: it would always be 0. Set max_completion_len: {limit}"
        )
    if args.mask_truncated_completions:
        raise RewardError(
            f"reward {reward.__name__!r} with mask_truncated_completions: what it punishes most is left out of the "
            "loss. Set mask_truncated_completions: false, or remove the reward"
        )
