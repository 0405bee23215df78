"""Make the labelled pairs of steps again that judges are measured on: `rlkd/assets/step_pairs.jsonl`.

    python tests/data/build_step_pairs.py [FILE]

From the Socratic solutions of the embedded training rows (test rows are left to the measurements of whole rewards)
and from `step_paraphrases.txt`, sub-questions put in other words by hand. Seeded; a test compares the result with the
file that is shipped. A label says what a careful reader would: `meta` is true where both steps are devoted to the same
sub-problem, right or wrong, `question` where they work out the same thing, `answer` where the result is the same.
`docs/judges.md` describes the kinds, and how labels were checked.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from rlkd.data.samples import sample_rows
from rlkd.steps import strip_calculator_marks

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "rlkd" / "assets" / "step_pairs.jsonl"
PROBLEMS = 200

# The first N pairs of every kind, in both halves, were read by eye.
READ_UP_TO = 6

Place = tuple[str, int]
Step = dict[str, str]
Label = tuple[bool, bool, bool]


def main() -> None:
    """Write the file."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    pairs = build()
    target.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    print(f"{target}: {len(pairs)} pairs")


def build() -> list[dict[str, Any]]:
    """All pairs: first the half that thresholds are fitted on, then the half that is reported."""
    rows = {row["id"]: row for row in [*sample_rows("rl"), *sample_rows("gsrm")]}
    names = [name for name in sorted(rows) if _usable(rows[name])]
    random.Random(0).shuffle(names)
    written = paraphrases()
    # First the few with one calculation for two different things, then those with a paraphrase by hand.
    by_hand = {row for row, _ in written}
    names.sort(key=lambda name: (not _repeats_a_calculation(rows[name]), name not in by_hand))
    pairs = []
    for split, half in (("fit", names[:PROBLEMS:2]), ("check", names[1:PROBLEMS:2])):
        pairs += Half([rows[name] for name in half], written, split).pairs()
    return pairs


def paraphrases() -> dict[Place, str]:
    """The sub-questions written by hand."""
    found = {}
    for line in (HERE / "step_paraphrases.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            place, _, text = line.partition(" ")
            row, _, step = place.partition(".")
            found[f"gsm8k-train-{row}", int(step)] = text
    return found


def _usable(row: dict[str, Any]) -> bool:
    steps = row["structures"][0]
    if len(steps) < 2 or len(row["rationales"][0].split("\n")) != len(steps):
        return False
    # Some solutions carry results that do not follow from their calculation; no label could be trusted there.
    return all(
        all(step.values())
        and re.search(r"[\d)] *[-+*/]", step["question"])
        and (result := value(step["question"])) is not None
        and result == value(step["answer"])
        for step in steps
    )


def _repeats_a_calculation(row: dict[str, Any]) -> bool:
    steps = row["structures"][0]
    found = {_bare(step["question"]): step["meta"] for step in steps}
    return any(found[_bare(step["question"])] != step["meta"] for step in steps)


class Half:
    """The pairs of one half of the problems."""

    def __init__(self, rows: list[dict[str, Any]], written: dict[Place, str], split: str):
        self.split = split
        self.random = random.Random(f"step pairs, {split}")
        self.steps: dict[Place, Step] = {}
        self.sentences: dict[Place, str] = {}
        for row in rows:
            sentences = row["rationales"][0].split("\n")
            for k, (step, sentence) in enumerate(zip(row["structures"][0], sentences, strict=True)):
                self.steps[row["id"], k] = step
                self.sentences[row["id"], k] = strip_calculator_marks(sentence)
        self.written = {place: text for place, text in written.items() if place in self.steps}

    def pairs(self) -> list[dict[str, Any]]:
        """N of each kind, from as many different problems as there are."""
        kinds: list[tuple[str, int, Callable[[Place], tuple[Place, Step, Label] | None]]] = [
            ("paraphrase", 80, self.paraphrase),
            ("template", 18, self.template),
            ("filler", 14, self.filler),
            ("statement", 20, self.statement),
            ("changed number", 16, self.changed_number),
            ("wrong result", 12, self.wrong_result),
            ("operands swapped", 12, self.operands_swapped),
            ("operands reversed", 12, self.operands_reversed),
            ("neighbour", 35, self.neighbour),
            ("similar words", 50, self.similar_words),
            ("paraphrased neighbour", 40, self.paraphrased_neighbour),
            ("stated neighbour", 30, self.stated_neighbour),
            ("same calculation", 10, self.same_calculation),
            ("other problem", 20, self.other_problem),
        ]
        result = []
        for kind, wanted, make in kinds:
            made = 0
            for place in self.places():
                if made == wanted:
                    break
                found = make(place)
                if found is None:
                    continue
                source, student, label = found
                made += 1
                name = f"{self.split}-{kind.replace(' ', '-')}-{made}"
                result.append(
                    {
                        "id": name,
                        "split": self.split,
                        "kind": kind,
                        "source": sorted({place[0], source[0]}),
                        "student": student,
                        "teacher": dict(self.steps[place]),
                        "label": dict(zip(("meta", "question", "answer"), label, strict=True)),
                        "read": made <= READ_UP_TO,
                    }
                )
        return result

    def places(self) -> list[Place]:
        """All steps in random order, the first of each problem before any second one."""
        places = sorted(self.steps)
        self.random.shuffle(places)
        seen: Counter[str] = Counter()
        rounds = {}
        for place in places:
            rounds[place] = seen[place[0]]
            seen[place[0]] += 1
        return sorted(places, key=rounds.__getitem__)

    # The same sub-problem

    def paraphrase(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The sub-question in other words, the calculation written in another way."""
        if place not in self.written:
            return None
        return place, self.rewritten(self.written[place], self.steps[place]), (True, True, True)

    def template(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The same by rules of rewriting."""
        meta = by_template(self.steps[place]["meta"])
        return (place, self.rewritten(meta, self.steps[place]), (True, True, True)) if meta else None

    def filler(self, place: Place) -> tuple[Place, Step, Label] | None:
        """Words around that say nothing."""
        meta = self.steps[place]["meta"]
        meta = self.random.choice(FILLERS).format(meta[0].lower() + meta[1:], meta)
        return place, self.rewritten(meta, self.steps[place]), (True, True, True)

    def statement(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The sentence that states the step, as a rules decomposer takes it for the meta part."""
        return place, self.rewritten(self.sentences[place], self.steps[place]), (True, True, True)

    def changed_number(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The sub-question is pursued with a wrong operand."""
        step = self.steps[place]
        numbers = list(re.finditer(r"\d+(?:\.\d+)?", step["question"]))
        changed = self.random.choice(numbers)
        other = str(int(float(changed[0])) + self.random.choice([1, 2, 5, 10]))
        question = step["question"][: changed.start()] + other + step["question"][changed.end() :]
        result = value(question)
        if result is None or result == value(step["question"]):
            return None
        student = {"meta": self.meta(place), "question": question, "answer": shown(result)}
        return place, student, (True, False, False)

    def wrong_result(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The right calculation with a wrong result."""
        step = self.steps[place]
        right = value(step["answer"])
        if right is None or right.denominator != 1:
            return None
        slips = [right + 1, right - 1, right + 10, right * 10]
        slips += [-right] if "-" in step["question"] else []
        wrong = self.random.choice([slip for slip in slips if slip != right])
        student = self.rewritten(self.meta(place), {**step, "answer": shown(wrong)})
        return place, student, (True, True, False)

    def operands_swapped(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The operands of a sum or a product in another order."""
        step = self.steps[place]
        question = swapped(step["question"], "+*")
        student = {"meta": self.meta(place), "question": question or "", "answer": step["answer"]}
        return (place, student, (True, True, True)) if question else None

    def operands_reversed(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The operands of a difference or a quotient the wrong way round."""
        step = self.steps[place]
        question = swapped(step["question"], "-/")
        if not question or value(question) == value(step["question"]):
            return None
        student = {"meta": self.meta(place), "question": question, "answer": shown(value(question) or Fraction(0))}
        return place, student, (True, False, False)

    # Another sub-problem

    def neighbour(self, place: Place) -> tuple[Place, Step, Label] | None:
        """Another step of the same problem, any."""
        others = self.others(place)
        if not others:
            return None
        other = self.random.choice(others)
        return self.against(place, other, self.steps[other]["meta"])

    def similar_words(self, place: Place) -> tuple[Place, Step, Label] | None:
        """Another step of the same problem, the one with the most words in common: at least half of all."""
        others = [
            (jaccard(self.steps[place]["meta"], self.steps[other]["meta"]), other) for other in self.others(place)
        ]
        shared, other = max(others, default=(0.0, place))
        return self.against(place, other, self.steps[other]["meta"]) if shared >= 0.5 else None

    def paraphrased_neighbour(self, place: Place) -> tuple[Place, Step, Label] | None:
        """Another step of the same problem, its sub-question in other words."""
        others = [other for other in self.others(place) if other in self.written]
        if not others:
            return None
        other = self.random.choice(others)
        return self.against(place, other, self.written[other])

    def stated_neighbour(self, place: Place) -> tuple[Place, Step, Label] | None:
        """Another step of the same problem, as the sentence that states it."""
        others = self.others(place)
        if not others:
            return None
        other = self.random.choice(others)
        return self.against(place, other, self.sentences[other])

    def same_calculation(self, place: Place) -> tuple[Place, Step, Label] | None:
        """The same calculation for something else in the same problem."""
        for other in self.others(place):
            mine, theirs = self.steps[other]["question"], self.steps[place]["question"]
            if _bare(mine) in (_bare(theirs), swapped(theirs, "+*")):
                return self.against(place, other, self.steps[other]["meta"])
        return None

    def other_problem(self, place: Place) -> tuple[Place, Step, Label] | None:
        """A step of another problem; of twenty drawn, the one with the most words in common."""
        drawn = self.random.sample([other for other in sorted(self.steps) if other[0] != place[0]], 20)
        other = max(drawn, key=lambda each: jaccard(self.steps[place]["meta"], self.steps[each]["meta"]))
        return self.against(place, other, self.steps[other]["meta"])

    # What they are made of

    def others(self, place: Place) -> list[Place]:
        """The steps of the same problem with another sub-question; sources give some of them twice, word for word."""
        mine = self.steps[place]["meta"]
        return [other for other in self.steps if other[0] == place[0] and self.steps[other]["meta"] != mine]

    def against(self, place: Place, other: Place, meta: str) -> tuple[Place, Step, Label]:
        """The step at `other` with these words, in place of the one at `place`."""
        mine, theirs = self.steps[other], self.steps[place]
        same = _bare(mine["question"]) in (_bare(theirs["question"]), swapped(theirs["question"], "+*"))
        return other, self.rewritten(meta, mine), (False, same, value(mine["answer"]) == value(theirs["answer"]))

    def meta(self, place: Place) -> str:
        """The sub-question as it is or in other words."""
        meta = self.steps[place]["meta"]
        return self.random.choice([meta, self.written.get(place) or by_template(meta) or meta])

    def rewritten(self, meta: str, step: Step) -> Step:
        """The step with this meta part, its calculation and its result written in another way more often than not."""
        writing = self.random.choice(WRITINGS)
        question = _spaced(step["question"])
        if writing is not _currency or step["meta"].startswith("How much"):
            question = writing(step["question"])
        if value(question) != value(step["question"]):
            question = step["question"]
        return {"meta": meta, "question": question, "answer": self.random.choice(RESULTS)(step)}


FILLERS = (
    "Okay, so now let me see: {0}",
    "The next thing we need to find out is this: {0}",
    "First of all, we have to know the following. {1}",
    "Let's figure out {0}",
    "Alright, moving on to the next part of the problem: {0}",
    "{1} That is what we need next.",
)

_TEMPLATES = (
    (r"How many (.+?) are there (.+)\?", r"What is the number of \1 \2?"),
    (r"How many (.+?) are there\?", r"What is the number of \1?"),
    (r"How many (.+?) (?:does|do) (.+?) have (.+)\?", r"What is the number of \1 that \2 has \3?"),
    (r"How many (.+?) (?:does|do|did) (.+?) have\?", r"What is the number of \1 of \2?"),
    (r"How much (?:does|do|did) (.+?) cost\?", r"What is the price of \1?"),
    (r"How much (?:does|do|did) (.+?) spend (.+)\?", r"What amount of money is spent by \1 \2?"),
    (r"How much (?:does|do|did) (.+?) (?:earn|make) (.+)\?", r"What are the earnings of \1 \2?"),
    (r"How old is (.+?)\?", r"What is the age of \1?"),
    (r"How long (?:does|do|did) it take (.+)\?", r"What is the time that it takes \1?"),
    (r"How (.+)(?<! are)(?<! were) (in|on|for|after|during) ((?:the |a )?\w+(?: \w+)?)\?", r"\2 \3, how \1?"),
)


def by_template(meta: str) -> str | None:
    """The sub-question put in other words by rules; None where none of them fits."""
    for pattern, words in _TEMPLATES:
        if match := re.fullmatch(pattern, meta):
            text = match.expand(words)
            return text[0].upper() + text[1:]
    return None


def _spaced(question: str) -> str:
    return re.sub(r"\s*([-+*/])\s*", r" \1 ", question)


def _signs(question: str) -> str:
    return _spaced(question).replace("*", "×").replace("/", "÷")


def _letters(question: str) -> str:
    return _spaced(question).replace("*", "x")


def _currency(question: str) -> str:
    return re.sub(r"(?<![\d.])(\d+(?:\.\d+)?)", r"$\1", _spaced(question), count=1)


def _thousands(question: str) -> str:
    return re.sub(r"\d{4,}", lambda found: f"{int(found[0]):,}", question)


def _as_product(question: str) -> str:
    found = re.fullmatch(r"(\d+)/([245])|(\d+)/10", question.replace(" ", ""))
    if not found:
        return _spaced(question)
    factor = {"2": "0.5", "4": "0.25", "5": "0.2", None: "0.1"}[found[2]]
    return f"{factor} * {found[1] or found[3]}"


def _as_quotient(question: str) -> str:
    found = re.fullmatch(r"(\d+)\*0?\.(5|25|2|1)0?", question.replace(" ", ""))
    return f"{found[1]} / {dict(zip(('5', '25', '2', '1'), '24510', strict=False))[found[2]]}" if found else question


def _percent(question: str) -> str:
    return re.sub(r"(\d+)/100(?!\d)", r"\1%", re.sub(r"(\d+)\*\.01(?!\d)", r"\1%", question))


def _bracketed(question: str) -> str:
    return f"({_spaced(question)})"


def swapped(question: str, operators: str) -> str | None:
    """The two sides of a calculation of one operator exchanged; None for any other."""
    found = re.fullmatch(r"(\d*\.?\d+)([-+*/])(\d*\.?\d+)", question.replace(" ", ""))
    return f"{found[3]}{found[2]}{found[1]}" if found and found[2] in operators and found[1] != found[3] else None


WRITINGS: tuple[Callable[[str], str], ...] = (
    str,
    _spaced,
    _signs,
    _letters,
    _currency,
    _thousands,
    _as_product,
    _as_quotient,
    _percent,
    _bracketed,
    lambda question: swapped(question, "+*") or _spaced(question),
)


def _plain(step: Step) -> str:
    return step["answer"]


def _with_unit(step: Step) -> str:
    unit = re.match(r"How many (?!more)(?:\w+ )??(\w+) (?:is|are|were|does|do|did|will|can|has|have) ", step["meta"])
    return f"{step['answer']} {unit[1]}" if unit else step["answer"]


def _with_currency(step: Step) -> str:
    return f"${step['answer']}" if step["meta"].startswith("How much") else step["answer"]


def _with_decimals(step: Step) -> str:
    return f"{step['answer']}.00" if step["answer"].isdigit() else step["answer"]


def _with_commas(step: Step) -> str:
    return f"{int(step['answer']):,}" if step["answer"].isdigit() else step["answer"]


RESULTS = (_plain, _plain, _with_unit, _with_currency, _with_decimals, _with_commas)


def value(text: str) -> Fraction | None:
    """The value of a plain calculation, exactly; None for anything else. For checking what is written here."""
    plain = text.replace("×", "*").replace("÷", "/").replace(" x ", "*").replace("$", "").replace(",", "")
    plain = re.sub(r"(\d+(?:\.\d+)?)%", r"(\1/100)", plain)
    if not re.fullmatch(r"[-\d.+*/() ]+", plain):
        return None
    try:
        return eval(re.sub(r"(\d*\.?\d+)", r"Fraction('\1')", plain), {"Fraction": Fraction})
    except (SyntaxError, ZeroDivisionError, TypeError, ValueError):
        return None


def shown(number: Fraction) -> str:
    """A value as solutions write it."""
    return str(number) if number.denominator == 1 else f"{float(number):.4g}"


def _bare(question: str) -> str:
    return question.replace(" ", "")


def jaccard(mine: str, theirs: str) -> float:
    """The share of words in common."""
    left, right = (set(re.findall(r"\w+", text.lower())) for text in (mine, theirs))
    return len(left & right) / len(left | right)


if __name__ == "__main__":
    main()
