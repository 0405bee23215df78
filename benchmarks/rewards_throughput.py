r"""Speed of `accuracy_reward` on a batch, compared with TRL's reward of that name; the verdicts must be equal.

    python benchmarks/rewards_throughput.py                  # 8,192 completions, 5 rounds
    python benchmarks/rewards_throughput.py --quick          # 256 completions, 1 round
    python benchmarks/rewards_throughput.py --data FILE      # problems of your own

Each arm runs in a process of its own, after a first comparison: TRL's reward on the main thread; ours on an empty
cache with 1 worker (twice, A and B, to show the noise) and with 2; ours on a filled cache (`warm`). The batches
`group` and `distinct` are those of `group_batch` and `distinct_batch`. `--data` takes a JSONL file with `answer` (or
`gold`) and `solution`, or with `rationales`, objects with `text` and `final` that then form the batch `group`.

Figures are medians over rounds of TRL's wall clock / ours: `cold_ratio` with 2 workers, `cold_ratio_one_worker` with
one, `warm_ratio` on the filled cache; `..._cpu_ratio...` of CPU seconds (all processes). `second_worker_ratio` is ours
with 1 worker / with 2, to be compared with `one_worker_spread`, the lowest and highest A / B. Exits with 1 if a
verdict of any arm and round differs from TRL's, and, in the full form, if `cold_ratio` is below 2 or `warm_ratio`
below 50 on the batch `group`.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from rewards import build_reward, verified
from rlkd.answers import comparison_pool, number
from rlkd.data.samples import sample_rows, short_rows
from rlkd.errors import UsageError
from rlkd.process import descendants
from rlkd.steps import strip_calculator_marks

GROUP = 8
LEADS = (
    "Let us work this out.", "We are asked for one value.", "First, collect what is given.", "Step by step:",
    "I go through the problem in order.", "To solve this, we follow the text.", "Okay, let me think.",
    "Here is one way to do it.", "We can do this directly.", "Start with what is known.", "Let me set this up.",
    "What do we know?",
)  # fmt: skip
# The forms in which a mathematics model (Qwen2.5-Math, 1.5B, on GSM8K) announces its answers, with their approximate
# frequencies.
ANNOUNCEMENTS = {
    "Therefore, the answer is \\(\\boxed{%s}\\).": 12,
    "So, the total is:\n\\[\n\\boxed{%s}\n\\]": 4,
    "The final answer is \\boxed{%s}.": 4,
}
PLAIN = "The final answer is \\boxed{%s}."
# Forms of a gold answer in the column `solution`, one for each use of a problem.
GOLDS = ("$%s$", "\\boxed{%s}", "$\\boxed{%s}$", "The answer is $%s$.", "It is \\(%s\\).")
COLD_BOUND, WARM_BOUND = 2.0, 50.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Time accuracy_reward against TRL's.")
    parser.add_argument("--completions", type=int, default=8192, help="size of each batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all arms (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="JSONL file of problems (default: GSM8K as shipped)")
    given = harness.parse(parser, quick="256 completions, 1 round", child=work)
    size, rounds = (256, 1) if given.quick else (given.completions, given.rounds)
    problems = load_problems(given.data)

    figures: dict[str, Any] = {"completions": size, "rounds": rounds, "cores": os.cpu_count()}
    for name, make in {"group": group_batch, "distinct": distinct_batch}.items():
        batch = make(problems, size)
        print(f"\n{name}: {described(batch)}")
        figures[name] = compared(batch, rounds)
    group = figures["group"]
    bounds = {
        "verdicts_equal": group["verdicts_equal"] and figures["distinct"]["verdicts_equal"],
        f"cold_ratio >= {COLD_BOUND}": given.quick or group["cold_ratio"] >= COLD_BOUND,
        f"warm_ratio >= {WARM_BOUND}": given.quick or group["warm_ratio"] >= WARM_BOUND,
    }
    return harness.report(figures, bounds)


# The batches.


@dataclass(frozen=True)
class Problem:
    """The gold answer in LaTeX, reasoning texts, and the answer of each, if they are by different models."""

    answer: str
    texts: list[str]
    finals: list[str] | None = None


@dataclass(frozen=True)
class Batch:
    """Completions as texts, with one gold solution each."""

    completions: list[str]
    solutions: list[str]


def load_problems(path: Path | None = None) -> list[Problem]:
    """The problems of a file, or the shipped GSM8K ones. Raises `UsageError` for missing fields."""
    if path is None:
        rows = [*sample_rows("gsrm"), *sample_rows("rl"), *sample_rows("test"), *short_rows()]
        return [Problem(row["answer"], [strip_calculator_marks(row["rationales"][0])]) for row in rows]
    problems = []
    for count, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        row = json.loads(line)
        answer = row.get("answer", row.get("gold"))
        rationales = row.get("rationales")
        if answer is None or (rationales is None and "solution" not in row):
            raise UsageError(f"{path}, line {count}: expected 'answer' or 'gold', and 'solution' or 'rationales'")
        if rationales:
            texts = [without_answer(rationale["text"]) for rationale in rationales]
            problems.append(Problem(str(answer), texts, [str(rationale["final"] or "") for rationale in rationales]))
        else:
            problems.append(Problem(str(answer), [without_answer(row["solution"])]))
    return problems


def without_answer(text: str) -> str:
    return text.partition("\n####")[0].replace("\\boxed", "").replace("\\fbox", "").rstrip()


def group_batch(problems: Sequence[Problem], size: int, seed: int = 0) -> Batch:
    """Groups as in the output of a policy, with about 3.8 different answers each.

    0 to 8 completions of a group are right, a tenth of these in another form; three fifths of the wrong ones make the
    most common mistake of the problem. One completion in twelve is truncated or ends with `####`.
    """
    rng = random.Random(seed)
    completions, solutions = [], []
    for turn in range(size // GROUP):
        problem, repetition = pick(problems, turn)
        if problem.finals is not None:
            order = [(repetition + i) % len(problem.texts) for i in range(min(GROUP, len(problem.texts)))]
            answers: list[str | None] = [problem.finals[i] or None for i in order]
            texts = [problem.texts[i] for i in order]
        else:
            n_right = rng.randrange(GROUP + 1)
            mistake = wrong_answer(problem, problems, rng)
            answers = []
            for i in range(GROUP):
                if rng.random() < 1 / 12:
                    answers.append(None)
                elif i < n_right:
                    answers.append(rewritten(problem.answer, rng) if rng.random() < 0.1 else problem.answer)
                else:
                    answers.append(mistake if rng.random() < 0.6 else wrong_answer(problem, problems, rng))
            rng.shuffle(answers)
            texts = problem.texts * GROUP
        leads = rng.sample(LEADS, GROUP)
        for lead, text, answer in zip(leads, texts, answers, strict=False):
            if answer is None:
                ending = rng.choice(["", f"\n#### {problem.answer}"])
                completions.append(f"{lead}\n{text[: len(text) * 3 // 4]}{ending}")
            else:
                [announcement] = rng.choices(list(ANNOUNCEMENTS), list(ANNOUNCEMENTS.values()))
                completions.append(f"{lead}\n{text}\n{announcement % answer}")
            solutions.append(GOLDS[repetition] % problem.answer)
    return Batch(completions, solutions)


def distinct_batch(problems: Sequence[Problem], size: int, seed: int = 0) -> Batch:
    """Groups in which no two answers are equal, so that almost no comparison repeats."""
    rng = random.Random(seed)
    known = list(dict.fromkeys(problem.answer for problem in problems))
    completions, solutions, seen = [], [], set()
    for turn in range(size // GROUP):
        problem, repetition = pick(problems, turn)
        solution = GOLDS[repetition] % problem.answer
        answers = [problem.answer]
        while len(answers) < GROUP:
            # Problems may share a gold answer; they must not share a wrong one.
            other = rng.choice(known)
            plain = number(other)
            if plain is not None and plain.denominator == 1:
                other = str(int(plain) + rng.randrange(1, 10_000))
            if (other, solution) not in seen and other not in answers:
                answers.append(other)
        seen.update((answer, solution) for answer in answers)
        for lead, answer in zip(rng.sample(LEADS, GROUP), answers, strict=True):
            completions.append(f"{lead}\n{problem.texts[0]}\n{PLAIN % answer}")
            solutions.append(solution)
    return Batch(completions, solutions)


def pick(problems: Sequence[Problem], turn: int) -> tuple[Problem, int]:
    repetition, index = divmod(turn, len(problems))
    if repetition >= len(GOLDS):
        enough = len(problems) * GROUP * len(GOLDS)
        raise UsageError(f"{len(problems)} problems, each used {len(GOLDS)} times, give {enough} completions at most")
    return problems[index], repetition


def rewritten(answer: str, rng: random.Random) -> str:
    value = number(answer)
    if value is not None and value.denominator == 1:
        n = int(value)
        forms = [
            f"\\frac{{{2 * n}}}{{2}}",
            f"{n - 1}+1",
            f"{n}.0",
            f"{n} \\text{{ dollars}}",
            f"{n:,}".replace(",", "{,}"),
        ]
        return rng.choice(forms)
    changed = answer.replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "")
    return changed if changed != answer else f" {answer} "


def wrong_answer(problem: Problem, problems: Sequence[Problem], rng: random.Random) -> str:
    """A number nearby, or the answer to another problem."""
    value = number(problem.answer)
    if value is not None and value.denominator == 1:
        return str(int(value) + rng.choice([-1, 1]) * rng.randrange(1, 5 + abs(int(value)) // 4))
    while (other := rng.choice(problems).answer) == problem.answer:
        pass
    return other


def comparisons(batch: Batch) -> set[Any]:
    return {verified.comparison(*pair) for pair in zip(batch.completions, batch.solutions, strict=True)}


def described(batch: Batch) -> str:
    pairs = comparisons(batch)
    return (
        f"{len(batch.completions)} completions, {len(set(batch.completions))} of them different, "
        f"{len(pairs)} distinct comparisons ({len(pairs) / len(batch.completions):.0%})"
    )


# The arms. Each runs in a process of its own, so that they do not share the caches of sympy.


@dataclass(frozen=True)
class Spent:
    """The scores of an arm, and the wall clock and CPU seconds of all its processes."""

    scores: list[float | None]
    wall: float
    cpu: float
    reused: dict[str, int]


def compared(batch: Batch, rounds: int) -> dict[str, Any]:
    arms: dict[str, list[Spent]] = {}
    with tempfile.TemporaryDirectory(prefix="rlkd-throughput-") as folder:
        for turn in range(rounds):
            filled = f"{folder}/cache-{turn}.sqlite"
            plans: list[tuple[str, dict[str, Any]]] = [
                ("trl", {"arm": "trl"}),
                ("1 worker A", {"arm": "ours", "workers": 1, "cache": f"{folder}/a-{turn}.sqlite"}),
                ("2 workers", {"arm": "ours", "workers": 2, "cache": filled}),
                ("1 worker B", {"arm": "ours", "workers": 1, "cache": f"{folder}/b-{turn}.sqlite"}),
            ]
            # Another order in each round; the warm arm comes after the one that fills its cache.
            plans = plans[turn % len(plans) :] + plans[: turn % len(plans)]
            plans.append(("warm", {"arm": "ours", "workers": 2, "cache": filled}))
            for name, plan in plans:
                arms.setdefault(name, []).append(Spent(**harness.in_child(plan | vars(batch))))
            times = [f"{name} {spent[-1].wall:.2f} s ({spent[-1].cpu:.2f} CPU-s)" for name, spent in arms.items()]
            print(f"round {turn + 1}: {', '.join(times)}", flush=True)
    trl, one_worker, two_workers, warm = (arms[name] for name in ("trl", "1 worker A", "2 workers", "warm"))
    reference = trl[0].scores
    a_to_b = ratios(one_worker, arms["1 worker B"])
    second = ratios(one_worker, two_workers)
    figures = {
        "cold_ratio": middle(ratios(trl, two_workers)),
        "cold_ratio_one_worker": middle(ratios(trl, one_worker)),
        "cold_cpu_ratio": middle(ratios(trl, two_workers, "cpu")),
        "cold_cpu_ratio_one_worker": middle(ratios(trl, one_worker, "cpu")),
        "warm_cpu_ratio": middle(ratios(trl, warm, "cpu")),
        "warm_ratio": middle(ratios(trl, warm)),
        "second_worker_ratio": middle(second),
        "second_worker_spread": [round(min(second), 3), round(max(second), 3)],
        "one_worker_spread": [round(min(a_to_b), 3), round(max(a_to_b), 3)],
        "verdicts_equal": all(spent.scores == reference for all_spent in arms.values() for spent in all_spent),
        "verdicts": {str(v): reference.count(v) for v in (1.0, 0.0, None)},
        "distinct_questions": len(comparisons(batch)),
        "cold_from_batch": min(spent.reused["batch"] for spent in two_workers),
        "warm_from_cache": min(spent.reused["cache"] for spent in warm),
        "seconds": {name: round(median(spent.wall for spent in all_spent), 3) for name, all_spent in arms.items()},
        "cpu_seconds": {name: round(median(spent.cpu for spent in all_spent), 3) for name, all_spent in arms.items()},
    }
    for name in figures:
        if name.endswith(("_ratio", "_ratio_one_worker")):
            print(f"{name:<26} {figures[name]:.2f}")
    print(f"{'1 worker, A / B':<26} {min(a_to_b):.3f} to {max(a_to_b):.3f}")
    print(f"{'verdicts equal':<26} {figures['verdicts_equal']}: {figures['verdicts']}")
    return figures


def ratios(upper: Sequence[Spent], lower: Sequence[Spent], of: str = "wall") -> list[float]:
    # CPU time has a resolution of 10 ms.
    return [getattr(a, of) / max(getattr(b, of), 0.01) for a, b in zip(upper, lower, strict=True)]


def middle(values: Sequence[float]) -> float:
    return round(median(values), 3)


def work(plan: dict[str, Any]) -> dict[str, Any]:
    completions = [[{"role": "assistant", "content": text}] for text in plan["completions"]]
    warm_up = [[{"role": "assistant", "content": "\\boxed{x+1}"}]]
    if plan["arm"] == "trl":
        from trl.rewards import accuracy_reward

        accuracy_reward(warm_up, ["$x+2$"])
        score: Callable[[], list[Any]] = partial(accuracy_reward, completions, plan["solutions"])
    else:
        pool = comparison_pool(verified.verdict)
        pool.workers = plan["workers"]  # the reward has no parameter for it
        build_reward("accuracy_reward", cache=False)(completions=warm_up, solution=["$x+2$"])
        reward = build_reward("accuracy_reward", cache=Path(plan["cache"]))
        score = partial(reward.score, completions=completions, solution=plan["solutions"])
    wall, cpu = time.perf_counter(), cpu_seconds()
    scores = score()
    spent = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    outcomes = [] if plan["arm"] == "trl" else scores
    scores = [outcome.value for outcome in outcomes] or scores
    for outcome in outcomes:
        if outcome.status == "failed":
            raise RuntimeError(f"a comparison failed: {outcome.cause}")
    reused = {source: sum(o.reused == source for o in outcomes) for source in ("batch", "cache")}
    return {"scores": scores, "reused": reused, **spent}


def cpu_seconds() -> float:
    """CPU time of this process and all its descendants."""
    times = [psutil.Process().cpu_times(), *(each.cpu_times() for each in descendants(os.getpid()))]
    return sum(each.user + each.system + each.children_user + each.children_system for each in times)


if __name__ == "__main__":
    sys.exit(main())
