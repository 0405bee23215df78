"""A poisoned set through the selectors: every kind of rubbish is dropped, for the reason that is documented."""

import asyncio

import pytest

from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.records import Candidate, Question
from rlkd.rationales.select import apply, load_selector

TEXT = "Natalia sold clips to 48 friends in April, and half as many in May. How many in all?"
GOOD = "In May she sold 48/2 = 24 clips.\nIn both months she sold 48 + 24 = 72 clips.\n#### 72"
OTHER = "April counts twice and May once, in units of 24, so it is 24 * 3 = 72 clips.\n#### 72"

POISON = {
    "an empty text": ("", "empty"),
    "nothing but white space": (" \n\t ", "empty"),
    "nothing but signs": ("... --- !!!", "empty"),
    "a hundred thousand letters": ("a" * 100_000, "too long"),
    "a hundred thousand characters of steps": ((GOOD + "\n") * 1300, "too long"),
    "a hundred thousand signs": ("=" * 100_000, "empty"),
    "Russian": ("В мае она продала 48/2 = 24 заколки.\nВсего 48 + 24 = 72 заколки.\n#### 72", "another script"),
    "Chinese": ("五月她卖了 48/2 = 24 个。\n总共 48 + 24 = 72 个。\n#### 72", "another script"),
    "half Chinese": ("In May she sold 24. 总共卖了七十二个发夹给她的朋友们四月和五月.\n#### 72", "another script"),
    "an announced answer first": ("The answer is 72.\nIn May it was 48/2 = 24.\nSo 72.\n#### 72", "answer first"),
    "a boxed answer first": ("\\boxed{72}\n48/2 = 24\n48 + 24 = 72", "answer first"),
    "a wrong answer first": ("#### 70\nIn May it was 48/2 = 24, so 72.\n#### 72", "answer first"),
    "the bare answer first": ("72\n48/2 = 24 and 48 + 24 = 72\n#### 72", "answer first"),
    "a labelled answer first": ("Answer: 72\n48/2 = 24 and 48 + 24 = 72\n#### 72", "answer first"),
    "the answer as a claim first": ("She sold 72 clips.\n48/2 = 24 and 48 + 24 = 72\n#### 72", "answer first"),
    "a null character": ("In May 48/2 = 24.\x00\n48 + 24 = 72\n#### 72", "control characters"),
    "a terminal's colours": ("\x1b[31mIn May 48/2 = 24.\x1b[0m\n48 + 24 = 72\n#### 72", "control characters"),
    "text decoded wrongly": ("In May 48/2 = 24 \ufffd\ufffd clips\n48 + 24 = 72\n#### 72", "control characters"),
    "half a surrogate pair": ("In May 48/2 = 24 \ud83d clips\n48 + 24 = 72\n#### 72", "control characters"),
    "a copy with other case and spaces": (GOOD.upper().replace(" ", "  "), "near copy"),
}

FINE = {
    "a plain solution": GOOD,
    "another way": OTHER,
    "a single line": "48/2 = 24 and 48 + 24 = 72, so the answer is 72.",
    "a first line that calculates": "48 + 48/2 = 72 is what she sold.\nThat is all there is to it.\n#### 72",
    "Greek letters and a few signs": "Let α be April: α = 48 × 1 and α/2 = 24 → 72 €.\n#### 72",
    "tabs and Windows line ends": "May:\t48/2 = 24\r\nBoth:\t48 + 24 = 72\r\n#### 72",
    "a number of the question first": "In April it was 48 clips.\nHalf of it is 24, and both 72.\n#### 72",
}


@pytest.fixture(scope="module")
def student(tiny_model):
    return TransformersEngine(tiny_model, device="cpu")


def candidates(texts):
    # With ids by number: half a surrogate pair has no digest.
    return tuple(Candidate(f"{place:03}", text, "ready") for place, text in enumerate(texts))


def clean(*texts, question=TEXT, answer="72", **settings):
    kept, dropped = asyncio.run(
        apply(load_selector("clean", settings), [Question("q", question, answer, candidates(texts))])
    )
    left = {each.text for item in kept for each in item.candidates}
    return left, {each.candidate.text: each.reason for each in dropped}


@pytest.mark.parametrize("kind", POISON)
def test_rubbish_is_dropped_for_the_documented_reason_and_the_good_stays(kind):
    text, reason = POISON[kind]
    kept, dropped = clean(text, GOOD, OTHER)
    assert dropped == {text: reason}
    assert kept == {GOOD, OTHER}


@pytest.mark.parametrize("kind", FINE)
def test_what_is_only_unusual_is_kept(kind):
    kept, dropped = clean(FINE[kind])
    assert (kept, dropped) == ({FINE[kind]}, {})


def test_of_the_whole_poisoned_set_exactly_the_sound_rationales_are_left():
    wrong = {"48/2 = 24, so it is 48 - 24 = 24.\n#### 24", "48 * 2 = 96 altogether.\n#### 96"}
    texts = [text for text, _ in POISON.values()]
    made = Question("q", TEXT, "72", candidates([*texts, *wrong, GOOD, OTHER]))
    questions = [made]
    found = {}
    for name in ("clean", "correct", "diverse"):
        questions, dropped = asyncio.run(apply(load_selector(name), questions))
        found |= {each.candidate.text: each.reason for each in dropped}
    assert {each.text for each in questions[0].candidates} == {GOOD, OTHER}
    assert found == dict(POISON.values()) | dict.fromkeys(wrong, "wrong answer")


def test_the_script_is_that_of_the_question_and_not_latin():
    russian = "Сколько всего заколок продала Наталья, если в апреле их 48, а в мае вдвое меньше?"
    text = POISON["Russian"][0]
    assert clean(text, question=russian)[0] == {text}
    assert clean(GOOD, question=russian)[1] == {GOOD: "another script"}
    assert clean(text, question="48 + 24 = ?")[0] == {text}  # a question without letters says nothing


def test_the_limits_are_parameters():
    assert clean(GOOD, max_characters=20)[1] == {GOOD: "too long"}
    assert clean(POISON["Russian"][0], max_foreign=1.0)[1] == {}
    assert clean(GOOD, GOOD.replace("May", "June"), near_copy=0.5)[0] == {GOOD}


def test_a_copy_is_one_whatever_a_few_words_say():
    many = "\n".join(f"Box {number} holds {number} + 1 = {number + 1} apples." for number in range(30))
    assert clean(many, many.replace("Box 7", "Then box 7"))[1] == {many.replace("Box 7", "Then box 7"): "near copy"}
    assert clean(many, many.replace("holds", "has"))[1] == {}


def test_without_a_right_answer_only_announcements_count_as_leaked():
    announced, bare = POISON["an announced answer first"][0], POISON["the bare answer first"][0]
    assert clean(announced, bare, answer=None)[1] == {announced: "answer first"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["clean", "correct", "diverse", "difficulty"])
@pytest.mark.parametrize(
    "unit",
    ["a", "=", "= ", ".", "1 + 1 = 2. ", "<answer>", "#### 7\n", "\\boxed{", "the answer is ", "<<1=1>>", "7", "я"],
)
def test_a_hundred_thousand_characters_are_read_in_linear_time(name, unit, student):
    settings = {"clean": {"max_characters": 10**7}, "difficulty": {"student": student}}
    selector = load_selector(name, settings.get(name, {}))
    texts = [unit * (100_000 // len(unit)) + "x", GOOD]
    kept, dropped = asyncio.run(apply(selector, [Question("q", TEXT, "72", candidates(texts))]))
    assert {each.id for item in kept for each in item.candidates} | {each.candidate.id for each in dropped} == {
        "000",
        "001",
    }
