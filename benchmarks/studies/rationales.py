"""Which rationales teach more at the same number of tokens: selected ones, those along a bank, or just any?

    python benchmarks/studies/rationales.py --out runs/rationales-study --teacher transformers:FOLDER  # the full grid
    python benchmarks/studies/rationales.py --out runs/rationales-study --teacher ... --arms morsd correct --seeds 11
    python benchmarks/studies/rationales.py --out runs/rationales-study --analyse     # only reads finished runs
    python benchmarks/studies/rationales.py --out /tmp/smoke --smoke                  # does the script work?

Each arm is a set of rationales of the same questions by the same teacher, cut at random to the same number of the
student's tokens; then `recipes/sft.py` trains the student on it, with the same settings. Arms x seeds, and a seed is
one of everything: the teacher's draws, the cut, and the training.

    arm               written           kept                                          its control
    all               freely            everything, wrong answers too                 -
    random            freely            M per question at random, wrong answers too   all
    correct           freely            M right ones per question at random           random
    diverse           freely            right, distinct, M per question at random     correct
    morsd             freely            right, distinct, the M easiest (RD)           diverse
    morsd_structure   freely            the same, distinct by their structure         morsd
    srd               freely            right, those of the easier half of questions  correct
    no_bank           step-keyed        M right ones per question at random           correct
    drpc              along the bank    M right ones per question at random           no_bank

`srd` tests its choice of questions only: the trainer takes them in any order, not easy ones first. `no_bank` has the
request of `drpc` word for word, without the plan: the effect of the bank is `drpc` minus `no_bank`, and nothing else.
Fixed before any result: the arms, the seeds, and the figure, which is accuracy on the held-out rows (MAWPS test)
after training, arm minus its control, paired by seed and row, with a 95 % interval over seeds and rows, which are
crossed (`rlkd.statistics.crossed_mean`).
`tokens` in the table is the number of tokens that each arm was trained on: an arm with fewer than the budget is at a
disadvantage, which the table shows.

The same command completes a study that was killed. Arguments after `--` go to `recipes/sft.py` of all runs.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grid import (
    ROOT,
    Run,
    add_grid,
    arguments,
    by_arm,
    differences,
    gains,
    guarded,
    interval,
    is_done,
    mean,
    read_run,
    run_grid,
    run_recipe,
    shown,
)
from rlkd.cache import Cache
from rlkd.embedders import open_embedder
from rlkd.engines import open_engine, run
from rlkd.errors import UsageError
from rlkd.rationales.pipeline import load_questions, select_stage, write_stage
from rlkd.rationales.select import Selector, load_selector
from rlkd.rationales.select.limits import SelectionLimits
from rlkd.rationales.select.selection import model_tokens
from rlkd.rationales.write.writing import Writing

CONFIG = ROOT / "recipes/sft.yaml"
M = 2
# Writer, selectors with their parameters, and the arm that differs in one thing.
Chain = list[tuple[str, dict[str, Any]]]
RANDOM: Chain = [("random", {"keep": M})]
ARMS: dict[str, tuple[str, Chain, str | None]] = {
    "all": ("free", [], None),
    "random": ("free", RANDOM, "all"),
    "correct": ("free", [("correct", {}), *RANDOM], "random"),
    "diverse": ("free", [("correct", {}), ("diverse", {}), *RANDOM], "correct"),
    "morsd": ("free", [("correct", {}), ("diverse", {}), ("difficulty", {"keep": M})], "diverse"),
    "morsd_structure": (
        "free",
        [("correct", {}), ("diverse", {"measure": "structure"}), ("difficulty", {"keep": M})],
        "morsd",
    ),
    "srd": ("free", [("correct", {}), ("srd", {"keep": 0.5}), *RANDOM], "correct"),
    "no_bank": ("steps", [("correct", {}), *RANDOM], "correct"),
    "drpc": ("bank", [("correct", {}), *RANDOM], "no_bank"),
}
FULL = ["--eval_rows", "150", "--num_train_epochs", "3"]
SMOKE = [
    *"--max_steps 1 --eval_rows 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1".split(),  # noqa: SIM905
    *"--max_completion_length 6 --save_steps 1 --max_length 2048".split(),  # noqa: SIM905
]
TEST = ["--dataset_test_name", "mawps-sample", "--dataset_test_split", "test"]


@guarded
def main() -> None:
    parser = argparse.ArgumentParser(description="Rationales of several kinds at one token budget.")
    parser.add_argument("--teacher", help="spec of the teacher's engine; required without --analyse and --smoke")
    parser.add_argument("--student", default="embedded", help="model to train (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=300, help="number of questions (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=6, help="rationales per question (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=12_000, help="tokens of an arm (default: %(default)s)")
    add_grid(parser, ARMS)
    given, extra = arguments(parser, CONFIG)
    if given.smoke:
        given.rows, given.candidates, given.budget, given.seeds = 4, 2, 3000, given.seeds[:1]
        given.teacher = given.teacher or "transformers:embedded"
    if not given.analyse and not given.teacher:
        raise UsageError("name the teacher: --teacher transformers:FOLDER or http://127.0.0.1:8000/v1#MODEL")
    run_grid(given, study_settings(given, extra), lambda: produce(given, extra), read, analyse, table)


def study_settings(given: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """What all runs of a folder must have in common."""
    names = ("teacher", "student", "rows", "candidates", "budget", "smoke")
    return [*(f"{name}={getattr(given, name)}" for name in names), *extra]


def produce(given: argparse.Namespace, extra: Sequence[str]) -> Iterator[None]:
    """Write, select and train what is missing, seed by seed."""
    teacher = open_engine(given.teacher)
    student = open_engine(f"transformers:{given.student}")
    cache = Cache(given.out / "selection.sqlite")
    count = model_tokens(given.student)
    # Rationales are measured behind the prompt of the training.
    config = yaml.safe_load(given.config.read_text())
    style = {"system_prompt": config.get("system_prompt"), "examples": config.get("few_shot_examples", 0)}
    for seed in given.seeds:
        arms = [arm for arm in given.arms if not is_done(given.out / f"{arm}-{seed}")]
        for writer in dict.fromkeys(ARMS[arm][0] for arm in arms):
            write(given, writer, seed, teacher)
        for arm in arms:
            defaults = {"student": student, "prompt_style": style, "cache": cache, "seed": seed}
            chain = [load_selector(name, parameters, defaults=defaults) for name, parameters in ARMS[arm][1]]
            select(given, arm, seed, chain, count)
        # The models make room for the one that is trained.
        run(teacher.close())
        run(student.close())
        for arm in arms:
            train(given, arm, seed, extra)
            yield


def write(given: argparse.Namespace, writer: str, seed: int, teacher: Any) -> None:
    """One teacher's rationales of one kind, from its journal as far as they are there."""
    folder = given.out / f"written-{writer}-{seed}"
    if (folder / "summary.json").is_file():
        return
    print(f"{folder.name}: the teacher writes", flush=True)
    # A tiny teacher is never right: then the solutions of the data stand in for it.
    writers = ("ready", writer) if given.smoke else (writer,)
    settings = Writing(
        writers,
        candidates=given.candidates,
        max_new_tokens=16 if given.smoke else 512,
        seed_share=0.2,
        seed=seed,
    )
    questions = load_questions("gsm8k-sample", max_rows=given.rows)
    embedder = open_embedder("hashed-ngrams") if writer == "bank" else None
    write_stage(folder, questions, settings, engine=teacher, embedder=embedder)


def select(
    given: argparse.Namespace, arm: str, seed: int, chain: Sequence[Selector], count: Callable[[str], int]
) -> None:
    """The rationales of an arm, cut to the budget."""
    data = given.out / f"{arm}-{seed}" / "data"
    if (data / "summary.json").is_file():
        return
    print(f"{arm}-{seed}: selecting", flush=True)
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(given.out / f"written-{ARMS[arm][0]}-{seed}" / "written.jsonl", data / "written.jsonl")
    part = select_stage(data, chain, SelectionLimits(token_budget=given.budget, seed=seed), count=count)
    if not part["kept"]:
        (data / "summary.json").unlink()
        raise UsageError(f"{arm}-{seed}: no rationale is left; {data / 'dropped.jsonl'} says why")


def train(given: argparse.Namespace, arm: str, seed: int, extra: Sequence[str]) -> None:
    """Train on an arm's rationales, from the last checkpoint if there is one."""
    folder = given.out / f"{arm}-{seed}"
    words = ["--config", str(given.config), *TEST, "--dataset_name", str(folder / "data/rationales.jsonl")]
    words += ["--model_name_or_path", given.student, "--seed", str(seed), *(SMOKE if given.smoke else FULL), *extra]
    run_recipe("sft.py", folder, words)
    count = model_tokens(given.student)
    rows = [json.loads(line) for line in (folder / "data/rationales.jsonl").open()]
    size = {
        "rationales": sum(len(row["rationales"]) for row in rows),
        "questions": len(rows),
        "budget": given.budget,
        "tokens": sum(count(text) for row in rows for text in row["rationales"]),
    }
    (folder / "size.json").write_text(json.dumps(size) + "\n")
    (folder / "done").touch()


def read(folder: Path, arm: str, seed: int) -> Run:
    """The figures of a finished run."""
    return read_run(folder, arm, seed)[0] | {"data": json.loads((folder / "size.json").read_text())}


def analyse(runs: Sequence[Run]) -> dict[str, Any]:
    """Of each arm accuracy before and after, and after minus that of its control, each as [mean, low, high]."""
    arms = by_arm(runs)
    found: dict[str, Any] = {}
    for arm, of_seed in arms.items():
        found[arm] = {
            "seeds": sorted(of_seed),
            "control": ARMS[arm][2],
            "before": interval([differences(one["before"]) for one in of_seed.values()], 0),
            "after": interval([differences(one["after"]) for one in of_seed.values()], 0),
            "over_control": gains(of_seed, arms.get(ARMS[arm][2] or "", {})),
            "tokens": mean([one["data"]["tokens"] for one in of_seed.values()]),
            "share_of_budget": mean([one["data"]["tokens"] / one["data"]["budget"] for one in of_seed.values()]),
            "rationales": mean([one["data"]["rationales"] for one in of_seed.values()]),
        }
    return {"arms": found}


def table(results: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| arm | seeds | before | after | control | after minus control | rationales | tokens | of the budget |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for arm, found in results["arms"].items():
        lines.append(
            f"| {arm} | {len(found['seeds'])} | {shown(found['before'])} | {shown(found['after'])} "
            f"| {found['control'] or '-'} | {shown(found['over_control'], '+.3f')} | {found['rationales']:.0f} "
            f"| {found['tokens']:.0f} | {found['share_of_budget']:.0%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
