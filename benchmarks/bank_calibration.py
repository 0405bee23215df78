"""What the thresholds of a path bank come out at for an embedder, and what they let through.

    python benchmarks/bank_calibration.py                                        # the n-grams
    python benchmarks/bank_calibration.py --embedder tfidf transformers:FOLDER   # next to an encoder
    python benchmarks/bank_calibration.py --quick                                # 40 questions in place of 200

26 word problems in four categories, written for this, each with its intent; five pairs of intents mean the same and
are worded differently. A bank is made of them with calibrated thresholds, and they are routed by it, and so are GSM8K
test questions, for which it was not made.

Figures of each embedder: `own`, quartiles of the cosine of a question with its own intent; `foreign`, of that with the
nearest intent of another category; `nearest`, the share of questions whose own intent is the nearest; `route` and
`eps`, calibrated; `offered` and `offered_gsm8k`, shares of questions that are offered a path; `joined`, how many of
the five pairs are one intent with the published eps of .25.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np

from rlkd.data.samples import sample_rows
from rlkd.errors import UsageError
from rlkd.rationales.bank.bank import PathBank, RouteEntry
from rlkd.rationales.bank.clustering import canonical_intents
from rlkd.rationales.bank.embedders import calibrate, cosines, open_embedder
from rlkd.rationales.bank.routing import Router, coverage

# Category, intent, question.
PROBLEMS = (
    (
        "arithmetic",
        "compute total cost",
        "Ann buys 3 notebooks at $4 each and a pen for $2. How much does she pay in total?",
    ),
    (
        "arithmetic",
        "compute total earnings",
        "A baker sells 12 loaves at $3 and 5 cakes at $10. What are his earnings?",
    ),
    (
        "arithmetic",
        "calculate the total cost",
        "Tickets cost $8 for adults and $5 for children. What do 2 adults and 3 children pay?",
    ),
    (
        "arithmetic",
        "find remaining amount",
        "Tom had 25 marbles, lost 7 and gave 4 to his sister. How many does he have left?",
    ),
    (
        "arithmetic",
        "find the remaining amount",
        "A tank holds 80 litres. After using 35 litres and then 12, how much water remains?",
    ),
    (
        "arithmetic",
        "compare quantities and add",
        "Maria has twice as many stickers as Joe, who has 14. How many do they have together?",
    ),
    (
        "arithmetic",
        "compute a fraction of a total",
        "A train of 6 coaches with 48 seats each is three quarters full. How many passengers are on it?",
    ),
    (
        "arithmetic",
        "compute a fraction of the rest",
        "Half of the 60 pupils of a school walk home, and a third of the rest take the bus. How many take the bus?",
    ),
    (
        "rates",
        "apply a constant rate",
        "A car drives 180 miles in 3 hours. How far does it go in 5 hours at that speed?",
    ),
    ("rates", "apply constant rate", "A printer makes 15 pages a minute. How long does it take for 240 pages?"),
    ("rates", "combine work rates", "Two pipes fill a pool in 4 and 6 hours. How long do they need together?"),
    (
        "rates",
        "combine rates",
        "Lea reads 20 pages an hour and Ben 30. How many hours do they need together for 400 pages?",
    ),
    (
        "rates",
        "find average speed",
        "A cyclist rides 24 km at 12 km/h and 30 km at 15 km/h. What is the average speed?",
    ),
    (
        "rates",
        "compute the average speed",
        "A bus runs at 60 km/h for 2 hours and at 40 km/h for one hour. Find its mean speed.",
    ),
    ("percent", "apply percentage discount", "A coat of $120 is reduced by 25 %. What does it cost now?"),
    ("percent", "apply a discount", "A phone costs $300 before a 10 % discount. What is the final price?"),
    ("percent", "apply percentage increase", "A salary of $2000 rises by 5 %. What is it then?"),
    (
        "percent",
        "compute percentage growth",
        "A town of 40,000 people grows by 3 % a year. How many live there after 2 years?",
    ),
    ("percent", "find percentage of whole", "18 of 24 pupils passed. What percentage is that?"),
    ("percent", "find a percentage of whole", "In a bag 6 of 40 sweets are red. Which share in percent is red?"),
    ("geometry", "compute rectangle area", "A rectangle is 8 cm long and 5 cm wide. What is its area?"),
    ("geometry", "compute rectangle perimeter", "A garden of 12 m by 9 m gets a fence. How long is the fence?"),
    ("geometry", "compute circle area", "A circle has a radius of 7 cm. Find its area."),
    ("geometry", "compute box volume", "A box is 2 m long, 3 m wide and 1 m high. What is its volume?"),
    ("geometry", "find triangle angles", "The angles of a triangle are in the ratio 1:2:3. How large is the largest?"),
    ("geometry", "apply Pythagorean theorem", "A right triangle has legs of 6 and 8. How long is the hypotenuse?"),
)
SAME = (
    ("find remaining amount", "find the remaining amount"),
    ("compute total cost", "calculate the total cost"),
    ("apply a constant rate", "apply constant rate"),
    ("find average speed", "compute the average speed"),
    ("find percentage of whole", "find a percentage of whole"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Thresholds of a path bank, calibrated on hand-made problems.")
    parser.add_argument("--embedder", nargs="+", default=["tfidf"], help="specs (default: tfidf)")
    parser.add_argument("--quick", action="store_true", help="40 GSM8K questions")
    given = parser.parse_args()
    asked = [row["question"] for row in sample_rows("test")][: 40 if given.quick else 200]
    found = {}
    for spec in given.embedder:
        try:
            found[spec] = figures(spec, asked)
        except UsageError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(spec, *(f"  {name}: {value}" for name, value in found[spec].items()), sep="\n")
    # A folder's place says nothing.
    print(json.dumps({spec.rpartition("/")[2]: values for spec, values in found.items()}))
    return 0


def figures(spec: str, asked: list[str]) -> dict[str, Any]:
    """The figures of one embedder."""
    embedder = open_embedder(spec)
    categories, intents, questions = (np.array(column) for column in zip(*PROBLEMS, strict=True))
    table = cosines(embedder.embed(questions.tolist()), embedder.embed(intents.tolist()))  # (questions, intents)
    foreign = np.where(categories[:, None] != categories[None], table, -1).max(1)
    entries = [
        RouteEntry(str(place), question, category, (intent,), 1, 2, (intent.title().replace(" ", ""),), True)
        for place, (category, intent, question) in enumerate(PROBLEMS)
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
        "offered_gsm8k": round(coverage(router.route(asked)).share, 2),
        "joined": sum(names[one] == names[other] for one, other in SAME),
    }


def quartiles(values: Any) -> list[float]:
    """The three quartiles, rounded."""
    return [round(float(value), 3) for value in np.quantile(values, [0.25, 0.5, 0.75])]


if __name__ == "__main__":
    raise SystemExit(main())
