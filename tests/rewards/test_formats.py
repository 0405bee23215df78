import random
import re
import threading

import pytest
from trl import rewards as trls

from rewards import BUILT_IN, build_reward
from rewards.formats import CodeFormat, format_of_lines, reasoning_steps, tag_count, think_format, think_format_reward


def chat(text):
    return [[{"role": "assistant", "content": text}]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think>b", 1.0),
        ("<think>\na\n</think>\nb", 1.0),
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
    assert think_format(chat(text)) == trls.think_format_reward(chat(text)) == [value]


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        # Leading spaces do no harm: some chat templates write them.
        ("\n<think>a</think>b", 1.0, 0.0),
        # Something must come after the thinking, and the thinking ends once.
        ("<think>a</think>", 0.0, 1.0),
        ("<think>a</think>  \n", 0.0, 1.0),
        ("<think>a</think>b</think>c", 0.0, 1.0),
        # Something must be thought.
        ("<think></think>b", 0.0, 1.0),
        ("<think> \n</think>b", 0.0, 1.0),
    ],
)
def test_think_format_differs_from_trls_where_its_docstring_says_so(text, ours, theirs):
    assert think_format(chat(text)) == [ours]
    assert trls.think_format_reward(chat(text)) == [theirs]


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
        ("<think><think>a</think><answer>b</answer>", 0.75),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.5),
        ("<think>" * 2 + "</think>" * 2 + "<answer>" * 2 + "</answer>" * 2, 0.0),
    ],
)
def test_tag_count_is_a_quarter_for_each_tag_that_occurs_once(text, value):
    assert tag_count(chat(text)) == tag_count([text]) == [value]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # In another order
        ("</answer><answer></think><think>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("a</think><think>", 0.0),
        ("</think><answer>b</answer><think>", 0.0),
        # Around nothing
        ("<think></think><answer></answer>", 0.0),
        ("<think> \n</think><answer>b</answer>", 0.5),
        ("<think>a</think><answer>\u200b</answer>", 0.5),
        # open-r1's order and contents are anything, but its tags stand on lines of their own.
        ("</think><answer>b</answer>", 0.75),
        ("<answer>b</answer>", 0.5),
    ],
)
def test_tags_in_another_order_or_around_nothing_do_not_count(text, value):
    assert tag_count([text]) == [value]


EMPTY = ["", " ", "\n", " \t\n", "\u200b", "\u00a0", "\ufeff\n"]


@pytest.mark.parametrize("nothing", EMPTY)
def test_an_empty_thought_earns_no_format_reward(nothing):
    loose = f"<think>{nothing}</think><answer>b</answer>"
    lines = f"<think>\n{nothing}\n</think>\n<answer>\n```python\nb\n```\n</answer>"
    for text in (loose, lines):
        assert think_format([text]) == think_format([text], answer_tags=True) == [0.0]
        assert tag_count([text]) == [0.5]
        # TRL's number
        assert think_format_reward([text]) == [1.0]
    assert format_of_lines([lines]) == CodeFormat()([lines]) == [0.0]


@pytest.mark.parametrize("nothing", EMPTY)
def test_an_empty_answer_or_program_earns_none_either(nothing):
    assert think_format([f"<think>a</think>{nothing}"]) == [0.0]
    assert think_format([f"<think>a</think><answer>{nothing}</answer>"], answer_tags=True) == [0.0]
    assert format_of_lines([LAID_OUT.replace("\nb\n", f"\n{nothing}\n")]) == [0.0]
    assert CodeFormat()([LAID_OUT.replace("b", f"```python{nothing}\n```")]) == [0.0]


PREFILLED = {
    "think_format": "I add.</think>\n#### 72",
    "think_format_reward": "I add.</think>\n#### 72",
    "format": "I add.\n</think>\n<answer>\n72\n</answer>",
    "tag_count": "I add.</think><answer>72</answer>",
    "code_format": "I add.\n</think>\n<answer>\n```python\n72\n```\n</answer>",
}


@pytest.mark.parametrize("name", PREFILLED)
def test_every_format_reward_knows_a_template_that_opens_the_thought(name):
    text = PREFILLED[name]
    assert build_reward(name, {"prefilled": True})(completions=[text]) == [1.0]
    assert build_reward(name)(completions=[text])[0] < 1.0
    # The thought is empty where the completion begins with its end.
    ends = text[text.index("I add.") + 6 :]
    assert (build_reward(name, {"prefilled": True})(completions=[ends])[0] < 1.0) is (name != "think_format_reward")


def test_a_think_tag_that_the_chat_template_opens_counts_as_written():
    text = "I reason.\n</think>\n<answer>4</answer>"
    assert think_format([text], answer_tags=True) == [0.0]
    assert think_format([text], answer_tags=True, prefilled=True) == [1.0]
    assert tag_count([text]) == [0.75]
    assert tag_count([text], prefilled=True) == [1.0]


PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\n",
    "\n",
    "a",
    " ",
    "```",
    "```python\n",
    "```rust",
    "é",
    "猫",
]


def generated(count, starts):
    rng = random.Random(0)
    return [rng.choice(starts) + "".join(rng.choices(PIECES, k=rng.randint(0, 9))) for _ in range(count)]


def test_think_format_reward_agrees_with_trls():
    texts = generated(2000, ["", "<think>", "<think>\n", " <think>"])
    scores = think_format_reward([chat(text)[0] for text in texts])
    assert scores == trls.think_format_reward([chat(text)[0] for text in texts])
    assert min(scores.count(0.0), scores.count(1.0)) > 100


LAID_OUT = "<think>\na\n</think>\n<answer>\nb\n</answer>"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (LAID_OUT, 1.0),
        (LAID_OUT + "\nand more", 1.0),
        (LAID_OUT + " ", 0.0),
        ("\n" + LAID_OUT, 0.0),
        (LAID_OUT.replace("\na\n", "a"), 0.0),
        (LAID_OUT.replace("</think>\n", "</think>"), 0.0),
        (LAID_OUT.replace("b\n", "b"), 0.0),
        ("", 0.0),
    ],
)
def test_format_requires_each_tag_on_its_own_line(text, value):
    assert format_of_lines(chat(text)) == format_of_lines([text]) == [value]


@pytest.mark.parametrize("language", [None, "python"])
def test_format_and_code_format_are_the_documented_expressions(language):
    # `code_format` asks for a fence in between; both are open-r1's, read by the slow but obvious means. Each group
    # holds something.
    answer = "(.*?)" if language is None else f".*?```{language}(.*?)```.*?"
    expression = re.compile(
        r"^<think>\n(.*?)\n</think>\n<answer>\n" + answer + r"\n</answer>$", re.DOTALL | re.MULTILINE
    )
    reward = format_of_lines if language is None else CodeFormat(language)
    inside = "<think>\na\n</think>\n<answer>\n"
    starts = ["", inside, inside + "```python\n", "<think>\n\n</think>\n<answer>\n```python\n", "<think>\n"]
    texts = [text + end for text in generated(2000, starts) for end in ("", "```\n</answer>", "\n</answer>")]
    scores = reward(completions=texts)
    matches = [expression.match(text) for text in texts]
    assert scores == [float(match is not None and all(map(str.strip, match.groups()))) for match in matches]
    assert min(scores.count(0.0), scores.count(1.0)) > 100


def test_the_language_of_the_code_may_differ_from_row_to_row():
    texts = [LAID_OUT.replace("b", f"```{name}\n1\n```") for name in ("python", "rust", "c++")]
    assert CodeFormat()(completions=texts) == [1.0, 0.0, 0.0]
    assert CodeFormat("c++")(completions=texts) == [0.0, 0.0, 1.0]
    assert CodeFormat()(completions=texts, language=[None, "rust", "python"]) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (LAID_OUT, 1.0),
        # Without line breaks around it: none of "<think>\\n", "\\n</think>\\n", "\\n<answer>\\n" and "\\n</answer>".
        ("<think>a</think><answer>b</answer>", 0.0),
        # "\\n</think>\\n" takes the line break that "\\n<answer>\\n" needs: it is counted all the same, apart.
        ("<think>\na\n</think>\n<answer>\nb</answer>", 0.75),
        ("<think>\na\n</think>\n", 0.5),
        ("<think>\n", 0.25),
        ("<think>\n<think>\na\n</think>\n<answer>\nb\n</answer>", 0.75),
    ],
)
def test_tag_count_on_lines_is_open_r1s(text, value):
    assert tag_count(chat(text), on_lines=True) == [value]


def test_a_think_tag_and_line_break_that_the_template_opens_count_as_written():
    assert tag_count([LAID_OUT.removeprefix("<think>\n")], on_lines=True, prefilled=True) == [1.0]
    assert format_of_lines([LAID_OUT.removeprefix("<think>\n")], prefilled=True) == [1.0]


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("", 0),
        ("Just the answer.", 0),
        ("Step 1: add.", 1),
        ("Step 1: add.\nStep 22: halve.", 2),
        ("1. add\n2. halve\n3. done", 3),
        ("Steps:\n- add\n* halve", 2),
        ("- not after a line break", 0),
        ("First, add. Next, halve. Finally, done.", 3),
        ("First, 1. is no start of a line", 1),
        # Nothing behind a marker
        ("1.\n2.\n3.", 0),
        ("- \n- \n- \n- ", 0),
        ("First, Second, Next,", 0),
        ("Step 1: Step 2: Step 3: 4", 1),
        ("Step 1:\nadd\nStep 2:\n\nhalve\nStep 3:\n", 2),
        ("1. ...\n2. add", 1),
        ("Step one: no. first, no. 1) no", 0),
        ("Second, a\n- b\n- c\n- d\n- e", 5),
    ],
)
def test_each_step_marker_is_a_third_up_to_three(text, signs):
    # min(1, signs / 3): 0, .333, .667, 1 and 1 again.
    assert reasoning_steps(chat(text)) == [pytest.approx(min(1.0, signs / 3))]


ADVERSARIAL = [
    "<think>", "</think>", "<think>\n", "\n</think>\n<answer>\n", "<answer>", "\n</answer>x", "```python", "```", " ",
    "\n", "Step 1", "1", "Step ", "\n-", "</answer>",
]  # fmt: skip
FORMATS = ["code_format", "format", "reasoning_steps", "tag_count", "think_format", "think_format_reward"]


@pytest.mark.parametrize("name", FORMATS)
def test_no_text_makes_a_format_reward_hang(name):
    assert name in BUILT_IN
    reward = build_reward(name)
    assert not reward.is_isolated
    texts = []
    for piece in ADVERSARIAL:
        run = piece * (200_000 // len(piece))
        texts += [
            run,
            "<think>" + run,
            LAID_OUT[:-9] + run,
            "<think>\n" + run + "x</answer>",
            "<think></think><answer></answer>" + run,
        ]
    done = threading.Event()

    def score():
        reward(completions=texts)
        done.set()

    threading.Thread(target=score, daemon=True).start()
    assert done.wait(60), "hangs"
