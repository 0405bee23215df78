"""Rationales for a student: written by a teacher along a bank of paths, and selected for that student.

    python recipes/rationales.py                                              # the embedded teacher, on a laptop
    python recipes/rationales.py --teacher http://127.0.0.1:8000/v1#MODEL --candidates 4
    python recipes/rationales.py --config recipes/rationales_ready.yaml --dataset_name traces.jsonl   # no teacher
    python recipes/rationales.py write --output_dir runs/rationales           # one stage alone
    python recipes/rationales.py select --output_dir runs/rationales --selectors correct random
    python recipes/rationales.py bank inspect runs/rationales/bank.json
    accelerate launch recipes/sft.py --dataset_name runs/rationales/rationales.jsonl                  # train on it

Without --config the run takes recipes/rationales.yaml. The same command again sends only requests without an answer.
The path bank is D-RPC's (arXiv 2605.07139), the selection by rationale difficulty MoRSD's (arXiv 2509.23574);
docs/path_bank.md and docs/selection.md list our additions, docs/rationales.md the files of a run.
"""

import sys
from pathlib import Path

# See recipes/sft.py: a script's own folder on the search path would hide the package `rlkd`.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from rlkd.embedders import DEFAULT, checked_embedder
from rlkd.engines import check_ready, run, without_secrets
from rlkd.errors import UsageError
from rlkd.rationales.pipeline import load_questions, select_stage, write_stage
from rlkd.rationales.select.correct import NO_GOLD
from rlkd.rationales.select.selection import Selection
from rlkd.rationales.write.teacher import check_contrast, open_teacher
from rlkd.rationales.write.writing import CONTRASTIVE, Writing
from trainers.common.arguments import start
from trainers.common.data_arguments import RowArguments

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.bank.bank import PathBank
    from rlkd.rationales.records import Question
    from trainers.dry_run.dry_run import DryRun

STAGES = ("write", "select", "all")


@dataclass
class RationalesScriptArguments(RowArguments):
    """Rows, teacher, bank, selection and output."""

    # Writing
    writers: list[str] = field(
        default_factory=lambda: ["bank"],
        metadata={
            "help": "candidates from any of: ready, free, steps, bank, program, student, contrast, counterfactual"
        },
    )
    teacher: str = field(
        default="transformers:embedded-warm", metadata={"help": "teacher engine: transformers:FOLDER, http://..."}
    )
    candidates: int = field(default=1, metadata={"help": "candidates per question and writer"})
    temperature: float = field(default=0.7, metadata={"help": "teacher temperature; 0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "teacher top_p"})
    max_new_tokens: int = field(default=512, metadata={"help": "teacher max_new_tokens"})
    hinted_retry: bool = field(
        default=False, metadata={"help": "one retry with the answer as a hint if no candidate is right"}
    )
    contrast_weight: float = field(
        default=0.5, metadata={"help": "contrastive decoding: weight of the log-probabilities under the other answer"}
    )
    contrast_plausibility: float = field(
        default=0.1,
        metadata={"help": "contrastive decoding: minimum probability, as a share of the likeliest token's"},
    )
    contrast_answer: str = field(
        default="wrong", metadata={"help": "contrastive decoding: the other answer, wrong or empty (none is shown)"}
    )
    wave: int = field(default=32, metadata={"help": "questions between two updates of the bank"})
    concurrency: int = field(default=16, metadata={"help": "parallel requests to each server of the teacher"})
    batch: int = field(default=16, metadata={"help": "requests per batch of a teacher in this process"})
    deadline: float = field(
        default=600.0, metadata={"help": "seconds for a request to a server, half of them for one attempt"}
    )
    max_failure_rate: float = field(default=0.1, metadata={"help": "abort if a larger share of requests fails"})

    # Bank
    faithful: bool = field(default=False, metadata={"help": "D-RPC as released, where it differs from ours"})
    seed_share: float = field(default=0.05, metadata={"help": "share of the questions that the bank is made from"})
    category: str | None = field(default=None, metadata={"help": "column that stratifies the seed questions"})
    paths_offered: int = field(default=3, metadata={"help": "paths of the bank in a request"})
    bank_size: int | None = field(
        default=75, metadata={"help": "maximum number of paths in the bank; with bank_file the same as there"}
    )
    bank_file: str | None = field(default=None, metadata={"help": "bank to start from, instead of a seed round"})
    embedder: str = field(
        default=DEFAULT,
        metadata={"help": f"embedder: {DEFAULT}, transformers:MODEL, sentence-transformers:MODEL, my.py:Embedder"},
    )
    route_threshold: float | None = field(
        default=None, metadata={"help": "minimum similarity of an offered path; calibrated by default"}
    )

    # Selection
    student: str = field(
        default="transformers:embedded-warm", metadata={"help": "engine of the model that will be trained"}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "system prompt of the student's training, behind which it is measured"}
    )
    few_shot_examples: int = field(
        default=0, metadata={"help": "few-shot examples (0 to 2) of the student's training"}
    )
    selectors: list[str] = field(
        default_factory=lambda: ["clean", "correct", "diverse", "difficulty"],
        metadata={"help": "selectors in order: names, dotted paths, path/to/file.py:name"},
    )
    selector_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "parameters of selectors, e.g. {difficulty: {keep: 2}}"}
    )
    limit_by: str | None = field(
        default=None, metadata={"help": "score of the limits, lowest first (-NAME: highest first); random by default"}
    )
    keep_ratio: float | None = field(default=None, metadata={"help": "limit: share of all rationales to keep"})
    per_question: int | None = field(default=None, metadata={"help": "limit: maximum rationales per question"})
    token_budget: int | None = field(
        default=None, metadata={"help": "limit: tokens of all rationales, by the student's tokenizer"}
    )

    further_examples: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "examples from wrong rationales per selected one, e.g. {revise: 0.3, counterfactual: 0.3}; for SFT"
        },
    )

    seed: int = field(default=42, metadata={"help": "random seed"})
    output_dir: str = field(default="runs/rationales", metadata={"help": "folder of all output files"})

    def __post_init__(self) -> None:
        if isinstance(self.selector_kwargs, str):
            self.selector_kwargs = json.loads(self.selector_kwargs)
        if isinstance(self.further_examples, str):
            self.further_examples = json.loads(self.further_examples)
        if self.deadline <= 0:
            raise ValueError(f"deadline={self.deadline:g}: expected seconds, above 0")
        self.selection()

    def writing(self) -> Writing:
        """The settings of writing. Raises `UsageError` for values that contradict each other."""
        values = {each.name: getattr(self, each.name) for each in fields(Writing)}
        return Writing(**values | {"writers": tuple(self.writers)})

    def selection(self) -> Selection:
        """The settings of the selection. Raises `UsageError` for values that contradict each other."""
        names = ("student", "limit_by", "keep_ratio", "per_question", "token_budget", "seed")
        parameters: Any = self.selector_kwargs or {}
        style = {"system_prompt": self.system_prompt, "examples": self.few_shot_examples}
        values = {name: getattr(self, name) for name in names}
        further: Any = self.further_examples or {}
        return Selection(tuple(self.selectors), parameters, prompt_style=style, further_examples=further, **values)


def main(script: RationalesScriptArguments, _others: Any = None, *, stage: str = "all") -> None:
    """Check everything that needs no model, then run the stages."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "one process writes and selects: start this recipe with python. A teacher on several GPUs is served "
            "(vllm serve MODEL) and named by its address: --teacher http://127.0.0.1:8000/v1#MODEL"
        )
    folder, selection = Path(script.output_dir), script.selection()
    if stage != "write":
        selectors, count = selection.open(folder), selection.token_counter()
        if (script.hinted_retry or "contrast" in script.writers) and not selection.has_second_look:
            what = "hinted_retry" if script.hinted_retry else "the writer contrast"
            print(
                f"WARNING: {what} without a second look: a rationale written to a known answer always agrees "
                'with it. --selector_kwargs \'{"correct": {"second_look": "SPEC"}}\' lets an engine check whether its '
                "steps lead there."
            )
    if stage != "select":
        write(script, folder)
    if stage != "write":
        further: Any = {"further": selection.further_examples, "seed": selection.seed}
        part = select_stage(folder, selectors, selection.limits(), count=count, **further)
        print(f"{part['kept']} rationales of {part['questions']} questions are selected.")
        if "near_copies" in part:
            print(f"WARNING: {part['near_copies']}")
        if selection.further_examples:
            made = part.get("further", {})
            print(f"Further examples: {', '.join(f'{made.get(kind, 0)} {kind}' for kind in further['further'])}.")
        if not part["kept"]:
            print(f"WARNING: nothing is left to train on; see {folder / 'dropped.jsonl'}.{_most_dropped(part)}")
    print(f"summary:    {(folder / 'summary.md').resolve()}")
    if stage != "write":
        print(f"rationales: {(folder / 'rationales.jsonl').resolve()}")


def write(script: RationalesScriptArguments, folder: Path) -> None:
    """The stage `write`."""
    writing = script.writing()
    embedder = bank = None
    if "bank" in writing.writers:
        embedder = checked_embedder(script.embedder)
        bank = load_bank(script.bank_file, folder, embedder)
    engine = student = None
    if writing.needs_teacher:
        engine = open_teacher(script.teacher, concurrency=script.concurrency, deadline=script.deadline)
    if "student" in writing.writers:
        student = open_teacher(
            script.student, concurrency=script.concurrency, deadline=script.deadline, role="student"
        )
    questions = read_questions(script)
    if writing.writers == ("ready",) and not any(question.candidates for question in questions):
        raise UsageError(
            f"no row of {script.source_name} has a rationale. Name their column (--columns "
            f'\'{{"rationales": "COLUMN"}}\'), or let a teacher write some (--writers free --teacher SPEC)'
        )
    print(f"{len(questions)} questions of {script.source_name}, written by {', '.join(writing.writers)}.", flush=True)
    try:
        names = ("bank_size", "route_threshold", "concurrency", "batch", "deadline", "max_failure_rate")
        further: Any = {name: getattr(script, name) for name in names}
        log = partial(print, flush=True)
        further |= {"student": student, "prompt_style": script.selection().prompt_style}
        part = write_stage(folder, questions, writing, engine=engine, embedder=embedder, bank=bank, log=log, **further)
    finally:
        # The teacher makes room for the student that measures.
        for each in filter(None, (engine, student)):
            run(each.close())
    counts = part["counts"]
    unusable = f"; {counts['unusable']} replies were unusable as JSON, kept as text" if counts["unusable"] else ""
    print(f"{sum(counts['candidates'].values())} candidates{unusable}.", flush=True)


def read_questions(script: RationalesScriptArguments) -> "list[Question]":
    """The questions, with the rationales that they have."""
    return load_questions(
        script.dataset_name,
        split=script.dataset_train_split,
        config=script.dataset_config,
        columns=script.columns,  # type: ignore[arg-type]
        max_rationales=script.max_rationales,
        max_rows=script.max_rows,
        other_columns=script.other_columns,
        skip_bad_rows=script.skip_bad_rows,
        join_questions=script.join_questions,
    )


def dry_run(run: "DryRun", script: RationalesScriptArguments, *, stage: str = "all") -> None:
    """Show what the stages would do (`--dry_run`); no request is sent but those that ask a server for its models."""
    from tempfile import TemporaryDirectory

    from trainers.dry_run.dry_run import no_probe
    from trainers.dry_run.rows import show_rows

    no_probe(run)
    writing, selection = run.attempt(script.writing, None), script.selection()
    rows = [
        {
            "id": each.id,
            "question": each.question,
            "answer": each.answer,
            "rationales": [candidate.text for candidate in each.candidates],
            **each.columns,
        }
        for each in run.attempt(lambda: read_questions(script), [])
    ]
    show_rows(run, rows, source=script.source_name)
    if stage != "select" and writing is not None:
        run.section("writing")
        run.line("writers", ", ".join(writing.writers))
        if writing.needs_teacher:
            made = (
                len(rows)
                * script.candidates
                * len([name for name in writing.writers if name not in ("ready", "student")])
            )
            run.line(
                "teacher",
                f"{without_secrets(script.teacher)}: {made} candidates, up to {script.max_new_tokens} tokens each",
            )
            with run.catch():
                engine = open_teacher(script.teacher, concurrency=script.concurrency, deadline=script.deadline)
                check_ready(engine, "--teacher")
                if set(CONTRASTIVE) & set(writing.writers):
                    check_contrast(engine)
        elif "student" not in writing.writers and rows and not any(row["rationales"] for row in rows):
            run.add(f"no row of {script.source_name} has a rationale: name their column, or let a teacher write some")
        if "bank" in writing.writers and script.embedder == DEFAULT:
            with run.catch():
                load_bank(script.bank_file, Path(script.output_dir), checked_embedder(script.embedder))
    if stage != "write":
        run.section("selection")
        run.line("student", without_secrets(script.student))
        run.line("selectors", ", ".join(script.selectors))
        if selection.further_examples:
            run.line(
                "further examples",
                ", ".join(f"{kind} {share:g}" for kind, share in selection.further_examples.items()),
            )
        with run.catch(), TemporaryDirectory() as folder:
            selection.open(Path(folder))
            selection.token_counter()


def load_bank(file: str | None, folder: Path, embedder: "Embedder") -> "PathBank | None":
    """The bank to start from, if any. Raises `UsageError` for the file that the run itself writes."""
    from rlkd.rationales.bank.bank import PathBank

    if file is None:
        return None
    if Path(file).resolve() == (folder / "bank.json").resolve():
        raise UsageError(
            f"bank_file {file} is where this run writes its own bank, so the next start would begin with another one: "
            "copy it to another place, or name another output_dir"
        )
    return PathBank.from_file(file, embedder)


def _most_dropped(part: Mapping[str, Any]) -> str:
    """The end of a warning: the most frequent reason of dropped candidates."""
    dropped = [(count, stage["stage"], why) for stage in part["stages"] for why, count in stage["dropped"].items()]
    if not dropped:
        return ""
    count, stage, why = max(dropped)
    hint = ' Name the column of the answer when writing: --columns \'{"answer": "NAME"}\'.'
    way_out = hint if why == NO_GOLD else ""
    return f" Most were dropped by {stage}: {why} ({count}).{way_out}"


def bank_command(arguments: Sequence[str]) -> None:
    """`bank inspect FILE`: print the content of a bank."""
    if len(arguments) != 2 or arguments[0] != "inspect":
        sys.exit("usage: python recipes/rationales.py bank inspect runs/rationales/bank.json")
    from rlkd.rationales.bank.bank import PathBank

    try:
        print(PathBank.from_file(arguments[1]))
    except UsageError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["bank"]:
        bank_command(sys.argv[2:])
    else:
        chosen = sys.argv.pop(1) if len(sys.argv) > 1 and sys.argv[1] in STAGES else "all"
        start(
            partial(main, stage=chosen),
            (RationalesScriptArguments,),
            default_config=_RECIPES / "rationales.yaml",
            dry_run=partial(dry_run, stage=chosen),
        )
