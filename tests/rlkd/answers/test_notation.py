import pytest

from rlkd.answers.notation import plain, undelimited


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (r"\(\tfrac{3}{4}\).", r"\frac{3}{4}"),
        (r"\[ 6 \]", "6"),
        ("$$6$$", "6"),
        (r"$\boxed{6}$", "6"),
        (r"\begin{equation}6\end{equation}", "6"),
        ("**6**", "6"),
        (r"\frac34", r"\frac{3}{4}"),
        ("¾", r"\frac{3}{4}"),
        (r"6\text{ cm}", "6 cm"),
        (r"6\,\mathrm{km}", "6 km"),
        (r"6^{\circ}", "6°"),
        ("x²", "x^{2}"),
        ("√2", r"\sqrt{2}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        ("x**2", "x^{2}"),
        ("−6", "-6"),
        ("–6", "-6"),
        ("４２", "42"),
        ("a.m.", "a.m."),
        (r"\(6\) km", "6 km"),
        ("$6$ km", "6 km"),
        ("$6 or 7", "$6 or 7"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_latex_and_unicode_have_one_notation(text, same):
    assert plain(text) == same


def test_a_dash_between_numbers_is_no_minus():
    assert plain("6–8") == "6–8"


@pytest.mark.parametrize("text", ["$6$ or $7$", r"\(6\) and \(7\)", "$5 to $6", "$", "$$"])
def test_delimiters_around_parts_of_a_text_stay(text):
    assert undelimited(text) == text


def test_rows_of_a_matrix_stay_apart():
    rows = r"\begin{pmatrix}1 \\ 2\end{pmatrix}"
    assert plain(rows) == rows
