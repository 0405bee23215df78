"""Rationales for a student: written by a teacher along a bank of paths, and selected by what they do for that student.

    python recipes/rationales.py                                              # the embedded teacher, on a laptop
    python recipes/rationales.py --teacher http://127.0.0.1:8000/v1#MODEL --candidates 4
    python recipes/rationales.py --config recipes/rationales_ready.yaml --dataset_name traces.jsonl   # asks nobody
    python recipes/rationales.py write --output_dir runs/rationales           # one stage alone
    python recipes/rationales.py select --output_dir runs/rationales --selectors correct random
    python recipes/rationales.py bank inspect runs/rationales/bank.json
    accelerate launch recipes/sft.py --dataset_name runs/rationales/rationales.jsonl                  # train on it

Without --config the run takes recipes/rationales.yaml. Run again, it asks the teacher for what has no answer yet only:
after an interruption, for new rows, or for requests that failed. The path bank is D-RPC's (arXiv 2605.07139), the
selection by rationale difficulty MoRSD's (arXiv 2509.23574); what is ours in either stands in docs/path_bank.md and
docs/selection.md, the files of a run in docs/rationales.md.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rlkd.cache import Cache
from rlkd.data.samples import SAMPLE
from rlkd.engines import (
    Engine,
    EngineError,
    check_ready,
    from_environment,
    open_engine,
    require_identity,
    run,
)
from rlkd.errors import UsageError
from rlkd.models import resolve_model
from rlkd.rationales.pipeline import load_questions, select_stage, write_stage
from rlkd.rationales.select import BUILT_IN, Selector, load_selector
from rlkd.rationales.select.correct import NO_GOLD
from rlkd.rationales.write.writing import Writing
from rlkd.registry import registry, settable_parameters, split_alias, suggestion
from trainers.common.arguments import RowArguments, start

if TYPE_CHECKING:
    from rlkd.embedders import Embedder
    from rlkd.rationales.select.limits import SelectionLimits

STAGES = ("write", "select", "all")
# The scores that the built-in selectors give.
SCORES = {
    **dict.fromkeys(BUILT_IN, ()),
    "difficulty": ("log_rd", "leaks"),
    "diverse": ("nearest",),
    "judge": ("judge",),
    "rank_surprisal": ("rank_surprisal",),
    "srd": ("srd", "stage"),
}


@dataclass
class RationalesScriptArguments(RowArguments):
    """Rows, teacher, bank, selection, and where everything goes."""

    dataset_name: str = field(
        default=SAMPLE, metadata={"help": f"{SAMPLE}, a .jsonl or .parquet file, or a dataset of the hub"}
    )
    max_rows: int | None = field(default=None, metadata={"help": "take the first so many rows"})

    # Writing
    writers: list[str] = field(
        default_factory=lambda: ["bank"],
        metadata={"help": "where candidates come from: ready, free, steps, bank; several in any combination"},
    )
    teacher: str = field(
        default="transformers:embedded-warm", metadata={"help": "an engine's spec: transformers:FOLDER, http://..."}
    )
    candidates: int = field(default=1, metadata={"help": "of each writer that asks the teacher, a question"})
    temperature: float = field(default=0.7, metadata={"help": "of the teacher; 0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "of the teacher"})
    max_new_tokens: int = field(default=512, metadata={"help": "of a reply of the teacher"})
    hinted_retry: bool = field(
        default=False, metadata={"help": "where no candidate is right, ask once more with the answer as a hint"}
    )
    wave: int = field(default=32, metadata={"help": "questions between two looks at the bank"})
    concurrency: int = field(default=16, metadata={"help": "of a served teacher: requests at a time to each server"})
    batch: int = field(default=16, metadata={"help": "of a teacher in this process: requests that go in together"})
    deadline: float = field(
        default=600.0, metadata={"help": "of a served teacher: seconds for a request, half of them for one attempt"}
    )
    max_failure_rate: float = field(default=0.1, metadata={"help": "stop where more of the requests fail"})

    # Bank
    faithful: bool = field(default=False, metadata={"help": "the released D-RPC where it differs from ours"})
    seed_share: float = field(default=0.05, metadata={"help": "share of the questions from which the bank is made"})
    category: str | None = field(default=None, metadata={"help": "column by which the seed set is proportional"})
    paths_offered: int = field(default=3, metadata={"help": "paths of the bank that the teacher is shown"})
    bank_size: int | None = field(default=75, metadata={"help": "most paths in the bank; as many as in bank_file"})
    bank_file: str | None = field(default=None, metadata={"help": "begin with this bank in place of a seed round"})
    embedder: str = field(
        default="hashed-ngrams", metadata={"help": "hashed-ngrams, transformers:MODEL, sentence-transformers:MODEL"}
    )
    route_threshold: float | None = field(
        default=None, metadata={"help": "least similarity at which a path is offered; calibrated where absent"}
    )

    # Selection
    student: str = field(
        default="transformers:embedded-warm", metadata={"help": "an engine's spec: the model that will be trained"}
    )
    selectors: list[str] = field(
        default_factory=lambda: ["clean", "correct", "diverse", "difficulty"],
        metadata={"help": "applied in order: names, dotted paths, path/to/file.py:name"},
    )
    selector_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "parameters of selectors, e.g. {difficulty: {keep: 2}}"}
    )
    limit_by: str | None = field(
        default=None, metadata={"help": "score that the limits go by, lowest first (-NAME: highest); none: at random"}
    )
    keep_ratio: float | None = field(default=None, metadata={"help": "limit: share of all rationales to keep"})
    per_question: int | None = field(default=None, metadata={"help": "limit: most rationales a question"})
    token_budget: int | None = field(
        default=None, metadata={"help": "limit: tokens of all rationales, as the student counts"}
    )

    seed: int = field(default=42, metadata={"help": "of everything that is drawn"})
    output_dir: str = field(default="runs/rationales", metadata={"help": "the folder of everything that is written"})

    def __post_init__(self) -> None:
        if isinstance(self.selector_kwargs, str):
            self.selector_kwargs = json.loads(self.selector_kwargs)
        self.selector_kwargs = dict(self.selector_kwargs or {})
        if self.deadline <= 0:
            raise ValueError(f"deadline={self.deadline:g}: expected seconds, above 0")
        known = {name_of(spec) for spec in self.selectors}
        if unknown := sorted(set(self.selector_kwargs) - known):
            raise ValueError(f"selector_kwargs: {unknown[0]!r} is not among the selectors {self.selectors}")

    def writing(self) -> Writing:
        """The keys of writing as one object. Raises `UsageError` for values that do not go together."""
        own = ("candidates", "temperature", "top_p", "max_new_tokens", "hinted_retry", "wave", "faithful")
        bank = ("seed_share", "category", "paths_offered", "seed")
        return Writing(tuple(self.writers), **{name: getattr(self, name) for name in (*own, *bank)})


def main(script: RationalesScriptArguments, _others: Any = None, *, stage: str = "all") -> None:
    """Check everything that can be checked, then run the stages."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "one process writes and selects: start this recipe with python. A teacher on several GPUs is served "
            "(vllm serve MODEL) and named by its address: --teacher http://127.0.0.1:8000/v1#MODEL"
        )
    folder = Path(script.output_dir)
    writing = script.writing()
    selectors: list[Selector] = []
    limits = count = None
    if stage != "write":
        limits = open_limits(script)
        check_models(script)
        selectors, count = open_selectors(script, folder), token_counter(script)
        if script.hinted_retry and not second_look(script):
            print(
                "WARNING: hinted_retry without a second look: what was written to a known answer always agrees with "
                'it. --selector_kwargs \'{"correct": {"second_look": "SPEC"}}\' asks an engine whether its steps '
                "lead there."
            )
    if stage != "select":
        write(script, writing, folder)
    if stage != "write":
        part = select_stage(folder, selectors, limits, count=count)
        print(f"{part['kept']} rationales of {part['questions']} questions are selected.")
        if not part["kept"]:
            print(f"WARNING: nothing is left to train on; {folder / 'dropped.jsonl'} says why.{_most_dropped(part)}")
    print(f"summary:    {(folder / 'summary.md').resolve()}")
    if stage != "write":
        print(f"rationales: {(folder / 'rationales.jsonl').resolve()}")


def write(script: RationalesScriptArguments, writing: Writing, folder: Path) -> None:
    """The stage `write`."""
    embedder = bank = None
    if "bank" in writing.writers:
        embedder = ready_embedder(script.embedder)
        if script.bank_file:
            from rlkd.rationales.bank.bank import PathBank

            if Path(script.bank_file).resolve() == (folder / "bank.json").resolve():
                raise UsageError(
                    f"bank_file {script.bank_file} is where this run writes its own bank, so the next start would "
                    "begin with another one: copy it to another place, or name another output_dir"
                )
            bank = PathBank.from_file(Path(script.bank_file), embedder)
    engine = open_teacher(script) if writing.asks else None
    questions = load_questions(
        script.dataset_name,
        split=script.dataset_train_split,
        config=script.dataset_config,
        columns=script.columns,  # type: ignore[arg-type]
        max_rationales=script.max_rationales,
        max_rows=script.max_rows,
    )
    if writing.writers == ("ready",) and not any(question.candidates for question in questions):
        raise UsageError(
            f"no row of {script.dataset_name} has a rationale. Name their column (--columns "
            f'\'{{"rationales": "COLUMN"}}\'), or let a teacher write some (--writers free --teacher SPEC)'
        )
    print(f"{len(questions)} questions of {script.dataset_name}, written by {', '.join(writing.writers)}.", flush=True)
    try:
        part = write_stage(
            folder,
            questions,
            writing,
            engine=engine,
            embedder=embedder,
            bank=bank,
            bank_size=script.bank_size,
            route_threshold=script.route_threshold,
            concurrency=script.concurrency,
            batch=script.batch,
            deadline=script.deadline,
            max_failure_rate=script.max_failure_rate,
            say=lambda line: print(line, flush=True),
        )
    finally:
        # The teacher makes room for the student.
        if engine is not None:
            run(engine.close())
    counts = part["counts"]
    unusable = f"; {counts['unusable']} replies were unusable as JSON, kept as text" if counts["unusable"] else ""
    print(f"{sum(counts['candidates'].values())} candidates{unusable}.", flush=True)


def _most_dropped(part: Mapping[str, Any]) -> str:
    """The end of a warning: what dropped most of the candidates."""
    dropped = [(count, stage["stage"], why) for stage in part["stages"] for why, count in stage["dropped"].items()]
    if not dropped:
        return ""
    count, stage, why = max(dropped)
    way_out = ' Which column holds it: --columns \'{"answer": "NAME"}\', when writing.' if why == NO_GOLD else ""
    return f" Most were dropped by {stage}: {why} ({count}).{way_out}"


def open_teacher(script: RationalesScriptArguments) -> Engine:
    """The teacher's engine. Raises `UsageError` where a server does not answer, or lacks the model."""
    # A long rationale takes as long as it takes, and one attempt that fails late leaves time for another.
    served = {"concurrency": script.concurrency, "timeout": script.deadline / 2}
    engine = open_engine(from_environment(script.teacher, "the teacher"), defaults=served)
    require_identity(engine, "teacher", engine.name)
    if engine.is_remote:
        check_ready(engine, "--teacher")
    return engine


def ready_embedder(spec: str) -> "Embedder":
    """The embedder, which has embedded a text: so that it is known to work before a teacher is asked."""
    from rlkd.embedders import open_embedder

    embedder = open_embedder(spec)
    try:
        embedder.embed(["total cost"])
    except (EngineError, OSError) as error:
        raise UsageError(f"--embedder {spec}: {error}") from error
    return embedder


def check_models(script: RationalesScriptArguments) -> None:
    """Raise `UsageError` where a model that the selection runs in this process is not there: it is needed last."""
    kwargs: Any = script.selector_kwargs
    specs = [script.student] if script.token_budget is not None else []
    for spec in script.selectors:
        parameters = dict(kwargs.get(name_of(spec)) or {})
        target = registry("selector").find(spec).target
        if callable(target) and "student" in settable_parameters(target):
            parameters.setdefault("student", script.student)
        specs += [value for value in parameters.values() if isinstance(value, str)]
    for spec in dict.fromkeys(specs):
        # Other specs, such as those of embedders in a file, cannot be told from an engine's.
        if spec.partition(":")[0] in registry("engine").names() and not (engine := open_engine(spec)).is_remote:
            check_ready(engine, "the selection")


def second_look(script: RationalesScriptArguments) -> bool:
    """Whether what was written to a known answer is looked at a second time, or a selector of one's own may do it."""
    kwargs: Any = script.selector_kwargs
    known = {split_alias(spec)[1]: kwargs.get(name_of(spec)) or {} for spec in script.selectors}
    return bool(known.get("correct", {}).get("second_look")) or not known.keys() <= set(BUILT_IN)


def open_selectors(script: RationalesScriptArguments, folder: Path) -> list[Selector]:
    """The selectors in order, checked. What they measure is kept in `selection.sqlite`."""
    kwargs: Any = script.selector_kwargs
    defaults = {"student": script.student, "cache": Cache(folder / "selection.sqlite"), "seed": script.seed}
    selectors = []
    for spec in script.selectors:
        selectors.append(load_selector(spec, kwargs.get(name_of(spec)), defaults=defaults))
    for selector in selectors:
        if hasattr(selector, "check_ready"):
            selector.check_ready()
    return selectors


def name_of(spec: str) -> str:
    """What a selector's parameters go by: its alias, else the last part of its spec."""
    alias, rest = split_alias(spec)
    return alias or rest.rpartition(":" if ":" in rest else ".")[2]


def open_limits(script: RationalesScriptArguments) -> "SelectionLimits | None":
    """The limits; None where there is none."""
    wanted = {name: getattr(script, name) for name in ("keep_ratio", "per_question", "token_budget")}
    if all(value is None for value in wanted.values()):
        return None
    from rlkd.rationales.select.limits import SelectionLimits

    try:
        limits = SelectionLimits(by=script.limit_by, seed=script.seed, **wanted)
    except ValueError as error:
        raise UsageError(str(error)) from error
    specs = {split_alias(spec)[1] for spec in script.selectors}
    # What a selector of one's own measures is known when it has done so.
    if script.limit_by is not None and specs <= SCORES.keys():
        name = script.limit_by.removeprefix("-")
        known = {"flagged", *(each for spec in specs for each in SCORES[spec])}
        if name not in known:
            raise UsageError(f"limit_by={script.limit_by}: no selector gives this score.{suggestion(name, known)}")
    return limits


def token_counter(script: RationalesScriptArguments) -> Callable[[str], int] | None:
    """How a token budget is counted: in the student's tokens where it is a model in this process, else in words."""
    scheme, _, name = script.student.partition(":")
    if script.token_budget is None or scheme not in ("transformers", "vllm"):
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name.partition("?")[0]))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def bank_command(arguments: Sequence[str]) -> None:
    """`bank inspect FILE`: what a bank holds."""
    if len(arguments) != 2 or arguments[0] != "inspect":
        sys.exit("usage: python recipes/rationales.py bank inspect runs/rationales/bank.json")
    from rlkd.rationales.bank.bank import PathBank

    try:
        print(PathBank.from_file(Path(arguments[1])))
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
        )
