"""Bank entries: a teacher's route for a question, and the contract that its path must keep to enter a bank.

The contract of D-RPC (arXiv 2605.07139): difficulty 1 has a budget of 2 steps, difficulty 2 and 3 one of 3; a path is
no longer than its budget, and its steps have TitleCase names of letters, with no word that belongs to one question.

    >>> entry = RouteEntry("q1", "Ann buys 2 pens at $3. What does she pay?", "arithmetic", ("compute total cost",),
    ...     difficulty=1, budget=2, path=("MultiplyPrice", "AddAnnsCosts", "StateResult"))
    >>> violations(entry)
    ['3 steps with a budget of 2', "'AddAnnsCosts' names Ann"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlkd.rationales.bank.paths import StepNames, split_name
from rlkd.rationales.records import storable

MAX_STEPS = 3


@dataclass(frozen=True)
class RouteEntry:
    """A teacher's route for a question, and whether its answer was right (None: unknown).

    `path` holds the names of the steps; it enters the bank under the first of the `intents`.
    """

    question_id: str
    question: str
    category: str
    intents: tuple[str, ...]
    difficulty: int
    budget: int
    path: StepNames
    correct: bool | None = None


def violations(entry: RouteEntry, *, offered_budget: int | None = None) -> list[str]:
    """The ways in which an entry breaks the contract at the top or that of its path (`path_violations`).

    `offered_budget`: of the guided round, where the teacher has to keep it, whatever the difficulty.
    """
    broken = []
    if offered_budget is not None:
        if entry.budget != offered_budget:
            broken.append(f"budget {entry.budget}, though {offered_budget} was given")
    elif entry.difficulty not in (1, 2, 3):
        broken.append(f"difficulty {entry.difficulty}, expected 1, 2 or 3")
    elif entry.budget != (2 if entry.difficulty == 1 else 3):
        broken.append(f"difficulty {entry.difficulty} with a budget of {entry.budget}")
    if len(entry.path) > entry.budget:
        broken.append(f"{len(entry.path)} steps with a budget of {entry.budget}")
    if not entry.category.strip() or not entry.intents or not all(intent.strip() for intent in entry.intents):
        broken.append("no category or no intent")
    return broken + path_violations(entry.path, entry.question)


_TITLE_CASE = re.compile(r"(?:[A-Z][A-Za-z]*)")
_PARTS = "step stage part phase"
_ORDINALS = (
    "one two three four five six seven eight nine ten eleven twelve first second third fourth fifth sixth seventh "
    "eighth ninth tenth last final next"
)
_NUMBERED = re.compile(f"(?:{'|'.join(f'{_PARTS} {_ORDINALS}'.split())})+")


def _is_ordinal(name: str) -> bool:
    """Whether a name is only a position in an order (`StepFive`, `LASTSTEP`, `One`), or begins as one (`StepOneAdd`).

    >>> [_is_ordinal(name) for name in ("AddTwoNumbers", "StepwiseAdd", "TakeThird", "PartsTogether")]
    [False, False, False, False]
    """
    if _NUMBERED.fullmatch(name.casefold()):
        return True
    words = [word.casefold() for word in split_name(name)]
    return len(words) > 1 and words[0] in _PARTS.split() and (words[1] in _ORDINALS.split() or len(words[1]) == 1)


def path_violations(path: StepNames, question: str = "") -> list[str]:
    """Why a path is not fit for a bank: expected are 1 to 3 distinct names in TitleCase, letters only.

    Names describe an action (`StepOne` does not), and contain no proper name of the question.

    >>> path_violations(("AddPrices", "CountNataliasClips2"), "Natalia sold 48 clips.")
    ["'CountNataliasClips2' is not TitleCase in letters only", "'CountNataliasClips2' names Natalia"]
    """
    broken = []
    if not 1 <= len(path) <= MAX_STEPS:
        broken.append(f"{len(path)} steps, expected 1 to {MAX_STEPS}")
    if len({step.casefold() for step in path}) < len(path):
        broken.append("a step's name stands twice")
    names = proper_names(question)
    for step in path:
        if not _TITLE_CASE.fullmatch(step):
            broken.append(f"{step!r} is not TitleCase in letters only")
        if _is_ordinal(step):
            broken.append(f"{step!r} does not say what is done")
        words = {word.casefold() for word in split_name(step)}
        words |= {word.removesuffix("s") for word in words}
        broken += [f"{step!r} names {name}" for name in names if name.casefold() in words]
    return broken


# Words that begin a sentence with a capital letter and are not names.
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
    """The words of a question that look like names, in order: capitalised, and not a common first word of a sentence.

    A noun that begins a sentence (`Cars drive ...`) counts too: it belongs to the question, not to a bank.
    """
    starts = {match.end() for match in _SENTENCE.finditer(question)}
    names = [
        match[0]
        for match in _CAPITALISED.finditer(question)
        if match.start() not in starts or match[0].casefold() not in _NO_NAMES
    ]
    return list(dict.fromkeys(names))


def one_line(text: str) -> str:
    """A storable text with single spaces."""
    return " ".join(storable(text).split())
