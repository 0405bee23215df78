"""Whether a student's thought can be read: templates that open `<think>`, and think tags that decoding removes.

Some chat templates (DeepSeek-R1 and its distillates) end the prompt with `<think>`, so that a completion begins within
the thought. Rewards of the format then need `prefilled`. Some tokenizers have the tags as special tokens, which TRL
leaves out of the text that rewards read.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rewards import Reward
from rlkd.answers import ends_in_thought
from rlkd.errors import UsageError
from rlkd.registry import registry, settable_parameters
from rlkd.rendering import conversation_text

logger = logging.getLogger(__name__)

TAGS = ("<think>", "</think>")
_PARAMETER = "prefilled"
# TRL's own rewards of the format, which cannot know of an opened tag.
_FIXED = ("trl.rewards.format_rewards",)


def opens_thought(tokenizer: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether a prompt as the student reads it ends within a thought; False where it cannot be rendered."""
    text = prompt
    if not isinstance(prompt, str):
        if not getattr(tokenizer, "chat_template", None):
            return False
        try:
            text = conversation_text(tokenizer, prompt, chat_template_kwargs)
        except UsageError:  # which the length checks report
            return False
    return ends_in_thought(text)


def fitted_to_prompts(rewards: Sequence[Any], *, opened: bool) -> tuple[list[Any], list[str]]:
    """The rewards of a run, fitted to prompts that end with `<think>` (`opened`) or do not; and notes for the log.

    A reward built from a spec gets `prefilled`, unless the config sets it. The notes say which got it, which need it
    and came as objects, and which have it against the prompts.
    """
    chosen = list(rewards)
    names: dict[str, list[str]] = {"set": [], "lacking": [], "against": []}
    for index, reward in enumerate(rewards):
        if not isinstance(reward, Reward):
            continue
        target, given = _target_and_parameters(reward)
        is_fixed = getattr(target, "__module__", "") in _FIXED
        is_settable = callable(target) and _PARAMETER in settable_parameters(target)
        if not opened:
            if given.get(_PARAMETER):
                names["against"].append(reward.__name__)
        elif is_fixed or (is_settable and _PARAMETER not in given and reward.origin is None):
            names["lacking"].append(reward.__name__)
        elif is_settable and _PARAMETER not in given:
            chosen[index] = reward.with_parameters({_PARAMETER: True})
            names["set"].append(reward.__name__)
    listed = {key: ", ".join(found) for key, found in names.items() if found}
    return chosen, [_NOTES[key].format(names=found) for key, found in listed.items()]


_NOTES = {
    "set": "prompts end with <think>, so prefilled is set for {names}",
    "lacking": "prompts end with <think>, and these rewards look for it in the completion: {names}. Name rewards of "
    "ours in reward_funcs (think_format, think_format_reward ...), which get prefilled, or pass prefilled=True",
    "against": "prefilled is set for {names}, and prompts do not end with <think>: a completion that begins with it "
    "has it twice. Leave prefilled out",
}


def _target_and_parameters(reward: Reward) -> tuple[Any, Mapping[str, Any]]:
    if reward.origin is not None:
        return registry("reward").find(reward.origin[0]).target, reward.origin[1]
    function: Any = reward.function
    if isinstance(function, partial):
        return function.func, function.keywords
    # The parameters of an object are its own affair.
    return (function, {}) if inspect.isfunction(function) else (None, {})


def special_tags(tokenizer: Any) -> list[str]:
    """The think tags that decoding without special tokens removes."""
    special = {str(token) for token in getattr(tokenizer, "all_special_tokens", ())}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special |= {str(token) for token in added.values() if getattr(token, "special", False)}
    return [tag for tag in TAGS if tag in special]


def warn_of_special_tags(tokenizer: Any, name: str) -> None:
    """Log a warning where the student's think tags are special tokens."""
    if tags := special_tags(tokenizer):
        logger.warning(
            "%s are special tokens of %s: TRL removes them from the text that rewards read, so that rewards of the "
            "format give 0 and an answer within a thought counts as announced. Train with a copy of the tokenizer "
            "in which "
            'these tokens have "special": false (added_tokens in tokenizer.json, added_tokens_decoder in '
            "tokenizer_config.json)",
            " and ".join(tags),
            name,
        )
