import threading
from fractions import Fraction

import pytest

from rewards import build_reward
from rewards.choices import Boolean, MultipleChoice, Numeric, announced

OPTIONS = {"A": "bank", "B": "library", "C": "department store", "D": "a mall", "E": "New York"}


def choose(text, gold="B", **columns):
    [score] = MultipleChoice()(completions=[text], answer=[gold], **{k: [v] for k, v in columns.items()})
    return score


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "B) library",
        "B: library",
        "**B**",
        "Option B",
        "library",
        "Library.",
        "The answer is B.",
        "The answer is (B).",
        "So the final answer is: B) library",
        r"\boxed{B}",
        r"\boxed{\text{B}}",
        r"$\boxed{\textbf{(B)}}$",
        r"\boxed{library}",
        "#### B",
        "<think>A? no</think><answer>\nB\n</answer>",
        "The answer is A. No, the answer is B.",
    ],
)
def test_a_letter_or_the_options_text_is_the_answer(text):
    assert choose(text, choices=OPTIONS) == 1.0
    assert choose(text, gold="library", options=OPTIONS) == 1.0
    assert choose(text, gold="C", choices=OPTIONS) == 0.0


@pytest.mark.parametrize("text", ["", "A or B", "Z", "the answer is a bookshop", "B" + " or not" * 100, "A library"])
def test_an_answer_that_names_no_option_is_wrong(text):
    assert choose(text, choices=OPTIONS) == 0.0


def test_an_option_that_begins_with_a_letter_is_not_a_letter():
    assert choose("The answer is a mall.", gold="D", choices=OPTIONS) == 1.0
    assert choose("The answer is a mall.", gold="A", choices=OPTIONS) == 0.0


def test_options_come_in_the_forms_of_public_data():
    labels = {"label": list(OPTIONS), "text": list(OPTIONS.values())}
    for form in (OPTIONS, labels, list(OPTIONS.values())):
        assert choose("The answer is New York.", gold="E", choices=form) == 1.0
    assert choose("B", gold=1, choices=list(OPTIONS.values())) == 1.0
    assert choose("B", gold=0, choices=list(OPTIONS.values())) == 0.0
    numbered = {"label": ["1", "2"], "text": ["ice", "steam"]}
    assert choose("The answer is 2.", gold="2", choices=numbered) == choose("steam", gold="2", choices=numbered) == 1.0


def test_a_text_with_two_letters_is_right_if_either_is():
    twice = {"A": "drawer", "B": "cabinet", "C": "cabinet"}
    assert choose("The answer is cabinet.", gold="B", choices=twice) == 1.0
    assert choose("The answer is cabinet.", gold="C", choices=twice) == 1.0
    assert choose("The answer is C.", gold="B", choices=twice) == 0.0


def test_without_options_letters_and_equal_words_count():
    assert choose("The answer is (B).") == 1.0
    assert choose("The answer is library.") == 0.0
    assert choose("The answer is Library.", gold="library") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "The answer is A, B, C, D",
        "A. B. C. D.",
        r"\boxed{A, B}",
        r"\boxed{A} or \boxed{B}",
        "<answer>A and B</answer>",
        "Answer: (A), (B)",
        "The answer is A > B",
        "The answer is A => B",
        "The answer is A = B",
        "The answer is not B.",
    ],
)
def test_several_letters_are_no_answer(text):
    assert choose(text, gold="A") == choose(text, gold="B") == 0.0
    assert choose(text, gold="A", choices=OPTIONS) == choose(text, gold="B", choices=OPTIONS) == 0.0


@pytest.mark.parametrize("text", ["A, C", "C and A", "(A), (C)", r"\boxed{A, C}"])
def test_a_gold_answer_of_several_letters_needs_exactly_these(text):
    assert choose(text, gold="A, C") == choose(text, gold="A and C", choices=OPTIONS) == 1.0
    assert choose(text, gold="AC", choices=OPTIONS) == 1.0
    assert choose(text, gold="A, B") == choose(text, gold="A") == 0.0
    assert choose("A", gold="A, C") == choose("A, B, C", gold="A, C") == 0.0


@pytest.mark.parametrize(
    "gold", ["(B)", "B.", "b", "B) library", r"\boxed{B}", "#### B", "The answer is B.", "option B", "['B']", ["B"]]
)
def test_a_gold_answer_is_read_as_texts_are(gold):
    assert choose("The answer is B", gold=gold) == choose("Answer: B", gold=gold, choices=OPTIONS) == 1.0
    assert choose("The answer is C", gold=gold) == choose("Answer: C", gold=gold, choices=OPTIONS) == 0.0


def test_a_gold_answer_may_be_a_place_in_the_options_as_a_text():
    texts = list(OPTIONS.values())
    assert choose("B", gold="1", choices=texts) == 1.0
    assert choose("B", gold="0", choices=texts) == 0.0
    assert choose("B", gold="9", choices=texts) is None
    # The text of an option, or its label, comes before its place.
    assert choose("B", gold="1", choices=["3", "1", "2"]) == 1.0
    assert choose("A", gold="1", choices=["1", "2"]) == 1.0
    assert choose("1", gold="1", choices={"label": ["1", "2"], "text": ["ice", "steam"]}) == 1.0


def test_a_letter_with_the_text_of_another_option_is_no_answer():
    assert choose("The answer is B. bank", choices=OPTIONS) == 0.0
    assert choose("(B) bank, because", choices=OPTIONS) == 0.0
    assert choose("The answer is B. library", choices=OPTIONS) == 1.0
    assert choose("B library", choices=OPTIONS) == 1.0
    assert (
        choose("The answer is B (bank)", choices=OPTIONS) == choose("The answer is bank (B)", choices=OPTIONS) == 0.0
    )
    assert choose("The answer is B (library)", choices=OPTIONS) == 1.0
    assert choose("The answer is library (B).", choices=OPTIONS) == 1.0


@pytest.mark.parametrize(
    ("gold", "right"),
    [
        (1, True),
        ("1", True),
        (0, False),
        ("0", False),
        ("1.0", True),
        ("y", True),
        ("F", False),
        ("#### yes", True),
        (r"\boxed{No}", False),
    ],
)
def test_a_truth_may_be_a_number_or_an_announcement(gold, right):
    assert Boolean()(completions=["yes", "no"], answer=[gold] * 2) == [float(right), float(not right)]


@pytest.mark.parametrize(
    ("gold", "choices"),
    [
        (None, OPTIONS),
        ("", None),
        ("F", OPTIONS),
        ("shop", OPTIONS),
        (9, OPTIONS),
    ],
)
def test_a_gold_answer_without_an_option_makes_the_choice_not_applicable(gold, choices):
    assert choose("B", gold=gold, choices=choices) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yes", True),
        ("Yes.", True),
        ("TRUE", True),
        ("The answer is no.", False),
        ("So the answer is: Yes, because it is.", True),
        (r"\boxed{\text{No}}", False),
        ("**False**", False),
        ("<answer> true </answer>", True),
        ("#### no", False),
        ("yes</think>no", False),
        ("(no)", False),
        ("No: it is not.", False),
        ("", None),
        ("no one knows", None),
        ("It is true that pigs fly", None),
        ("nope", None),
        ("not true", None),
        ("yes and no", None),
        ("yes-and-no", None),
    ],
)
def test_yes_and_true_mean_the_same_and_so_do_no_and_false(text, found):
    scores = Boolean()(completions=[text] * 6, answer=[True, "Yes", "true", False, "No", "false."])
    assert scores == [float(found is True)] * 3 + [float(found is False)] * 3


@pytest.mark.parametrize("gold", [None, "", "maybe", 3])
def test_a_gold_answer_that_is_neither_makes_boolean_not_applicable(gold):
    assert Boolean()(completions=["yes"], answer=[gold]) == [None]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("72", "72"),
        ("-3.50", "-7/2"),
        ("1,200.5", "2401/2"),
        ("$18", "18"),
        ("3/4", "3/4"),
        ("24 clips", "24"),
        ("75%", "75"),
        ("1.5e3", "1500"),
        ("1.5E-3", "3/2000"),
        (r"6.02 \times 10^{23}", str(602 * 10**21)),
        ("2*10^-2", "1/50"),
        ("3 × 10^2", "300"),
        (r"\frac{3}{4}", "3/4"),
        (r"-\dfrac{1}{3}", "-1/3"),
        ("−5", "-5"),
    ],
)
def test_numbers_are_read_as_people_write_them(text, found):
    gold = str(Fraction(found))
    assert Numeric(relative=0)(completions=[text, f"Answer: {text}"], answer=[gold] * 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    "text", ["", "x", "1.2.3", r"\frac{1}{0}", r"\frac{x}{2}", "1e9999", "nan", "inf", "5 or 6", "e5"]
)
def test_a_text_that_is_not_a_number_is_wrong(text):
    assert Numeric()(completions=[text], answer=["5"]) == [0.0]


def test_the_tolerance_is_the_larger_of_both_and_exact_at_its_edge():
    texts = ["The answer is 100.1.", "The answer is 100.11.", "99.9", "99.89", "a great many", ""]
    # 0.001 x 100 = 0.1.
    assert Numeric()(completions=texts, answer=["100"] * 6) == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert Numeric(relative=0)(completions=["100", "100.0", "100.0001"], answer=["100"] * 3) == [1.0, 1.0, 0.0]
    # Near 0 the relative tolerance is nothing: max(0.1, 0.001 x 0) = 0.1.
    assert Numeric(absolute=0.1)(completions=["0.1", "-0.1", "0.11"], answer=["0"] * 3) == [1.0, 1.0, 0.0]
    assert Numeric(relative=0.1)(completions=["-11", "-9", "-8.9"], answer=[-10] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("30+12=42", "42", 1.0),
        ("42 = 30 + 12", "42", 1.0),
        (r"\boxed{30+12=42}", "42", 1.0),
        ("42", "30+12=42", 1.0),
        ("42 = 30 + 13", "42", 0.0),
        ("40%", "0.4", 1.0),
        ("0.4", "40%", 1.0),
        ("0.004", "40%", 0.0),
        ("4%", "0.4", 0.0),
        ("2,5", "2.5", 1.0),
        ("2.5", "2,5", 1.0),
        ("2,5", "2", 0.0),
        ("4²", "16", 1.0),
        ("2^4", "16", 1.0),
        ("9^9^9^9", "16", 0.0),
    ],
)
def test_numeric_reads_calculations_percentages_and_decimal_commas(text, gold, score):
    assert Numeric()(completions=[text, f"The answer is {text}"], answer=[gold] * 2) == [score] * 2


def test_a_gold_answer_that_is_not_a_number_makes_numeric_not_applicable():
    assert Numeric()(completions=["5"] * 3, answer=[None, "few", ""]) == [None] * 3
    assert Numeric()(completions=["5"] * 2, answer=["2 + 3 = 5\n#### 5", 5]) == [1.0, 1.0]


@pytest.mark.parametrize(
    "given", [{"relative": -1}, {"absolute": -0.1}, {"relative": float("nan")}, {"absolute": float("inf")}]
)
def test_an_invalid_tolerance_is_refused(given):
    with pytest.raises(ValueError, match="expected 0 or above, and finite"):
        Numeric(**given)


def test_thinking_and_long_texts_without_an_announcement_have_no_answer():
    assert announced("<think>the answer is 5</think>I give up" + "." * 300) == ("", "")
    assert announced("6 " * 300) == ("", "")


@pytest.mark.parametrize("name", ["multiple_choice", "boolean", "numeric"])
def test_an_unfinished_thought_earns_nothing(name):
    golds = {"multiple_choice": "A", "boolean": "yes", "numeric": "72"}
    said = golds[name]
    texts = [f"<think>The answer is {said}", f"<think>\\boxed{{{said}}}", f"<think>{said}", f"<think>x</think>{said}"]
    assert build_reward(name)(completions=texts, answer=[said] * 4) == [0.0, 0.0, 0.0, 1.0]
    prefilled = build_reward(name, {"prefilled": True})
    assert prefilled(completions=[said, f"x</think>{said}"], answer=[said] * 2) == [0.0, 1.0]


PIECES = [
    "<answer>",
    "</answer>",
    "answer is ",
    "\\boxed{",
    "#### ",
    " ",
    "\n",
    "(",
    "B)",
    "\\text{",
    "yes",
    "9",
    "1,",
    "{",
    "*",
    "e5",
    "\\frac{",
]


@pytest.mark.parametrize("name", ["multiple_choice", "boolean", "numeric"])
@pytest.mark.slow
def test_no_text_makes_a_choice_reward_hang(name):
    reward = build_reward(name)
    assert not reward.is_isolated
    texts = [
        form.format(piece * (200_000 // len(piece)))
        for piece in PIECES
        for form in ("{}", "The answer is {}", "{}#### 5")
    ]
    done = threading.Event()

    def score():
        reward(completions=texts, answer=["5"] * len(texts))
        done.set()

    threading.Thread(target=score, daemon=True).start()
    assert done.wait(90), "hangs"
