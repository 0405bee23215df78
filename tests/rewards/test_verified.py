import math
import pickle
import random
import re
import threading
from itertools import groupby

import pytest
from trl.rewards import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward

from rewards import Failed, Provisional, RewardError
from rewards.verified import (
    AccuracyReward,
    CosineScaledReward,
    ReasoningAccuracyReward,
    cosine,
    deciding_text,
    verdict,
)
from rlkd.data.samples import sample_rows
from tests.helpers.rewards import build_reward

LATEX = [
    r"\frac{1}{2}", "0.5", r"\frac12", "50\\%", "x+1", "1+x", r"\sqrt{2}", r"2\sqrt{3}",
    r"\left( 3, \frac{\pi}{2} \right)", "(3,4)", r"\{1,2\}", "[1,2)", r"\text{yes}",
    r"\begin{pmatrix}1\\2\end{pmatrix}", "72", "-3", "1{,}000", "1000", "x=5", "5", "10\\text{ cm}", "3i",
    r"90^\circ", "", "???", "x <", r"\frac{1}", "猫", "é",
]  # fmt: skip
SHAPES = [
    "{}", "${}$", r"\boxed{{{}}}", r"$\boxed{{{}}}$", r"\[ \boxed{{{}}} \]", r"\(\boxed{{{}}}\)",
    r"$x = \boxed{{{}}}$.", "#### {}", "The answer is {}.", "The answer is ${}$.", "**Answer:** $${}$$",
    "Final Answer: The final answer is ${}$. I hope it is correct.", r"\boxed{{{}}} and \boxed{{7}}",
    r"$\boxed{{{}}}$, or $\boxed{{8}}$", r"\boxed{{{}", "answer ${}$ or $9$", r"[ \boxed{{{}}} ] cm",
    "<answer>{}</answer>", r"\fbox{{{}}}", r"so \boxed{{{}}}\%",
    r"The final answer is $\boxed{{{}}}$. I hope it is correct.",
]  # fmt: skip
LEADS = [
    "", "We pay \\$5 and $3 each, ", "Let $x$ be it.\n", "<think>\nfirst \\boxed{3}, no\n</think>\n",
    "\\[ a = b \\]\n\n", "$$ x = 2 $$ so ", "Step \\(1\\) [see below]: ", "my answer: ", "cost: $", "\\[ ",
    "über 数学 𝛑\n", "\\$", "7", "the answer is not \\frac{1}{3}, but ",
]  # fmt: skip
TAILS = [
    "", ".", "\n\nI hope this helps.", " $", " \\]", " dollars ($).", "\nDone }", " %", "</answer>",
    " which costs $4 in [1]. ",
]  # fmt: skip


def chat(texts):
    return [[{"role": "assistant", "content": text}] for text in texts]


def generated(count, seed):
    """Completions and solutions: worked solutions of the sample, LaTeX, plain answers, garbage, nothing at all."""
    rng = random.Random(seed)
    rows = sample_rows("test")
    texts, solutions = [], []
    for _ in range(count):
        row = rng.choice(rows)
        latex = rng.choice(LATEX)
        gold = rng.choice([latex, row["answer"], f"${latex}$", f"\\boxed{{{latex}}}"])
        found = rng.choice([latex, gold, rng.choice(LATEX), row["answer"]])
        lead = rng.choice([*LEADS, row["rationales"][0] + "\n"])
        text = lead + rng.choice(SHAPES).format(found) + rng.choice(TAILS)
        if rng.random() < 0.1:
            text = "".join(rng.choices("\\${}[]() \n5x%boxed", k=rng.randint(0, 60)))
        texts.append(text)
        solutions.append(gold)
    return texts, solutions


@pytest.mark.slow
def test_accuracy_reward_agrees_with_trls():
    texts, solutions = generated(500, seed=0)
    ours = AccuracyReward()(completions=chat(texts), solution=solutions)
    assert ours == accuracy_reward(chat(texts), solutions)
    assert all(ours.count(value) > 25 for value in (0.0, 1.0, None))
    assert AccuracyReward()(completions=texts, answer=solutions) == ours


@pytest.mark.slow
@pytest.mark.parametrize("delimiters", [None, ["</thought>", "</think>", "==="]])
def test_reasoning_accuracy_reward_agrees_with_trls(delimiters):
    rng = random.Random(1)
    texts, solutions = generated(500, seed=1)
    marks = ["", "</think>", "</think> so </think>", "=== </thought>"]
    texts = [f"<think>\nsurely \\boxed{{5}}{rng.choice(marks)}{text}" for text in texts]
    ours = ReasoningAccuracyReward(delimiters)(completions=chat(texts), solution=solutions)
    assert ours == reasoning_accuracy_reward(chat(texts), solutions, reasoning_delimiters=delimiters)
    assert all(ours.count(value) > 25 for value in (0.0, 1.0, None))


@pytest.mark.slow
def test_cosine_scaled_reward_agrees_with_trls():
    rng = random.Random(2)
    texts, solutions = generated(500, seed=2)
    ids = [[1] * rng.randint(0, 150) for _ in texts]
    bounds = {"min_value_wrong": -2.0, "max_value_wrong": -0.25, "min_value_correct": 0.75, "max_value_correct": 3.0}
    for arguments in ({"max_len": 100}, {"max_len": 70, **bounds}):
        ours = CosineScaledReward(**arguments)(completions=chat(texts), completion_ids=ids, solution=solutions)
        theirs = get_cosine_scaled_reward(**arguments)(chat(texts), solutions, ids)
        assert ours == [value if value is None else pytest.approx(value, abs=1e-12) for value in theirs]
        assert ours.count(None) > 25


def deciding_match(text):
    """What decides, found with math-verify's own expressions: all matches of the first priority that has any."""
    from math_verify import LatexExtractionConfig
    from math_verify.parser import get_extraction_regexes

    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    [(expressions, _)] = get_extraction_regexes([config])
    by_priority = sorted(expressions, key=lambda entry: entry[1])
    for _, same in groupby(by_priority, key=lambda entry: entry[1]):
        matches = [match for expression, _ in same for match in expression.finditer(text)]
        if matches:
            return max(matches, key=lambda match: (match.end(), -match.start())).groupdict()
    return None


PIECES = [
    "\\boxed{", "\\boxed{5}", "\\boxed{x}", "}", "{", "$", "$$", "\\(", "\\)", "\\[", "\\]", " [", "] ", "[", "]",
    "\n", " ", "\\$", "5", "7", "\\", "%", "\\%", " percent", "percentage", "pct", ", ", " and ", "or", "answer",
    "Answer:", "final answer is", " is ", "I hope", ". I hope it", "\\frac{1}{2}", "-", "text", "\\\\", "\\fbox{3}",
    "final an\u017fwer is", "\u0663", "\u3000", "<think>", "</think>",
]  # fmt: skip
BOXES = [
    "\\boxed{5}", "$\\boxed{5}$", "\\[\\boxed{5}\\]", "\\(\\boxed{5}\\)", "$$\\boxed{5}$$", " [\\boxed{5}] ",
    "$\\boxed{5}$, $\\boxed{6}$",
]  # fmt: skip


@pytest.mark.slow
def test_in_the_deciding_text_the_same_match_decides():
    rng = random.Random(3)
    shortened = 0
    for _ in range(20_000):
        pieces = rng.choices(PIECES, k=rng.randint(0, 22))
        if rng.random() < 0.7:
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(BOXES))
        text = "".join(pieces)
        part = deciding_text(text)
        assert deciding_match(part) == deciding_match(text), (text, part)
        shortened += len(part) < len(text)
    assert shortened > 10_000


def test_in_the_deciding_text_of_whole_completions_the_same_match_decides():
    for text in generated(2000, seed=4)[0]:
        assert deciding_match(deciding_text(text)) == deciding_match(text), text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("#### 72", ""),
        ("The answer is 72.", ""),
        ("Add them. The answer is $72$.", ". The answer is $72$."),
        ("We add $1$ and $2$.\nSo it is \\boxed{3}. Good.", "\\boxed{3}"),
        ("We add $1$ and $2$.\nSo it is $\\boxed{3}$. Good.", "$\\boxed{3}$"),
        ("\\[ 1 + 2 = 3 \\] and \\[ x = \\boxed{3} \\] Done", "\\[ x = \\boxed{3} \\] "),
        # An environment that may still be open belongs to it; so does the backslash that closes one.
        ("it costs $5, so \\boxed{3} and $", "$5, so \\boxed{3} and $"),
        ("a line \\\\$x = \\boxed{3}$", "\\$x = \\boxed{3}$"),
    ],
)
def test_text_that_does_not_decide_is_removed(text, part):
    assert deciding_text(text) == part


@pytest.mark.parametrize("first", [True, False])
def test_a_verdict_does_not_depend_on_the_ones_before(first):
    # math-verify's own does: a percentage of a chain re-orders the chain for all that come after it.
    right, wrong = ("\\boxed{5}", "\\boxed{y = x = 5}"), ("Answer: $$y = x = 5$$ %", "-3")
    for pair in [right, wrong, right] if first else [wrong, right]:
        assert verdict(*pair) == (pair == right)


def test_completions_that_announce_the_same_answer_share_one_comparison():
    texts = [f"Way {n}: we get $x={n}$.\nIn the end it is $\\boxed{{x^2}}$, the {n}th time." for n in range(8)]
    keys = AccuracyReward().keys(completions=chat(texts), solution=["$x^2$"] * 8)
    assert set(keys) == {("$\\boxed{x^2}$", "$x^2$")}
    reward = build_reward("accuracy_reward", cache=False)
    assert reward(completions=chat(texts), solution=["$x^2$"] * 8) == [1.0] * 8
    assert [outcome.reused for outcome in reward.outcomes] == [None] + ["batch"] * 7


HANGS = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{100000000!}", r"\boxed{\binom{10^9}{5\cdot 10^8}}"]


def in_thread(call):
    returned = []
    thread = threading.Thread(target=lambda: returned.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    return returned[0]


@pytest.mark.slow
@pytest.mark.parametrize("run", [lambda call: call(), in_thread], ids=["main thread", "other thread"])
def test_an_answer_that_hangs_is_wrong_and_the_others_are_scored(run):
    texts = [r"\boxed{5}", *HANGS, r"\boxed{6}", "5"]
    scores = run(lambda: AccuracyReward(timeout=3.0)(completions=chat(texts), solution=["5"] * 6))
    assert scores == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("reward", [AccuracyReward(timeout=0.5), CosineScaledReward(10, timeout=0.5)])
def test_the_score_of_a_comparison_that_was_stopped_is_provisional(reward):
    scores = reward(completions=[HANGS[0], r"\boxed{6}"], solution=["5"] * 2, completion_ids=[[1]] * 2)
    assert [type(score) for score in scores] == [Provisional, float]


@pytest.mark.slow
def test_a_solution_that_hangs_has_failed():
    [score] = AccuracyReward(timeout=1.0)(completions=[r"\boxed{5}"], solution=[HANGS[0]])
    assert isinstance(score, Failed)
    assert re.search(r"the gold answer .* cannot be compared: took more than 1 s", score.cause)


@pytest.mark.slow
def test_rewards_that_use_a_verdict_pass_failures_on():
    given = {"completions": [r"</think>\boxed{5}"], "solution": [HANGS[0]], "completion_ids": [[1]]}
    assert isinstance(CosineScaledReward(10, timeout=0.5)(**given)[0], Failed)
    assert isinstance(ReasoningAccuracyReward(timeout=0.5)(**given)[0], Failed)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed{5}", "$", "\\$", " [", "\\(", "\\[", "answer", "final answer is ", "}"]
)
def test_the_deciding_text_is_found_at_once_whatever_the_text(piece):
    text = piece * (200_000 // len(piece))
    texts = [text, text + "\\boxed{5} $ I hope", "\\boxed{5}" + text + "$", "answer" + text]
    assert len(in_thread(lambda: [deciding_text(text) for text in texts])) == 4


def test_without_a_solution_the_reward_does_not_apply_and_without_a_column_it_is_an_error():
    reward = AccuracyReward()
    assert reward(completions=[r"\boxed{5}"] * 2, solution=[None, "5"]) == [None, 1.0]
    assert reward(completions=[r"\boxed{5}"], solution=["5"], answer=["6"]) == [1.0]
    with pytest.raises(RewardError, match="'accuracy_reward' needs the column 'solution' or 'answer'"):
        reward(completions=[r"\boxed{5}"])
    assert build_reward("accuracy_reward").needs_any == ("solution", "answer")


def test_open_r1_reads_the_last_part_of_a_chain_of_equations():
    chain = r"$\boxed{2 \cdot 3 = 7 - 1 = 6}$"
    assert AccuracyReward(rules="open_r1")(completions=[chain], solution=["$6$"]) == [1.0]
    assert AccuracyReward(rules="open_r1")(completions=["6"], solution=["$6$"]) == [0.0]
    assert AccuracyReward(rules="open_r1")(completions=[r"\boxed{6}"], solution=[""]) == [None]


def test_open_r1s_cosine_goes_by_characters():
    right, wrong = r"\boxed{3}", r"\boxed{4}"
    reward = cosine(max_len=18)
    # 9 of 18 characters: cos(pi / 2) = 0. Right: .5 + .5 (1 - .5) (1 + 0) = .75. Wrong: -.5 + .5 (-1 + .5) = -.75.
    assert reward(completions=[right, wrong], solution=["$3$"] * 2) == pytest.approx([0.75, -0.75])
    # 12 of 18: cos(2 pi / 3) = -.5. Right: .5 + .25 x .5 = .625. Wrong: -.5 - .25 x .5 = -.625.
    longer = [right + "...", wrong + "..."]
    assert reward(completions=longer, solution=["$3$"] * 2) == pytest.approx([0.625, -0.625])
    # At 18 and beyond: cos(pi) = -1, so .5 and -.5. open-r1's wave would go up again: at 36 to 1 and -1.
    for length in (18, 36):
        texts = [text + "." * (length - 9) for text in (right, wrong)]
        assert reward(completions=texts, solution=["$3$"] * 2) == pytest.approx([0.5, -0.5])


def test_cosine_keys_distinguish_lengths_up_to_the_maximum():
    reward = CosineScaledReward(10)
    ids = [[0] * n for n in (1, 2, 10, 11)]
    keys = reward.keys(completions=[r"\boxed{3}"] * 4, completion_ids=ids, solution=["3"] * 4)
    assert keys[0] != keys[1]
    assert keys[2] == keys[3]
    scores = reward(completions=[r"\boxed{3}"] * 4, completion_ids=ids, solution=["3"] * 4)
    assert scores[0] == pytest.approx(0.5 + 0.25 * (1 + math.cos(math.pi / 10)))
    assert scores[2] == scores[3] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AccuracyReward(rules="ours"), "rules 'ours'"),
        (lambda: AccuracyReward(timeout=0), "timeout 0"),
        (lambda: ReasoningAccuracyReward("</think>"), "reasoning_delimiters '</think>'"),
        (lambda: ReasoningAccuracyReward([""]), "non-empty texts"),
        (lambda: CosineScaledReward(0), "max_len 0"),
        (lambda: CosineScaledReward(10, unit="words"), "unit 'words'"),
    ],
)
def test_an_invalid_parameter_is_refused_with_its_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("accuracy_reward", {"rules": "open_r1"}),
        ("reasoning_accuracy_reward", {}),
        ("get_cosine_scaled_reward", {"max_len": 20}),
        ("cosine", {}),
        ("length", {"by_group": True}),
    ],
)
def test_the_rewards_pickle(name, parameters):
    given = {"completions": [r"</think>\boxed{3}"], "completion_ids": [[1]], "solution": ["$3$"], "prompts": ["q"]}
    reward = build_reward(name, parameters, cache=False)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(**given) == reward(**given)
    function = pickle.loads(pickle.dumps(reward.function))
    assert function(**given) == reward.function(**given)


@pytest.mark.parametrize("unit", ["tokens", "characters"])
def test_the_cosine_reward_takes_its_arguments_by_place_as_trls(unit):
    texts, solutions = [r"\boxed{3}", r"\boxed{4}"], ["$3$", "$3$"]
    ids = [[0] * 9, [0] * 9]
    theirs = get_cosine_scaled_reward(20)(chat(texts), solutions, ids)
    ours = CosineScaledReward(20, unit=unit)  # nine characters each, too
    assert ours(chat(texts), solutions, ids) == pytest.approx(theirs)
    assert ours.keys(chat(texts), solutions, ids) == ours.keys(chat(texts), solution=solutions, completion_ids=ids)
