"""Train a structure model: (question, reasoning trace) -> its steps, one per line (`rlkd.gsrm.augmentation`).

    accelerate launch recipes/gsrm.py                                    # the shipped one again, on a laptop
    accelerate launch recipes/gsrm.py --bf16 true                        # the same, if the CPU supports bfloat16
    accelerate launch recipes/gsrm.py --config recipes/gsrm_lora_1gpu.yaml

Rows have structures (the embedded sample, a file), or get them from a teacher: `label_engine`, any instruct model,
decomposes the rationales first (`rlkd.gsrm.labelling`). Labels are stored on disk, so an interrupted labelling can be
resumed. The loss covers the structure, not the prompt; `fine_grained: true` weights sub-questions against calculations
and results as the RLKD paper describes.

What this recipe leaves out of the paper (arXiv 2505.16142): its 7B base model and its data, decompositions of 114k
R1 traces by GPT-4o, which are not public. Its addition: many variants of each trace, so that the model does not rely
on GSM8K's line breaks.
"""

import sys
from pathlib import Path

# See recipes/rlkd.py: a script's own folder on the search path would hide the package `rlkd`.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.engines import EngineError, EnginePool, without_secrets
from rlkd.errors import UsageError
from rlkd.files import read_records, write_atomically
from rlkd.gsrm.augmentation import has_structure, training_pairs
from rlkd.gsrm.labelling import label
from rlkd.models import EMBEDDED
from trainers.common.arguments import apply_model_config, peft_config, require_trl, say, start
from trainers.common.data_arguments import RowArguments

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig

    from rlkd.engines import Engine
    from trainers.dry_run.dry_run import DryRun


@dataclass
class GSRMScriptArguments(RowArguments):
    """Rows and their augmentation; everything else is in TRL's configs."""

    copies: int = field(default=2, metadata={"help": "variants of each row to train on, each seen once per epoch"})
    fine_grained: bool = field(
        default=False, metadata={"help": "same weight for sub-questions as for calculations and results together"}
    )
    round_adapter: bool = field(default=False, metadata={"help": "save the adapter in bfloat16: half the size"})
    label_engine: str | None = field(
        default=None,
        metadata={
            "help": "engine that decomposes rows without structures: http://host:port/v1#model, transformers:path"
        },
    )
    label_max_new_tokens: int = field(default=2048, metadata={"help": "max_new_tokens of the label engine"})
    label_deadline: float = field(default=1800.0, metadata={"help": "seconds for labelling a batch of 32 traces"})
    label_only: bool = field(default=False, metadata={"help": "label the rows and stop; for runs on several GPUs"})


def main(script: GSRMScriptArguments, args: "SFTConfig", model: "ModelConfig") -> None:
    """Make the pairs, train, save the model or its adapter."""
    from trainers.common.model_card import origin_of
    from trainers.common.recipes import run
    from trainers.common.sft import check_examples

    rows = _labelled(script, args)
    if script.label_only:
        return
    pairs = prepare(script, args, model, rows)
    say(args, f"{len(pairs)} pairs to train on.")
    trainer = build(script, args, model, pairs)
    check_examples(trainer, len(pairs))
    settings = {key: getattr(script, key) for key in ("copies", "fine_grained", "label_engine")}
    run(trainer, origin=origin_of(script, rows, settings=settings) if args.process_index == 0 else None)
    say(args, "Evaluate it:  rlkd gsrm evaluate --help")


def prepare(
    script: GSRMScriptArguments,
    args: "SFTConfig",
    model: "ModelConfig",
    rows: Sequence[Mapping[str, Any]],
    catch: Callable[[], Any] = nullcontext,
) -> list[dict[str, Any]]:
    """The pairs to train on; all that needs no weights is checked.

    Raises `UsageError`, unless `catch` (`trainers.common.refusals`) keeps it.
    """
    from trainers.common.models import check_student
    from trainers.common.preflight import check_settings

    pairs = training_pairs(rows, copies=script.copies, seed=args.seed)
    needed = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    with catch():
        if len(pairs) < needed:
            raise UsageError(
                f"{len(pairs)} pairs ({len(rows)} rows x {script.copies} copies) are less than one step takes: "
                f"{needed}. Use more rows, or lower per_device_train_batch_size or gradient_accumulation_steps"
            )
    apply_model_config(args, model)
    with catch():
        check_settings(args, None)
    with catch():
        check_student(args, model.model_name_or_path or EMBEDDED, peft_config(model))
    return pairs


def build(
    script: GSRMScriptArguments, args: "SFTConfig", model: "ModelConfig", pairs: Sequence[Mapping[str, Any]]
) -> Any:
    """The trainer."""
    from datasets import Dataset

    from trainers.common.sft import RunSFTTrainer

    name = model.model_name_or_path or EMBEDDED
    common: dict[str, Any] = {
        "model": name,
        "args": args,
        "peft_config": peft_config(model),
        "round_adapter": script.round_adapter,
    }
    if script.fine_grained:
        from transformers import AutoTokenizer

        from trainers.common.student import model_sources
        from trainers.gsrm.trainer import IGNORED, StructureCollator, StructureSFTTrainer, structure_tokens

        tokenizer = AutoTokenizer.from_pretrained(model_sources(name)[1], revision=model.model_revision)
        pad = tokenizer.pad_token_id
        args.remove_unused_columns = False
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        examples = [structure_tokens(tokenizer, pair, args.max_length) for pair in pairs]
        # Without a token of its structure a pair teaches nothing; TRL leaves such pairs out as well.
        examples = [example for example in examples if set(example["labels"]) != {IGNORED}]
        if not examples:
            raise UsageError(f"none of the {len(pairs)} pairs fits max_length {args.max_length}. Raise --max_length.")
        return StructureSFTTrainer(
            data_collator=StructureCollator(pad if pad is not None else tokenizer.eos_token_id),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            **common,
        )
    dataset = Dataset.from_list([{key: pair[key] for key in ("prompt", "completion")} for pair in pairs])
    return RunSFTTrainer(train_dataset=dataset, **common)


def dry_run(run: "DryRun", script: GSRMScriptArguments, args: "SFTConfig", model: "ModelConfig") -> None:
    """Show what the run would do (`--dry_run`); no row is labelled."""
    from trainers.common.student import read_model, reading_options
    from trainers.dry_run.rows import show_rows
    from trainers.dry_run.sft import show_examples

    rows = run.attempt(script.train_rows, [])
    show_rows(run, rows, source=script.source_name)
    usable = [row for row in rows if has_structure(row)]
    if script.label_engine is not None:
        shown = without_secrets(script.label_engine)
        with run.catch():
            open_label_engine(script)
        run.line("labels", f"{len(rows) - len(usable)} rows have no structure, for {shown} to make")
    elif rows and not usable:
        run.add(f"{script.source_name}: no row has a rationale with its structure. Set label_engine: it makes them")
    if script.label_engine is not None and not usable:
        run.line("", "what is trained is not known before they are labelled (--label_only true)")
        return
    pairs = prepare(script, args, model, usable, run.catch)
    student = read_model(model.model_name_or_path or EMBEDDED, **reading_options(args))
    show_examples(run, args, student, pairs, None, lambda: build(script, args, model, pairs))


def open_label_engine(script: GSRMScriptArguments) -> "Engine":
    """The engine that makes structures of rationales, checked; raises `UsageError`."""
    engines = EnginePool(script.label_deadline)
    try:
        engine = engines.open("label_engine", script.label_engine)
        engines.check_ready()
    except (ValueError, EngineError) as error:
        raise UsageError(f"label_engine: {error}") from error
    return engine


def _labelled(script: GSRMScriptArguments, args: "SFTConfig") -> Sequence[dict[str, Any]]:
    """The rows that have structures, or got them from the label engine; these are stored in `labelled.jsonl`."""
    stored = Path(args.output_dir or ".") / "labelled.jsonl"
    if stored.exists() and script.label_engine:
        say(args, f"{stored}: rows of an earlier labelling (delete the file to label again).")
        return list(read_records(stored))
    rows = script.train_rows()
    usable = [row for row in rows if has_structure(row)]
    if len(usable) == len(rows):
        return rows
    if script.label_engine is None:
        if not usable:
            raise UsageError(
                f"{script.source_name}: no row has a rationale with its structure. Name a model that makes "
                f"structures of the rationales: --label_engine http://127.0.0.1:8001/v1#MODEL"
            )
        left_out = len(rows) - len(usable)
        say(args, f"{left_out} of {len(rows)} rows lack a structure and are left out (--label_engine makes them).")
        return usable
    if args.world_size > 1:
        raise UsageError(
            f"{stored} does not exist yet. Label the rows first, by one process: "
            f"python recipes/gsrm.py --config ... --label_only true"
        )
    labelled, reasons = label(
        rows,
        open_label_engine(script),
        store=stored.with_name("labels.sqlite"),
        max_new_tokens=script.label_max_new_tokens,
        deadline=script.label_deadline,
    )
    causes = "".join(f"\n  {count:>6}  {reason}" for reason, count in reasons.most_common(10))
    say(args, f"{len(labelled)} of {len(rows)} rows have structures; left out: {reasons.total()}{causes}")
    if not labelled:
        raise UsageError(f"{script.label_engine} gave no usable structure; the reasons are listed above")
    # A later start trains on the same labels.
    write_atomically(stored, "".join(json.dumps(row) + "\n" for row in labelled))
    return labelled


if __name__ == "__main__":
    require_trl()
    from trl import ModelConfig, SFTConfig

    start(
        main,
        (GSRMScriptArguments, SFTConfig, ModelConfig),
        default_config=_RECIPES / "gsrm.yaml",
        dry_run=dry_run,
    )
