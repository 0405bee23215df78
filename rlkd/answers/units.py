r"""What stands behind a number: a unit, things that are counted, or words that change the number.

A known unit has kinds and factors, so that units of one kind can be converted: "2 h" is "120 minutes", and no "2 km".
Other words count as things ("24 clips in May") unless one of them calculates, negates, or adds another value ("5
squared", "5 is wrong", "5 or six"): then the text is no number with a unit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from rlkd.answers.directions import Directions, directions
from rlkd.answers.number_words import CARDINALS, DENOMINATORS, MULTIPLIERS, singular
from rlkd.answers.unit_table import SPACED, UNITS

Kinds = Mapping[str, Fraction]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MONTHS = _words(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
# These words change a value, wherever they stand: they calculate, negate, or give a second value.
_NEVER = _words(
    "plus minus squared cubed factorial choose mod modulo modulus base remainder root sqrt power powers exponent "
    "infinity infinite pi tau or versus vs not no none never nope nothing wrong incorrect false unknown undefined "
    "impossible invalid unclear unsure uncertain cannot can't isn't doesn't don't maybe perhaps possibly if unless "
    "sorry refuse refused declined unanswerable unsolvable undetermined indeterminate doubled halved tripled "
    "reciprocal inverse inverted negated recurring repeating zillion gazillion myriad "
    "except itself but instead quarter quarters halves gross googol bce "
    "least most twice thrice won't dunno idk whatever"
)
# These do so directly behind the number.
_NOT_FIRST = _words(
    "over under below above to through thru until till than divided divides multiplied raised multiply divide add "
    "subtract sin cos tan cot csc arcsin arccos arctan sinh cosh tanh log ln exp lim max det gcd lcm "
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda sigma phi chi psi omega rho positive negative half "
    "halve bc ad ce o'clock oclock am pm is are was past who decline declined"
)
# These count nothing alone, but "5 double rooms" are 5.
_NO_THINGS = _words("double triple quadruple imaginary")
# These limit or multiply at the end: "4 clips maximum" may be 3.
_NOT_LAST = _words("maximum minimum max tops fold")
_OPEN = re.compile(
    r"\band\s+(?:an?\s+)?(?:more|up|upwards?|above|over|counting|beyond|higher|older|below|under|less|fewer|down|younger|"
    r"some|change|bit)\W*\Z|^\W*upwards?\W*\Z|^\W*imaginary\s+units?\b",
    re.IGNORECASE,
)
_TEMPERATURES = _words("angle^1 celsius^1 fahrenheit^1")
_BELOW = re.compile(r"\b(?:below|under)(?:\s+freezing)?\W*\Z", re.IGNORECASE)
_SHORT = _words("a an of in on at by as to he it we my up go do so us tv pts ppl")
_FILLERS = _words(
    "a an the of in on at for each every all total altogether more left per and about approximately roughly exactly"
)
_WORD = re.compile(r"[A-Za-z]{1,2}\$|[^\W\d_]+(?:['.][^\W\d_]+)*|°[CFcf]?|[$€£¥₹₽₩₺₫₪₱฿₦₴¢℃℉]")
_PRONOUNCED = re.compile(r"[aeiou]|y(?![xz])")
_POWER = re.compile(r"\s*\^\s*\{?\s*(-?\d)\s*\}?(?!\d)")
_SCALE = re.compile(r"^deg(?:ree)?s?\.?\s+(?=C\b|F\b|[Cc]elsius|[Ff]ahrenheit)([CcFf])\w*|^°\s*([CF])\b")
_UNNAMED = re.compile(r"^(?:(?:square|sq|cubic|cu)\.?\s+)?units?(?:\s*\^\s*\{?[23]\}?)?(?![\w^])")
_PREFIX = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_BRACKETED = re.compile(r"[(\[]\s*([^()\[\]]+?)\s*[)\]]")
_FRACTION = re.compile(r"\\frac\s*\{\s*([^{}\d\\]+?(?:\^\d)?)\s*\}\s*\{\s*([^{}\d\\]+?(?:\^\d)?)\s*\}")
_MARKS = {'"': {**UNITS["in"], **UNITS["arcsecond"]}, "'": {**UNITS["ft"], **UNITS["arcminute"]}}
_HYPHEN = re.compile(r"-(?=([^\W\d_]{4,}))")
# A product without a sign is a unit only where a negative power or "kg m" shows it.
_TIMES = re.compile(r"\s*(?:\\cdot|\*)\s*|\s+(?=[^\W\d_]{1,3}\s*\^\s*\{?\s*-)")
_RAISED = re.compile(r"\s+(squared|cubed)\b")
_PER = re.compile(r"\s*(?:/|\bper\b|\ba(?=\s)|\ban(?=\s)|(?<=\S)\s*p(?=/))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """A known unit by its kinds with factors, or none; the words of things that are counted; and directions."""

    kinds: Kinds = field(default_factory=dict)
    words: frozenset[str] = frozenset()
    directions: Directions = frozenset()

    def may_be(self, other: Unit) -> bool:
        """Whether counted things are the same, in part ("clips" and "paper clips"), or one side omits them."""
        if not (self.words or other.words):
            return True
        named, words = (self, other.words) if not self.words else (other, self.words)
        if named.kinds:
            # "5 days" are "5 school days", but no "5 apples".
            return any(kind in _lookup(word) for word in words for kind in named.kinds)
        return not named.words or not named.words.isdisjoint(words)


NO_UNIT = Unit()


def read_unit(tail: str, attached: bool) -> Unit | None:
    """The unit that the text behind a number names; None if the text changes the number.

    `attached`: without a space between. Single letters are then variables, and so are letters that name no unit.
    """
    tail = _SCALE.sub(lambda found: "°" + (found[1] or found[2]).upper(), tail.strip()).removeprefix("US ")
    tail = _UNNAMED.sub("units", tail)
    if not tail:
        return NO_UNIT
    if tail in _MARKS:
        return Unit(_MARKS[tail])
    for form, unit in ((_BRACKETED, r"\1"), (_FRACTION, r"\1/\2")):
        # "72 (cm)" and "72 \frac{km}{h}", if it is a unit.
        if not attached and (match := form.fullmatch(tail)) and (inner := _known(match.expand(unit), False)):
            return Unit(inner[0]) if not inner[1].strip() else None
    if (hyphen := _HYPHEN.match(tail)) and _lookup(hyphen[1]):
        # "72-inch", "72-year-old"
        tail, attached = re.sub("^-|-old$", "", tail), False
    found = _known(tail, attached)
    kinds, rest = found if found else ({}, tail)
    if attached and not found:
        ordinal = re.match(r"(?:st|nd|rd|th)\b", rest)
        if not ordinal:
            return None
        rest = rest[ordinal.end() :]
        if not rest.strip():
            return NO_UNIT
    words = _things(rest, first=not found)
    if words is None:
        return None
    if any(kind in _TEMPERATURES for kind in kinds) and _BELOW.search(rest):
        return None
    return Unit(kinds, frozenset() if kinds else words, directions(rest))


def _known(text: str, attached: bool) -> tuple[dict[str, Fraction], str] | None:
    """Kinds of the known unit at the start of a text, and the rest."""
    first = _simple(text, attached)
    if first is None:
        return None
    kinds, rest = first
    while (times := _TIMES.match(rest)) and (more := _simple(rest[times.end() :], attached=False)):
        kinds = {_product(left, right): f * g for left, f in kinds.items() for right, g in more[0].items()}
        rest = more[1]
    over = _PER.match(rest)
    if over:
        below = _simple(rest[over.end() :], attached=False)
        if below:
            kinds = {f"{up}/{down}": f / g for up, f in kinds.items() for down, g in below[0].items()}
            rest = below[1]
        elif word := _WORD.match(rest, over.end()):
            # "dollars per clip", but not "miles a".
            kinds = {f"{up}/{singular(word[0])}": f for up, f in kinds.items()}
            rest = rest[word.end() :]
        elif over[0].strip() == "/":
            return None
    return kinds, rest


def _product(left: str, right: str) -> str:
    base, _, power = right.rpartition("^")
    return f"{left}/{base}^{power[1:]}" if power.startswith("-") else f"{left}*{right}"


def _simple(text: str, attached: bool) -> tuple[dict[str, Fraction], str] | None:
    text = re.sub(r"^(sq|cu)\.(?=\S)", r"\1 ", text.lstrip())
    word = _WORD.match(text)
    power = 1
    if word and word[0].lower().rstrip(".") in _PREFIX:
        power = _PREFIX[word[0].lower().rstrip(".")]
        text = text[word.end() :].lstrip(". ")
        word, attached = _WORD.match(text), False
    if not word or (
        attached and word[0].isalpha() and (word[0] in SPACED or (len(word[0]) == 1 and word[0].isascii()))
    ):
        return None
    name, rest = word[0], text[word.end() :]
    kinds = _lookup(name)
    # "24 in all" has no inches.
    if not kinds or (name == "in" and re.match(r"\.?\s+(?!per\b)[^\W\d_]", rest)):
        return None
    if len(name) <= 4 and rest.startswith("."):
        rest = rest[1:]
    if raised := _POWER.match(rest):
        power, rest = power * int(raised[1]), rest[raised.end() :]
    elif any(kind.startswith(("length", "time")) for kind in kinds) and (words := _RAISED.match(rest)):
        power, rest = power * (2 if words[1] == "squared" else 3), rest[words.end() :]
    if power != 1:
        powers = {}
        for kind, factor in kinds.items():
            base, _, exponent = kind.rpartition("^")
            powers[f"{base}^{int(exponent) * power}"] = factor**power
        kinds = powers
    return dict(kinds), rest


def _lookup(name: str) -> dict[str, Fraction]:
    """The kinds of a unit. The case of letters counts where it makes a difference: K is kelvin, k is none."""
    name = name.replace(".", "")
    if len(name) == 1 or name in UNITS:
        return UNITS.get(name, {})
    return UNITS.get(name.lower()) or UNITS.get(singular(name)) or {}


def _things(text: str, first: bool) -> frozenset[str] | None:
    """The words of counted things; None if the text holds anything but words, or a word that changes the number."""
    words = re.findall(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*", text)
    between = re.sub(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*", "", text)
    if re.sub(r"[\s,.;:()/&']" if words else r"[\s,.;:]", "", between):
        return None
    lowered = [word.lower() for word in words]
    if first and len(words) == 1 and lowered[0] in _NO_THINGS:
        return None
    if (lowered and lowered[-1] in _NOT_LAST) or _OPEN.search(text):
        return None
    for place, word in enumerate(lowered):
        parts = re.split(r"[.'’-]", word)
        if word in _NEVER or any(
            part in CARDINALS
            or part.removesuffix("fold") in {*CARDINALS, *MULTIPLIERS}
            or singular(part) in CARDINALS
            or singular(part) in MULTIPLIERS
            or singular(part) in DENOMINATORS
            for part in parts
        ):
            return None
        # Letters that are no words are variables.
        if len(word) < 3 and word not in _SHORT and (not _lookup(words[place]) or words[place] in SPACED):
            return None
        if place == 0 and first and word.isascii() and word not in _SHORT and not _PRONOUNCED.search(word):
            return None
        if place == 0 and first and (word in _NOT_FIRST or word in _MONTHS):
            return None
        if word in _MONTHS and place and lowered[place - 1] == "of":
            return None
    return frozenset(singular(word) for word in lowered if word not in _FILLERS)
