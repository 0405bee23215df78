r"""One notation for answers: LaTeX and Unicode as plain text, where both write the same thing.

>>> plain(r"\(2\tfrac{1}{2}\text{ cm}\)")
'2\\frac{1}{2} cm'
>>> plain("−1½")
'-1\\frac{1}{2}'
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DELIMITERS = (
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("\\begin{equation*}", "\\end{equation*}"),
    ("\\begin{equation}", "\\end{equation}"),
    ("\\begin{align}", "\\end{align}"),
    ("\\begin{align*}", "\\end{align*}"),
    ("\\begin{displaymath}", "\\end{displaymath}"),
    ("**", "**"),
    ("`", "`"),
    ("``", "''"),
    ('"', '"'),
    ("'", "'"),
)
_BOX = re.compile(r"\\(?:boxed|fbox|ensuremath)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
# Commands around words, which keep their content.
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc)?|math(?:rm|bf|it|sf|tt|normal)|mbox|underline)\s*\{([^{}]*)\}"
)
# A comma that groups digits, and the e of "1e5".
_COMMA = re.compile(r"\\(?:text|mathrm|mathord|mathpunct)\s*\{,\}")
_EXPONENT = re.compile(r"(?<=\d)\\(?:mathrm|text)\s*\{([eE])\}(?=[-+]?\d)")
_VULGAR = {char: tuple(unicodedata.normalize("NFKC", char).split("\u2044")) for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SIGNS = {
    "−": "-",
    "﹣": "-",
    "∶": ":",
    "⁄": "/",
    "∕": "/",
    "÷": "/",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "≈": r"\approx ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "ℝ": r"\mathbb{R}",
    "≡": r"\equiv ",
    "٬": ",",
    "٫": ".",
    "º": "°",
    "˚": "°",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
}
_SPACES = re.compile(r"\s+")
_GREEK = {
    chr(code): f"\\{name.lower()} "
    for code in range(ord("α"), ord("ω") + 1)
    if "FINAL" not in (name := unicodedata.name(chr(code)).rpartition(" ")[2])
    and name not in ("LAMDA", "OMICRON", "SIGMA")
} | {"λ": r"\lambda ", "σ": r"\sigma "}
_ABBREVIATION = re.compile(r"\b[A-Za-z]\.[A-Za-z]\.$")
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_REPLACED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        # GSM8K's calculator
        (r"<<[^<>=]*=[^<>=]*>>", ""),
        # Mathematics with words behind it: "$72$ clips".
        (r"(?<!\\)\\[()]", " "),
        (r"(?<!\\)\$([^$]*[^$\\])\$(?=\W|$)", r"\1"),
        (r"\{,\}", ","),
        (r"\{\\,\}", " "),
        (r"\{([-+])\}", r"\1"),
        (r"^\{(-?[\d.]+)\}$", r"\1"),
        (r"(?<!\\)\\!\s*", ""),
        (r"(?<!\\)\\[,;: ]|\\quad|\\qquad|\\thinspace|~(?!\d)", " "),
        (r"\\\$", "$"),
        (r"\\%", "%"),
        (
            r"\\(?:left|right|displaystyle|textstyle|large|Large|LARGE|huge|Huge|small|big|Big|bigg|Bigg"
            r"|[bB]igg?[lrm])(?![A-Za-z])",
            "",
        ),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\{\s*(-?[\d.]+)\s*\\over\s*(-?[\d.]+)\s*\}", r"\\frac{\1}{\2}"),
        (r"\s*\^\s*(?:\{\s*(?:\\circ|∘)\s*\}|\\circ|∘)|(?<=\d)∘|\\degree(?![A-Za-z])", "°"),
        (r"\\(?:pounds|textsterling)(?![A-Za-z])\s*", "£"),
        (r"\\(?:euro|texteuro|EUR)(?![A-Za-z])\s*", "€"),
        (r"\\textdollar(?![A-Za-z])\s*", "$"),
        (r"\\(?=[€£¥₹])", ""),
        (r"\\yen(?![A-Za-z])\s*", "¥"),
        (r"(?<=\d )([kM]?)\\Omega(?![A-Za-z])", r"\1Ω"),
        (r"\{\\rm\s+([^{}]*)\}|(?<=\d)\s*\\rm\s+", r" \1"),
        (r"(?<=\d)\s*\\(?:operatorname|unit)\s*\{([A-Za-z]+)\}$", r" \1"),
        (r"\b(?:USD (?=\$)|EUR (?=€)|GBP (?=£)|INR (?=₹))", ""),
        (r"(?<=[A-Za-z])[‐‑](?=[A-Za-z])", "-"),
        (r"\b(US|CA|AU|HK|NZ) \$", r"\1$"),
        (r"\*\*\s*(-?\d+)(?![\d.])", r"^{\1}"),
        (r"\*\*", "^"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"(?<![A-Za-z\\])sqrt\s*(?=\{)", r"\\sqrt"),
        (r"(?<![A-Za-z\\])sqrt (\d+(?:\.\d+)?)(?![\w.])", r"\\sqrt{\1}"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        # A dash is a minus where no number or word stands before it, as the U+2212 is everywhere.
        (r"(?<![\w)}\].%])(\s*)[–—‒‐‑](?=\s*[$€£¥₹\d.\\(])", r"\1-"),
    )
)


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """A text without mathematical delimiters and closing full stop, with ASCII digits, in one notation."""
    text = undelimited(text if text.isascii() else _ascii(text))
    text = _SPACES.sub(" ", text)
    if "\\" in text:
        box = _BOX.fullmatch(text)
        text = box[1] if box else text
        if "begin" not in text:
            # Backslashes that were escaped once too often.
            text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
        text = _COMMA.sub(",", _EXPONENT.sub(r"\1", text))
        text = _WRAPPER.sub(r" \1", text)
    for pattern, new in _REPLACED:
        text = pattern.sub(new, text)
    return undelimited(_SPACES.sub(" ", text))


def undelimited(text: str) -> str:
    """A text without spaces, a full stop and mathematical delimiters around it."""
    while True:
        text = text.strip()
        if text.endswith(".") and not text.endswith("..") and not _ABBREVIATION.search(text):
            text = text[:-1].rstrip()
        inner = next(filter(None, (_inside(text, *delimiters) for delimiters in _DELIMITERS)), None)
        if inner is None:
            return text
        text = inner


def _inside(text: str, opening: str, closing: str) -> str | None:
    """What stands between a pair of delimiters around a text; None where the text has others, or no such pair."""
    if not (text.startswith(opening) and text.endswith(closing)) or text.endswith("\\$"):
        return None
    inner = text[len(opening) : -len(closing)].strip()
    # "$5$ or $6$" is not in one pair of dollar signs.
    return inner if inner and closing not in inner else None


def _ascii(text: str) -> str:
    """Unicode digits, spaces, fractions, raised digits and signs in ASCII or LaTeX."""
    out = []
    for char in text:
        if char.isascii():
            out.append(char)
        elif char in _VULGAR:
            numerator, denominator = _VULGAR[char]
            out.append(f"\\frac{{{numerator}}}{{{denominator}}}")
        elif char.isdecimal():
            out.append(str(unicodedata.decimal(char)))
        elif char.isspace() or unicodedata.category(char) == "Zs":
            out.append(" ")
        elif unicodedata.category(char) == "Cf":
            continue
        elif "\uff01" <= char <= "\uff5e" or "\U0001d400" <= char <= "\U0001d7ff" or char in "￠￡￥￦":
            out.append(unicodedata.normalize("NFKC", char))
        else:
            out.append(char)
    text = "".join(out)
    # "5 m²" may be written together, unlike the product 5m^2.
    text = re.sub(r"(?<=\d)(m[²³])", r" \1", text)
    text = re.sub(r"(?<=\d)(\s?)μ(?=(?:m|g|s|A|V|F|T|L|l)\b)", r"\1µ", text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda found: f"^{{{found[0].translate(_RAISED)}}}", text)
    text = re.sub(r"[₀-₉]+", lambda found: f"_{{{found[0].translate(_LOWERED)}}}", text)
    text = re.sub(r"[α-ω]", lambda found: _GREEK.get(found[0], found[0]), text)
    text = re.sub(r"∛\s*(?:\(([^()]*)\)|(\d+|\w))", lambda m: f"\\sqrt[3]{{{m[1] or m[2]}}}", text)
    text = re.sub(r"∜\s*(?:\(([^()]*)\)|(\d+|\w))", lambda m: f"\\sqrt[4]{{{m[1] or m[2]}}}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))", lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    return _SIGN.sub(lambda found: _SIGNS[found[0]], text)
