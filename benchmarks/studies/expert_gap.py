"""Is there anything to distil? The expert against the student on questions that neither was trained on.

    python benchmarks/studies/expert_gap.py --out runs/expert_gap                  # about 15 minutes on two cores
    python benchmarks/studies/expert_gap.py --out runs/expert_gap                  # again: continues after a kill
    python benchmarks/studies/expert_gap.py --out runs/expert_gap --sets mawps-test.jsonl
    python benchmarks/studies/expert_gap.py --out runs/early --expert "transformers:embedded?adapter=FOLDER"
    python benchmarks/studies/expert_gap.py --out /tmp/smoke --smoke               # does the script work?

Each model gives one greedy answer per question, and the two are compared question by question. The sets:

    mawps      the 142 test problems of `mawps-sample`
    chains     150 arithmetic chains of the split that nothing is trained on (`rlkd.data.arithmetic.chain_rows`)
    FILE       rows of your own, .jsonl or .parquet with `question` and `answer`

The primary figure of each set, fixed before any result was seen: accuracy of the expert minus accuracy of the student,
with its 95 % interval over questions, next to the exact McNemar test (McNemar, 1947).

Stored answers (`answers.jsonl`) are not requested again. The last line printed is a JSON object with the figures.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grid import ROOT, guarded, write_results
from rlkd.answers import accuracy
from rlkd.data.arithmetic import chain_rows
from rlkd.data.loading import load_rows
from rlkd.data.rows import build_prompt
from rlkd.engines import Engine, EngineError, Sampling, is_engine_spec, open_engine, run
from rlkd.errors import UsageError
from rlkd.files import append_records, read_records, remove_truncated_line
from rlkd.series import series_mean
from rlkd.statistics import Interval, estimate, mcnemar

# Chosen before the first run.
BOOTSTRAP_SEED = 17
SETS = ("mawps", "chains")
BATCH = 16


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description="The expert against the student on held-out questions.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers and results")
    parser.add_argument("--student", default="embedded-warm", help="model or engine spec (default: %(default)s)")
    parser.add_argument("--expert", default="embedded-expert", help="model or engine spec (default: %(default)s)")
    parser.add_argument("--also", nargs="*", default=["embedded"], help="further models to measure, uncompared")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="mawps, chains, or files of rows")
    parser.add_argument("--rows", type=int, help="number of questions of each set, from the first")
    parser.add_argument("--max-new-tokens", type=int, default=96, help="longest answer (default: %(default)s)")
    parser.add_argument("--system-prompt", help="put before every question (default: the one of recipes/sft.yaml)")
    parser.add_argument("--smoke", action="store_true", help="two short answers a set; the figures mean nothing")
    given = parser.parse_args()
    if given.system_prompt is None:
        given.system_prompt = yaml.safe_load((ROOT / "recipes/sft.yaml").read_text())["system_prompt"]
    if given.smoke:
        given.student = given.expert = "embedded"
        given.also, given.rows, given.max_new_tokens = [], 2, 8
    results = measure(given)
    write_results(given.out, results | {"smoke": given.smoke}, table(results))
    primary = {
        name: found["difference"] | {"mcnemar_p": found["mcnemar_p"]} for name, found in results["sets"].items()
    }
    print(json.dumps({"smoke": given.smoke} | primary))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Answers of all models to all sets, and the figures; raises `UsageError` where a set or a model does not work."""
    sets = {name: read_set(name, given.rows) for name in given.sets}  # a mistake shows before a model is loaded
    given.out.mkdir(parents=True, exist_ok=True)
    answers = AnswerFile(given.out / "answers.jsonl")
    correct: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in sets}
    roles = {"student": given.student, "expert": given.expert} | {name: name for name in given.also}
    for role, model in roles.items():
        # One engine at a time, so that one model is in memory.
        engine = open_engine(model if is_engine_spec(model) else f"transformers:{model}")
        for name, rows in sets.items():
            correct[name][role] = answer(engine, rows, answers, given, f"{role} on {name}")
    return {
        "models": roles,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "sets": {name: compare(rows, correct[name]) for name, rows in sets.items()},
    }


def read_set(name: str, limit: int | None) -> list[dict[str, Any]]:
    """The rows of a set; raises `UsageError` where there are none or one has no answer."""
    source = "mawps-sample" if name == "mawps" else name
    rows = (chain_rows("test") if name == "chains" else load_rows(source, split="test"))[:limit]
    unknown = next((row["id"] for row in rows if row.get("answer") is None), None)
    if unknown is not None:
        raise UsageError(f"{name}: row {unknown!r} has no answer, so no accuracy can be measured")
    return rows


class AnswerFile:
    """Answers of models in a file, a line each, by model and question."""

    def __init__(self, path: Path):
        self.path = path
        remove_truncated_line(path)
        self.found = {record.pop("key"): record for record in (read_records(path) if path.exists() else ())}

    def add(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Keep records under their keys, in the file too."""
        append_records(self.path, ({"key": key, **record} for key, record in records.items()))
        self.found |= records


def answer(
    engine: Engine, rows: Sequence[Mapping[str, Any]], answers: AnswerFile, given: argparse.Namespace, title: str
) -> list[dict[str, Any]]:
    """One record per row: `text`, `ended`, `tokens` and `correct`; requests go out only for rows without an answer.

    Raises `UsageError` where the engine fails.
    """
    keys = {
        row["id"]: json.dumps(
            [engine.name, given.system_prompt, given.max_new_tokens, row.get("prompt") or row["question"]]
        )
        for row in rows
    }
    missing = [row for row in rows if keys[row["id"]] not in answers.found]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        prompts = [row.get("prompt") or build_prompt(row["question"], given.system_prompt) for row in batch]
        results = run(engine.generate(prompts, Sampling(max_new_tokens=given.max_new_tokens)))
        records = {}
        for row, result in zip(batch, results, strict=True):
            if isinstance(result, EngineError):
                raise UsageError(f"{title}: {result}")
            ended = result.finish_reason == "stop"
            records[keys[row["id"]]] = {"text": result.text, "ended": ended, "tokens": result.n_tokens}
        answers.add(records)
        done = len(rows) - len(missing) + start + len(batch)
        print(f"{title}: {done} of {len(rows)} questions", file=sys.stderr, flush=True)
    kept = [answers.found[keys[row["id"]]] for row in rows]
    return [{**found, "correct": accuracy(row, found["text"])} for row, found in zip(rows, kept, strict=True)]


def compare(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures of a set: each model's accuracy, and expert minus student, paired by question.

    Questions whose gold answer cannot be compared are left out.
    """
    usable = [i for i in range(len(rows)) if all(records[i]["correct"] is not None for records in found.values())]
    if not usable:
        raise UsageError(f"none of the {len(rows)} questions has a gold answer that can be compared")
    right = {role: [records[i]["correct"] for i in usable] for role, records in found.items()}
    differences = [expert - student for expert, student in zip(right["expert"], right["student"], strict=True)]
    interval = series_mean(differences, block=1, seed=BOOTSTRAP_SEED)
    only = {"expert": differences.count(1.0), "student": differences.count(-1.0)}
    return {
        "n": len(usable),
        "models": {
            role: {
                "accuracy": dataclasses.asdict(estimate(right[role])),
                "ended": sum(records[i]["ended"] for i in usable) / len(usable),
                "tokens": sum(records[i]["tokens"] for i in usable) / len(usable),
            }
            for role, records in found.items()
        },
        "difference": _plain(interval),
        "right_alone": only,
        "mcnemar_p": mcnemar(only["expert"], only["student"]),
    }


def table(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| set | model | right (95 % interval) | ended | tokens |", "| --- | --- | --- | --- | --- |"]
    for name, found in results["sets"].items():
        for role, figures in found["models"].items():
            model = results["models"][role]
            shown = model if role == model else f"{role} ({model})"
            lines.append(
                f"| {name} | {shown} | {Interval(**figures['accuracy']):.1%} | {figures['ended']:.0%} "
                f"| {figures['tokens']:.1f} |"
            )
    lines += ["", "| set | expert minus student | right alone: expert, student | McNemar p |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, found in results["sets"].items():
        difference = found["difference"]
        low, high = (-math.inf, math.inf) if difference["low"] is None else (difference["low"], difference["high"])
        gap = Interval(difference["value"], low, high, found["n"])
        alone = f"{found['right_alone']['expert']}, {found['right_alone']['student']}"
        lines.append(f"| {name} | {gap:+.1%} | {alone} | {found['mcnemar_p']:.2g} |")
    return "\n".join(lines) + "\n"


def _plain(interval: Interval) -> dict[str, Any]:
    """An interval as JSON has it: no infinity."""
    finite = math.isfinite(interval.high - interval.low)
    bounds = {"low": interval.low, "high": interval.high} if finite else {"low": None, "high": None}
    return {"value": interval.value, **bounds, "excludes_zero": interval.excludes_zero}


if __name__ == "__main__":
    raise SystemExit(main())
