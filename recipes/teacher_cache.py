"""Ask a teacher once about its traces, and keep what it says: top-k log-probabilities for distillation without it.

    python recipes/teacher_cache.py                                      # the embedded teacher, on a laptop
    python recipes/teacher_cache.py --teacher http://127.0.0.1:8000/v1#MODEL --dataset_name rationales.jsonl
    python recipes/teacher_cache.py --check_only true                    # is what is there undamaged?

Without --config the run takes recipes/teacher_cache.yaml. Each rationale of each row becomes prompt and trace in the
ids of the student's chat template, as `recipes/validity_kd.py` trains on them (`rlkd.teachers.topk.trace_ids`), so
data, prompt and `max_completion_length` must be those of that run. Run again, it asks for what is missing only: after
an interruption, for new rows, or in place of a damaged shard. The format is described in `rlkd/teachers/cache.py`.

One process: a teacher that needs several GPUs is served by vLLM (`vllm serve MODEL --max-logprobs 64`) and named by
its address, replicas with commas between.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.devices import best_device
from rlkd.engines import EngineError, is_engine_spec, open_engine, require_identity
from rlkd.engines.base import identified
from rlkd.errors import UsageError
from rlkd.models import EMBEDDED, resolve_model
from rlkd.teachers.cache import CachedTrace, build_cache, check_cache
from rlkd.teachers.topk import (
    TopK,
    TopKTeacher,
    common_vocabulary,
    local_teacher,
    server_teacher,
    trace_ids,
    trace_text,
    vocabulary_fingerprint,
)
from trainers.common.arguments import RowArguments, start

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ids of a served model's head beyond its tokenizer's: rows that pad it to a round number.
_PADDING = 1024


@dataclass
class TeacherCacheScriptArguments(RowArguments):
    """Rows, student, teacher, and where what it says is kept."""

    system_prompt: str | None = field(default=None, metadata={"help": "put before every question"})
    few_shot_examples: int = field(default=0, metadata={"help": "GSM8K examples (0 to 2) to put before a question"})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "arguments of the chat template, e.g. {enable_thinking: false}"}
    )
    model_name_or_path: str = field(
        default=EMBEDDED, metadata={"help": "the student: its tokenizer and chat template make the ids"}
    )
    max_completion_length: int = field(default=256, metadata={"help": "traces are cut at so many tokens"})
    teacher: str = field(
        default="embedded-expert",
        metadata={"help": "a model's folder or hub id, or http://host:port/v1#model of `vllm serve`"},
    )
    teacher_dtype: str = field(default="auto", metadata={"help": "of a teacher in this process: a torch type by name"})
    batch_tokens: int = field(default=8192, metadata={"help": "of a teacher in this process: rows x length a forward"})
    concurrency: int = field(default=16, metadata={"help": "of a served teacher: requests at a time to each server"})
    top_k: int = field(default=64, metadata={"help": "tokens kept of each position"})
    cache_dir: str = field(default="runs/teacher-cache", metadata={"help": "the folder of the cache"})
    shard_mib: float = field(
        default=16, metadata={"help": "size of a shard; so much at most is lost when the run is killed"}
    )
    check_only: bool = field(
        default=False, metadata={"help": "only compare the shards with their checksums; status 1 if one is damaged"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.chat_template_kwargs, str):
            self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
        if self.shard_mib <= 0:
            raise ValueError(f"shard_mib={self.shard_mib}: expected more than 0")


def main(script: TeacherCacheScriptArguments, _others: Any = None) -> None:
    """Make the ids, ask the teacher for those that the cache lacks, and say what there is."""
    from transformers import AutoTokenizer

    folder = Path(script.cache_dir)
    if script.check_only:
        problems = check_cache(folder)
        print("\n".join(problems) or f"{folder}: every shard is as it was written.")
        sys.exit(1 if problems else 0)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "one process builds a cache. For a teacher on several GPUs serve it (vllm serve MODEL --max-logprobs "
            f"{script.top_k}) and start this recipe with python: --teacher http://127.0.0.1:8000/v1#MODEL"
        )
    began = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(script.model_name_or_path))
    traces = list(to_traces(script.train_rows(), tokenizer, script))
    if not traces:
        raise UsageError(
            f"no row of {script.dataset_name} has a rationale. Name their column: "
            f'--columns \'{{"rationales": "COLUMN"}}\''
        )
    tokens = sum(len(trace.ids) - trace.start for trace in traces)
    cut = sum(trace.ids[-1] != tokenizer.eos_token_id for trace in traces)
    print(
        f"{len(traces)} traces of {script.dataset_name}, {tokens} tokens"
        + (f"; {cut} are cut at max_completion_length {script.max_completion_length}" if cut else "")
        + ".",
        flush=True,
    )
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
        raise UsageError(f"{error}\nWhat was written stays; run the same command again to go on.") from error
    print(
        f"{built.computed} traces asked for, {built.cached} were there, in {time.monotonic() - began:.0f} s.\n"
        f"cache:    {folder.resolve()}\n"
        f"size:     {built.bytes / 2**20:.1f} MiB, {built.tokens} tokens, {built.bytes / built.tokens:.0f} bytes each"
    )


def to_traces(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, script: TeacherCacheScriptArguments
) -> "Iterator[CachedTrace]":
    """The ids of each rationale of each row; blank ones are left out."""
    fields = [{key: row.get(key) for key in ("id", "prompt", "question")} for row in rows]
    prompts = to_dataset(fields, system_prompt=script.system_prompt, examples=script.few_shot_examples)["prompt"]
    for row, prompt in zip(rows, prompts, strict=True):
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


@dataclass
class TeacherOnDemand:
    """A teacher that is loaded when it is first asked: a cache that lacks nothing needs none."""

    name: str
    k: int
    vocabulary: str
    load: Callable[[], TopKTeacher]
    loaded: TopKTeacher | None = None

    def top_k(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TopK]:
        """As `TopKTeacher.top_k`."""
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded.top_k(sequences, starts)


def open_teacher(script: TeacherCacheScriptArguments, tokenizer: Any) -> tuple[TopKTeacher, int]:
    """The teacher, and how many ids its head may have. Raises `UsageError` where it is not of the student's kind."""
    if is_engine_spec(script.teacher):
        require_identity(open_engine(script.teacher), "teacher", script.teacher)
        served = server_teacher(script.teacher, script.top_k, tokenizer=tokenizer, concurrency=script.concurrency)
        return served, max(tokenizer.get_vocab().values()) + 1 + _PADDING
    from transformers import AutoConfig, AutoTokenizer

    path = resolve_model(script.teacher)
    common_vocabulary(tokenizer, AutoTokenizer.from_pretrained(path))
    config = AutoConfig.from_pretrained(path)
    dtype = dtype_of(script, config)
    teacher = TeacherOnDemand(
        f"transformers:{identified(script.teacher)}@{dtype}",
        script.top_k,
        vocabulary_fingerprint(tokenizer),
        lambda: load_teacher(script, path, dtype, tokenizer),
    )
    return teacher, config.get_text_config().vocab_size


def dtype_of(script: TeacherCacheScriptArguments, config: Any) -> str:
    """The type of the teacher's weights by name; it is part of the teacher's name, so that no cache mixes two."""
    if script.teacher_dtype != "auto":
        return script.teacher_dtype
    # On a CPU float32, whatever the checkpoint has: few of them know bfloat16.
    found = config.dtype or config.get_text_config().dtype
    return "float32" if best_device() == "cpu" or found is None else str(found).removeprefix("torch.")


def load_teacher(script: TeacherCacheScriptArguments, path: str, dtype: str, tokenizer: Any) -> TopKTeacher:
    """The teacher in this process."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
    return local_teacher(model.to(best_device()), tokenizer, script.top_k, batch_tokens=script.batch_tokens)


def made_by(script: TeacherCacheScriptArguments) -> dict[str, Any]:
    """What a missing row's message tells: how this cache was built, and what its ids depend on."""
    return {
        "command": shlex.join(["python", "recipes/teacher_cache.py", *sys.argv[1:]]),
        "dataset": script.dataset_name,
        "student": script.model_name_or_path,
        "max_completion_length": script.max_completion_length,
        "system_prompt": repr(script.system_prompt),
        "few_shot_examples": script.few_shot_examples,
        "chat_template_kwargs": script.chat_template_kwargs,
    }


if __name__ == "__main__":
    start(main, (TeacherCacheScriptArguments,), default_config=_RECIPES / "teacher_cache.yaml")
