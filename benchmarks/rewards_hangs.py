r"""Effect of completions that hang math-verify on a batch: other scores, time, and processes left behind.

    python benchmarks/rewards_hangs.py                     # 8,192 completions, 1 % hang, limit 5 s: 12 minutes
    python benchmarks/rewards_hangs.py --quick             # 256 completions, 6 hang, limit 1.5 s
    python benchmarks/rewards_hangs.py --reward accuracy   # this project's own reading of answers
    python benchmarks/rewards_hangs.py --check-kinds       # does each kind hang math-verify for 20 s? 4 minutes

The batch is scored in a new process from each of three calling threads, and once without the completions that hang.

- `not_wrong`: hanging completions with an outcome other than the score 0.
- `others_equal`: the other completions have the scores of the run without hangs.
- `added_over_budget`: the wall clock that the hangs add / (hangs x limit / workers).
- `left_computing`: processes that use the processor one second after the batch.
- `orphans`: processes of the scoring process that outlive it.
- `trl`: whether TRL's `accuracy_reward` returns from one such completion within `trl_waited_s`.

Exits with 1 unless the first five are 0, true, at most 1.2, 0 and 0.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil

from rewards import Outcome, build_reward, verified
from rewards_throughput import GROUP, PLAIN, group_batch, load_problems
from rlkd.process import carriers, descendants, is_running
from rlkd.workers.pool import Fault, WorkerPool, default_workers

Caller = Literal["main thread", "thread", "asyncio.to_thread"]
CALLERS: tuple[Caller, ...] = ("main thread", "thread", "asyncio.to_thread")
MARK = "RLKD_BENCHMARK_MARK"
BOUND = 1.2
REWARDS = {"accuracy_reward": "timeout", "accuracy": "seconds"}  # -> the parameter for the time limit

# Each kind, with a number that makes the answers different.
HANGS: dict[str, Callable[[int], str]] = {
    "tower of powers": lambda i: f"9^{{9^{{9^{{{9 + i}}}}}}}",
    "factorial": lambda i: f"{100_000_000 + i}!",
    "binomial": lambda i: f"\\binom{{10^9+{i}}}{{5\\cdot 10^8}}",
    "factorial of a factorial": lambda i: f"((20!)!)!+{i}",
    "huge exponent": lambda i: f"7^{{{10**10 + i}}}",
    "power of a fraction": lambda i: f"(\\frac{{{7 + 3 * i}}}{{3}})^{{10^9}}",
    "long sum": lambda i: f"\\sum_{{k=1}}^{{10^9}} \\frac{{1}}{{k^2+{7 + i}}}",
    "long product": lambda i: f"\\prod_{{k=1}}^{{10^8}} (k+{1 + i})",
    "integral without closed form": lambda i: f"\\int_0^1 \\frac{{\\sin(x^3) e^{{x^2}}}}{{\\ln(x+{2 + i})}} \\, dx",
    "deep nesting": lambda i: "(" * (3000 + i) + "1" + ")" * (3000 + i),
    "power of a polynomial": lambda i: f"(x+1)^{{{100_000 + i}}}",
    "remainder": lambda i: f"7^{{10^{{12}}+{i}}} \\mod 13",
    "logarithm": lambda i: f"\\log_2(3^{{{10**9 + i}}})",
    "sine": lambda i: f"\\sin({10 + i}^{{10^{{10}}}})",
    "many decimals": lambda i: f"0.{'3' * 100_000}{10 + i}",
    "root": lambda i: f"\\sqrt{{10^{{10^8}}+{1 + i}}}",
    "floor": lambda i: f"\\lfloor \\pi \\cdot 10^{{10^8}}+{i} \\rfloor",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Put completions that hang into a batch.")
    parser.add_argument("--reward", choices=list(REWARDS), default="accuracy_reward", help="default: %(default)s")
    parser.add_argument("--data", type=Path, help="JSONL file of problems (default: GSM8K as shipped)")
    parser.add_argument("--check-kinds", action="store_true", help="only see how long each kind takes")
    given = harness.parse(parser, quick="256 completions, 6 hang, limit 1.5 s", child=work)
    if given.check_kinds:
        return check_kinds()
    size, n_hangs, limit, patience = (256, 6, 1.5, 3.0) if given.quick else (8192, 82, 5.0, 60.0)

    task = make_task(given.data, size, n_hangs) | {"reward": given.reward, "limit": limit}
    hanging = task["hanging"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(hanging.values()).items())
    print(f"{size} completions, {n_hangs} of which hang: {kinds}")
    trl = start_trl()
    others = [i for i in range(size) if i not in hanging]
    alone = task | {"completions": [task["completions"][i] for i in others], "caller": "main thread"}
    alone["solutions"] = [task["solutions"][i] for i in others]
    answers = trl_answers(trl, patience)  # before anything is timed
    reference = in_a_process(alone)
    print(f"without them: {reference['wall']:.1f} s")

    workers = default_workers()
    budget = n_hangs * limit / workers
    arms: dict[str, dict[str, Any]] = {}
    for caller in CALLERS:
        result = in_a_process(task | {"caller": caller})
        outcomes = [(result["statuses"][i], result["scores"][i]) for i in hanging]
        arms[caller] = {
            "not_wrong": sum(outcome != ("score", 0.0) for outcome in outcomes),
            "others_equal": [result["scores"][i] for i in others] == reference["scores"]
            and [result["statuses"][i] for i in others] == reference["statuses"],
            "added_over_budget": round((result["wall"] - reference["wall"]) / budget, 3),
            "left_computing": result["left_computing"],
            "orphans": result["orphans"],
            "added_s": round(result["wall"] - reference["wall"], 1),
        }
        print(f"from the {caller}: {json.dumps(arms[caller])}", flush=True)
    for thread, returned in answers.items():
        print(f"TRL's reward, one hang, {thread}: {returned}")
    figures = {
        "reward": given.reward,
        "completions": size,
        "hangs": n_hangs,
        "kinds": len(set(hanging.values())),
        "limit_s": limit,
        "workers": workers,
        "budget_s": budget,
        "without_s": round(reference["wall"], 2),
        "not_wrong": sum(arm["not_wrong"] for arm in arms.values()),
        "others_equal": all(arm["others_equal"] for arm in arms.values()),
        "added_over_budget": max(arm["added_over_budget"] for arm in arms.values()),
        "left_computing": sum(arm["left_computing"] for arm in arms.values()),
        "orphans": sum(arm["orphans"] for arm in arms.values()) + reference["orphans"],
        "callers": arms,
        "trl": answers,
        "trl_waited_s": patience,
    }
    bounds = {f"{name} = 0": figures[name] == 0 for name in ("not_wrong", "left_computing", "orphans")}
    bounds["others_equal"] = figures["others_equal"]
    bounds[f"added_over_budget <= {BOUND}"] = given.quick or figures["added_over_budget"] <= BOUND
    return harness.report(figures, bounds)


def make_task(data: Path | None, size: int, n_hangs: int) -> dict[str, Any]:
    """A batch with hangs at random positions; `hanging` maps their positions to their kinds."""
    batch = group_batch(load_problems(data), size - size % GROUP)
    completions = list(batch.completions)
    places = sorted(random.Random(1).sample(range(len(completions)), n_hangs))
    hanging = {}
    for count, place in enumerate(places):
        turn, which = divmod(count, len(HANGS))
        kind = list(HANGS)[which]
        completions[place] = f"Let me see.\n{PLAIN % HANGS[kind](turn)}"
        hanging[place] = kind
    questions = {verified.comparison(completions[i], batch.solutions[i]) for i in places}
    assert len(questions) == n_hangs, "two hangs are one question"
    return {"completions": completions, "solutions": batch.solutions, "hanging": hanging}


# The scoring process, and the processes left after it.


def in_a_process(task: dict[str, Any]) -> dict[str, Any]:
    mark = uuid.uuid4().hex
    found = harness.in_child(task, **{MARK: mark})
    time.sleep(1.0)
    # Process ids are reused; together with the start time they are unique.
    alive = {(each.pid, each.create_time()) for each in psutil.process_iter() if is_running(each)}
    children = {tuple(child) for child in found["descendants"]}
    found["orphans"] = len({pid for pid, _ in alive & children} | {each.pid for each in carriers(MARK, mark)})
    return found


def work(task: dict[str, Any]) -> dict[str, Any]:
    logging.getLogger("rewards.runner").setLevel(logging.ERROR)
    name, limit = task["reward"], task["limit"]
    reward = build_reward(name, {REWARDS[name]: limit}, cache=False)
    column = "solution" if name == "accuracy_reward" else "answer"

    def judge(completions: list[str], solutions: list[str]) -> list[Outcome]:
        chats = [[{"role": "assistant", "content": text}] for text in completions]
        outcomes: list[Outcome] = reward.score(completions=chats, **{column: solutions})
        return outcomes

    judge(["\\boxed{x+1}"], ["$x+2$"])  # loads the libraries and starts the first worker
    descended = {(each.pid, each.create_time()) for each in descendants(os.getpid())}
    outcomes, wall, _ = harness.timed(
        lambda: call_from(task["caller"], lambda: judge(task["completions"], task["solutions"]))
    )
    time.sleep(1.0)
    before = spent()
    time.sleep(1.0)
    after = spent()
    descended |= {(each.pid, each.create_time()) for each in before | after}
    computing = [each for each, seconds in after.items() if each not in before or seconds - before[each] > 0.2]
    return {
        "wall": wall,
        "scores": [outcome.value for outcome in outcomes],
        "statuses": [outcome.status for outcome in outcomes],
        "descendants": sorted(descended),
        "left_computing": len(computing),
    }


def spent() -> dict[psutil.Process, float]:
    found = {}
    for each in descendants(os.getpid()):
        with contextlib.suppress(psutil.Error):  # it has ended
            found[each] = sum(each.cpu_times()[:4])
    return found


def call_from(caller: Caller, function: Callable[[], Any]) -> Any:
    if caller == "main thread":
        return function()
    if caller == "asyncio.to_thread":
        return asyncio.run(asyncio.to_thread(function))
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


# TRL's own reward, in processes that are killed.

ASK_TRL = """
import sys, threading
from trl.rewards import accuracy_reward
def ask(answer):
    scores = accuracy_reward([[{"role": "assistant", "content": answer}]], ["$18$"])
    print(scores, flush=True)
def hang():
    print("ready", flush=True)
    ask(sys.argv[2])
ask("\\\\boxed{18}")
if sys.argv[1] == "main thread":
    hang()
else:
    thread = threading.Thread(target=hang)
    thread.start()
    thread.join()
"""


def start_trl() -> dict[str, subprocess.Popen[str]]:
    """One process for each calling thread, with one hanging call each."""
    answer = PLAIN % HANGS["tower of powers"](0)
    return {
        thread: subprocess.Popen(
            [sys.executable, "-c", ASK_TRL, thread, answer],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for thread in ("main thread", "another thread")
    }


def trl_answers(processes: dict[str, subprocess.Popen[str]], patience: float) -> dict[str, str]:
    """The output of each process within `patience` seconds after loading; then it is killed."""
    answers = {}
    for process in processes.values():
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "ready":
                break
    end = time.monotonic() + patience
    for thread, process in processes.items():
        try:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            answers[thread] = output.strip()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            answers[thread] = "does not return"
    return answers


def check_kinds(seconds: float = 20.0) -> int:
    """Print the result of each kind in a worker with 4 GiB and `seconds`; return 1 if one has a verdict."""
    pool = WorkerPool(verified.verdict, preload=["math_verify", "rewards.verified"], memory=4 * 2**30)
    calls = [(PLAIN % make(0), "$18$", "trl") for make in HANGS.values()]
    results = pool.map(calls, limit=seconds)
    for kind, result in zip(HANGS, results, strict=True):
        print(f"{kind:<30} {result.message if isinstance(result, Fault) else f'verdict {result}'}")
    return 0 if all(isinstance(result, Fault) and result.kind in ("timeout", "memory") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
