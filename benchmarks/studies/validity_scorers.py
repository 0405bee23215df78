"""Which validity scorer tells a right step from a wrong one? AUROC of each on steps that people have labelled.

    python benchmarks/studies/validity_scorers.py --data first_error.jsonl --out runs/validity            # cheap ones
    python benchmarks/studies/validity_scorers.py --data first_error.jsonl --out runs/validity --resume \\
        --scorers judge prm rollout --rows 60                              # continues, with scorers that use an engine
    python benchmarks/studies/validity_scorers.py --data first_error.jsonl --out runs/validity --analyse
    python benchmarks/studies/validity_scorers.py --data first_error.jsonl --out /tmp/smoke --smoke

Data: JSON lines as in MR-GSM8K (github.com/dvlab-research/MR-GSM8K, MIT). Steps before the first error are valid, the
first error is invalid, later ones are left out. GSM8K's human solutions of the `original` questions add valid steps;
those of `reversed` ones do not, since a model wrote them and some are wrong. Programs (`POT`) are left out. `rollout`
needs a numeric `ground_truth_answer`.

Four populations of pairs of a valid and an invalid step: `all`, in which source and position confound (people write
differently, and a first error never precedes a valid step of its trace); `same source` (by models); `same position` in
their traces; and `same both`, the fairest and smallest. A scorer that does not beat `position` and `length` measures
these; the difference to length is paired, on the steps that the scorer has scored. Intervals: bootstrap over problems.

`judge`, `prm` (by labels, without a trained head) and `rollout` use `--engine`. `likelihood` and `expected` come from
one forward pass per trace; the expected margin is that of an on-policy trace, the tokens' surprisal minus the model's
entropy, with its sign turned so that more is better.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from grid import guarded, write_results
from rlkd.answers import number
from rlkd.data.rows import build_prompt
from rlkd.data.samples import few_shot_examples
from rlkd.engines import run
from rlkd.errors import UsageError
from rlkd.files import append_records, read_records, remove_truncated_line
from rlkd.models import resolve_model
from rlkd.statistics import auroc, percentile_interval, resample
from rlkd.steps import strip_calculator_marks
from rlkd.validity import REDUCTIONS, StepQuestion, expected_margins, load_scorer
from rlkd.validity.rollout import RolloutScorer

BOOTSTRAP_SEED, ORDER_SEED, DRAWS = 13, 5, 2000
CHEAP, ASKING = ("likelihood", "expected"), ("judge", "prm", "rollout")
# Name -> (steps by models only, pairs of one position only).
POPULATIONS = {
    "all": (False, False),
    "same source": (True, False),
    "same position": (False, True),
    "same both": (True, True),
}


@dataclass(frozen=True)
class LabelledTrace:
    """A solution as labelled steps; `problem` is what the bootstrap draws."""

    key: str
    problem: int
    source: str
    question: str
    answer: str | None
    steps: list[str]
    valid: list[bool]


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with first-error labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of scores, results and table")
    parser.add_argument("--model", default="embedded", help="embedded, embedded-warm, a folder or a hub id")
    parser.add_argument("--scorers", nargs="+", default=list(CHEAP), choices=[*CHEAP, *ASKING])
    parser.add_argument("--engine", help="engine of judge, prm and rollout: --model served, http://HOST:PORT/v1#NAME")
    parser.add_argument("--together", type=int, default=1, help="traces scored together; more for a server")
    parser.add_argument("--rows", type=int, help="traces to score, drawn at random; all by default")
    parser.add_argument("--examples", type=int, default=0, help="few-shot examples before each question")
    parser.add_argument("--samples", type=int, default=4, help="of `rollout`")
    parser.add_argument("--max-new-tokens", type=int, default=160, help="of a completion of `rollout`")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--analyse", action="store_true", help="score nothing, read the stored scores")
    parser.add_argument("--smoke", action="store_true", help="four traces; the figures mean nothing")
    given = parser.parse_args()
    if given.smoke:
        given.rows, given.samples, given.max_new_tokens = 4, 2, 8
    if given.together < 1:
        raise UsageError(f"--together {given.together}: expected at least 1")
    traces = read_traces(given.data)
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.analyse:
        score(traces[: given.rows], given)
    results = analyse(traces, read_scores(given.out / "scores.jsonl"))
    settings = json.loads((given.out / "settings.json").read_text())
    report = settings | {"smoke": given.smoke, "rows": results}
    write_results(given.out, report, table(results))
    fairest = {row["scorer"]: row["auroc"] for row in results if row["population"] == "same both"}
    print(json.dumps(settings | {"smoke": given.smoke, "same both": fairest}))


def read_traces(path: Path) -> list[LabelledTrace]:
    """Labelled traces, in a random order that is always the same; raises `UsageError` naming the line."""
    made: dict[str, LabelledTrace] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"--data: {error}") from error
    for place, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if row["question_type"] == "POT":
                continue
            first = int(row["model_output_solution_first_error_step"])
            steps = [plain_step(step) for step in row["model_output_steps"][:first]]
            if not 1 <= first <= len(row["model_output_steps"]) or not all(steps):
                raise ValueError(f"the first error is step {first} of {len(row['model_output_steps'])}")
            problem = int(row["gsm8k_test_index"])
            answer = str(row["ground_truth_answer"])
            answer = None if number(answer) is None else answer
            common = (problem, "model", row["question"], answer, steps, [True] * (first - 1) + [False])
            made[row["uuid"]] = LabelledTrace(row["uuid"], *common)
            written = row["ground_truth_solution"] if row["question_type"] == "original" else ""
            human = [plain_step(step) for step in str(written or "").splitlines()]
            human = [step for step in human if step and not step.startswith("####")]
            if human:
                key = f"human-{problem}"
                made[key] = LabelledTrace(key, problem, "human", row["question"], answer, human, [True] * len(human))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}:{place}: not a row with first-error labels: {error!r}") from error
    if not made:
        raise UsageError(f"{path}: no row with a solution in words")
    # By hash and not shuffled: the order of two traces does not depend on what else is in the file.
    return sorted(made.values(), key=lambda trace: hashlib.sha256(f"{ORDER_SEED}/{trace.key}".encode()).digest())


def plain_step(step: str) -> str:
    """A step as a student would write it: without its number, on one line, without calculator marks."""
    return " ".join(strip_calculator_marks(re.sub(r"\AStep \d+:", "", step)).split())


def score(traces: Sequence[LabelledTrace], given: argparse.Namespace) -> None:
    """Append the scores that are missing. Raises `UsageError` for a folder with other settings, or no --resume."""
    settings: dict[str, Any] = {"model": given.model, "examples": given.examples, "data": given.data.name}
    if set(ASKING) & set(given.scorers):
        settings["asked"] = engine_of(given).rpartition("#")[2]  # a server may come back at another address
    if "rollout" in given.scorers:  # of which its scores depend, and no others
        settings |= {"samples": given.samples, "max_new_tokens": given.max_new_tokens}
    settings_file, file = given.out / "settings.json", given.out / "scores.jsonl"
    if file.exists() and not given.resume:
        raise UsageError(f"{file} is there already: --resume continues it, --analyse only reads it")
    kept = json.loads(settings_file.read_text()) if settings_file.exists() else {}
    if any(kept.get(name, value) != value for name, value in settings.items()):
        raise UsageError(f"{given.out} has scores with {kept}, this run has {settings}: choose another --out")
    settings_file.write_text(json.dumps(kept | settings))
    done = {(entry["trace"], entry["scorer"]) for entry in read_scores(file)} if file.exists() else set()
    for names, scorer in scorers(given):
        missing = [trace for trace in traces if any((trace.key, name) not in done for name in names)]
        for start in range(0, len(missing), given.together):
            batch = missing[start : start + given.together]
            for trace, found in zip(batch, scorer(batch), strict=True):
                entries = ({"trace": trace.key, "scorer": name, "values": values} for name, values in found.items())
                append_records(file, entries)
            count = len(traces) - len(missing) + start + len(batch)
            if count % 25 < len(batch) or count == len(traces):
                print(f"{names[0]} ...: {count} of {len(traces)} traces", flush=True)


def scorers(given: argparse.Namespace) -> Iterator[tuple[list[str], Any]]:
    """Groups of scores that come from one computation, with the function from traces to those of each."""
    cheap = [f"{kind} {reduction}" for kind in CHEAP if kind in given.scorers for reduction in REDUCTIONS]
    if cheap:
        forward = Forward(given.model, given.examples)
        yield cheap, lambda traces: [{name: found[name] for name in cheap} for found in map(forward, traces)]
        del forward
    common = {"engine": engine_of(given), "deadline": 7200.0}  # of a call, of which an attempt has half
    for name in ASKING:
        if name not in given.scorers:
            continue
        parameters: dict[str, Any] = {}
        if name == "rollout":
            parameters = {"samples": given.samples, "max_new_tokens": given.max_new_tokens}
            parameters |= {"fallback": "last_number", "tokenizer": given.model}
        scorer: Any = load_scorer(name, common | parameters)
        scorer.check_ready()
        yield [name], partial(score_steps, scorer, examples=given.examples)


def engine_of(given: argparse.Namespace) -> str:
    return str(given.engine or f"transformers:{given.model}")


def prompt_of(trace: LabelledTrace, examples: int) -> list[dict[str, str]]:
    return build_prompt(trace.question, examples=few_shot_examples(examples) if examples else ())


def questions_of(trace: LabelledTrace, examples: int) -> list[StepQuestion]:
    """Every step as a question. Prefixes end with the line end before the step."""
    prompt = prompt_of(trace, examples)
    prefixes = ["".join(f"{step}\n" for step in trace.steps[:place]) for place in range(len(trace.steps))]
    return [StepQuestion(prompt, *pair, trace.answer) for pair in zip(prefixes, trace.steps, strict=True)]


def score_steps(scorer: Any, traces: Sequence[LabelledTrace], *, examples: int) -> list[dict[str, list[float | None]]]:
    """A scorer's validity of every step of every trace, under its name; raises `UsageError` if its engine is gone.

    `rollout`'s is (k + 1) / (N + 2) also where k is 0: here no second proposal has the same prefix.
    """
    questions = [question for trace in traces for question in questions_of(trace, examples)]
    if isinstance(scorer, RolloutScorer):
        counts = run(scorer.count(questions))
        values = [None if found is None else (found[0] + 1) / (found[1] + 2) for found in counts]
    else:
        values = list(run(scorer(questions)))
    if None in values:
        scorer.check_ready()
    taken = iter(values)
    return [{scorer.__name__: [next(taken) for _ in trace.steps]} for trace in traces]


class Forward:
    """Log-probability and entropy of every token of a trace under one model, in one pass."""

    def __init__(self, name: str, examples: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = resolve_model(name)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.examples = examples

    def __call__(self, trace: LabelledTrace) -> dict[str, list[float | None]]:
        """All of `CHEAP` in all reductions, for every step."""
        import torch

        from rlkd.engines.tokens import encode_continuation, encode_prompt

        ids = encode_prompt(self.tokenizer, prompt_of(trace, self.examples))
        start, spans = len(ids), []
        for step in trace.steps:
            begin = len(ids) - start
            ids += encode_continuation(self.tokenizer, step)
            spans.append((begin, len(ids) - start))
            ids += encode_continuation(self.tokenizer, "\n")
        count = len(ids) - start
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids]), logits_to_keep=count + 1).logits[0, :-1].float()
        logprobs = logits.log_softmax(-1)  # (N, V)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        taken = logprobs.gather(-1, torch.tensor(ids[start:])[:, None])[:, 0]
        statistics: Any = SimpleNamespace(teacher_logprob=taken, teacher_entropy=entropy, cross_entropy=None)
        found: dict[str, list[float | None]] = {}
        listed = taken.tolist()
        for reduction in REDUCTIONS:
            likelihood: Any = load_scorer("likelihood", {"reduction": reduction})
            found[f"likelihood {reduction}"] = likelihood.from_token_logprobs([listed[a:b] for a, b in spans])
            margins = expected_margins(statistics, spans, on_policy=True, reduction=reduction).margins
            found[f"expected {reduction}"] = [None if margin is None else -margin for margin in margins]
        return found


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The scores so far, without a last line that a kill truncated; the file loses it too."""
    if not path.exists():
        raise UsageError(f"there is no {path}; run the study first, without --analyse")
    remove_truncated_line(path)
    return list(read_records(path))


def analyse(traces: Sequence[LabelledTrace], entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """AUROC of every scorer and control in every population, with intervals. Unscored steps are left out."""
    by_key = {trace.key: trace for trace in traces}
    scored: dict[str, dict[str, list[float | None]]] = {}
    for entry in entries:
        if entry["trace"] not in by_key or len(entry["values"]) != len(by_key[entry["trace"]].steps):
            raise UsageError(
                f"the scores of {entry['trace']!r} do not fit the data: were they made from another file?"
            )
        scored.setdefault(entry["scorer"], {})[entry["trace"]] = entry["values"]
    widest = max(scored.values(), key=len) if scored else {}
    # The controls know the trace as it stands, on the steps that the scorers saw.
    scored["control: position"] = {key: [-float(p) for p in range(len(by_key[key].steps))] for key in widest}
    scored["control: length"] = {key: [-float(len(step)) for step in by_key[key].steps] for key in widest}
    rows = []
    for name, values in scored.items():
        steps = [
            (trace.problem, trace.source, place, trace.valid[place], value, key)
            for key, listed in values.items()
            for trace in [by_key[key]]
            for place, value in enumerate(listed)
        ]
        known = [step for step in steps if step[4] is not None]
        for population, (by_models, by_position) in POPULATIONS.items():
            chosen = [step for step in known if step[1] == "model" or not by_models]
            own_D = stratified_auroc(chosen, by_position=by_position)
            lengths = [(*step[:4], -len(by_key[step[5]].steps[step[2]])) for step in chosen]
            over_D = own_D - stratified_auroc(lengths, by_position=by_position)
            figure = bounds(own_D, "auroc") | bounds(over_D, "over_length")
            figure |= {"valid": sum(s[3] for s in chosen), "invalid": sum(not s[3] for s in chosen)}
            rows.append({"scorer": name, "population": population, "missing": len(steps) - len(known), **figure})
    return rows


def stratified_auroc(steps: Sequence[Sequence[Any]], *, by_position: bool) -> np.ndarray:
    """The share of (valid, invalid) pairs in which the valid step scores higher, ties one half; NaN without a pair.

    (1 + DRAWS,): first the figure, then that of each bootstrap draw of problems; the draws of two scores of the same
    steps are pairs. `steps`: (problem, source, position, whether valid, score).
    """
    problems, problem_C = np.unique([step[0] for step in steps], return_inverse=True)
    counts_DQ = np.ones((1, len(problems)))
    if len(problems):
        counts_DQ = np.concatenate([counts_DQ, resample(len(problems), DRAWS, BOOTSTRAP_SEED)])
    valid_C, scores_C = np.array([bool(step[3]) for step in steps]), np.array([float(step[4]) for step in steps])
    position_C = np.array([step[2] for step in steps]) if by_position else None
    return auroc(scores_C, valid_C, problem_C, counts_DQ, position_C)


def bounds(values_D: np.ndarray, name: str) -> dict[str, float]:
    figure = percentile_interval(values_D[0], values_D[1:], len(values_D))
    return {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = [*POPULATIONS, "same both, minus length on the same steps", "valid / invalid", "unscored"]
    lines = ["| scorer | " + " | ".join(head) + " |", "| --- " * (1 + len(head)) + "|"]
    for name in dict.fromkeys(row["scorer"] for row in rows):
        own = {row["population"]: row for row in rows if row["scorer"] == name}
        cells = [f"{row['auroc']:.3f} ({row['auroc_low']:.3f}–{row['auroc_high']:.3f})" for row in own.values()]
        fairest, everything = own["same both"], own["all"]
        low, high = fairest["over_length_low"], fairest["over_length_high"]
        cells.append(f"{fairest['over_length']:+.3f} ({low:+.3f} to {high:+.3f})")
        cells += [f"{everything['valid']} / {everything['invalid']}", str(everything["missing"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
