import pytest

from rlkd.answers import after_thought, ends_in_thought


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no thought at all", "no thought at all"),
        ("<think>a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("a thought that the template opened</think>b", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("<THINK>a</THINK>b", "b"),
        ("<seed:think>a</seed:think>b", "b"),
        ("<reasoning>a</reasoning>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("The tag <think> opens a thought.", "The tag <think> opens a thought."),
        ("`<think>` opens a thought.", "`<think>` opens a thought."),
        ("The tag <think> opens it. The answer is 72", "The tag <think> opens it. The answer is 72"),
        ("<think >a</think >b", "b"),
    ],
)
def test_what_follows_the_last_thought_is_said(text, rest):
    assert after_thought(text) == rest


@pytest.mark.parametrize(
    "text",
    [
        "<think>a",
        "\n <think>\na",
        "<think> a",
        "<think>a</think>b\n<think>c",
        "Sure. <think>a",
        "Well: <think>a",
        "Let me see <think>\na",
        "said before<think>a",
        "<thinking>a",
        "<Thought>a",
        "[THINK]a",
        "◁think▷a",
        "<|begin_of_thought|>a",
        "<|channel|>analysis<|message|>a",
        "<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b",
        "<think>",
        "<think >a",
        "Okay <think> maybe \\boxed{72} or so",
        "Okay <think> maybe \\boxed{72}.",
        "Okay <think> so the answer is 72.",
        "Okay <think> let me see",
    ],
)
def test_an_unfinished_thought_says_nothing(text):
    assert after_thought(text) == ""


def test_a_thought_that_the_template_opened_is_unfinished_without_a_closing_tag():
    assert after_thought("maybe 72", prefilled=True) == ""
    assert after_thought("maybe 71</think>72", prefilled=True) == "72"
    assert after_thought("maybe 72") == "maybe 72"


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("2 + 3?<|assistant|><think>", True),
        ("2 + 3?<|assistant|>\n<think>\n", True),
        ("2 + 3?[THINK]", True),
        ("2 + 3?<|assistant|>\n<think>\n\n</think>\n\n", False),
        ("What does <think> mean?", False),
        ("", False),
    ],
)
def test_a_prompt_may_open_the_thought(prompt, opened):
    assert ends_in_thought(prompt) is opened


@pytest.mark.parametrize("piece", ["<think>", "</think>", "a <think> a", "<|channel|>", "[THINK", "<"])
def test_many_tags_take_one_pass(piece):
    # Quadratic, this would take minutes: a hang guard, no measurement.
    assert isinstance(after_thought(piece * 200_000), str)
