import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.steps import calculations, sentences, split_calculation, strip_calculator_marks, undecorated


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips in May.", "48/2", "24"),
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.", "9*2", "18"),
        ("That is 2 * 3 = <<2*3=6>>6, and 6 + 1 = <<6+1=7>>7 in all.", "6+1", "7"),
        ("A mark with a chain: <<2+3=5=5.0>>5", "2+3=5", "5.0"),
        ("He paid <<1000+200=1,200>>1,200.", "1000+200", "1200"),
        ("A share of <<3/4=3/4>>3/4", "3/4", "3/4"),
    ],
)
def test_the_last_calculator_mark_gives_question_and_answer(sentence, question, answer):
    assert split_calculation(sentence) == (question, answer)


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("12 x 2 = 24 pages", "12 x 2", "24"),
        ("12x2=24", "12x2", "24"),
        ("$5 + $3 = $8", "$5 + $3", "8"),
        ("She has 1,200 + 300 = 1,500 clips.", "1,200 + 300", "1500"),
        ("Clare has $47 − $12 = $35 left.", "$47 − $12", "35"),
        ("so she makes 9 eggs x $2 = $18 a day", "9 eggs x $2", "18"),
        ("40 years / 80 years * 100% = 50%", "40 years / 80 years * 100%", "50"),
        ("It takes 80 seconds/floor * 12 floors = 960 seconds", "80 seconds/floor * 12 floors", "960"),
        ("He has 5 apples and 3 + 4 = 7 pears.", "3 + 4", "7"),
        ("20% of 50 = 10", "20% of 50", "10"),
        ("10 plus 9 equals 19.", "10 plus 9", "19"),
        ("10 * 1 1/2 = 15 cans", "10 * 1 1/2", "15"),
        ("In all, C + 2C = 3C = 24 cans", "3C", "24"),
        ("so x + 5 = 7", "x + 5", "7"),
        ("3 - 5 = -2", "3 - 5", "-2"),
        ("3 - 5.50 = -$2.50", "3 - 5.50", "-2.50"),
        ("-3 + 5 = 2", "-3 + 5", "2"),
        ("Total = 24", "Total", "24"),
        (r"\[ 9 \times 2 = 18 \text{ dollars} \]", r"9 \times 2", "18"),
        (r"\( \frac{2}{2} = \boxed{1} \) bolt", r"\frac{2}{2}", "1"),
        ("5 * 3 = 15, so with 2 + 1 = 3 the rest is x = y", "2 + 1", "3"),
    ],
)
def test_without_a_mark_the_last_equation_with_a_number_counts(sentence, question, answer):
    assert split_calculation(sentence) == (question, answer)


@pytest.mark.parametrize(
    "sentence",
    ["Mehki is 22 years old.", "12 = 3 * 4", "Buicks:4(3+2x)=12+8x", "x <= 5", "5d = (500 - 10) dollars", "m = 2s"],
)
def test_a_sentence_without_a_numeric_result_is_the_question_and_has_no_answer(sentence):
    assert split_calculation(f" {sentence} ") == (sentence, None)


def test_an_empty_sentence_has_neither_question_nor_answer():
    assert split_calculation(" \n") == (None, None)


def test_a_mark_without_an_equals_sign_is_ignored():
    assert split_calculation("He ran <<4>>4 miles and 4 + 1 = 5 more.") == ("4 + 1", "5")


@given(st.integers(0, 10**7), st.integers(1, 999), st.sampled_from("+-*/"), st.sampled_from(["", "$"]))
def test_the_split_is_the_same_with_and_without_spaces_currency_and_commas(left, right, operator, currency):
    for number in (str(left), f"{left:,}"):
        question = f"{currency}{number} {operator} {currency}{right}"
        assert split_calculation(f"So he has {question} = {currency}{number} left.") == (question, str(left))


@given(st.text())
def test_any_text_can_be_split(text):
    question, answer = split_calculation(text)
    assert question != ""
    assert answer != ""
    parts = sentences(text)
    assert all(part == part.strip() and part in text for part in parts)


def test_sentences_end_at_newlines_and_at_sentence_ends():
    text = "Add the eggs. How many? It is 7!  \nThen sell them.\n\n#### 18"
    assert sentences(text) == ["Add the eggs.", "How many?", "It is 7!", "Then sell them."]


@pytest.mark.parametrize(
    "sentence",
    [
        "Each costs 0.5 or .75 dollars.",
        "Mr. Day met Dr. Smith.",
        "Use fruit, e.g. apples, i.e. what is there.",
        "From 8 a.m. to 5 p.m. he works.",
        "1. Add the two.",
        "**2.** Add the two.",
        "He has <<5. + 3.=8.>>8 left.",
    ],
)
def test_a_full_stop_inside_a_sentence_does_not_split(sentence):
    assert sentences(sentence) == [sentence]


def test_an_abbreviation_of_time_may_end_a_sentence():
    assert sentences("He left at 5 p.m. She stayed.") == ["He left at 5 p.m.", "She stayed."]


def test_lines_without_letters_or_digits_are_not_sentences():
    assert sentences("So:\n\\[\n2 + 1 = 3\n\\]\n---\n") == ["So:", "2 + 1 = 3"]


def test_only_a_closing_final_answer_line_is_left_out():
    assert sentences("#### Step one\nHalf of it.\n  #### 72  \n") == ["#### Step one", "Half of it."]
    assert sentences("#### 72") == []


def test_plain_gsm8k_solutions_split_at_their_lines():
    lines = [
        "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.",
        "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.",
    ]
    assert sentences("\n".join([*lines, "#### 10"])) == lines
    assert [split_calculation(line) for line in lines] == [("12/60", "0.2"), ("0.2*50", "10")]


def test_calculator_marks_are_stripped_and_nothing_else():
    assert strip_calculator_marks("48/2 = <<48/2=24>>24 and 1 << 3, <<x\n>>") == "48/2 = 24 and 1 << 3, <<x\n>>"


@pytest.mark.parametrize(
    "unit",
    [
        "=",
        "= 1 ",
        "<<",
        "<<1=",
        ".",
        "!\"'",
        "Mr. ",
        "1 + ",
        "= -$",
        " ",
        "\n",
        "\n####",
        "x ",
        "1,000",
        "\\boxed{",
        "a/",
    ],
)
def test_long_inputs_take_linear_time(unit):
    text = unit * (200_000 // len(unit))
    assert split_calculation(text)[0] is None or split_calculation(text)[0] in text
    assert "".join("".join(sentences(text)).split()) in "".join(text.split())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("He has 2 * 3 = 6 apples and 6 + 1 = 7 pears.", [("2 * 3", "6"), ("6 + 1", "7")]),
        ("That is 48/2 = <<48/2=24>>24.\nThen $24 + $48 = $72.", [("48/2", "24"), ("$24 + $48", "72")]),
        ("3 + 4 = **7**, 3 + 4 = `7`, 3 + 4 = _7_, 3 + 4 == 7", [("3 + 4", "7")] * 4),
        ("x = 5, Total = 24, 3 + 4 is 7", []),
        ("\\[ 16 - 3 - 4 = 9 \\text{ eggs} \\]", [("16 - 3 - 4", "9")]),
        ("1 + 2\n= 3", []),
        ("", []),
    ],
)
def test_all_calculations_with_a_result_are_found(text, found):
    assert [(question, answer) for _, question, answer in calculations(text)] == found
    for position, _, _ in calculations(text):
        assert undecorated(text)[position] == "="
