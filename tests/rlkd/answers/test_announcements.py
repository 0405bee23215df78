import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkd.answers import answer_and_gold, extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = 24 in May, 72 in all.\n#### 72", "72"),
        ("#### 72\n", "72"),
        ("####72<|im_end|>", "72"),
        ("#### 10\nNo, wait.\n#### 72", "72"),
        (r"so \boxed{72}", "72"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{a}{b}}} and done", r"\sqrt{\frac{a}{b}}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{ 5 }", "5"),
        ("<answer>72</answer>", "72"),
        ("<answer> 72 </answer> bye", "72"),
        ("<ANSWER>72</ANSWER>", "72"),
        (r"<answer>So \boxed{72}.</answer>", "72"),
        ("The answer is 72.", "72"),
        ("The final answer is: 72 clips. Good.", "72 clips"),
        ("The answer is $5.50.", "$5.50"),
        ("The answer is 5…", "5"),
        ("The answer is 5!!", "5"),
        ("The answer is 5 :)", "5"),
        ("The answer is 5 😀", "5"),
        ("The answer is 5 \\blacksquare", "5"),
        ("The answer is 5 (i.e. 2 + 3).", "5"),
        ("the answer is 1.5\nand more", "1.5"),
    ],
)
def test_an_announced_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> \\boxed{2}\n#### 3", "3"),
        ("The answer is 1. <answer>2</answer>", "2"),
        ("The answer is 1.\n\\boxed{2}", "2"),
    ],
)
def test_the_most_explicit_announcement_wins(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    ["", "72", "She sold 72 clips.", r"\boxed{", r"\boxed{\frac{1}{2", r"\boxed{}", "<answer></answer>", "####"],
)
def test_a_text_that_announces_no_answer_has_none(text):
    assert extract_answer(text) is None


def test_a_thought_is_not_an_answer():
    assert extract_answer(r"<think>maybe \boxed{1}</think> The answer is 2.") == "2"
    assert extract_answer(r"<think>maybe \boxed{1}</think> I do not know") is None
    assert extract_answer(r"<think>maybe</think> \boxed{1} </think> so 2") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first 3, then 24", "24"),
        ("I get 24, I think", "24"),
        ("It is .5", ".5"),
        ("$1,200.50 in all", "$1,200.50"),
        ("1/2 of it", "1/2"),
        ("minus -3", "-3"),
    ],
)
def test_the_last_number_counts_only_as_fallback(text, answer):
    assert extract_answer(text, "last_number") == answer
    assert extract_answer(text) is None


def test_an_announced_answer_beats_the_last_number():
    assert extract_answer(r"\boxed{5} took me 3 minutes", "last_number") == "5"


@given(
    st.text() | st.lists(st.sampled_from(["\\boxed{", "}", "####", "<answer>", "</think>", "answer is", "\n", "7"]))
)
def test_extraction_never_raises_and_never_gives_an_empty_answer(text):
    text = text if isinstance(text, str) else "".join(text)
    for fallback in ("none", "last_number"):
        answer = extract_answer(text, fallback)
        assert answer is None or answer.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Step 1: add\n1 + 4 = 5, so \\boxed{5}", "5"),
        ("The answer is 3. No, wait.\n#### 4", "4"),
        ("<answer>12</answer> and then <answer>13", "12"),
        ("<answer>\\boxed{7}</answer>", "7"),
        ("<answer>#### 7</answer>", "7"),
        ("\\boxed{The answer is 7}", "7"),
        ("\\boxed{#### 7}", "7"),
        ("The answer is, 7", "7"),
        ("The answer is, of course, 7", "7"),
    ],
)
def test_the_last_announcement_counts_unless_it_is_truncated(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Answer: 72",
        "ANSWER:72",
        "48 + 24 = 72\nAnswer : 72",
        "**Answer:** 72",
        "**Final Answer**: 72.",
        "***Answer: 72***",
        "__Answer__: 72",
        "### Final Answer: 72",
        "> - 1. Answer: 72",
        "Final answer = 72",
        "Final answer：72",
        "So, the final answer: 72",
        "Here is my answer: 72",
        "Answer (in clips): 72",
        "Answer to question 3: 72",
        "Answer: 71\nNo, wait.\nAnswer: 72",
        "Answer: 72\n\nI hope this helps!",
        "Answer → 72",
        "Answer - 72",
        "<b>Answer:</b> 72",
        "ANS: 72",
        "Final result: 72",
        "✅ **Final Answer:** 72 🎉",
        '"Answer: 72"',
        "(Final answer: 72)",
        "[Answer: 72].",
        "| Answer: 72 |",
        "$\\textbf{Answer: }72$",
        "\\textbf{Final Answer:} 72",
        "\\text{Answer}: 72",
        "[Answer] 72",
        "Result: 72",
        "48 + 24 = 72\n**Result:** 72.",
        "Final answer 72",
    ],
)
def test_a_label_announces(text):
    assert extract_answer(text) == "72"


@pytest.mark.parametrize(
    "text",
    [
        "He wrote 72 under Answers.",
        "Answer choices: A) 71 B) 72",
        "Check the answer: 72 - 24 = 48",
        "His answer: 72",
        "Tom's answer: 72",
        "A wrong answer: 72",
        "Answering: 72",
        "Answer:",
        "No answer: 72",
        "There is no final answer: 72",
        "[Answer](answer.md)",
        "See [answer] 72",
        "Result: she sold 72",
        "Total result: 72",
        "result = 72",
        "The result is 72.",
        "He earned 24 answers * 2 points/answer = 48 points.",
        "The third answer was 1800 - 400 = 1400.",
        "The answer to the second problem is 24.",
        "The wrong answer is 71.",
    ],
)
def test_a_label_of_something_else_announces_nothing(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "words",
    [
        "is therefore",
        "is, therefore,",
        "therefore is",
        "is thus",
        "is indeed",
        "is exactly",
        "is simply",
        "is about",
        "is approximately",
        "is equal to",
        "is:",
        "should be",
        "must therefore be",
        "would be about",
        "will be",
        "has to be",
        "equals",
        "comes to",
        "comes out to be",
        "turns out to be",
        "works out to",
        "amounts to",
        "was",
        "to this problem is",
        "to the original question is then",
        ", rounded to two places, is",
        "we get is",
        "that I found is definitely",
        "is calculated to be",
        "is as follows:",
        "came out to be",
        "turned out to be",
        "ends up being",
        "does equal",
        "is ultimately",
        "is, naturally,",
        "is once again",
        "is in total",
        "is approx.",
        "is nearly",
        "is almost",
        "is close to",
        "is going to be",
        "can only be",
        "shall be",
        "remains",
    ],
)
def test_fillers_do_not_belong_to_an_answer(words):
    assert extract_answer(f"So the answer{'' if words[0] == ',' else ' '}{words} 72.") == "72"


@pytest.mark.parametrize(
    "text",
    [
        "I don't know if the answer is 72.",
        "I doubt the answer is 72.",
        "I don't think that the answer is 72.",
        "Suppose the answer is 72.",
        "Is it true that the answer is 72?",
        "The answer is 72?",
        "Let us see what the answer is:\n72 or so",
        "The answer could be 72.",
        "The answer isn't 72.",
        "Hence the total is 72.",
        "It is false that the answer is 72.",
        "Nobody says the answer is 72.",
    ],
)
def test_a_doubt_or_a_question_announces_nothing(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is not 72.", "not 72"),
        ("The answer is at least 72.", "at least 72"),
        ("The answer is between 70 and 72.", "between 70 and 72"),
        ("The answer is probably 72.", "probably 72"),
        ("The answer is hardly 72.", "hardly 72"),
        ("The answer is possibly 72.", "possibly 72"),
        ("The answer is 4 or 5.", "4 or 5"),
        ("The answer is 4, or maybe 5.", "4, or maybe 5"),
        ("The answer is 5, but it could be 6.", "5, but it could be 6"),
        ("The answer is 5, which is wrong.", "5, which is wrong"),
        ("The answer is 5, it could also be 6.", "5, it could also be 6"),
        ("Either the answer is 72 or the answer is 73.", None),
    ],
)
def test_a_hedged_answer_keeps_its_hedge(text, answer):
    assert extract_answer(text) == answer


def test_a_sentence_before_the_announcement_does_not_take_it_back():
    assert extract_answer("I don't know why, but the answer is 72.") == "72"
    assert extract_answer("If she sold 48, the answer is 72.") == "72"


@pytest.mark.parametrize("first", ["The answer is 72.", "\\boxed{72}.", "#### 72\n", "Answer: 72\n"])
@pytest.mark.parametrize(
    "remark",
    [
        "So the answer is clear.",
        "The answer is supported by the check.",
        "The answer is as required.",
        "Thus, the answer is now obvious.",
        "The answer is obtained from the equation.",
    ],
)
def test_a_remark_on_the_answer_counts_only_where_nothing_else_does(first, remark):
    assert extract_answer(f"{first} {remark}") == "72"
    assert extract_answer(remark) is not None


@pytest.mark.parametrize(
    "last", ["wrong", "undefined", "Paris", "no solution", "seventy", "exact at 73", "the blue one"]
)
def test_another_answer_counts_though_it_has_no_number(last):
    assert extract_answer(f"\\boxed{{72}}. The answer is {last}.") == last


def test_a_comment_on_the_answer_is_no_announcement():
    assert extract_answer("\\boxed{72}. The answer remains the same.") == "72"
    assert extract_answer("\\boxed{72}. The answer is reasonable.") == "72"
    assert extract_answer("Answer: correct") == "correct"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is:\n72",
        "The answer is\n\n72.",
        "The answer is:\r\n72",
        "Answer:\n**72**",
        "Answer:\n- 72",
        "**Final Answer**\n\n72",
        "### Answer\n72\n\nWe added.",
        "Answer:\n72\nBecause 48 + 24 = 72.",
        "The answer is:\n$$\n72\n$$",
        "The answer is:\n\\[\n72\n\\]\nDone.",
        "Answer:\n```\n72\n```",
        "Final Answer\n============\n72",
        "The answer is:\n\\begin{equation}\n72\n\\end{equation}",
        "The answer is:\n#### 72",
        "Answer:\n\\[\\boxed{72}\\]",
        "#### Result\n72",
        "### Final Result:\n72\n\nWe added.",
        "**Result**\n\n72",
        "#### Final Answer (clips)\n72",
    ],
)
def test_the_answer_may_stand_on_the_next_line(text):
    assert extract_answer(text) == "72"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 4\n5", "4, 5"),
        ("The answer is 4.\n5\n\nDone.", "4, 5"),
        ("#### 4\n5", "4, 5"),
        ("Answer:\n1. 4\n2. 5", "4, 5"),
        ("Answer: A\nB", "A, B"),
        ("Answer: (A) Paris\n(B)", "(A) Paris, (B)"),
        ("Answer: Yes.\nNo.", "Yes, No"),
        ("Answer: 4\n4", "4"),
        ("Answer: 4\nx", "4"),
        ("Answer: A\nB) Rome is wrong.", "A"),
        ("Answer: 4\n\n5 apples would be too many.", "4"),
        ("Answer:\n1. 72", "72"),
        ("Answer:\n1) Paris", "Paris"),
    ],
)
def test_values_alone_on_the_lines_below_make_a_list(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["Answer:\n48/2 = 24\n48 + 24 = 72", "### Answer key\n72", "### Result\nShe sold 72.", "Result\n72"]
)
def test_the_first_line_of_a_solution_is_not_its_answer(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{72}\n\n#### Explanation\nWe added.",
        "\\boxed{72}\n#### Explanation",
        "#### Final Answer\n72",
        "#### Answer: 72",
        "#### Total: 72",
        "#### Total = **72**",
        "#### Therefore, 72",
        "\\boxed{72}\n#### Final Check",
        "#### Number of clips: 72\nShe sold them in May.",
        "#### 72\n#### Check: 72 - 24 = 48",
        "#### 72\n##### Notes\nAll good.",
        "<answer>72</answer>\n#### Why it holds\nWe added.",
        "The answer is 72.\n#### 1. Proof\n48 + 24 = 72",
        "#### Step 1\n48/2 = 24\n#### Step 2\nSo the answer is 72.",
        "####72",
        "#### **72**\n\nBecause 48 + 24 = 72.",
        "#### Solution: 72",
        "#### Conclusion: 72\nDone.",
        "#### 72\n#### Solution: x + 2 = 5",
    ],
)
def test_a_heading_is_no_mark(text):
    assert extract_answer(text) == "72"


@pytest.mark.parametrize(
    "text",
    [
        "#### Step 2\n5 + 2 = 7",
        "#### Verification\n72",
        "#### Note: 72",
        "#### Example: 72",
        "#### Check: 48 + 24 = 72",
    ],
)
def test_a_heading_alone_announces_nothing(text):
    assert extract_answer(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Paris", "Paris"),
        ("#### New York\n", "New York"),
        ("#### Yes\nIt holds for all.", "Yes"),
        ("#### x = 72", "x = 72"),
        ("#### Total: 48 + 24 = 72", "48 + 24 = 72"),
        ("#### 72 apples", "72 apples"),
    ],
)
def test_a_mark_may_hold_words(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{72}\boxed{}", "72"),
        (r"\boxed{72} and so \boxed{7", "72"),
        (r"\boxed{ \boxed{72} }", "72"),
        (r"\fbox{72}", "72"),
        (r"\boxed 72.", "72"),
        (r"\boxed {72}", "72"),
        (r"\\boxed{72}", "72"),
        (r"\boxed{71} no, wait, \boxed{72}", "72"),
        (r"\boxed{72}. \boxed{72.0}", "72"),
        (r"$\boxed{3}$ and $\boxed{4}$", "3, 4"),
        (r"\boxed{3}, \boxed{4} \text{ or } \boxed{5}", "3, 4, 5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("boxed 72", None),
        (r"\boxed", None),
        (r"\boxed{Answer: 72}", "72"),
        (r"\boxed{\text{The answer is } 72}", "72"),
        (r"\boxed{72}. The answer is 71.", "71"),
        ("<answer>#### 72</answer>", "72"),
        ("<answer>48 + 24 = 72\nThe answer is 72.</answer>", "72"),
    ],
)
def test_boxes(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "gold", "compared"),
    [
        (r"\boxed{12} and \boxed{13}", r"\boxed{12}, \boxed{13}", ("12, 13", "12, 13")),
        (r"\boxed{9}, so x = \boxed{12} and then y = \boxed{13}", r"\boxed{12} \boxed{13}", ("12, 13", "12, 13")),
        (r"\boxed{12, 13}", r"x = \boxed{12} and also y = \boxed{13}", ("12, 13", "12, 13")),
        (r"\boxed{13}", r"\boxed{12} or \boxed{13}", ("13", "12, 13")),
        (r"<think>\boxed{12} and \boxed{13}", r"\boxed{12} or \boxed{13}", ("", "12, 13")),
        (r"\boxed{12} and \boxed{13}", r"\boxed{13}", ("12, 13", "13")),
        (r"\boxed{13}", r"\boxed{13}, that is \boxed{13}", ("13", "13")),
        ("#### 72", "48 + 24\n#### 72", ("72", "72")),
    ],
)
def test_a_gold_answer_with_several_boxes_needs_them_all(text, gold, compared):
    assert answer_and_gold(text, gold) == compared


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("答案是72。", "72"),
        ("最终答案：72", "72"),
        ("La respuesta final es 72.", "72"),
        ("Die Antwort lautet: 72", "72"),
        ("Réponse : 72", "72"),
        ("A resposta é 72.", "72"),
        ("La risposta è 72", "72"),
        ("Ответ: 72", "72"),
        ("정답: 72", "72"),
        ("정답은 72입니다.", "72"),
        ("답은 72입니다.", "72"),
        ("答えは72です。", "72"),
        ("Die Lösung ist 72.", "72"),
        ("Die Lösung ist einfach.", None),
    ],
)
def test_answers_are_announced_in_other_languages(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "end",
    ["<|im_end|>", "</s>", "<eos>", "<end_of_turn>", "<|eot_id|>", "<｜end▁of▁sentence｜>", "<pad><pad>", " [/INST]"],
)
def test_special_tokens_are_not_part_of_an_answer(end):
    for text in ("#### 72", "The answer is 72.", "Answer: 72", "\\boxed{72}", "Answer:\n72"):
        assert extract_answer(text + end) == "72"


@pytest.mark.parametrize("text", ["maybe \\boxed{72}", "Answer: 72", "#### 72", "<answer>72</answer>"])
def test_where_the_template_opens_the_thought_only_a_finished_one_announces(text):
    assert extract_answer(text, prefilled=True) is None
    assert extract_answer(f"So.</think>{text}", prefilled=True) == "72"
    assert extract_answer(text, "last_number", prefilled=True) is None
    assert extract_answer(f"<think>{text}", "last_number") is None


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "<answer></answer>",
        "</answer>",
        "answer is ",
        "answer is\n",
        "answer is therefore ",
        "answer is 5?",
        "if the answer is 5. ",
        "answer to this ",
        "answer: \n",
        "answer***",
        "答案",
        "#### ",
        "#### a\n",
        "\\boxed{",
        "\\boxed{}",
        "\\boxed{1} and ",
        "\\boxed 1 ",
        "}",
        " ",
        "<|",
    ],
)
@pytest.mark.slow
def test_hostile_repetitions_take_one_pass(piece):
    # Quadratic, these would take minutes: a hang guard, no measurement.
    text = piece * (200_000 // len(piece))
    found = [
        extract_answer(text, "last_number"),
        answer_and_gold(text + "}" * 1000, r"\boxed{1} \boxed{2}")[0],
        extract_answer("The answer is 5" + text),
        extract_answer("<answer>1</ANSWER>" + text),
    ]
    assert all(answer is None or len(answer) < len(text) for answer in found)


@pytest.mark.slow
def test_many_unclosed_answer_tags_keep_the_closed_one():
    assert extract_answer("<answer>1</ANSWER>" + "<answer>" * 200_000) == "1"
    assert extract_answer("<answer>" * 200_000) is None
