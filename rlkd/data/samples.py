"""The embedded samples: GSM8K, MAWPS, and the rows that the shipped adapters were trained on.

SmolLM2-135M-Instruct answers a GSM8K question in prose, rambles past any limit and is almost never right, so
reinforcement learning finds nothing to reward. The warm start (our choice) is a mix that is easy enough to learn the
form of an answer from:

* `mawps`: one- and two-step word problems with their equations worked out, one calculation per line;
* `sample`: the embedded GSM8K rows for structure models with a short solution;
* `short`: more GSM8K training rows of the same half with at most three steps.

It contains no test question and no question of the half for reinforcement learning (`rlkd.data.rows.split_half`).
`assets/PROVENANCE.md` lists the sources of all rows.

The expert continues from the warm start, as a teacher with the same form of answer. Its rows (our choice) are as easy,
but new numbers make it learn to calculate instead of memorising:

* `mawps` of the half "gsrm", unchanged and with other numbers (`with_other_numbers`);
* `chains`: short generated arithmetic chains in words (`chain_rows`);
* the shortest rows of `short`.

Distillation from the expert uses other questions: MAWPS rows and chains of the half "rl" (`distillation_rows`).
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from rlkd.data.arithmetic import chain_rows, mawps_row, with_other_numbers
from rlkd.data.correctness import trace_verdicts
from rlkd.data.rows import Row, split_half
from rlkd.errors import UsageError
from rlkd.lab.contexts import context_rows
from rlkd.lab.problems import ALL_LENGTHS, LENGTHS, Relation, chain_problem, dependency_rows, recall_rows
from rlkd.lab.relations import relation_rows
from rlkd.lab.strategies import pretraining_rows, strategy_rows
from rlkd.steps import strip_calculator_marks
from rlkd.structure import from_gsm8k_socratic

SAMPLE = "gsm8k-sample"
EASY_SAMPLE = "mawps-sample"
DISTILLATION_SAMPLE = "distillation-sample"
CHAINS_SAMPLE = "chains-sample"
WARM_START = "warm-start"
EXPERT = "expert"
LAB_SAMPLES = (
    *("lab-dependency", "lab-dependency-long", "lab-dependency-slips", "lab-dependency-relations"),
    *("lab-chains", "lab-strategies"),
)
LAB_PRETRAINING = (
    *("lab-pretraining", "lab-expert", "lab-expert-slips", "lab-expert-slips-more"),
    *("lab-strategies-pretraining", "lab-context-pretraining"),
)
SAMPLES = (SAMPLE, EASY_SAMPLE, DISTILLATION_SAMPLE, CHAINS_SAMPLE, WARM_START, EXPERT, *LAB_SAMPLES, *LAB_PRETRAINING)
# Short, typical rows of the half that reinforcement learning never trains on.
FEW_SHOT_EXAMPLES = ("gsm8k-train-5487", "gsm8k-train-3269")

# Characters of the longest solution taken from the GSM8K sample: about 96 tokens of the embedded model.
LONGEST_SOLUTION = 290

# The expert's rows: variants per MAWPS row, number of chains, number of GSM8K rows.
NUMBER_VARIANTS = 2
EXPERT_CHAINS = 900
EXPERT_GSM8K = 150
# Besides about as many MAWPS rows.
DISTILLATION_CHAINS = 600
# Of the laboratory: rows by split; rows that its models are trained on, and the share of short cuts in the student's.
LAB_ROWS = {"train": 2000, "test": 600}
LAB_PRETRAINING_ROWS, LAB_EXPERT_ROWS = 72_000, 24_000
LAB_SHORT_CUTS = 0.5
# The relation that an unreliable teacher gets wrong: a third of all calculations, or somewhat less (`more`).
LAB_SLIPS: dict[str, Relation] = {
    "lab-dependency-slips": "fewer",
    "lab-expert-slips": "fewer",
    "lab-expert-slips-more": "more",
}
LAB_RECALL_ROWS = 12_000
LAB_STRATEGIES_ROWS = LAB_CONTEXT_ROWS = 8_000


def embedded_rows(sample: str, split: str) -> list[Row]:
    """The rows of an embedded sample; `train` of the GSM8K sample is its half `rl`.

    Raises `UsageError` for an unknown split.
    """
    if sample == SAMPLE:
        return sample_rows("rl" if split == "train" else split)
    if sample in (EASY_SAMPLE, DISTILLATION_SAMPLE):
        return mawps_rows(split) if sample == EASY_SAMPLE else distillation_rows(split)
    if sample in (CHAINS_SAMPLE, *LAB_SAMPLES):
        if split not in ("train", "test"):
            raise UsageError(f"{sample}, split {split!r}: expected 'train' or 'test'")
        if sample == "lab-strategies":
            return strategy_rows(split, LAB_ROWS[split])
        if sample == "lab-chains":
            return dependency_rows(split, LAB_ROWS[split], steps=LENGTHS["chain"], make=chain_problem)
        if sample == "lab-dependency-relations":
            return relation_rows(split, LAB_ROWS[split])
        if sample in LAB_SAMPLES:
            steps = LENGTHS["long" if sample == "lab-dependency-long" else "short"]
            slip = LAB_SLIPS.get(sample) if split == "train" else None
            return dependency_rows(split, LAB_ROWS[split], steps=steps, slip=slip)
        return chain_rows("rl", DISTILLATION_CHAINS) if split == "train" else chain_rows("test")
    if split != "train":
        raise UsageError(f"{sample}, split {split!r}: expected 'train'; evaluate on {SAMPLE} or {EASY_SAMPLE}")
    if sample in LAB_PRETRAINING:
        return _lab_pretraining_rows(sample)
    return warm_start_rows() if sample == WARM_START else expert_rows()


def _lab_pretraining_rows(sample: str) -> list[Row]:
    if sample == "lab-strategies-pretraining":
        return pretraining_rows(LAB_STRATEGIES_ROWS)
    if sample == "lab-context-pretraining":
        return context_rows(LAB_CONTEXT_ROWS, short_cuts=LAB_SHORT_CUTS)
    student = sample == "lab-pretraining"
    problems = dependency_rows(
        "pretraining",
        LAB_PRETRAINING_ROWS if student else LAB_EXPERT_ROWS,
        steps=ALL_LENGTHS,
        short_cuts=LAB_SHORT_CUTS if student else 0.0,
        slip=LAB_SLIPS.get(sample),
    )
    return [*problems, *recall_rows(LAB_RECALL_ROWS)] if student else problems


def sample_rows(part: str) -> list[Row]:
    """Rows of the GSM8K sample, part `rl`, `gsrm` or `test`, with one rationale and its structure each.

    The rationale is the plain solution and the structure its Socratic steps (see `assets/PROVENANCE.md`).
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
    """`count` (question, solution) pairs for a prompt, in the form in which the student should answer."""
    if not 0 <= count <= len(FEW_SHOT_EXAMPLES):
        raise UsageError(
            f"few_shot_examples={count}: there are {len(FEW_SHOT_EXAMPLES)}; give 0 to {len(FEW_SHOT_EXAMPLES)}"
        )
    by_id = {row["id"]: row for row in sample_rows("gsrm")}
    chosen = [by_id[name] for name in FEW_SHOT_EXAMPLES[:count]]
    return [
        (row["question"], f"{strip_calculator_marks(row['rationales'][0])}\n#### {row['answer']}") for row in chosen
    ]


def mawps_rows(split: str) -> list[Row]:
    """MAWPS word problems, split `train` or `test`, with their equations worked out."""
    if split not in ("train", "test"):
        raise UsageError(f"MAWPS split {split!r}: expected 'train' or 'test'")
    return [mawps_row(record) for record in _records(f"mawps_{split}.jsonl")]


def short_rows() -> list[Row]:
    """GSM8K training rows beyond the sample: one to three steps with a calculation each."""
    rows = []
    for record in _records("gsm8k_short.jsonl"):
        solution, _, answer = record["answer"].rpartition("\n#### ")
        rows.append(_plain({**record, "answer": answer.strip(), "rationales": [solution]}))
    return rows


def warm_start_rows() -> list[Row]:
    """All rows of the warm start, with one rationale each and without calculator marks."""
    plain = [row for row in map(_plain, sample_rows("gsrm")) if len(row["rationales"][0]) <= LONGEST_SOLUTION]
    return [*mawps_rows("train"), *map(_announced, [*plain, *short_rows()])]


def expert_rows() -> list[Row]:
    """All rows that the expert is trained on, in the form of `warm_start_rows`; always the same.

    All are of the half "gsrm". A MAWPS row with other numbers belongs to the half of its source; its id is that of the
    source with the suffix `-vN`.
    """
    mawps = [record for record in _records("mawps_train.jsonl") if split_half(record["question"]) == "gsrm"]
    variants = [
        variant
        for record in mawps
        for number in range(1, NUMBER_VARIANTS + 1)
        if (variant := with_other_numbers(record, f"{record['id']}-v{number}"))
    ]
    short = sorted(short_rows(), key=lambda row: (len(row["question"]) + len(row["rationales"][0]), row["id"]))
    problems = map(mawps_row, [*mawps, *variants])
    return [*problems, *chain_rows("gsrm", EXPERT_CHAINS), *map(_announced, short[:EXPERT_GSM8K])]


def distillation_rows(split: str) -> list[Row]:
    """Rows to distil the expert on and to evaluate it: MAWPS problems and chains alternately, then the rest.

    `train`: the half "rl" of MAWPS and 600 chains. None is among the expert's own rows, but the warm start, from which
    student and expert begin, has seen the MAWPS problems. `test`: the MAWPS test problems and 150 chains. Raises
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


def _plain(row: Row) -> Row:
    """The row with only the fields for training on text, without calculator marks."""
    rationales = [strip_calculator_marks(text) for text in row["rationales"]]
    return {key: row[key] for key in ("id", "question", "answer")} | {"rationales": rationales}


def _announced(row: Row) -> Row:
    """The row of GSM8K; its solution keeps the line `#### answer` where its last line does not show the answer."""
    [text], answer = row["rationales"], row["answer"]
    shows = trace_verdicts([(text, answer)]) == [True]
    return row if shows else {**row, "rationales": [f"{text}\n#### {answer}"]}


def _records(name: str) -> list[dict[str, Any]]:
    text = files("rlkd.assets").joinpath(name).read_text(encoding="utf-8")
    # Not str.splitlines, which would split at characters inside some texts.
    return [json.loads(line) for line in text.split("\n") if line]
