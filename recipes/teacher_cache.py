"""Cache a teacher's top-k log-probabilities of its traces, for distillation without the teacher.

    python recipes/teacher_cache.py                                      # the embedded teacher, on a laptop
    python recipes/teacher_cache.py --teacher http://127.0.0.1:8000/v1#MODEL --dataset_name rationales.jsonl
    python recipes/teacher_cache.py --check_only true                    # verify the checksums

Without --config the run takes recipes/teacher_cache.yaml. Each rationale of each row becomes prompt and trace in the
ids of the student's chat template, as in `recipes/validity_kd.py` (`rlkd.teachers.traces`), so data, prompt and
`max_completion_length` must be those of that run. A second run computes only missing rows: after an interruption, for
new rows, or in place of a damaged shard. The files are described in `rlkd/teachers/shards.py`.

One process: serve a teacher that needs several GPUs with vLLM (`vllm serve MODEL --max-logprobs 64`) and name its
address; separate replicas with commas.
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
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.engines import (
    EngineError,
    check_ready,
    is_engine_spec,
    open_engine,
    require_identity,
    without_secrets,
)
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED, is_adapter
from rlkd.teachers.cache import CachedTrace, build_cache, check_cache
from rlkd.teachers.engine import EngineTeacher
from rlkd.teachers.local import LazyLocalTeacher
from rlkd.teachers.topk import TopKTeacher
from rlkd.teachers.traces import trace_ids, trace_text
from trainers.common.arguments import start
from trainers.common.data_arguments import TraceArguments
from trainers.common.student import read_model, read_tokenizer

if TYPE_CHECKING:
    from trainers.dry_run.dry_run import DryRun

# Rows of a served model's head beyond the ids of its tokenizer, which pad it to a round number.
_PADDING = 1024


@dataclass
class TeacherCacheScriptArguments(TraceArguments):
    """Rows, student, teacher and cache."""

    system_prompt: str | None = field(default=None, metadata={"help": "system message of every question"})
    few_shot_examples: int = field(default=0, metadata={"help": "number of GSM8K few-shot examples (0 to 2)"})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "arguments of the chat template, e.g. {enable_thinking: false}"}
    )
    model_name_or_path: str = field(
        default=EMBEDDED, metadata={"help": "student, whose tokenizer and chat template make the ids"}
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "maximum length of a trace in tokens; longer ones are truncated"}
    )
    teacher: str = field(
        default="embedded-expert",
        metadata={"help": "teacher: a folder or hub id, http://host:port/v1#model of `vllm serve`, or another engine"},
    )
    teacher_dtype: str = field(
        default="auto", metadata={"help": "dtype of a teacher in this process, by its torch name"}
    )
    batch_tokens: int = field(
        default=8192, metadata={"help": "rows x length per forward pass of a teacher in this process"}
    )
    concurrency: int = field(default=16, metadata={"help": "requests at a time to each server of an engine teacher"})
    top_k: int = field(default=64, metadata={"help": "number of cached tokens per position"})
    cache_dir: str = field(default="runs/teacher-cache", metadata={"help": "folder of the cache"})
    shard_mib: float = field(
        default=16, metadata={"help": "size of a shard, the most that is lost when the run is killed"}
    )
    check_only: bool = field(
        default=False, metadata={"help": "only verify the checksums of the shards; exit status 1 if one is damaged"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
        if self.shard_mib <= 0:
            raise ValueError(f"shard_mib={self.shard_mib}: expected more than 0")


def main(script: TeacherCacheScriptArguments, _others: Any = None) -> None:
    """Make the ids, run the teacher on those that the cache lacks, and print a summary."""
    folder = Path(script.cache_dir)
    if script.check_only:
        problems = check_cache(folder)
        print("\n".join(problems) or f"{folder}: all checksums match.")
        sys.exit(1 if problems else 0)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "one process builds a cache. For a teacher on several GPUs serve it (vllm serve MODEL --max-logprobs "
            f"{script.top_k}) and start this recipe with python: --teacher http://127.0.0.1:8000/v1#MODEL"
        )
    began = time.monotonic()
    tokenizer = read_tokenizer(script.model_name_or_path)
    traces = checked_traces(script.train_rows(), tokenizer, script)
    print(described(traces, tokenizer, script), flush=True)
    teacher, width = open_teacher(script, tokenizer)
    try:
        built = build_cache(
            folder,
            teacher,
            traces,
            vocabulary_size=width,
            made_by=made_by(script),
            shard_bytes=int(script.shard_mib * 2**20),
            report=lambda line: print(line, flush=True),
        )
    except EngineError as error:
        raise UsageError(f"{error}\nThe shards so far are complete; run the same command to continue.") from error
    print(
        f"{built.computed} traces computed, {built.cached} cached before, in {time.monotonic() - began:.0f} s.\n"
        f"cache:    {folder.resolve()}\n"
        f"size:     {built.bytes / 2**20:.1f} MiB, {built.tokens} tokens, {built.bytes / built.tokens:.0f} bytes each"
    )


def dry_run(run: "DryRun", script: TeacherCacheScriptArguments) -> None:
    """Show what would be cached (`--dry_run`)."""
    from trainers.dry_run.dry_run import no_probe
    from trainers.dry_run.rows import show_rows
    from trainers.dry_run.student import show_student

    no_probe(run)
    rows = run.attempt(script.train_rows, [])
    show_rows(run, rows, source=script.source_name)
    tokenizer = read_tokenizer(script.model_name_or_path)
    template: Any = script.chat_template_kwargs
    traces = run.attempt(lambda: checked_traces(rows, tokenizer, script), []) if rows else []
    prompt = to_prompts(rows[:1], script)[0] if rows else None
    show_student(run, read_model(script.model_name_or_path, tokenizer), prompt, template)
    run.section("cache")
    if traces:
        run.line("traces", described(traces, tokenizer, script))
    run.line("teacher", f"{without_secrets(script.teacher)}, {script.top_k} tokens per position")
    run.line("folder", f"{script.cache_dir}{' (exists: only missing rows are computed)' if cached(script) else ''}")
    if is_adapter(script.teacher):
        run.line("", "the teacher is an adapter, which is merged into its base first: its vocabulary is not checked")
        return
    with run.catch():
        teacher, _ = open_teacher(script, tokenizer)
        if isinstance(teacher, EngineTeacher):
            check_ready(teacher.engine, "--teacher")


def cached(script: TeacherCacheScriptArguments) -> bool:
    """Whether the folder holds a cache."""
    return (Path(script.cache_dir) / "index.json").is_file()


def checked_traces(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, script: TeacherCacheScriptArguments
) -> list[CachedTrace]:
    """The traces of the rows; raises `UsageError` where there is none."""
    traces = list(to_traces(rows, tokenizer, script))
    if not traces:
        raise UsageError(
            f"no row of {script.source_name} has a rationale. Name their column: "
            f'--columns \'{{"rationales": "COLUMN"}}\''
        )
    return traces


def described(traces: Sequence[CachedTrace], tokenizer: Any, script: TeacherCacheScriptArguments) -> str:
    """The number of traces and of their tokens, as text."""
    tokens = sum(len(trace.ids) - trace.start for trace in traces)
    truncated = sum(trace.ids[-1] != tokenizer.eos_token_id for trace in traces)
    cut = f"; {truncated} are truncated at max_completion_length {script.max_completion_length}" if truncated else ""
    return f"{len(traces)} traces of {script.source_name}, {tokens} tokens{cut}."


def to_prompts(rows: Sequence[Mapping[str, Any]], script: TeacherCacheScriptArguments) -> list[Any]:
    """The prompts of the rows."""
    fields = [{key: row.get(key) for key in ("id", "prompt", "question")} for row in rows]
    return list(to_dataset(fields, system_prompt=script.system_prompt, examples=script.few_shot_examples)["prompt"])


def to_traces(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, script: TeacherCacheScriptArguments
) -> Iterator[CachedTrace]:
    """The ids of each rationale that is not blank."""
    for row, prompt in zip(rows, to_prompts(rows, script), strict=True):
        for number, rationale in enumerate(row["rationales"]):
            text = trace_text(rationale, row.get("answer"))
            if not rationale.strip():
                continue
            given, completion = trace_ids(
                tokenizer,
                prompt,
                text,
                script.max_completion_length,
                chat_template_kwargs=script.chat_template_kwargs,  # type: ignore[arg-type]
            )
            yield CachedTrace(f"row {row['id']}, rationale {number}", [*given, *completion], len(given))


def open_teacher(script: TeacherCacheScriptArguments, tokenizer: Any) -> tuple[TopKTeacher, int]:
    """The teacher, and the limit of its ids. Raises `UsageError` where it has another vocabulary."""
    if is_engine_spec(script.teacher):
        require_identity(open_engine(script.teacher), "teacher", script.teacher)
        served = EngineTeacher(script.teacher, script.top_k, tokenizer=tokenizer, concurrency=script.concurrency)
        return served, max(tokenizer.get_vocab().values()) + 1 + _PADDING
    teacher = LazyLocalTeacher(
        script.teacher, tokenizer, script.top_k, dtype=script.teacher_dtype, batch_tokens=script.batch_tokens
    )
    return teacher, teacher.vocabulary_size


def made_by(script: TeacherCacheScriptArguments) -> dict[str, Any]:
    """The command and the settings that the ids depend on, for the error of a missing row."""
    return {
        "command": shlex.join(["python", "recipes/teacher_cache.py", *sys.argv[1:]]),
        "dataset": script.source_name,
        "student": script.model_name_or_path,
        "max_completion_length": script.max_completion_length,
        "system_prompt": repr(script.system_prompt),
        "few_shot_examples": script.few_shot_examples,
        "chat_template_kwargs": script.chat_template_kwargs,
    }


if __name__ == "__main__":
    start(
        main,
        (TeacherCacheScriptArguments,),
        default_config=_RECIPES / "teacher_cache.yaml",
        dry_run=dry_run,
    )
