"""Templates that open `<think>`, and tokenizers that have the tags as special tokens."""

from functools import partial

import pytest
import trl.rewards
from tokenizers import AddedToken

from benchmarks.tiny import CHAT_TEMPLATE, byte_tokenizer
from rewards import build_rewards
from rewards.formats import tag_count, think_format
from tests.helpers.rewards import BUILT_IN_PARAMETERS
from trainers.common.think_tags import fitted_to_prompts, opens_thought, special_tags, warn_of_special_tags

QUESTION = [{"role": "user", "content": "1 + 1?"}]
OPENED = CHAT_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n{% endif")
SWITCHED = CHAT_TEMPLATE.replace(
    "<|assistant|>{% endif", "<|assistant|>{% if thinking is not defined or thinking %}<think>\n{% endif %}{% endif"
)
CLOSED = CHAT_TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|><think>\n\n</think>\n\n{% endif")


def tokenizer(template):
    made = byte_tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "prompt", "arguments", "expected"),
    [
        (OPENED, QUESTION, None, True),
        (SWITCHED, QUESTION, None, True),
        (SWITCHED, QUESTION, {"thinking": False}, False),
        (CLOSED, QUESTION, None, False),
        (CHAT_TEMPLATE, QUESTION, None, False),
        (CHAT_TEMPLATE, [{"role": "user", "content": "Think in <think>"}], None, False),
        (None, QUESTION, None, False),
        (None, "1 + 1?", None, False),
        (None, "1 + 1?\n<think>\n", None, True),
        (None, "1 + 1?\n[THINK]", None, True),
        ("{{ raise_exception('no') }}", QUESTION, None, False),
    ],
)
def test_a_prompt_that_ends_within_a_thought_is_seen(template, prompt, arguments, expected) -> None:
    assert opens_thought(tokenizer(template), prompt, arguments) is expected


def test_rewards_get_prefilled_and_then_judge_what_the_student_can_write() -> None:
    rewards = build_rewards(["accuracy", "reasoning_steps", "think_format", "mine=tag_count"], {"mine": {}})
    fitted, [note] = fitted_to_prompts(rewards, opened=True)
    assert note == "prompts end with <think>, so prefilled is set for accuracy, think_format, mine"
    assert [reward.__name__ for reward in fitted] == [reward.__name__ for reward in rewards]
    assert fitted[1] is rewards[1]
    told = [[{"role": "assistant", "content": "I add.</think>\n<answer>2</answer>"}]]
    thought = [[{"role": "assistant", "content": "Perhaps the answer is 2."}]]
    for before, after, text, scores in [
        (rewards[0], fitted[0], thought, (1.0, 0.0)),
        (rewards[0], fitted[0], told, (1.0, 1.0)),
        (rewards[2], fitted[2], told, (0.0, 1.0)),
        (rewards[3], fitted[3], told, (0.75, 1.0)),
    ]:
        assert (before(completions=text, answer=["2"]), after(completions=text, answer=["2"])) == tuple(
            [score] for score in scores
        )


@pytest.mark.parametrize(
    "name", ["accuracy", "code", "code_format", "format", "tag_count", "think_format", "think_format_reward"]
)
def test_rewards_that_read_thoughts_can_be_told(name) -> None:
    reward = build_rewards([name], {name: BUILT_IN_PARAMETERS.get(name, {})})
    _, notes = fitted_to_prompts(reward, opened=True)
    assert notes == [f"prompts end with <think>, so prefilled is set for {reward[0].__name__}"]


def test_what_the_config_sets_stays() -> None:
    rewards = build_rewards(["think_format", "tag_count"], {name: {"prefilled": True} for name in ("think_format",)})
    assert fitted_to_prompts(rewards, opened=True)[0][0] is rewards[0]
    off = build_rewards(["think_format"], {"think_format": {"prefilled": False}})
    assert fitted_to_prompts(off, opened=True) == (off, [])


def test_prefilled_against_the_prompts_is_said() -> None:
    rewards = build_rewards(["think_format"], {"think_format": {"prefilled": True}})
    fitted, [note] = fitted_to_prompts(rewards, opened=False)
    assert fitted == rewards
    assert note.startswith("prefilled is set for think_format, and prompts do not end with <think>")
    assert fitted_to_prompts(build_rewards(["think_format"]), opened=False)[1] == []


def test_rewards_that_came_as_objects_are_named() -> None:
    given = [think_format, partial(tag_count, prefilled=True), trl.rewards.think_format_reward]
    fitted, [note] = fitted_to_prompts(build_rewards(given), opened=True)
    assert "look for it in the completion: think_format, think_format_reward." in note
    assert [reward.__name__ for reward in fitted] == ["think_format", "tag_count", "think_format_reward"]
    named = build_rewards(["trl.rewards.think_format_reward"])
    assert "think_format_reward" in fitted_to_prompts(named, opened=True)[1][0]


@pytest.mark.parametrize("special", [True, False])
def test_tags_that_decoding_removes_are_named_with_the_way_out(caplog, special) -> None:
    made = byte_tokenizer()
    made.add_tokens([AddedToken(tag, special=special) for tag in ("<think>", "</think>")])
    ids = made("<think>x</think>y", add_special_tokens=False).input_ids
    assert made.decode(ids, skip_special_tokens=True) == ("xy" if special else "<think>x</think>y")
    assert special_tags(made) == (["<think>", "</think>"] if special else [])
    warn_of_special_tags(made, "my-model")
    assert ("special tokens of my-model" in caplog.text) is special
    assert ('"special": false' in caplog.text) is special
