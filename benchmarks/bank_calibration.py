"""Calibrated thresholds of a path bank for one or more embedders, and the share of questions that pass them.

    python benchmarks/bank_calibration.py                                                # the n-grams
    python benchmarks/bank_calibration.py --embedder hashed-ngrams transformers:FOLDER   # and an encoder
    python benchmarks/bank_calibration.py --quick                                        # 40 questions instead of 200

26 word problems in four categories, written for this, each with its intent; five pairs of intents mean the same and
are worded differently. A bank is made of them with calibrated thresholds. They are routed by it, and so are GSM8K test
questions, for which it was not made.

Figures of each embedder: `own`, quartiles of the cosine of a question with its own intent; `foreign`, of that with the
nearest intent of another category; `nearest`, the share of questions whose own intent is the nearest; `route` and
`eps`, calibrated; `offered` and `offered_gsm8k`, shares of questions that are offered a path; `joined`, how many of
the five pairs become one intent with the published eps of .25.
"""

import argparse
import sys
from typing import Any

import numpy as np

import harness
from rlkd.data.samples import sample_rows
from rlkd.embedders import open_embedder, unit_rows
from rlkd.errors import UsageError
from rlkd.rationales.bank.bank import PathBank
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.intents import canonical_intents
from rlkd.rationales.bank.routing import Router, coverage
from rlkd.rationales.bank.thresholds import calibrate

# A category, then one line per problem: intent | question.
TABLE = """\
arithmetic
    compute total cost | Ann buys 3 notebooks at $4 each and a pen for $2. How much does she pay in total?
    compute total earnings | A baker sells 12 loaves at $3 and 5 cakes at $10. What are his earnings?
    calculate the total cost | Tickets cost $8 for adults and $5 for children. What do 2 adults and 3 children pay?
    find remaining amount | Tom had 25 marbles, lost 7 and gave 4 to his sister. How many does he have left?
    find the remaining amount | A tank holds 80 litres. After using 35 litres and then 12, how much water remains?
    compare quantities and add | Maria has twice as many stickers as Joe, who has 14. How many do they have together?
    compute a fraction of a total | A train of 6 coaches with 48 seats each is three quarters full. How many \
passengers are on it?
    compute a fraction of the rest | Half of the 60 pupils of a school walk home, and a third of the rest take \
the bus. How many take the bus?
rates
    apply a constant rate | A car drives 180 miles in 3 hours. How far does it go in 5 hours at that speed?
    apply constant rate | A printer makes 15 pages a minute. How long does it take for 240 pages?
    combine work rates | Two pipes fill a pool in 4 and 6 hours. How long do they need together?
    combine rates | Lea reads 20 pages an hour and Ben 30. How many hours do they need together for 400 pages?
    find average speed | A cyclist rides 24 km at 12 km/h and 30 km at 15 km/h. What is the average speed?
    compute the average speed | A bus runs at 60 km/h for 2 hours and at 40 km/h for one hour. Find its mean speed.
percent
    apply percentage discount | A coat of $120 is reduced by 25 %. What does it cost now?
    apply a discount | A phone costs $300 before a 10 % discount. What is the final price?
    apply percentage increase | A salary of $2000 rises by 5 %. What is it then?
    compute percentage growth | A town of 40,000 people grows by 3 % a year. How many live there after 2 years?
    find percentage of whole | 18 of 24 pupils passed. What percentage is that?
    find a percentage of whole | In a bag 6 of 40 sweets are red. Which share in percent is red?
geometry
    compute rectangle area | A rectangle is 8 cm long and 5 cm wide. What is its area?
    compute rectangle perimeter | A garden of 12 m by 9 m gets a fence. How long is the fence?
    compute circle area | A circle has a radius of 7 cm. Find its area.
    compute box volume | A box is 2 m long, 3 m wide and 1 m high. What is its volume?
    find triangle angles | The angles of a triangle are in the ratio 1:2:3. How large is the largest?
    apply Pythagorean theorem | A right triangle has legs of 6 and 8. How long is the hypotenuse?"""


def problems() -> list[tuple[str, str, str]]:
    """Category, intent and question of each problem."""
    rows, category = [], ""
    for line in TABLE.split("\n"):
        intent, bar, question = line.strip().partition(" | ")
        category = category if bar else intent
        rows += [(category, intent, question)] if bar else []
    return rows


PROBLEMS = problems()
SAME = (
    ("find remaining amount", "find the remaining amount"),
    ("compute total cost", "calculate the total cost"),
    ("apply a constant rate", "apply constant rate"),
    ("find average speed", "compute the average speed"),
    ("find percentage of whole", "find a percentage of whole"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Thresholds of a path bank, calibrated on hand-made problems.")
    parser.add_argument("--embedder", nargs="+", default=["hashed-ngrams"], help="specs (default: hashed-ngrams)")
    given = harness.parse(parser, quick="40 GSM8K questions")
    held_out = [row["question"] for row in sample_rows("test")][: 40 if given.quick else 200]
    results = {}
    for spec in given.embedder:
        try:
            results[spec] = figures(spec, held_out)
        except UsageError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(spec, *(f"  {name}: {value}" for name, value in results[spec].items()), sep="\n")
    # A folder by its name only.
    return harness.report({spec.rpartition("/")[2]: values for spec, values in results.items()}, {})


def figures(spec: str, held_out: list[str]) -> dict[str, Any]:
    """The figures of one embedder."""
    embedder = open_embedder(spec)
    categories, intents, questions = (np.array(column) for column in zip(*PROBLEMS, strict=True))
    rows = unit_rows(embedder, questions.tolist())
    table = (rows @ unit_rows(embedder, intents.tolist()).T).toarray()  # (questions, intents)
    foreign = np.where(categories[:, None] != categories[None], table, -1).max(1)
    entries = [
        RouteEntry(str(number), question, category, (intent,), 1, 2, (intent.title().replace(" ", ""),), True)
        for number, (category, intent, question) in enumerate(PROBLEMS)
    ]
    thresholds = calibrate(embedder, entries)
    router = Router(PathBank.from_seed(entries, embedder, thresholds=thresholds), embedder)
    names: dict[str, str] = {}
    for category in sorted(set(categories)):
        names |= canonical_intents(sorted(set(intents[categories == category])), embedder)
    return {
        "own": quartiles(np.diag(table)),
        "foreign": quartiles(foreign),
        "nearest": round(float((table.argmax(1) == np.arange(len(table))).mean()), 2),
        "route": round(thresholds.route, 3),
        "eps": round(thresholds.eps, 2),
        "offered": round(coverage(router.route(questions.tolist())).share, 2),
        "offered_gsm8k": round(coverage(router.route(held_out)).share, 2),
        "joined": sum(names[one] == names[other] for one, other in SAME),
    }


def quartiles(values: Any) -> list[float]:
    """The three quartiles, rounded."""
    return [round(float(value), 3) for value in np.quantile(values, [0.25, 0.5, 0.75])]


if __name__ == "__main__":
    raise SystemExit(main())
