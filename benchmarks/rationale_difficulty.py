"""Time and accuracy of measuring the difficulty of rationales.

    python benchmarks/rationale_difficulty.py                   # the embedded model, 16 questions: about 3 minutes
    python benchmarks/rationale_difficulty.py --quick           # 2 questions, under 50 seconds
    python benchmarks/rationale_difficulty.py --rows FILE       # JSON lines: question, answer (or gold), rationales

Both arms measure log RD = NLL(a | x, r) - NLL(a | x) of the same texts with the same model in this process:

    ours       `DifficultySelector` with a `TransformersEngine`: batched by length, the question read once for all its
               rationales, logits at the answer only
    reference  one pair at a time in the plainest way: a forward pass over question, rationale and answer, log-softmax,
               mean over the answer; NLL(a | x) once a question

interleaved by groups of questions, two threads (`--threads`), float32.

Figures: `throughput_ratio`, reference / ours in wall-clock seconds, which needs idle cores; about 2.1 of it comes from
work left out. `cpu_ratio`, the same in CPU-seconds, hardly affected by other work with `--threads 1`.
`cpu_ratio_to_answer_logits`: against a reference that computes logits at the answer only, which counts batching and
reuse alone (not in --quick). `max_error`: the largest difference in log RD; the limit is 1e-4. `leak_rate`: share of
rationales that still contain the answer after its removal; `leak_rate_unasked`: and whose question does not. Exits
with 1 if `max_error` is too large, or ours is not faster.

Without --rows the rationales are ten per GSM8K training question: its solution and nine variants of it.
"""

import harness  # before torch: no hub

# isort: split

import argparse
import json
import random
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlkd.answers import extract_answer
from rlkd.data.samples import sample_rows
from rlkd.engines import EngineError, run
from rlkd.engines.transformers import TransformersEngine
from rlkd.rationales.records import Question, candidate
from rlkd.rationales.select.rationale_difficulty import DifficultySelector, RationaleDifficulty
from rlkd.rationales.select.stripping import leaks, strip_answer

MOST_ERROR = 1e-4
VARIANTS = 10
# Questions of one measurement of an arm.
GROUP = 8
BEGINNINGS = [
    "First,",
    "Now:",
    "Well,",
    "So:",
    "Step by step:",
    "To begin with,",
    "Here,",
    "Let us see.",
    "We know this:",
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the scoring of rationale difficulty.")
    parser.add_argument("--rows", type=Path, help="JSON lines with question, answer or gold, and rationales")
    parser.add_argument("--model", default="embedded", help="folder or name of the student")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--questions", type=int, help="number of questions")
    arguments = harness.parse(parser, quick="2 questions")
    torch.set_num_threads(arguments.threads)

    count = arguments.questions or (2 if arguments.quick else 16)
    questions = (read_rows(arguments.rows) if arguments.rows else sample())[:count]
    engine = TransformersEngine(arguments.model, device="cpu", dtype="float32")
    meter = DifficultySelector(engine)
    [warm] = run(engine.score([("a", "b")]))
    if isinstance(warm, EngineError):
        raise SystemExit(str(warm))
    loaded: Any = engine._loaded  # both arms use the same weights in the same layout

    def ours(some: list[Question]) -> list[float]:
        return [log_rd(item) for row in run(meter.measure(some)) for item in row]

    arms = {"ours": ours, "reference": lambda some: one_at_a_time(loaded, meter, some, all_logits=True)}
    if not arguments.quick:
        arms["answer_logits"] = lambda some: one_at_a_time(loaded, meter, some, all_logits=False)
    seconds, cpu_seconds = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0.0)
    results: dict[str, list[float]] = {name: [] for name in arms}
    for turn, start in enumerate(range(0, len(questions), GROUP)):
        some = questions[start : start + GROUP]
        for name in arms if turn % 2 == 0 else reversed(arms):
            values, wall, cpu = harness.timed(partial(arms[name], some))
            results[name] += values
            seconds[name] += wall
            cpu_seconds[name] += cpu
    errors = [abs(one - other) for name in arms for one, other in zip(results["ours"], results[name], strict=True)]
    leaked = [
        (question, leaks(strip_answer(each.text), question.answer or ""))
        for question in questions
        for each in question.candidates
    ]
    leaking = [question for question, leak in leaked if leak]
    unasked = [question for question in leaking if not leaks(question.question, question.answer or "")]
    figures = {
        "throughput_ratio": round(seconds["reference"] / seconds["ours"], 2),
        "cpu_ratio": round(cpu_seconds["reference"] / cpu_seconds["ours"], 2),
        "max_error": max(errors),
        "questions": len(questions),
        "rationales": len(results["ours"]),
        "rationales_per_second": round(len(results["ours"]) / seconds["ours"], 2),
        "mean_log_rd": round(sum(results["ours"]) / len(results["ours"]), 3),
        "leak_rate": round(len(leaking) / len(leaked), 3),
        "leak_rate_unasked": round(len(unasked) / len(leaked), 3),
        "threads": arguments.threads,
        "cpu_seconds": {name: round(value, 1) for name, value in cpu_seconds.items()},
    }
    if "answer_logits" in arms:
        figures["cpu_ratio_to_answer_logits"] = round(cpu_seconds["answer_logits"] / cpu_seconds["ours"], 2)
    bounds = {
        f"max_error <= {MOST_ERROR}": max(errors) <= MOST_ERROR,
        "throughput_ratio > 1": arguments.quick or seconds["reference"] > seconds["ours"],
    }
    return harness.report(figures, bounds)


def one_at_a_time(
    loaded: Any, meter: DifficultySelector, questions: list[Question], *, all_logits: bool
) -> list[float]:
    """Log RD by one forward pass for each context, first the one without a rationale."""
    values_of = []
    for question in questions:
        without, *values = [nll(loaded, *request, all_logits) for request in meter.requests(question)]
        values_of += [value - without for value in values]
    return values_of


@torch.inference_mode()
def nll(loaded: Any, context: str, answer: str, all_logits: bool) -> float:
    """The mean surprisal of the answer's tokens after a context, in nats."""
    start = loaded.tokenizer(context)["input_ids"]
    end = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([start + end])  # (1, tokens)
    only = {} if all_logits else {"logits_to_keep": len(end) + 1}
    logprobs = loaded.model(input_ids=ids, **only).logits[0].float().log_softmax(-1)  # (tokens or fewer, vocabulary)
    predicted = logprobs[-len(end) - 1 : -1]
    return -float(predicted.gather(-1, torch.tensor(end)[:, None]).mean())


def log_rd(item: RationaleDifficulty | EngineError | None) -> float:
    if not isinstance(item, RationaleDifficulty):
        raise SystemExit(f"not measured: {item}")
    return item.log_rd


def sample() -> list[Question]:
    """GSM8K training questions of the embedded sample, with `VARIANTS` rationales each."""
    questions = []
    for row in sample_rows("rl"):
        solution = row["rationales"][0]
        texts = variants(solution, random.Random(str(row["id"])))
        if len(texts) == VARIANTS:
            made = tuple(candidate(str(row["id"]), text, "ready") for text in texts)
            questions.append(Question(str(row["id"]), row["question"], row["answer"], made))
    return questions


def variants(solution: str, source: random.Random) -> list[str]:
    """The solution, and different texts of about its length that do not begin as it does."""
    *steps, last = [line for line in solution.split("\n") if line.strip()]
    texts = [solution]
    for beginning in BEGINNINGS:
        changed = [*steps]
        kind = source.randrange(3)
        if kind == 0 and len(changed) > 1:
            changed.pop(source.randrange(len(changed)))
        elif kind == 1:
            source.shuffle(changed)
        else:
            changed = [
                re.sub(r"\d+", lambda match: str(int(match[0]) + source.randrange(3)), step) for step in changed
            ]
        texts.append("\n".join([f"{beginning} {changed[0]}", *changed[1:], last]))
    return list(dict.fromkeys(texts))[:VARIANTS]


def read_rows(path: Path) -> list[Question]:
    """The questions of a file of JSON lines; a rationale is a text, or an object with `text` and `source`."""
    questions = []
    for number, line in enumerate(path.read_text().splitlines()):
        row = json.loads(line)
        given = [{"text": item} if isinstance(item, str) else item for item in row["rationales"]]
        made = tuple(candidate(str(number), item["text"], item.get("source", "ready")) for item in given)
        answer = row.get("answer") or row["gold"]
        questions.append(Question(str(number), row["question"], extract_answer(answer) or answer, made))
    return questions


if __name__ == "__main__":
    sys.exit(main())
