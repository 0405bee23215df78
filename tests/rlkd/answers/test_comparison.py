import threading

import pytest

from rlkd.answers import VerificationError, accuracy, are_correct, equal, equal_pairs, is_correct
from rlkd.workers.pool import Fault

TOWER = r"\boxed{9^{9^{9^{9}}}}"
LATE = Fault("timeout", "took more than 5 s")


def off_the_main_thread(call):
    """Call on another thread; return what it returned or the exception that it raised."""
    got = []

    def target():
        try:
            got.append(call())
        except Exception as error:
            got.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(60)
    assert got, "still running after a minute"
    return got[0]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "72"),
        ("1,000", "1000"),
        (".5", "0.50"),
        ("1/2", "0.5"),
        ("3/6", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{1}{2}", r"\frac12"),
        (r"-\frac{3}{4}", "-0.75"),
        ("-5", "-5.0"),
        ("75%", "75"),
        ("$18", "18 dollars"),
        (r"12\text{ cm}", "12"),
        ("x^2+2x", "2x + x^2"),
        (r"(x+1)^2", "x^2+2x+1"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("Blue", "blue"),
        ("x + 1", "x+1"),
    ],
)
def test_the_same_value_in_another_form_is_equal(answer, gold):
    assert equal(answer, gold) is True


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("72", "73"),
        ("-5", "5"),
        ("1.5x", "15x"),
        (r"2.5\sqrt{3}", r"25\sqrt{3}"),
        ("1 1/2", "11/2"),
        ("(1,2)", "(2,1)"),
        ("0.33", "1/3"),
        ("x", "y"),
        ("???", "5"),
    ],
)
def test_another_value_is_not_equal(answer, gold):
    assert equal(answer, gold) is False


@pytest.mark.parametrize("gold", ["???", "-", "!!"])
def test_an_unreadable_gold_answer_equals_only_itself(gold):
    assert equal("5", gold) is None
    assert equal(gold, gold) is True


@pytest.mark.parametrize("gold", ["", "  "])
def test_an_empty_gold_answer_cannot_be_judged(gold):
    assert is_correct("#### 5", gold) is None


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("#### 1,000", "1000", True),
        ("#### 1000", "She earned 1,000.\n#### 1,000", True),
        (r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", True),
        (r"\boxed{72", "72", False),
        ("72", "72", False),
        ("<think>#### 72</think>", "72", False),
        ("#### 71", "72", False),
    ],
)
def test_a_completion_is_right_if_its_announced_answer_is(text, gold, correct):
    assert is_correct(text, gold) is correct


def test_with_the_last_number_as_fallback_an_unannounced_answer_is_right():
    assert is_correct("So she sold 72.", "72", "last_number") is True


@pytest.mark.slow
@pytest.mark.parametrize("answer", [TOWER, r"\boxed{1000000!}", r"\boxed{2^{2^{2^{2^{2^{2}}}}}}"])
def test_an_answer_that_makes_the_comparison_hang_is_wrong(answer):
    assert is_correct(answer, r"\sqrt{5}", seconds=2.0) is False


@pytest.mark.slow
def test_a_gold_answer_that_makes_every_comparison_hang_is_an_error():
    with pytest.raises(VerificationError, match=r"the gold answer .* cannot be compared: took more than 1 s"):
        is_correct(r"\boxed{\sqrt{5}}", TOWER, seconds=1.0)


@pytest.mark.parametrize(("again", "verdict", "places"), [(True, True, set()), (LATE, False, {0, 2})])
def test_a_comparison_that_took_too_long_is_made_once_more_alone(monkeypatch, again, verdict, places):
    called = []

    def in_workers(compare, calls, seconds):
        called.append((compare.__name__, len(calls)))
        if compare.__name__ == "sound":
            return [True] * len(calls)
        return [again] if len(called) > 2 else [LATE, False]

    monkeypatch.setattr("rlkd.answers.comparison.compare_in_workers", in_workers)
    monkeypatch.setattr("rlkd.answers.comparison._sound_golds", set())
    stopped = set()
    pairs = [("x+1", "1+x"), ("y+2", "1+x"), ("x+1", "1+x")]
    assert equal_pairs(pairs, stopped=stopped) == [verdict, False, verdict]
    assert called == [("compared", 2), ("sound", 1), ("compared", 1)]
    assert stopped == places


def test_after_one_that_hangs_again_no_other_is_repeated(monkeypatch):
    called = []

    def in_workers(compare, calls, seconds):
        called.append(len(calls))
        return [True] * len(calls) if compare.__name__ == "sound" else [LATE] * len(calls)

    monkeypatch.setattr("rlkd.answers.comparison.compare_in_workers", in_workers)
    monkeypatch.setattr("rlkd.answers.comparison._sound_golds", set())
    stopped = set()
    assert equal_pairs([("x+1", "1+x"), ("y+2", "1+x"), ("z+3", "1+x")], stopped=stopped) == [False] * 3
    assert called == [3, 1, 1]
    assert stopped == {0, 1, 2}


@pytest.mark.parametrize("answer", ["1/0", r"\frac{5}{0}", "0/0", r"\tan(\pi/2)", "5 / (3-3)"])
def test_an_answer_that_divides_by_zero_is_wrong(answer):
    assert equal(answer, "5") is False
    assert equal(answer, r"\sqrt{5}") is False


@pytest.mark.parametrize("gold", ["1/0", r"\frac{0}{0}"])
def test_a_gold_answer_that_divides_by_zero_is_unreadable(gold):
    assert equal("5", gold) is None


def test_off_the_main_thread_plain_numbers_are_compared():
    assert off_the_main_thread(lambda: is_correct("#### 1,000", "1000")) is True
    assert off_the_main_thread(lambda: is_correct("#### 999", "1000")) is False


def test_off_the_main_thread_mathematics_is_compared():
    assert off_the_main_thread(lambda: is_correct("#### 1+x", "$x+1$")) is True
    assert off_the_main_thread(lambda: is_correct("#### 2+x", "$x+1$")) is False


def test_a_comparison_that_hangs_does_not_affect_the_others():
    found = are_correct([TOWER, "#### 1+x", "#### 2", "no answer"], ["$x$", "$x+1$", "2", "$y$"], seconds=2.0)
    assert found == [False, True, True, False]


def test_plain_answers_start_no_worker(monkeypatch):
    monkeypatch.setattr("rlkd.answers.comparison.comparison_pool", None)
    pairs = [("72", "1,200"), ("1 1/2", "3/2"), ("5 km", "5000 m"), ("9:30 am", "9:30"), ("Paris", "Rome"), ("", "5")]
    assert equal_pairs(pairs) == [False, True, True, True, False, False]


@pytest.mark.parametrize("text", ["The answer is **18**.", "#### **18**", "So \\boxed{18}", "The answer is `18`."])
def test_emphasis_around_an_answer_is_not_part_of_it(text):
    assert is_correct(text, "18") is True


def test_accuracy_does_not_apply_to_a_row_without_a_readable_answer():
    assert accuracy({"answer": None}, "#### 1") is None
    assert accuracy({}, "#### 1") is None
    assert accuracy({"answer": "???"}, "#### 1") is None


def test_accuracy_is_one_for_the_right_answer_and_zero_for_any_other():
    assert accuracy({"answer": "1000"}, "#### 1,000") == 1.0
    assert accuracy({"answer": "1000"}, "#### 999") == 0.0
    assert accuracy({"answer": "1000"}, "no idea") == 0.0


def test_an_answer_that_cannot_be_compared_is_wrong(monkeypatch):
    monkeypatch.setattr("rlkd.answers.comparison.compare_in_workers", fails_on("9^{9^{9^{9}}}"))
    assert accuracy({"answer": r"\sqrt{7}"}, "#### 9^{9^{9^{9}}}") == 0.0


def test_accuracy_does_not_apply_where_the_gold_answer_cannot_be_compared(monkeypatch):
    monkeypatch.setattr("rlkd.answers.comparison.compare_in_workers", fails_on("9^{9^{9^{9}}}"))
    assert accuracy({"answer": "9^{9^{9^{9}}}"}, r"#### \sqrt{7}") is None


def fails_on(text):
    """`compare_in_workers` where every call with this text takes too long."""

    def compare(function, calls, seconds):
        return [Fault("timeout", "took more than 5 s") if text in call else True for call in calls]

    return compare


# One table for each kind: pairs that are equal, and pairs that are not. Which side is gold does not matter.
KINDS = {
    "mixed numbers": (
        [("2 3/4", "11/4"), ("2¾", "2.75"), (r"-2\frac{3}{4}", "-11/4"), ("⅓", r"\frac13"), ("two and a half", "2.5")],
        [("2 3/4", "23/4"), ("2 3/4", "3/4"), ("2-3/4", "11/4"), ("3½", "3"), ("1 1/4", "1.5"), ("11/4", "1 1/4"),
         ("2(3/4)", "11/4")],
    ),
    "scientific notation": (
        [("3e4", "30000"), ("3.2×10⁻⁴", "0.00032"), ("10⁶", "1,000,000"), ("1e+20", "1" + "0" * 20), ("2e", "2e"),
         (r"3\mathrm{e}4", "30000")],
        [("3e4", "34"), ("2.5e3", "2.5"), ("10³", "103"), ("2e", "2"), ("2e3", "2e"), (r"2\times 10^3", "2")],
    ),
    "groups of digits": (
        [("1,23,456", "123456"), ("1'000", "1000"), (r"12\,345", "12345"), ("3,5", "3.5"), ("0,25", "1/4"),
         ("3,5 kg", "3.5"), ("3,5e2", "350"), (r"3{\,}000", "3000"), (r"3\text{,}000", "3000"),
         (r"3\mathord{,}000", "3000")],
        [("1,234", "1.234"), ("12,34", "1234"), ("3,5", "35"), ("4,500", "4, 500"), ("3,5 kg", "35"),
         ("(4,500)", "4500"), ("5,0", "5")],
    ),
    "minus": (
        [("–7", "-7"), ("−$30", "-30"), ("minus seven", "-7"), ("−x", "-x"), ("negative 1/2", "-0.5"),
         ("{-}7", "-7")],
        [("–7", "7"), ("3–7", "-7"), ("3–7", "-4"), ("-x", "x"), ("7-", "7")],
    ),
    "currency": (
        [("€30", "30"), ("$30", "30 dollars"), ("50 cents", "$0.50"), ("US$30", "USD 30"), ("30 EUR", "€30.00"),
         (r"\pounds 30", "£30"), (r"\euro30", "30"), ("R$30", "30"), ("kr 30", "30"), ("30 zł", "30"), ("30元", "30"),
         ("USD $30", "$30"), ("$30/-", "30"), ("€30.-", "30")],
        [("$30", "€30"), ("30 cents", "$30"), ("€3.0", "30"), ("$5 to $6", "5"), ("R$30", "$30"), ("kr 30", "€30"),
         ("30p", "30")],
    ),
    "units": (
        [("30 km/h", "30"), ("2 h", "120 minutes"), ("5 km", "5000 m"), (r"30\text{ cm}^2", "30"),
         (r"8\pi cm^2", r"8\pi"), ("45°", r"45^\circ"), ("3 sq ft", "3 ft^2"), ("60 mph", "60 miles per hour"),
         ("9 years old", "9"), ("9-year-old", "9"), ("3-foot", "36 inches"), ("30'", "30 ft"), ('30"', "30"),
         ("3 dB", "3"), ("3 kΩ", "3000 Ω"), ("3 mA", "0.003 A"), ("3 μm", "0.003 mm"), ("3 Mbps", "3"),
         ("3 tbsp", "9 tsp"),
         ("3 cm squared", "3 cm^2"), ("3 (cm)", "3 cm"), (r"3\text{ [cm]}", "3"), (r"3 \rm cm", "3 cm"),
         (r"3\operatorname{cm}", "3"), ("3 km h^{-1}", "3 km/h"), (r"3 \frac{\text{km}}{\text{h}}", "3 km/h"),
         ("3 sq.ft.", "3 sq ft"), (r"3 $^\circ$", "3°"), ("3 an hour", "3")],
        [("5 km", "5 miles"), ("5 cm", "5 cm^2"), ("30 km/h", "30 km"), ("5 hours", "5 minutes"), ("3 x^2", "3"),
         (r"8\pi cm", r"8\pi m"), ("30 out of 40", "30"), ("5 apples", "5 pears"), ("5 feet 6 inches", "5"),
         ("3mA", "3"), ("3kN", "3"), ("3T", "3"), ("3lm", "3"), ("3 kN", "3 N"), ("3-x", "3"), ("3-abc", "3"),
         ("3 (x)", "3"),
         (r"3 \frac{a}{b}", "3"), ("3 clips squared", "9"), ("3 km h^{-1}", "3 km"), ("3 s t", "3"), ("30'", '30"'),
         ("3-foot", "3-inch")],
    ),
    "words behind numbers": (
        [("24 clips", "24"), ("24 clips", "24 paper clips"), ("$24 each", "24"), ("6 cats and dogs", "6"),
         ("4th", "4"), ("3 double rooms", "3")],
        [("3 pi", "3"), ("3 squared", "3"), ("3 plus", "3"), ("3 over four", "3"), ("3 sevenths", "3"),
         ("3 million", "3"), ("3 score", "3"), ("3 April", "3 May"), ("3 or four", "3"), ("3 is wrong", "3"),
         ("over 3", "3"), ("3 log 2", "3"), ("3 choose 2", "3"), ("3 factorial", "3"), ("3 mod 2", "3"), ("3 ab", "3"),
         ("3 times six", "3"), ("3 at least", "3"), ("3 at most", "3"), ("3 who knows", "3"), ("3 won't say", "3"),
         ("3 decline", "3"), ("3 dunno", "3"), ("3 past noon", "3"), ("3 twice", "3"), ("3 double", "3"),
         ("3 xyz", "3")],
    ),
    "multipliers and words": (
        [("3 million", "3,000,000"), ("2 dozen", "24"), ("forty-two", "42"), ("3k", "3000"), ("a hundred", "100"),
         ("hundred", "100"), ("half a dozen", "6"), ("half a million", "500,000"), ("forty‑two", "42")],
        [("3 mio", "3"), ("3 bil", "3"), ("3 thou", "3"), ("3 grand", "3"), ("3 mrd", "3"), ("3 hund", "3"),
         ("3 mill", "3"), ("3 million", "3000"), ("forty-two", "43"), ("four two", "42"), ("3k", "3")],
    ),
    "percent": (
        [("40%", "40"), ("40%", "0.4"), (r"40\%", "40 percent"), ("2/5", "40%")],
        [("40%", "4"), ("0.4%", "40%"), ("40%", "0.004")],
    ),
    "clock": (
        [("9:15 pm", "21:15"), ("9:15", "9:15 a.m."), ("09:15", "9:15"), ("3 pm", "3:00 p.m."), ("12:30 am", "0:30"),
         ("9.15 pm", "9:15 pm"), ("at 9:15", "9:15")],
        [("9:15 am", "9:15 pm"), ("12:00", "1:00"), ("0:10", "0:20"), ("3:00", "3"), ("21:15", "9:15"), ("5:00", "x"),
         ("9.15", "9:15"), ("30:1", "30"), ("3:4", "0.75")],
    ),
    "delimiters": (
        [(r"\[6\]", "6"), (r"\(x=6\)", "$6$"), (r"$$\frac{6}{7}$$", "6/7"), (r"\[\sqrt{6}\]", r"\sqrt6"),
         (r"\begin{align*}6\end{align*}", "6"), (r"\ensuremath{6}", "6")],
        [(r"\[6\]", "7"), ("[0,6)", "[0,6]"), ("$6$ or $7$", "6")],
    ),
    "unicode": (
        [("√6", r"\sqrt{6}"), ("6√2", r"6\sqrt{2}"), ("x**2", "x²"), ("2pi", "2π"), ("∞", r"\infty"),
         ("x≤6", r"x \le 6"), (r"\varnothing", "∅"), ("sqrt 6", r"\sqrt{6}"), ("sqrt{6}", "√6"), ("∜81", "3"),
         ("⌈y⌉", r"\lceil y\rceil"), ("𝑦+1", "y+1"), ("60∘", r"60^\circ"), (r"\bigl(1,2\bigr)", "(1,2)"),
         ("x**12", "x^{12}"), ("x**(1/2)", r"\sqrt{x}")],
        [("√6", "6"), ("2π", "2"), ("x²", "x³"), ("-∞", "∞"), ("⌈y⌉", "⌊y⌋"), ("∜81", "9"), ("𝑦+1", "x+1"),
         ("∅", "0"), ("x**12", "2x")],
    ),
    "sides": (
        [("x > 6", r"(6,\infty)"), (r"2 \le x \le 6", "[2,6]"), ("6=x", "6"), ("y=x+6", "x+6"),
         ("x=6, y=2", "y=2, x=6")],
        [("x > 6", r"x \ge 6"), ("x < 6", r"(6,\infty)"), ("2x+1=7", "7"), ("x=6", "y=6"), ("7=2a+b", "2a+b"),
         ("x>6", "6")],
    ),
    "several values": (
        [("2 or 6", "6 or 2"), (r"\{2,6\}", "2, 6"), (r"\pm 6", r"\{-6,6\}")],
        [("2 or 6", "6"), ("2, 6", "6"), ("2–6", "6"), ("2 to 6", "2"), (r"\pm 6", "6"), ("x=2 or x=6", "2"),
         ("x=2, x=6", "6"), ("2; 6", "2"), ("5 = 6", "6"), ("2 6", "26"), ("(2,6)", "2"), ("6 (2)", "6")],
    ),
    "parts of a text": (
        [(r"0.\overline{6}", "2/3"), (r"2.\dot{3}", "7/3"), ("101_2", "101")],
        [(r"0.\overline{3}", r"0.\overline{6}"), (r"2.\dot{3}", "2"), ("72?73", "72"), ("101_2", "101_3"),
         ("6...7", "6")],
    ),
    "exact": (
        [(r"10^{-30}", r"\frac{1}{10^{30}}"), ("0.3333333", "1/3"), ("1.4142136", r"\sqrt{2}"),
         ("2^{-60}", "4^{-30}")],
        [(r"\frac{1}{30!}", r"\frac{1}{31!}"), (r"e^{-60}", r"e^{-61}"),
         (r"\frac{\pi}{10^{30}}", r"\frac{\pi}{10^{31}}"), (r"10^{-30}x", r"10^{-31}x"), ("10^{-30}", "0"),
         ("0.333", "1/3"), (r"\pi", "3.14"), ("1.0000001", "1"), ("50!", "50!+1"), ("(0,10^{-30})", "(0,10^{-31})")],
    ),
    "words": (
        [("Oslo", "oslo."), (r"\text{Oslo}", "Oslo"), ("No solution", r"\text{no solution}"), (r"\text{(C)}", "C"),
         ("Max", "max"),
         (r"\texttt{Amy}", "Amy"), (r"\textsf{Amy}", "Amy"), ("“Amy”", "Amy"), ("``Amy''", "Amy"),
         (r"\angle PQR", "∠RQP"), (r"\triangle PQR", "△PQR"), (r"\vec{v}", r"\vec v"), ("alpha", r"\alpha")],
        [("evil", "vile"), ("Amy", "May"), ("no", "on"), ("ABD", "ADB"), ("odd", "even"), ("5", "unknown"),
         ("6", "n/a"), (r"\overline{AB}", r"\overline{BA}"),
         (r"\text{DNA}", r"\text{AND}"), ("lim", "mil"), ("nim", "min"), ("and", "Dan"), ("tan", "ant"),
         ("beta", "beat"),
         (r"\angle PQR", r"\angle PRQ"), (r"\angle PQR", r"\angle PQS"), (r"\triangle PQR", r"\triangle STU"),
         (r"\widehat{PQ}", r"\widehat{QP}"), (r"\vec{PQ}", r"\vec{QP}"), (r"\vec v", r"\vec w")],
    ),
    "variables": (
        [("2ab", "2ba"), ("3xy+1", "1+3yx"), ("abc", r"a \cdot b \cdot c"), ("0.5x", r"\frac{x}{2}")],
        [("2ab", "2"), ("x", "X"), ("2ab", "3ab"), ("5m", "5n"), ("x+Y", "X+y")],
    ),
    "forms of gold": (
        [("42", "30+12=42"), ("42", "42 (forty-two)"), ("42", "['42']"), ("42", "#### 42"), ("42", "6*7"),
         ("42", "42, because 6*7=42"), ("42", "42 = 30+12"), ("42", "42 (30 + 12)"), ("42", "42 (=30+12)"),
         ("42", "42, i.e. half of 84")],
        [("42", "42 = 43"), ("42", "6*8"), ("42", "42 (43)"), ("42", "42, 43"), ("42", "42 = 30+13"),
         ("42", "42 (30+13)"), ("42", "42 or 43")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42; 6*7=42", "42"),
        ("42: 6*7=42", "42"),
        ("42, not 43", "42"),
        ("42 - the product of 6 and 7", "42"),
        ("6*7 = <<6*7=42>>42", "42"),
        ("['Oslo']", "Oslo"),
        ("('42',)", "42"),
        ("['42', '43']", "42, 43"),
    ],
)
def test_a_gold_answer_is_read_without_what_explains_it(gold, answer):
    assert equal(answer, gold) is True
    assert equal(gold, gold) is True
    assert equal("43", gold) is False


@pytest.mark.parametrize("gold", ["4, ab", "4 - xyz", "4 - det A", "['4', '5']", "4 or 5", "4 (mod 7)"])
def test_values_behind_the_first_belong_to_a_gold_answer(gold):
    assert equal("4", gold) is False


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_each_kind_are_equal_where_their_values_are(kind):
    same, other = KINDS[kind]
    same = same + [(gold, answer) for answer, gold in same if "####" not in gold]
    assert [pair for pair, found in zip(same, equal_pairs(same), strict=True) if found is not True] == []
    other = other + [(gold, answer) for answer, gold in other]
    assert [pair for pair, found in zip(other, equal_pairs(other), strict=True) if found is True] == []
