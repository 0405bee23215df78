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

from rlkd.answers.number_words import CARDINALS, DENOMINATORS, MULTIPLIERS, singular

CURRENCIES = {
    "$": "USD", "us$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY", "₹": "INR", "₽": "RUB", "₩": "KRW", "₺": "TRY",
    "₫": "VND", "₪": "ILS", "₱": "PHP", "฿": "THB", "₦": "NGN", "₴": "UAH", "a$": "AUD", "c$": "CAD", "hk$": "HKD",
    "usd": "USD", "eur": "EUR", "gbp": "GBP", "jpy": "JPY", "inr": "INR", "rub": "RUB", "krw": "KRW", "cny": "CNY",
    "rmb": "CNY", "aud": "AUD", "cad": "CAD", "chf": "CHF", "hkd": "HKD", "sgd": "SGD", "nzd": "NZD", "mxn": "MXN",
    "brl": "BRL", "zar": "ZAR", "sek": "SEK", "nok": "NOK", "dkk": "DKK", "pln": "PLN", "rs": "INR", "rs.": "INR",
    "dollar": "USD", "buck": "USD", "euro": "EUR", "rupee": "INR", "yen": "JPY", "yuan": "CNY", "won": "KRW",
    "ruble": "RUB", "franc": "CHF",
}  # fmt: skip

_TABLE = """
length^1: 1/1000 mm millimeter millimetre; 1/100 cm centimeter centimetre; 1/10 dm decimeter decimetre;
 1 m meter metre; 1000 km kilometer kilometre kms; 127/5000 in inch inche; 381/1250 ft foot feet; 1143/1250 yd yard;
 201168/125 mi mile; 1852 nmi; 1/1000000 µm μm micrometer micron; 1/1000000000 nm nanometer
mass^1: 1/1000 mg milligram; 1 g gm gram gramme; 1000 kg kilogram kilo kgs; 1000000 tonne; 45359237/100000 lb lbs pound;
 45359237/1600000 oz ounce; 45359237/50 ton
time^1: 1/1000 ms millisecond; 1 s sec second; 60 min minute mins; 3600 h hr hour hrs; 86400 day; 604800 week wk;
 1209600 fortnight
months^1: 1 month; 12 year yr yrs; 120 decade; 1200 century centurie
length^3: 1/1000000 ml mL cc milliliter millilitre; 1/100000 cl; 1/1000 l L liter litre; 473176473/125000000000 gal gallon
 ; 473176473/500000000000 quart qt; 473176473/1000000000000 pint pt
length^2: 10000 hectare ha; 316160658/78125 acre
angle^1: 1 ° deg degree; 1/60 minute arcminute; 1/3600 second arcsecond
C^1: 1 °c ℃ celsius °; F^1: 1 °f ℉ fahrenheit °
radians^1: 1 rad radian
energy^1: 1 J joule; 1000 kJ kilojoule; 3600000 kWh kwh; calories^1: 1 calorie cal; 1000 kcal kilocalorie
force^1: 1 N newton; power^1: 1 W watt; 1000 kW kilowatt; current^1: 1 A amp ampere; voltage^1: 1 V volt
pressure^1: 1 Pa pascal; 1000 kPa; frequency^1: 1 Hz hertz; 1000 kHz; 1000000 MHz; 1000000000 GHz; K^1: 1 K kelvin
amount^1: 1 mol mole; data^1: 1 byte; 1000 KB kb; 1000000 MB mb; 1000000000 GB gb; 1000000000000 TB
"""
_FLAT = {
    "mph": ("mi", "h"), "kmh": ("km", "h"), "kph": ("km", "h"), "kmph": ("km", "h"), "mpg": ("mi", "gal"),
    "fps": ("ft", "s"), "rpm": ("revolution", "min"),
}  # fmt: skip

Kinds = Mapping[str, Fraction]


def _table() -> dict[str, dict[str, Fraction]]:
    units: dict[str, dict[str, Fraction]] = {}
    kind = ""
    for entry in _TABLE.replace("\n", " ").split(";"):
        words = entry.split()
        while words:
            if words[0].endswith(":"):
                kind = words.pop(0)[:-1]
                continue
            factor = Fraction(words.pop(0))
            while words and not words[0].endswith(":") and not words[0][0].isdigit():
                units.setdefault(words.pop(0), {})[kind] = factor
    for name, code in CURRENCIES.items():
        units.setdefault(name, {})[f"{code}^1"] = Fraction(1)
    units["pound"] |= {"GBP^1": Fraction(1)}
    units["penny"] = units["pennie"] = units["pence"] = {"GBP^1": Fraction(1, 100), "USD^1": Fraction(1, 100)}
    units["cent"] = {"USD^1": Fraction(1, 100), "EUR^1": Fraction(1, 100)}
    units["¢"] = units["cent"]
    units["paise"] = {"INR^1": Fraction(1, 100)}
    return units


_UNITS = _table()
_MONTHS = frozenset(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# These words change a value, wherever they stand: they calculate, negate, or give a second value.
_NEVER = frozenset(
    "plus minus squared cubed factorial choose mod modulo modulus base remainder root sqrt power powers exponent "
    "infinity infinite pi tau or versus vs not no none never nope nothing wrong incorrect false unknown undefined "
    "impossible invalid unclear cannot can't isn't doesn't don't maybe perhaps possibly if unless except itself "
    "but instead quarter quarters halves gross googol bce".split()
)
# These do so directly behind the number.
_NOT_FIRST = frozenset(
    "over under below above to through thru until till than divided divides multiplied raised multiply divide add "
    "subtract times-x sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp lim max det gcd lcm "
    "alpha beta gamma delta epsilon theta lambda mu sigma phi omega rho positive negative half halve bc ad ce "
    "o'clock oclock am pm is are was".split()
) - {"sec"}
_WORD = re.compile(r"[^\W\d_]+(?:['.][^\W\d_]+)*|°[CFcf]?|[$€£¥₹₽₩₺₫₪₱฿₦₴¢℃℉]")
_POWER = re.compile(r"\s*\^\s*\{?\s*(-?\d)\s*\}?(?!\d)")
_SCALE = re.compile(r"^deg(?:ree)?s?\.?\s+(?=C\b|F\b|[Cc]elsius|[Ff]ahrenheit)([CcFf])\w*|^°\s*([CF])\b")
_PREFIX = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_PER = re.compile(r"\s*(?:/|\bper\b|\ba(?=\s)|\ban(?=\s)|(?<=\S)\s*p(?=/))\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """A known unit by its kinds with factors, or none; and the words of things that are counted."""

    kinds: Kinds = field(default_factory=dict)
    words: frozenset[str] = frozenset()


def read_unit(tail: str, attached: bool) -> Unit | None:
    """The unit that the text behind a number names; None if the text changes the number.

    `attached`: without a space between. Single letters are then variables, and so are letters that name no unit.
    """
    tail = _SCALE.sub(lambda found: "°" + (found[1] or found[2]).upper(), tail.strip()).removeprefix("US ")
    if not tail:
        return Unit()
    found = _known(tail, attached)
    kinds, rest = found if found else ({}, tail)
    if attached and not found:
        ordinal = re.match(r"(?:st|nd|rd|th)\b", rest)
        if not ordinal:
            return None
        rest = rest[ordinal.end() :]
        if not rest.strip():
            return Unit()
    words = _things(rest, first=not found)
    if words is None:
        return None
    return Unit(kinds, frozenset() if kinds else words)


def _known(text: str, attached: bool) -> tuple[dict[str, Fraction], str] | None:
    """Kinds of the known unit at the start of a text, and the rest."""
    first = _simple(text, attached)
    if first is None:
        return None
    kinds, rest = first
    while (times := re.match(r"\s*(?:\\cdot|\*)\s*", rest)) and (more := _simple(rest[times.end() :], attached=False)):
        kinds = {f"{left}*{right}": f * g for left, f in kinds.items() for right, g in more[0].items()}
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


def _simple(text: str, attached: bool) -> tuple[dict[str, Fraction], str] | None:
    text = text.lstrip()
    word = _WORD.match(text)
    power = 1
    if word and word[0].lower().rstrip(".") in _PREFIX:
        power = _PREFIX[word[0].lower().rstrip(".")]
        text = text[word.end() :].lstrip(". ")
        word, attached = _WORD.match(text), False
    if not word or (attached and len(word[0]) == 1 and word[0].isalpha()):
        return None
    name, rest = word[0], text[word.end() :]
    if name.lower() in _FLAT and power == 1:
        up, down = _FLAT[name.lower()]
        return {f"{k}/{m}": f / g for k, f in _lookup(up).items() for m, g in _lookup(down).items()}, rest
    kinds = _lookup(name)
    # "24 in all" has no inches.
    if not kinds or (name == "in" and re.match(r"\.?\s+(?!per\b)[^\W\d_]", rest)):
        return None
    if name.lower() != "rs" and len(name) <= 4 and rest.startswith("."):
        rest = rest[1:]
    if raised := _POWER.match(rest):
        power, rest = power * int(raised[1]), rest[raised.end() :]
    if power != 1:
        powers = {}
        for kind, factor in kinds.items():
            base, _, exponent = kind.rpartition("^")
            powers[f"{base}^{int(exponent) * power}"] = factor**power
        kinds = powers
    return dict(kinds), rest


def _lookup(name: str) -> dict[str, Fraction]:
    if len(name) == 1 or name in _UNITS:
        return _UNITS.get(name, {})
    return _UNITS.get(name.lower()) or _UNITS.get(singular(name)) or ({} if name != "revolution" else {"turn": 1})


def _things(text: str, first: bool) -> frozenset[str] | None:
    """The words of counted things; None if the text holds anything but words, or a word that changes the number."""
    words = re.findall(r"[^\W\d_]+(?:['’.-][^\W\d_]+)*", text)
    if re.sub(r"[^\W\d_]+|[\s'’.,;:()\-/&]", "", text) or re.search(r"\(|/", text) and not words:
        return None
    lowered = [word.lower() for word in words]
    for place, word in enumerate(lowered):
        parts = re.split(r"[.'’-]", word)
        if word in _NEVER or any(
            part in CARDINALS or singular(part) in MULTIPLIERS or singular(part) in DENOMINATORS for part in parts
        ):
            return None
        # Letters that are no words are variables.
        if len(word) < 3 and word not in _SHORT and not _lookup(words[place]):
            return None
        if place == 0 and first and word.isascii() and not re.search(r"[aeiouy]", word):
            return None
        if place == 0 and first and (word in _NOT_FIRST or word in _MONTHS):
            return None
        if word in _MONTHS and place and lowered[place - 1] == "of":
            return None
    return frozenset(singular(word) for word in lowered if word not in _FILLERS)


_SHORT = frozenset("a i of in on at by as to he it we my up go do so us tv kg".split())
_FILLERS = frozenset("a an the of in on at for each every all total altogether more left per and".split())
