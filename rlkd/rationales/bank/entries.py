"""What a teacher's route has to be before its path can enter a bank: the record of it, and the contract.

The contract of D-RPC (arXiv 2605.07139): difficulty 1 has a budget of 2 steps, difficulty 2 and 3 one of 3; a path is
no longer than its budget, and its steps have TitleCase names of letters with no word that belongs to one question.

    >>> entry = RouteEntry.from_route("q1", "Ann buys 2 pens at $3. What does she pay?", {
    ...     "category": "arithmetic", "intents": ["compute total cost"], "difficulty": 1, "budget": "2",
    ...     "path": ["MultiplyPrice", "AddAnnsCosts", "StateResult"]})
    >>> violations(entry)
    ['3 steps with a budget of 2', "'AddAnnsCosts' names Ann"]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlkd.rationales.bank.clustering import Path, split_name

MOST_STEPS = 3


@dataclass(frozen=True)
class RouteEntry:
    """What a teacher said of a question: the route, and whether the answer was right (None: not known).

    `path` holds the names of the steps; the path goes into the bank under the first of the `intents`.
    """

    question_id: str
    question: str
    category: str
    intents: tuple[str, ...]
    difficulty: int
    budget: int
    path: Path
    correct: bool | None = None

    @classmethod
    def from_route(
        cls, question_id: str, question: str, route: Mapping[str, Any], correct: bool | None = None
    ) -> RouteEntry:
        """Read the route of a teacher's JSON reply: category, intents, difficulty, budget, path.

        One intent may stand alone, a whole number in quotes. Raises ValueError, with the field and what is there.
        """
        category = route.get("category")
        if not isinstance(category, str) or not category.strip():
            raise ValueError(f"route field 'category' is {category!r}: expected a text")
        named = {name: _texts(name, route.get(name)) for name in ("intents", "path")}
        whole = {name: _whole(name, route.get(name)) for name in ("difficulty", "budget")}
        return cls(
            question_id, question, one_line(category), named["intents"], path=named["path"], correct=correct, **whole
        )


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise ValueError(f"route field {name!r} is {value!r}: expected a list of texts")
    return tuple(map(one_line, values))


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    # `is_integer` is false of nan and infinities, which Python reads from JSON.
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    raise ValueError(f"route field {name!r} is {value!r}: expected a whole number")


def violations(entry: RouteEntry, *, offered_budget: int | None = None) -> list[str]:
    """How an entry breaks the contract of D-RPC; nothing where it keeps it.

    Beside the contract at the top, the path has to be fit for a bank (`path_violations`). In the guided round the
    teacher was given a budget, `offered_budget`, which it is to leave as it is, whatever the difficulty.
    """
    found = []
    if offered_budget is not None:
        if entry.budget != offered_budget:
            found.append(f"budget {entry.budget}, though {offered_budget} was given")
    elif entry.difficulty not in (1, 2, 3):
        found.append(f"difficulty {entry.difficulty}, expected 1, 2 or 3")
    elif entry.budget != (2 if entry.difficulty == 1 else 3):
        found.append(f"difficulty {entry.difficulty} with a budget of {entry.budget}")
    if len(entry.path) > entry.budget:
        found.append(f"{len(entry.path)} steps with a budget of {entry.budget}")
    if not entry.category.strip() or not entry.intents or not all(intent.strip() for intent in entry.intents):
        found.append("no category or no intent")
    return found + path_violations(entry.path, entry.question)


_TITLE_CASE = re.compile(r"(?:[A-Z][A-Za-z]*)")
_PARTS = "step stage part phase"
_PLACES = (
    "one two three four five six seven eight nine ten eleven twelve first second third fourth fifth sixth seventh "
    "eighth ninth tenth last final next"
)
_NUMBERED = re.compile(f"(?:{'|'.join(f'{_PARTS} {_PLACES}'.split())})+")


def _says_nothing(name: str) -> bool:
    """Whether a name is but a place in an order (`StepFive`, `LASTSTEP`, `One`), or begins so (`StepOneAdd`, `PartB`).

    >>> [_says_nothing(name) for name in ("AddTwoNumbers", "StepwiseAdd", "TakeThird", "PartsTogether")]
    [False, False, False, False]
    """
    if _NUMBERED.fullmatch(name.casefold()):
        return True
    words = [word.casefold() for word in split_name(name)]
    return len(words) > 1 and words[0] in _PARTS.split() and (words[1] in _PLACES.split() or len(words[1]) == 1)


def path_violations(path: Path, question: str = "") -> list[str]:
    """Why a path is not fit for a bank: 1 to 3 distinct names in TitleCase, letters only, that suit other questions.

    Names say what is done (`StepOne` does not), and hold no name that stands in the question.

    >>> path_violations(("AddPrices", "CountNataliasClips2"), "Natalia sold 48 clips.")
    ["'CountNataliasClips2' is not TitleCase in letters only", "'CountNataliasClips2' names Natalia"]
    """
    found = []
    if not 1 <= len(path) <= MOST_STEPS:
        found.append(f"{len(path)} steps, expected 1 to {MOST_STEPS}")
    if len({step.casefold() for step in path}) < len(path):
        found.append("a step's name stands twice")
    names = proper_names(question)
    for step in path:
        if not _TITLE_CASE.fullmatch(step):
            found.append(f"{step!r} is not TitleCase in letters only")
        if _says_nothing(step):
            found.append(f"{step!r} does not say what is done")
        words = {word.casefold() for word in split_name(step)}
        words |= {word.removesuffix("s") for word in words}
        found += [f"{step!r} names {name}" for name in names if name.casefold() in words]
    return found


# What may begin a sentence in capitals without being a name, beside what begins a question.
_NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those each every all both some any no one two three four five six seven "
        "eight nine ten he she it they we you i his her its their our your my there here if when while after "
        "before since because as at by for from in on of to with without and but or so then now how what "
        "which who why where is are was were do does did can could will would has have had let given suppose "
        "assume find compute calculate determine solve evaluate simplify express write show prove add "
        "subtract multiply divide count compare convert estimate choose apply use identify list order sort "
        "round check explain half halve twice double take make draw put fill most many few more less only "
        "also however during per",
    )
)
_SENTENCE = re.compile(r"(?:\A|[.!?:;\n]\s*|[\"“(]\s*)(?=\w)")
_CAPITALISED = re.compile(r"\b[A-ZÀ-ÖØ-Þ][^\W\d_]+")


def proper_names(question: str) -> list[str]:
    """The words of a question that look like names, in order: in capitals, and no word that begins many sentences.

    A noun that begins a sentence (`Cars drive ...`) counts too: it belongs to the question, not into a bank.
    """
    starts = {match.end() for match in _SENTENCE.finditer(question)}
    found = [
        match[0]
        for match in _CAPITALISED.finditer(question)
        if match.start() not in starts or match[0].casefold() not in _NO_NAMES
    ]
    return list(dict.fromkeys(found))


def one_line(text: str) -> str:
    """A text with single spaces and fit for a file, which cannot hold the half surrogate pairs that models write."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
