"""The estimate of a run's memory by role and phase, from configurations alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from rlkd.errors import UsageError
from rlkd.memory.plan import MemoryPlan
from trainers.common.student import ModelFacts
from trainers.dry_run.dry_run import DryRun
from trainers.vllm.checks import longest_prompt


def show_memory(
    run: DryRun,
    estimate: Callable[..., MemoryPlan],
    args: Any,
    model: Any,
    peft_config: Any,
    student: ModelFacts,
    dataset: Any,
    **further: Any,
) -> None:
    """Print the table of `estimate`, a trainer's `memory_plan`; nothing for a run that is refused already."""
    if run.messages or student.tokenizer is None or dataset is None:
        return
    run.section("memory")
    tokens = longest_prompt(dataset, student.tokenizer, args.chat_template_kwargs)
    try:
        # PEFT writes the names of layers into the configuration that it is given.
        plan = estimate(args, model, copy.deepcopy(peft_config), prompt_tokens=tokens, **further)
    except UsageError as error:  # some runs have no estimate, and can run
        run.line("", f"no estimate: {error}")
        return
    run.block(plan.table())
