import pytest
from trl.rewards import think_format_reward

from rewards.formats import tag_count, think_format


def chat(text):
    return [[{"role": "assistant", "content": text}]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think>b", 1.0),
        ("<think>\na\n</think>\nb", 1.0),
        ("<think></think>b", 1.0),
        ("a", 0.0),
        ("", 0.0),
        ("<think>a", 0.0),
        ("a</think>b", 0.0),
        ("x<think>a</think>b", 0.0),
        ("</think>a<think>b", 0.0),
        ("<think>a<think>b</think>c", 0.0),
        ("<think>a</think>b<think>c</think>d", 0.0),
        ("<THINK>a</THINK>b", 0.0),
    ],
)
def test_think_format_agrees_with_trls(text, value):
    assert think_format(chat(text)) == think_format_reward(chat(text)) == [value]


@pytest.mark.parametrize(
    ("text", "ours", "trls"),
    [
        # Leading spaces do no harm: some chat templates write them.
        ("\n<think>a</think>b", 1.0, 0.0),
        # Something must come after the thinking, and the thinking ends once.
        ("<think>a</think>", 0.0, 1.0),
        ("<think>a</think>  \n", 0.0, 1.0),
        ("<think>a</think>b</think>c", 0.0, 1.0),
    ],
)
def test_think_format_differs_from_trls_where_its_docstring_says_so(text, ours, trls):
    assert think_format(chat(text)) == [ours]
    assert think_format_reward(chat(text)) == [trls]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>a</think>\n<answer>\nb\n</answer>\n", 1.0),
        ("<think>a</think>b", 0.0),
        ("<think>a</think>so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think><answer>a</answer></think><answer>b</answer>", 0.0),
        ("<answer>b</answer>", 0.0),
    ],
)
def test_with_answer_tags_the_rest_is_one_answer(text, value):
    assert think_format(chat(text), answer_tags=True) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0.0),
        ("<think>", 0.25),
        ("<think>a</think>", 0.5),
        ("<think>a</think><answer>", 0.75),
        ("<think>a</think><answer>b</answer>", 1.0),
        ("</answer><answer></think><think>", 1.0),
        ("<think><think>a</think><answer>b</answer>", 0.75),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5),
        ("<think>" * 2 + "</think>" * 2 + "<answer>" * 2 + "</answer>" * 2, 0.0),
    ],
)
def test_tag_count_pays_a_quarter_for_each_tag_that_stands_once(text, value):
    assert tag_count(chat(text)) == tag_count([text]) == [value]


def test_a_think_tag_that_the_chat_template_opens_counts_as_written():
    text = "I reason.\n</think>\n<answer>4</answer>"
    assert think_format([text], answer_tags=True) == [0.0]
    assert think_format([text], answer_tags=True, prefilled=True) == [1.0]
    assert tag_count([text]) == [0.75]
    assert tag_count([text], prefilled=True) == [1.0]
