"""Memory and time of routing many questions through a path bank, and equality with a plain reference.

    python benchmarks/bank_retrieval.py            # 100,000 questions x 1,000 paths: about a minute on one core
    python benchmarks/bank_retrieval.py --quick    # 4,000 questions

Questions have 20 to 60 words (GSM8K: 46 on average) of a vocabulary of 3,000; the bank has 250 intents in 10
categories with 4 paths each. The embedder is the default one, hashed n-grams.

Figures: `peak_mib`, the peak resident memory of a fresh process that makes the questions, the bank and all routes,
interpreter and scikit-learn included: at most 1,024. `results_equal`: on 2,000 questions (`--quick`: 400) the routes
are those of a plain reference, which embeds everything into one matrix, multiplies it with all intents and all paths,
and sorts question by question; `reference_mib` is the size of its matrices for all questions. `similarity_error`:
largest difference of a similarity from that in float64 without rounding of the vectors. `time_ratio`: CPU-seconds of
the reference / of the blocks on these questions, embedding left out on both sides, medians of interleaved rounds.
`questions_per_s`: of the whole run, embedding included, in CPU-seconds. Exits with 1 where memory or results are out
of bounds.
"""

import harness  # before numpy: one thread

# isort: split

import argparse
import random
import sys
from statistics import median

import numpy as np

from rlkd.embedders import HashedNgrams, unit_rows
from rlkd.rationales.bank.bank import PathBank
from rlkd.rationales.bank.entries import RouteEntry
from rlkd.rationales.bank.paths import path_words
from rlkd.rationales.bank.routing import Route, Router
from rlkd.rationales.bank.thresholds import Thresholds

MOST_MIB = 1024
QUESTIONS, QUICK_QUESTIONS = 100_000, 4_000
SUBSET, QUICK_SUBSET = 2_000, 400
CATEGORIES, INTENTS, PATHS = 10, 25, 4
K = 3
# Some questions are offered nothing, so that both cases are compared.
ROUTE = 0.12


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how questions are routed through a path bank.")
    arguments = harness.parse(parser, quick="4,000 questions", child=route_all)
    count = QUICK_QUESTIONS if arguments.quick else QUESTIONS
    # In a process of its own, so that neither the reference nor this one's imports count.
    figures = harness.in_child(count)
    figures |= compared(QUICK_SUBSET, rounds=3) if arguments.quick else compared(SUBSET, rounds=7)
    width = 2 * HashedNgrams.half_width
    numbers = count * (width + CATEGORIES * INTENTS * (1 + PATHS))
    figures["reference_mib"] = round(numbers * 8 / 2**20)
    print(f"{count} questions x {figures['paths']} paths in {figures['intents']} intents, {width} dimensions\n")
    print(f"peak memory         {figures['peak_mib']:>8} MiB (a matrix of everything: {figures['reference_mib']} MiB)")
    print(f"routed              {figures['questions_per_s']:>8} questions a second, embedding included")
    print(f"offered a path      {figures['offered_share']:>8.0%}")
    print(f"against reference   {figures['time_ratio']:>8} times as fast, embedding left out")
    print(f"same routes         {figures['results_equal']!s:>8} ({figures['subset']} questions, three sizes of block)")
    bounds = {f"peak_mib <= {MOST_MIB}": figures["peak_mib"] <= MOST_MIB, "results_equal": figures["results_equal"]}
    return harness.report(figures, bounds)


def route_all(count: int) -> dict[str, float]:
    """Route `count` questions; memory and time of this process."""
    bank = made_bank()
    questions = made_questions(count)
    routes, _, seconds = harness.timed(lambda: Router(bank, HashedNgrams()).route(questions, K))
    return {
        "peak_mib": round(harness.peak_mib(), 1),
        "seconds": round(seconds, 1),
        "questions_per_s": round(count / seconds),
        "offered_share": round(sum(route.offered for route in routes) / count, 4),
        "questions": count,
        "intents": len(bank.intents()),
        "paths": len(bank),
    }


def compared(subset: int, rounds: int) -> dict[str, float | bool]:
    """Blocks against the reference on the subset: results, errors, times."""
    bank, questions = made_bank(), made_questions(subset)
    embedder = HashedNgrams()
    known = Known(embedder, questions)
    routers = [Router(bank, known, block=block) for block in (1, 100, 512)]
    expected = reference(bank, known, questions)
    equal = all(router.route(questions, K) == expected for router in routers)

    exact = known.embed(questions).astype(np.float64)
    intents = embedder.embed([intent for _, intent in bank.intents()]).astype(np.float64)
    best = (exact @ intents.T).max(axis=1)
    error = max(abs(route.similarity - value) for route, value in zip(expected, best.tolist(), strict=True))

    arms = {
        "blocks": lambda: harness.timed(lambda: routers[-1].route(questions, K))[2],
        "reference": lambda: harness.timed(lambda: reference(bank, known, questions))[2],
    }
    times = list(harness.in_turn(arms, rounds))
    ratio = median(each["reference"] for each in times) / median(each["blocks"] for each in times)
    return {
        "results_equal": equal,
        "similarity_error": float(f"{error:.2g}"),
        "time_ratio": round(ratio, 2),
        "rounds": rounds,
        "subset": subset,
    }


class Known:
    """An embedder that has embedded some texts before, so that only the comparison is timed."""

    def __init__(self, embedder: HashedNgrams, texts: list[str]) -> None:
        self.name = embedder.name
        self.embedder = embedder
        self.rows = {text: row for row, text in enumerate(texts)}
        self.vectors = embedder.embed(texts)

    def embed(self, texts: list[str]) -> np.ndarray:
        """The vectors of the texts, (texts, width)."""
        if all(text in self.rows for text in texts):
            return self.vectors[[self.rows[text] for text in texts]]
        return self.embedder.embed(texts)


def reference(bank: PathBank, embedder: Known, questions: list[str]) -> list[Route]:
    """The expected result of `Router`: all similarities as one matrix, then a sort for each question."""
    pairs = bank.intents()
    intents = unit_rows(embedder, [intent for _, intent in pairs]).toarray()
    names_of = [(pair, path.names) for pair in pairs for path in bank.paths(*pair)]
    paths = unit_rows(embedder, [path_words(names) for _, names in names_of]).toarray()
    rows = unit_rows(embedder, questions).toarray()
    to_intents, to_paths = rows @ intents.T, rows @ paths.T
    routes = []
    for row, similarities in enumerate(to_intents.tolist()):
        similarity, pair = min((-value, pair) for value, pair in zip(similarities, pairs, strict=True))
        ranked = sorted((-to_paths[row, n], names) for n, (owner, names) in enumerate(names_of) if owner == pair)
        offered = tuple(names for _, names in ranked[:K]) if -similarity >= bank.rules.thresholds.route else ()
        routes.append(Route(*pair, offered, -similarity))
    return routes


def made_words(count: int) -> list[str]:
    """Distinct words of two to four syllables."""
    draw = random.Random(1)
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))] = None
    return list(words)


def made_questions(count: int) -> list[str]:
    """Questions of words that stand in them as unevenly as words do: by the inverse of their rank."""
    words, draw = made_words(3_000), random.Random(2)
    weights = [1 / rank for rank in range(10, 3_010)]
    drawn = (draw.choices(words, weights, k=draw.randint(20, 60)) for _ in range(count))
    return [f"{' '.join(each)}, {number}?" for number, each in enumerate(drawn)]


def made_bank() -> PathBank:
    """A bank of 1,000 paths: each intent and path of words that questions have, each used by one question."""
    words, draw = made_words(3_000), random.Random(3)
    entries = []
    for category in range(CATEGORIES):
        for number in range(INTENTS):
            intent = " ".join(draw.sample(words, 3))
            for turn in range(PATHS):
                path = tuple("".join(map(str.title, draw.sample(words, 2))) for _ in range(3))
                name = f"{category}-{number}-{turn}"
                entries.append(RouteEntry(name, "", f"category {category}", (intent,), 2, 3, path, True))
    thresholds = Thresholds(route=ROUTE, eps=0.01)
    return PathBank.from_seed(entries, HashedNgrams(), thresholds=thresholds, cap=None)


if __name__ == "__main__":
    sys.exit(main())
