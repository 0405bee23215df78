"""The warm start and the expert: rows that teach a small model how an answer looks, and rows that make it good at it.

SmolLM2-135M-Instruct answers a GSM8K question in prose, rambles past any limit and is nearly never right, so that
reinforcement learning finds nothing to reward. The mix here (our choice) is easy enough for it to learn from:

* `mawps`: one- and two-step word problems; their equations are worked out here, a calculation a line;
* `sample`: those of the embedded GSM8K rows for structure models whose solution is short;
* `short`: further GSM8K training rows of the same half with at most three steps.

    >>> work_out("- + number0 number1 number2", "24 39 4")
    (['24 + 39 = 63', '63 - 4 = 59'], '59')

No question of the half that reinforcement learning trains on is among them (`rlkd.data.rows.split_half`), and no test
question. Where the rows come from: `assets/PROVENANCE.md`.

The expert (`expert_rows`) goes on from there, as a teacher in the same form of answer that is worth learning from. Its
rows (our choice) are easy in the same way, but there is no end to them, so that it learns to calculate and does not
learn them by heart:

* `mawps` of the half "gsrm", as they are and again with other numbers (`with_other_numbers`);
* `chains`: short arithmetic chains in words, made by a seeded generator (`chain_rows`);
* the shortest of `short`.

What is distilled from the expert should be other questions: the MAWPS rows and chains of the half "rl"
(`distillation_rows`).

    >>> print(chain_rows("test", 1)[0]["question"])
    Take the number 51. Multiply by 2. Share it into 6 equal parts and keep one. Take away 14. What number do you get?
"""

from __future__ import annotations

import hashlib
import json
import operator
import random
import re
from fractions import Fraction
from importlib.resources import files
from typing import Any, Literal

from rlkd.data.rows import Row, split_half
from rlkd.errors import UsageError
from rlkd.steps import strip_calculator_marks
from rlkd.structure import from_gsm8k_socratic

SAMPLE = "gsm8k-sample"
EASY_SAMPLE = "mawps-sample"
DISTILLATION_SAMPLE = "distillation-sample"
WARM_START = "warm-start"
EXPERT = "expert"
SAMPLES = (SAMPLE, EASY_SAMPLE, DISTILLATION_SAMPLE, WARM_START, EXPERT)
# The rows that serve as worked examples in prompts: short, typical, and from the half that RL never trains on.
FEW_SHOT_EXAMPLES = ("gsm8k-train-5487", "gsm8k-train-3269")

# The longest solution taken from the embedded sample, in characters: about 96 tokens of the embedded model.
LONGEST_SOLUTION = 290

# Of the expert's rows: how often a MAWPS row comes again with other numbers, how many chains, and how many GSM8K rows.
NUMBER_VARIANTS = 2
EXPERT_CHAINS = 900
EXPERT_GSM8K = 150
# Beside as many MAWPS rows as there are.
DISTILLATION_CHAINS = 600

CHAIN_SPLITS = ("gsrm", "rl", "test")
# No number of a chain is larger: two-digit sums and the small multiplication table are what a small model can learn.
_LARGEST = 200
_CHAIN_WORDS = {
    "+": ("Add {}.", "Put {} more to it."),
    "-": ("Take away {}.", "Subtract {}."),
    "*": ("Multiply by {}.", "Take it {} times."),
    "/": ("Divide by {}.", "Share it into {} equal parts and keep one."),
}
_CHAIN_QUESTIONS = ("What number do you get?", "What is the result?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
# A result with more decimals is not written out in full, and a line that rounds would be wrong.
_DECIMALS = 4


def sample_rows(part: Literal["rl", "gsrm", "test"]) -> list[Row]:
    """Rows of the embedded GSM8K sample: `question`, `answer`, one rationale and its structure each.

    The rationale is the plain worked solution, the structure its Socratic steps (see `assets/PROVENANCE.md`).
    """
    if part not in ("rl", "gsrm", "test"):
        raise UsageError(f"part {part!r}: expected 'rl', 'gsrm' or 'test'")
    name = "gsm8k_test.jsonl" if part == "test" else "gsm8k_train.jsonl"
    rows = []
    for record in _records(name):
        if part != "test" and split_half(record["question"]) != part:
            continue
        solution, _, answer = record["socratic"].rpartition("\n#### ")
        rows.append(
            {
                "id": record["id"],
                "question": record["question"],
                "answer": answer.strip(),
                "rationales": ["\n".join(step.split(" ** ", 1)[-1] for step in solution.split("\n"))],
                "structures": [from_gsm8k_socratic(record["socratic"]).to_list()],
            }
        )
    return rows


def few_shot_examples(count: int) -> list[tuple[str, str]]:
    """`count` (question, solution) pairs to put before a question, in the form in which the student should answer."""
    if not 0 <= count <= len(FEW_SHOT_EXAMPLES):
        raise UsageError(
            f"few_shot_examples={count}: there are {len(FEW_SHOT_EXAMPLES)}; give 0 to {len(FEW_SHOT_EXAMPLES)}"
        )
    by_id = {row["id"]: row for row in sample_rows("gsrm")}
    chosen = [by_id[name] for name in FEW_SHOT_EXAMPLES[:count]]
    return [
        (row["question"], f"{strip_calculator_marks(row['rationales'][0])}\n#### {row['answer']}") for row in chosen
    ]


def warm_start_rows() -> list[Row]:
    """All rows of the mix: `id`, `question`, `answer` and one rationale each, without calculator marks."""
    sample = [row for row in sample_rows("gsrm") if len(_plain(row)["rationales"][0]) <= LONGEST_SOLUTION]
    return [*mawps_rows("train"), *map(_plain, sample), *short_rows()]


def mawps_rows(split: Literal["train", "test"]) -> list[Row]:
    """MAWPS word problems with their equations worked out, a calculation a line.

    Raises `UsageError` for another split.
    """
    if split not in ("train", "test"):
        raise UsageError(f"MAWPS split {split!r}: expected 'train' or 'test'")
    return [_worked_out(record) for record in _records(f"mawps_{split}.jsonl")]


def short_rows() -> list[Row]:
    """GSM8K training rows beyond the embedded sample: one to three steps, each with a calculation."""
    rows = []
    for record in _records("gsm8k_short.jsonl"):
        solution, _, answer = record["answer"].rpartition("\n#### ")
        rows.append(
            _plain(
                {
                    "id": record["id"],
                    "question": record["question"],
                    "answer": answer.strip(),
                    "rationales": [solution],
                }
            )
        )
    return rows


def work_out(equation: str, numbers: str) -> tuple[list[str], str]:
    """Work out a prefix equation over `number0`, `number1` ...: a line a calculation, and the result.

    `numbers` holds their values, separated by spaces. Raises ValueError for an equation that is none, and where a
    value has no short decimal form, for then a line `a / b = c` would not be true.
    """
    values = [Fraction(text) for text in numbers.split()]
    lines: list[str] = []
    tokens = equation.split()

    def value(place: int) -> tuple[Fraction, int]:
        """The value of the term that begins at a token, and where the next one begins."""
        if place >= len(tokens):
            raise ValueError(f"equation {equation!r}: an operand is missing at the end")
        token = tokens[place]
        if token in _OPERATIONS:
            left, place = value(place + 1)
            right, place = value(place)
            if token == "/" and not right:
                raise ValueError(f"equation {equation!r} divides by zero")
            result = _OPERATIONS[token](left, right)
            lines.append(f"{_decimal(left)} {token} {_decimal(right)} = {_decimal(result)}")
            return result, place
        if token.startswith("number") and token[6:].isdigit() and int(token[6:]) < len(values):
            return values[int(token[6:])], place + 1
        try:
            return Fraction(token), place + 1
        except ValueError:
            raise ValueError(f"equation {equation!r}: {token!r} is no number and no operation") from None

    result, end = value(0)
    if end != len(tokens):
        raise ValueError(f"equation {equation!r}: {' '.join(tokens[end:])!r} is left over")
    return lines, _decimal(result)


def expert_rows() -> list[Row]:
    """All rows that the expert is trained on, in the form of `warm_start_rows`; always the same.

    They are of the half "gsrm". A MAWPS row with other numbers belongs to the half of its source, whose id it has with
    `-vN` behind it.
    """
    mawps = [record for record in _records("mawps_train.jsonl") if split_half(record["question"]) == "gsrm"]
    variants = []
    for record in mawps:
        for number in range(1, NUMBER_VARIANTS + 1):
            if changed := with_other_numbers(record, f"{record['id']}-v{number}"):
                variants.append(changed)
    short = sorted(short_rows(), key=lambda row: (len(row["question"]) + len(row["rationales"][0]), row["id"]))
    problems = map(_worked_out, [*mawps, *variants])
    return [*problems, *chain_rows("gsrm", EXPERT_CHAINS), *short[:EXPERT_GSM8K]]


def distillation_rows(split: Literal["train", "test"]) -> list[Row]:
    """Rows on which to distil the expert, and to measure it: a MAWPS problem and a chain in turn, then the rest.

    `train`: the half "rl" of MAWPS and 600 chains, none of which is among the expert's own rows; the warm start, from
    which student and expert begin, has seen the MAWPS problems. `test`: the MAWPS test problems and 150 chains. Raises
    `UsageError` for another split.
    """
    problems = mawps_rows(split)
    if split == "train":
        problems = [row for row in problems if split_half(row["question"]) == "rl"]
        chains = chain_rows("rl", DISTILLATION_CHAINS)
    else:
        chains = chain_rows("test")
    pairs = list(zip(problems, chains, strict=False))
    rest = [*problems[len(pairs) :], *chains[len(pairs) :]]
    return [*(row for pair in pairs for row in pair), *rest]


def chain_rows(split: Literal["gsrm", "rl", "test"], count: int = 150) -> list[Row]:
    """The first `count` arithmetic chains of a split: `Start with 7. Add 5. ...`, two to four operations, solved.

    A generator with a fixed seed makes them, and a hash of the question says which split a chain belongs to: an eighth
    is for tests, the rest is divided by `rlkd.data.rows.split_half`. So no chain is in two splits. All values are
    whole numbers from 0 to 200. Raises `UsageError` for another split.
    """
    if split not in CHAIN_SPLITS:
        raise UsageError(f"split {split!r} of the arithmetic chains: expected one of {', '.join(CHAIN_SPLITS)}")
    draw = random.Random(f"arithmetic chains {split}")  # a text as seed gives the same numbers in all versions
    rows: dict[str, Row] = {}
    while len(rows) < count:
        question, lines, answer = _chain(draw)
        if _chain_split(question) == split and question not in rows:
            rows[question] = {
                "id": f"chain-{split}-{len(rows)}",
                "question": question,
                "answer": answer,
                "rationales": ["\n".join(lines)],
            }
    return list(rows.values())


def with_other_numbers(record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A MAWPS record (`id`, `question`, `equation`, `numbers`) with other numbers and the id `name`, or None.

    Each number of the question becomes one of half to twice its size (small ones up to 9) with as many decimals; equal
    numbers stay equal, different ones different, and 1 stays 1 (it is mostly part of a phrase). All values worked out
    stay positive and have no more decimals than before: a problem about whole apples stays one. `name` is the seed.
    None where the numbers of the text are not those of the record, or no such numbers are found.
    """
    written, before = _NUMBER.findall(record["question"]), record["numbers"].split()
    if [Fraction(text) for text in written] != [Fraction(text) for text in before]:
        return None
    lines, _ = work_out(record["equation"], record["numbers"])
    finest = max(map(_decimals, [*before, *_NUMBER.findall(" ".join(lines))]))
    draw = random.Random(name)
    for _ in range(400):
        other = {Fraction(text): _other(text, draw) for text in written}
        if len(set(other.values())) < len(other) or all(Fraction(new) == value for value, new in other.items()):
            continue
        numbers = " ".join(other[Fraction(text)] for text in before)
        try:
            lines, _ = work_out(record["equation"], numbers)
        except ValueError:
            continue
        # A line's values; a minus directly before one is its sign.
        values = [text for line in lines for text in line.split() if text[-1].isdigit()]
        if all(Fraction(text) > 0 and _decimals(text) <= finest for text in values):
            question = _rewritten(record["question"], other)
            return {**record, "id": name, "question": question, "numbers": numbers}
    return None


def _rewritten(question: str, other: dict[Fraction, str]) -> str:
    """The question with another text for each number."""
    return _NUMBER.sub(lambda found: other[Fraction(found[0])], question)


def _other(text: str, draw: random.Random) -> str:
    """A number of half to twice the size of the one that `text` is, with as many decimals; 1 stays 1."""
    if Fraction(text) <= 1 and not _decimals(text):
        return text
    unit = 10 ** _decimals(text)
    size = int(Fraction(text) * unit)
    return _decimal(Fraction(draw.randint(max(2, size // 2), max(9, 2 * size)), unit))


def _decimals(text: str) -> int:
    """The decimals that a number is written with, zeros at their end not counted."""
    return len(text.partition(".")[2].rstrip("0"))


def _chain(draw: random.Random) -> tuple[str, list[str], str]:
    """A chain: its question, the lines of its solution, and the result."""
    value = draw.randint(2, 60)
    sentences, lines = [draw.choice(("Start with {}.", "Take the number {}.")).format(value)], []
    for _ in range(draw.randint(2, 4)):
        choices = {  # what keeps the value whole and in bounds
            "+": range(2, min(60, _LARGEST - value) + 1),
            "-": range(2, min(60, value) + 1),
            "*": [n for n in range(2, 10) if 0 < value * n <= _LARGEST],
            "/": [n for n in range(2, 10) if value and value % n == 0],
        }
        sign = draw.choice([sign for sign, numbers in choices.items() if numbers])
        number = draw.choice(list(choices[sign]))
        result = int(_OPERATIONS[sign](Fraction(value), number))
        sentences.append(draw.choice(_CHAIN_WORDS[sign]).format(number))
        lines.append(f"{value} {sign} {number} = {result}")
        value = result
    return " ".join([*sentences, draw.choice(_CHAIN_QUESTIONS)]), lines, str(value)


def _chain_split(question: str) -> str:
    """The split that a chain belongs to."""
    if hashlib.sha256(f"test {question}".encode()).digest()[0] < 32:
        return "test"
    return split_half(question)


def _worked_out(record: dict[str, Any]) -> Row:
    """A MAWPS record as a row with its solution."""
    lines, answer = work_out(record["equation"], record["numbers"])
    return {
        "id": record["id"],
        "question": record["question"],
        "answer": answer,
        "rationales": ["\n".join(lines)],
    }


def _decimal(value: Fraction) -> str:
    scaled = value * 10**_DECIMALS
    if scaled.denominator != 1:
        raise ValueError(f"{value} has more than {_DECIMALS} decimals")
    whole, part = divmod(abs(scaled.numerator), 10**_DECIMALS)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}" + (f".{part:0{_DECIMALS}d}".rstrip("0") if part else "")


def _plain(row: Row) -> Row:
    """A row as the student should write it, and without what training on text does not need."""
    kept = {key: row[key] for key in ("id", "question", "answer")}
    return {**kept, "rationales": [strip_calculator_marks(text) for text in row["rationales"]]}


def _records(name: str) -> list[dict[str, Any]]:
    text = files("rlkd.assets").joinpath(name).read_text(encoding="utf-8")
    # Not str.splitlines: some texts hold characters that it takes for line ends.
    return [json.loads(line) for line in text.split("\n") if line]
