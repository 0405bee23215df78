"""The units that are known: kind, factor to the unit of that kind, and names.

A unit with two kinds (a pound is a mass and money) stands in two lines. Areas and volumes are powers of lengths.
"""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = """
length^1   1/1000000000  nm nanometer
length^1   1/1000000     µm μm micrometer micron
length^1   1/1000        mm millimeter millimetre
length^1   1/100         cm centimeter centimetre
length^1   1/10          dm decimeter decimetre
length^1   1             m meter metre
length^1   1000          km kilometer kilometre
length^1   127/5000      in inch inche
length^1   381/1250      ft foot feet
length^1   1143/1250     yd yard
length^1   201168/125    mi mile
length^2   10000         ha hectare
length^2   316160658/78125 acre
length^3   1/1000000     ml mL cc milliliter millilitre
length^3   1/100000      cl cL centiliter
length^3   1/10000       dl dL deciliter
length^3   1/1000        l L liter litre
length^3   473176473/125000000000 gal gallon
length^3   473176473/500000000000 quart
length^3   473176473/1000000000000 pint
mass^1     1/1000        mg milligram
mass^1     1             g gm gram gramme
mass^1     1000          kg kgs kilogram kilo
mass^1     1000000       t tonne
mass^1     45359237/100000  lb lbs pound
mass^1     45359237/1600000 oz ounce
mass^1     45359237/50   ton
time^1     1/1000        ms millisecond
time^1     1             s sec second
time^1     60            min mins minute
time^1     3600          h hr hrs hour
time^1     86400         day
time^1     604800        wk week
months^1   1             month
months^1   12            yr yrs year
months^1   120           decade
months^1   1200          century centurie
angle^1    1             ° deg degree
angle^1    1/60          arcminute minute
angle^1    1/3600        arcsecond second
radian^1   1             rad radian
celsius^1  1             °c ℃ celsius ° deg degree
fahrenheit^1 1           F °f ℉ fahrenheit ° deg degree
kelvin^1   1             K kelvin
energy^1   1             J joule
energy^1   1000          kJ kilojoule
energy^1   3600000       kWh kwh
electronvolt^1 1         eV
sound^1    1             dB decibel
light^1    1             lm lumen
illuminance^1 1          lx lux
calories^1 1             cal calorie
calories^1 1000          kcal kilocalorie
force^1    1             N newton
power^1    1             W watt
power^1    1000          kW kilowatt
current^1  1             A amp ampere
voltage^1  1             V volt
resistance^1 1           Ω ohm
capacity^1 1             F farad
field^1    1             T tesla
pressure^1 1             Pa pascal
pressure^1 1000          kPa
pressure_of_mercury^1 1  mmHg
frequency^1 1            Hz hertz
frequency^1 1000         kHz
frequency^1 1000000      MHz
frequency^1 1000000000   GHz
amount^1   1             mol mole
turn^1     1             revolution
bits^1     1             bit
bits^1     1000          kbit
bits^1     1000000       Mbit
bits^1     1000000000    Gbit
beats^1    1             beat
data^1     1             byte
data^1     1000          KB kB kb
data^1     1000000       MB mb
data^1     1000000000    GB gb
data^1     1000000000000 TB tb terabyte
pixel^1    1             px pixel
spoon^1    1             tsp teaspoon
spoon^1    3             tbsp tablespoon
USD^1      1             $ us$ usd dollar buck
USD^1      1/100         ¢ cent penny pennie
EUR^1      1             € eur euro
EUR^1      1/100         ¢ cent
GBP^1      1             £ gbp pound
GBP^1      1/100         pence penny pennie
JPY^1      1             ¥ jpy yen 円
CNY^1      1             ¥ cny rmb yuan 元
INR^1      1             ₹ inr rs rs. re rupee
INR^1      1/100         paise paisa
RUB^1      1             ₽ rub ruble
KRW^1      1             ₩ krw won
TRY^1      1             ₺
VND^1      1             ₫
ILS^1      1             ₪
PHP^1      1             ₱
THB^1      1             ฿
NGN^1      1             ₦
UAH^1      1             ₴
AUD^1      1             a$ au$ aud
CAD^1      1             c$ ca$ cad
CHF^1      1             chf fr fr. franc
BRL^1      1             r$ brl
TWD^1      1             nt$ twd
PLN^1      1             zł pln zloty
SEK^1      1             kr sek krona
NOK^1      1             kr nok
DKK^1      1             kr dkk
HKD^1      1             hk$ hkd
SGD^1      1             s$ sgd
NZD^1      1             nz$ nzd
"""
# Prefixes and the units before which they are common.
_PREFIXES = {"p": -12, "n": -9, "µ": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12}
_PREFIXED = {
    "A": "µmk", "V": "µmkM", "W": "mMGT", "J": "mMG", "N": "mkM", "Pa": "MG", "Hz": "T", "eV": "kMGT", "Ω": "kM",
    "F": "pnµ", "T": "µm", "g": "µ", "s": "nµ", "mol": "m",
}  # fmt: skip
SPACED = {"t", "T", "F", "A", "lm", "lx", "px", "re", "fr", "kr", "eV", "dB", "TB", "tb"}
"""Units that need a space before them: 5lm and 5mA may be products."""
_RATES = {
    "mph": ("mi", "h"),
    "kmh": ("km", "h"),
    "kph": ("km", "h"),
    "kmph": ("km", "h"),
    "mpg": ("mi", "gal"),
    "fps": ("ft", "s"),
    "rpm": ("revolution", "min"),
    "bpm": ("beat", "min"),
    "bps": ("bit", "s"),
    "kbps": ("kbit", "s"),
    "Mbps": ("Mbit", "s"),
    "Gbps": ("Gbit", "s"),
}


def _read() -> dict[str, dict[str, Fraction]]:
    units: dict[str, dict[str, Fraction]] = {}
    for line in _UNITS.strip().split("\n"):
        kind, factor, *names = line.split()
        for name in names:
            units.setdefault(name, {})[kind] = Fraction(factor)
    for name, prefixes in _PREFIXED.items():
        for prefix in prefixes:
            scaled = {kind: factor * Fraction(10) ** _PREFIXES[prefix] for kind, factor in units[name].items()}
            units[prefix + name] = scaled
            SPACED.add(prefix + name)
    for name, (above, below) in _RATES.items():
        units[name] = {
            f"{kind}/{per}": factor / divisor
            for kind, factor in units[above].items()
            for per, divisor in units[below].items()
        }
    return units


UNITS = _read()
"""The kinds of each unit, by name, with the factor to the unit of the kind."""

_CODES = re.compile(r"\W|[a-z]{0,2}\$|[a-z]{3}|rs\.?|re|kr|fr\.?")
CURRENCY_SIGNS = [
    name
    for name, kinds in UNITS.items()
    if all(kind[:3].isupper() for kind in kinds) and _CODES.fullmatch(name) and name not in ("yen", "won", "¢")
]
"""What may stand before an amount of money: "$", "USD", "Rs."."""
