"""What an asynchronous run needs before its model loads, checked, apart from the server (`check_async`).

The trainer and the dry run share it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards import CompositeReward
from trainers.common.gold import check_reward_columns
from trainers.common.models import check_student
from trainers.common.preflight import check_columns, check_settings
from trainers.common.prompts import PromptCheck
from trainers.common.refusals import Catch
from trainers.common.student import ModelFacts, read_model, read_tokenizer, reading_options
from trainers.rlkd.preflight import check_reading

if TYPE_CHECKING:
    from peft import LoraConfig

    from trainers.async_grpo.config import RLKDAsyncConfig


@dataclass(frozen=True)
class AsyncPreparation:
    """The parts of a run that need no weights; `composite` and `tokenizer` are None where `catch` kept their error."""

    composite: CompositeReward | None
    tokenizer: Any
    student: ModelFacts
    train_dataset: Any


def prepare(
    args: RLKDAsyncConfig,
    model: str,
    train_dataset: Any,
    eval_dataset: Any,
    peft_config: LoraConfig,
    *,
    tokenizer: Any = None,
    log: Path | None = None,
    catch: Catch = nullcontext,
) -> AsyncPreparation:
    """Check everything that needs neither weights nor the server; raises `UsageError`, unless `catch` keeps it.

    `model`: name or folder. `log`: the file of rollouts.
    """
    composite, columns = None, None
    with catch():
        composite = args.composite(log)
    with catch():
        columns = check_columns(train_dataset, "train_dataset") or ()
    for reward in composite.rewards if composite is not None and columns is not None else ():
        with catch():
            check_reward_columns(reward, train_dataset, columns or (), "train_dataset")
    with catch():
        if composite is not None:
            composite.check_ready()
    with catch():
        check_settings(args, eval_dataset)
    options = reading_options(args)
    with catch():
        check_student(args, model, peft_config)
        tokenizer = tokenizer or read_tokenizer(model, **options)
    if tokenizer is None:
        return AsyncPreparation(composite, None, ModelFacts(model, None, None, frozenset()), train_dataset)
    facts = read_model(model, tokenizer, **options)
    with catch():
        # The whole text is read (`whole_text`).
        given = composite.rewards if composite is not None else []
        chosen = list(check_reading(args, given, model, tokenizer, train_dataset, None, removes_special=False))
        if composite is not None:
            composite.rewards = chosen
    template: Any = args.chat_template_kwargs
    fit = PromptCheck(facts, args.max_completion_length, template=template, leave_out=args.filter_overlong_prompts)
    with catch():
        train_dataset = fit.fitted(train_dataset, "train_dataset")
    return AsyncPreparation(composite, tokenizer, facts, train_dataset)
