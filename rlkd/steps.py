"""Splits a trace into sentences, and a sentence into (question, answer).

GSM8K writes a step as a sentence with a calculator mark, `She sold 48/2 = <<48/2=24>>24 clips.`; models write the same
step without the mark, with units, currency signs or LaTeX. The results are the same:

    >>> split_calculation("She sold 48/2 = <<48/2=24>>24 clips.")
    ('48/2', '24')
    >>> split_calculation("At $2 an egg she makes 9 eggs x $2 = $18 a day.")
    ('9 eggs x $2', '18')
    >>> sentences("Mr. Day has 0.5 kg. He eats half of it.")
    ['Mr. Day has 0.5 kg.', 'He eats half of it.']

All functions take time linear in the length of their text.
"""

import re

_MARK = re.compile(r"<<([^<>\n]*+)>>")
_FINAL_ANSWER = re.compile(r"(?:\A|\n)[ \t]*+####[^\n]*+\Z")

# A calculator mark, or the end of a sentence outside of marks.
_MARK_OR_END = re.compile(r"""<<[^<>]*+>>|(?<![.!?])[.!?]++["'’”)\]*]*+(?=\s)""")
_LAST_WORD = re.compile(r"[\w.]+\Z")
_ABBREVIATION = re.compile(
    r"(?i:mr|mrs|ms|dr|st|jr|sr|prof|vs|e\.g|i\.e|cf|ca|fig|eq)\.|(?i:a\.m|p\.m|etc|approx|no)\.(?=\s+[a-z\d])"
)

_NUMBER = r"(?:\d++ \d++/\d++|\d++(?>(?:,\d{3}(?!\d))*)(?>(?:\.\d++)?)|\.\d++)"
# `x` multiplies before a number, an amount or a bracket; elsewhere it is a variable.
_OPERATOR = r"(?:[-+*/^×÷−–·]|(?<![a-zA-Z])[xX](?=\s?[\d.$€£(\\])|\\(?:times|cdot|div)\b)"
# An equals sign (not part of <=, >=, != or ==), then a number that is the whole right side: `= $1,200.`, `= 3/4 of
# it`, `= 24 - that is all`, `= \boxed{18}`, but not `= 150 + 90`, `= 12 + 8x`, `= 3x` or `= 4(3 + 2x)`.
_RESULT = re.compile(
    r"(?:(?<![<>=!:])[=≈](?!=)|\bequals\b|\\approx\b)\s*+(?>(?:\\boxed\{\s*+)?)"
    r"(?P<sign>[-−]?+)\s*+(?>(?:\\?[$€£])*)\s*+(?P<inner_sign>[-−]?+)"
    rf"(?P<number>{_NUMBER}(?>(?:\s?/\s?{_NUMBER})?))"
    rf"(?!\d|\(|[a-zA-Z]\b|\s*+{_OPERATOR}\s*+(?:[\\$€£(\d.]|[a-zA-Z]\b))"
)
_TOKEN = re.compile(
    rf"(?P<operator>{_OPERATOR}|\b(?:times|plus|minus|of|divided\s+by|multiplied\s+by)\b)"
    rf"|(?P<number>(?>(?:\\?[$€£])?)\s?{_NUMBER}(?:[a-zA-Z]\b)?\s?(?:\\?%)?)"
    r"|(?P<bracket>[()\[\]{}]|\\[dt]?frac\b)"
    r"|(?P<variable>\b[a-zA-Z]\b)"
    r"|(?P<word>[^\W\d]++(?>(?:['’-][^\W\d]++)*))"
    r"|(?P<other>\S)"
)
# An emphasised result: `= **7**`, `= `7``, `= _7_`.
_EMPHASIS = re.compile(r"(=[ \t]*)(\*\*|`|__?)([^*`_\n]{1,40})\2")
# Tokens that an expression on the left of an equals sign cannot contain.
_EQUALS = re.compile(r"[=≈]|\bequals\b|\\approx\b|\\\(|\\\[|\$\$")
# Characters before an equals sign that are searched for its expression.
_LONGEST_EXPRESSION = 300
_LONGEST_UNIT = 4


def strip_calculator_marks(text: str) -> str:
    """The text without GSM8K's calculator marks: `48/2 = <<48/2=24>>24` becomes `48/2 = 24`."""
    return _MARK.sub("", text)


def sentences(text: str) -> list[str]:
    """The sentences of a trace in order, each stripped and non-empty.

    Splits at newlines and after `.`, `!` and `?` before whitespace, but not at decimals, abbreviations (`Mr.`, `e.g.`)
    or the number of a list item (`1. Add the two`), nor inside a calculator mark. Leaves out lines without a letter or
    digit (LaTeX brackets, rules) and a closing `#### 72`, which states the answer and is not a step.
    """
    found = []
    for line in _FINAL_ANSWER.sub("", text.rstrip()).splitlines():
        start = 0
        for end in _MARK_OR_END.finditer(line):
            if end[0].startswith("<<") or _keeps_its_sentence_open(line, start, end.start() + 1):
                continue
            found.append(line[start : end.end()])
            start = end.end()
        found.append(line[start:])
    return [sentence.strip() for sentence in found if any(character.isalnum() for character in sentence)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """The characters [start, stop) of each of the `sentences`."""
    spans = []
    position = 0
    for sentence in sentences(text):
        start = text.index(sentence, position)
        position = start + len(sentence)
        spans.append((start, position))
    return spans


def _keeps_its_sentence_open(line: str, start: int, stop: int) -> bool:
    """Whether the full stop before `stop` belongs to an abbreviation or a list number, not to the sentence's end."""
    if line[start:stop].strip(" \t*#-.").isdigit():
        return True
    window = max(start, stop - 20)
    last_word = _LAST_WORD.search(line[window:stop])
    if last_word is None:
        return False
    abbreviation = _ABBREVIATION.match(line, window + last_word.start())
    return abbreviation is not None and abbreviation.end() == stop


def split_calculation(sentence: str) -> tuple[str | None, str | None]:
    """The calculation in a sentence and its result, as `(question, answer)`.

    The first source that applies:

    1. the last calculator mark with an equals sign: `<<48/2=24>>` gives `("48/2", "24")`. A sentence with several
       marks computes intermediate values first, so the last mark is the step's result;
    2. the last equals sign (`=`, `≈` or the word `equals`) before a plain number: `12 x 2 = 24 pages` gives
       `("12 x 2", "24")`. The answer is that number without currency, unit or thousands commas. The question is the
       arithmetic that ends at the equals sign, or all words since the previous one if there is no arithmetic
       (`Total = 24`);
    3. neither: the sentence is the question and there is no answer.

    An empty side is None; an empty sentence gives `(None, None)`. Our choice: neither paper defines this split.
    """
    for mark in reversed(_MARK.findall(sentence)):
        left, equals, right = mark.rpartition("=")
        if equals and left.strip() and right.strip():
            return left.strip(), _plain_number(right)
    text = strip_calculator_marks(sentence).strip()
    last = None
    for last in _RESULT.finditer(text):  # noqa: B007 (only the last one counts)
        pass
    if last is None:
        return text or None, None
    left = _left_side(text, last)
    return _trailing_expression(left) or left.strip() or None, _value(last)


def undecorated(text: str) -> str:
    """The text without calculator marks, without Markdown emphasis of results, and with `=` for `==`."""
    return _EMPHASIS.sub(r"\1\3", strip_calculator_marks(text)).replace("==", "=")


def calculations(text: str) -> list[tuple[int, str, str]]:
    """All calculations with a result in a text, as (position, question, answer), in order.

    `position`: of the equals sign in `undecorated(text)`. An equals sign is left out if it has no arithmetic on its
    left (`x = 5`, `Total = 24`), no plain number on its right (in `3*4 = 12*2 = 24` only the last one has it), or if
    these are on another line.

    >>> calculations("He has 2 * 3 = **6** apples and 6 + 1 = 7 pears, so n = 13.")
    [(13, '2 * 3', '6'), (34, '6 + 1', '7')]
    """
    found = []
    start = 0
    for line in undecorated(text).split("\n"):
        for result in _RESULT.finditer(line):
            if question := _trailing_expression(_left_side(line, result)):
                found.append((start + result.start(), question, _value(result)))
        start += len(line) + 1
    return found


def _left_side(text: str, result: re.Match[str]) -> str:
    """The text from the previous equals sign to that of a result."""
    before = text[max(0, result.start() - _LONGEST_EXPRESSION) : result.start()]
    return _EQUALS.split(before)[-1]


def _value(result: re.Match[str]) -> str:
    negative = "-" if result["sign"] or result["inner_sign"] else ""
    return negative + _plain_number(result["number"])


def _plain_number(number: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", number).strip().lstrip("$€£")


def _trailing_expression(text: str) -> str:
    """The arithmetic at the end of a text, `6 - 2` in `He has 6 - 2`; empty if there is none.

    Walks left from the end over numbers, operators, brackets and one-letter variables. Words are included as the unit
    of the number before them (`40 years / 80 years`, `80 seconds/floor * 12 floors`), but only before an operator or
    the end: in `5 apples and 3 + 4` the words belong to the sentence.
    """
    tokens = list(_TOKEN.finditer(text))
    first = len(tokens)
    while first:
        kind = tokens[first - 1].lastgroup
        if kind == "word":
            unit = _start_of_unit(tokens, first)
            if unit is None:
                break
            first = unit
        elif kind == "other":
            break
        elif kind == "variable" and first < len(tokens) and tokens[first].lastgroup in ("number", "variable"):
            break  # the article in `makes a 5 + 3`
        elif kind == "number" and first < len(tokens) and tokens[first].lastgroup == "number":
            break
        else:
            first -= 1
    while first < len(tokens) and tokens[first].lastgroup == "operator":
        attached = first + 1 < len(tokens) and tokens[first].end() == tokens[first + 1].start()
        if tokens[first][0] in "-−" and attached:
            break  # a sign, as in `-3 + 5`
        first += 1
    while first < len(tokens) and tokens[first][0] in (")", "]", "}"):
        first += 1
    if not any(token.lastgroup == "operator" or "frac" in token[0] for token in tokens[first:]):
        return ""
    return text[tokens[first].start() :].strip()


def _start_of_unit(tokens: list[re.Match[str]], stop: int) -> int | None:
    """The index after the number whose unit ends at token `stop - 1`, or None if these words are not a unit."""
    if stop < len(tokens) and tokens[stop].lastgroup != "operator" and tokens[stop][0] not in (")", "]", "}"):
        return None
    for index in range(stop - 1, max(-1, stop - 2 - _LONGEST_UNIT), -1):
        token = tokens[index]
        if token.lastgroup == "number" or token[0] in (")", "]", "}"):
            return index + 1
        if token.lastgroup != "word" and token[0] != "/":
            return None
    return None
