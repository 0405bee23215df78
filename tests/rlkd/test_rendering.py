"""Prompts as models of several families read them."""

import pytest

from rlkd.errors import UsageError
from rlkd.rendering import conversation_text, fitted_conversations, has_system_role, prompt_ids, turn_end
from tests.helpers.template_models import MODELS, make_tokenizer

ASK = [{"role": "user", "content": "1+1?"}]
SOLVE = [{"role": "system", "content": "Solve."}, *ASK]
SHOWN = [SOLVE[0], {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}, *ASK]


@pytest.mark.parametrize(
    ("name", "kwargs", "messages", "text"),
    [
        ("chatml", {}, ASK, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
        ("thinking", {}, ASK, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "thinking",
            {"enable_thinking": False},
            ASK,
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        (
            "no_system",
            {},
            SOLVE,
            "<bos><start_of_turn>user\nSolve.\n\n1+1?<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "no_system",
            {},
            SHOWN,
            "<bos><start_of_turn>user\nSolve.\n\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
            "<start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("opens_thought", {}, SOLVE, "<|begin|>Solve.<|User|>1+1?<|Assistant|><think>\n"),
        ("two_ends", {}, ASK, "<|begin|><|head|>user\n\n1+1?<|eot|><|head|>assistant\n\n"),
    ],
)
def test_a_conversation_goes_through_the_template_with_its_arguments(name, kwargs, messages, text) -> None:
    tokenizer = make_tokenizer(name)
    assert conversation_text(tokenizer, messages, kwargs) == text
    assert tokenizer.decode(prompt_ids(tokenizer, messages, kwargs)) == text


@pytest.mark.parametrize("name", MODELS)
def test_there_is_one_bos_token_where_the_family_has_one(name) -> None:
    tokenizer = make_tokenizer(name)
    bos = tokenizer.bos_token_id
    for prompt in ["1+1?", *([ASK] if tokenizer.chat_template else [])]:
        ids = prompt_ids(tokenizer, prompt)
        assert ids.count(bos) == (bos is not None)
        assert bos is None or ids[0] == bos


@pytest.mark.parametrize("name", [name for name, kind in MODELS.items() if kind.template])
def test_ids_are_those_of_the_template_itself(name) -> None:
    tokenizer = make_tokenizer(name)
    own = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    assert prompt_ids(tokenizer, ASK) == own


@pytest.mark.parametrize(
    ("name", "has"), [("chatml", True), ("two_ends", True), ("opens_thought", True), ("no_system", False)]
)
def test_a_system_role_is_found(name, has) -> None:
    assert has_system_role(make_tokenizer(name)) is has


def test_a_template_that_leaves_the_system_message_out_has_no_system_role() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
    assert not has_system_role(tokenizer)
    assert conversation_text(tokenizer, SOLVE) == "[Solve.\n\n1+1?]"


def test_a_template_that_shows_the_system_message_in_its_own_way_is_left_alone() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert conversation_text(tokenizer, SOLVE) == "system: Solve.\nuser: 1+1?\n"


def test_system_messages_in_parts_and_without_a_question_are_kept() -> None:
    tokenizer = make_tokenizer("no_system")
    parts = [{"type": "text", "text": "1+1?"}]
    [fitted] = fitted_conversations(tokenizer, [[SOLVE[0], {"role": "user", "content": parts}]])
    assert fitted == [
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("Solve.", "\n\n", "1+1?")]},
    ]
    assert fitted_conversations(tokenizer, [[SOLVE[0]]]) == [[{"role": "user", "content": "Solve."}]]
    assert fitted_conversations(tokenizer, [ASK]) == [ASK]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("chatml_base", "<|im_end|>"),
        ("thinking", "<|im_end|>"),
        ("think_special", "<|im_end|>"),
        ("no_system", "<end_of_turn>"),
        ("opens_thought", "<|end|>"),
        ("two_ends", "<|eot|>"),
        ("base", "<|end|>"),
    ],
)
def test_a_turn_ends_with_what_the_template_writes(name, end) -> None:
    tokenizer = make_tokenizer(name)
    assert tokenizer.convert_ids_to_tokens(turn_end(tokenizer)) == end


def test_a_template_without_an_end_of_turn_ends_with_the_end_token() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert turn_end(tokenizer) == tokenizer.eos_token_id
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert turn_end(tokenizer) == tokenizer.eos_token_id


def test_what_cannot_be_rendered_is_said() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        prompt_ids(make_tokenizer("base"), ASK)
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match="refuses these messages: roles must alternate"):
        prompt_ids(tokenizer, ASK)
    with pytest.raises(UsageError, match="refuses the text"):
        prompt_ids(tokenizer, "\ud800")
