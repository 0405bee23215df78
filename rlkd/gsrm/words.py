"""Compares the words of sub-questions: the share of common words, and whether they name different things."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from rlkd.answers import squeezed

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to for by with and or so then is are was were be been do does did has have "
        "had he she it they his her its their this that these those there how many much what which who "
        "now will would if as from",
    )
)
# In word problems these tell one sub-question from the next more often than any noun does.
_SYNONYMS = {
    word: group.partition(" ")[0]
    for group in (
        "total altogether all combined sum together overall whole entire add",
        "left remain remains remaining remained still rest",
        "more difference extra fewer less exceed than further additional",
        "each per every single",
    )
    for word in group.split()
}
_NUMBER_WORDS = {
    word: str(value)
    for words in (
        "- two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
    )
    for value, word in enumerate(words.split(), 1)
}
# Neither `$5` nor `20%`: such a number says how much, not which.
_NUMBER = re.compile(r"(?<![$€£\d.])\d+(?:,\d{3})*(?:\.\d+)?(?!\d|\s?%)")
_PIECE = re.compile(r"(?P<word>[^\W\d_]+)|(?P<possessive>['’]s?\b)|(?P<end>[.?!:](?=\s|\Z))|\S")


def share_of_words(first: str, second: str) -> float:
    """The Jaccard index of two texts' content words (crude stems, no numbers); by letters where there are none."""
    left, right = content_words(first), content_words(second)
    if not left and not right:
        return float(same_letters(first, second))
    return len(left & right) / len(left | right)


def same_letters(first: str, second: str) -> bool:
    """Whether two texts are equal but for case, spaces and the mark at the end."""
    # For words only: a sub-question may end with any mark, but the answer "5!" is not "5".
    return squeezed(first).rstrip(".?!") == squeezed(second).rstrip(".?!")


def name_different_things(first: str, second: str) -> bool:
    """Whether each of two sub-questions has a name, or each a number, that the other lacks.

    >>> name_different_things("How many did Ann sell on Monday?", "How many did Ann sell on Tuesday?")
    True
    >>> name_different_things("Pages of the second week", "How many pages did Ann read in week two?")
    False

    Numbers are `2`, `two` and `second`; names are capitalised words that do not begin a sentence. False for a sentence
    that states its calculation, which names much in passing.
    """
    if "=" in first or "=" in second:
        return False
    left, right = _references(first), _references(second)
    numbers = left.numbers - right.numbers and right.numbers - left.numbers
    names = left.names - right.words and right.names - left.words
    return bool(numbers or names)


@lru_cache(maxsize=16384)
def content_words(text: str) -> frozenset[str]:
    """The stems of the words that say what a text is about; words for a sum, a rest or a difference as one each."""
    words = re.findall(r"[a-z]+", text.lower())
    return frozenset(_SYNONYMS.get(word) or _stem(word) for word in words if word not in _STOP_WORDS and len(word) > 1)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


class _References(NamedTuple):
    words: frozenset[str]
    names: frozenset[str]
    numbers: frozenset[str]


@lru_cache(maxsize=16384)
def _references(text: str) -> _References:
    words, names = set(), set()
    begins = True
    for piece in _PIECE.finditer(text):
        if word := piece["word"]:
            words.add(word.lower())
            if word[0].isupper() and not begins and word != "I":
                names.add(word.lower())
        if not piece["possessive"]:
            begins = piece["end"] is not None
    numbers = {found.replace(",", "") for found in _NUMBER.findall(text)}
    numbers |= {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}
    return _References(frozenset(words), frozenset(names), frozenset(numbers))
