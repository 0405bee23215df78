"""Supervised fine-tuning on rationales; the warm start of the embedded student.

    accelerate launch recipes/sft.py                                     # the warm start, on a laptop
    accelerate launch recipes/sft.py --bf16 true                         # the same, if the CPU supports bfloat16
    accelerate launch recipes/sft.py --dataset_name rationales.jsonl --columns '{"rationales": "generations"}'
    accelerate launch recipes/sft.py --model_name_or_path embedded-warm --num_train_epochs 0 --output_dir runs/sft0
    accelerate launch recipes/sft.py --config recipes/sft_expert.yaml    # the expert: a teacher for distillation

Without --config the run takes recipes/sft.yaml: SmolLM2-135M-Instruct learns to answer in short lines and to end. A
row has a `question` (or `prompt`) and `rationales`; each rationale is one example. The fourth of these commands only
evaluates. --adapter trains an existing adapter further, as the last one does: the result is again one adapter on the
base model. Keys are those of TRL's SFTConfig and ModelConfig and the few that --help lists first; the command line
overrides the file.

The trainer is TRL's SFTTrainer. The loss is on the completion only, its end token included: a student that never saw
where to stop fills its answer up to the limit.
"""

import sys
from pathlib import Path

# See recipes/rlkd.py: a script's own folder on the search path would hide the package `rlkd`.
_RECIPES = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _RECIPES]
if _RECIPES.parent.name not in ("site-packages", "dist-packages") and sys.path[:1] != [str(_RECIPES.parent)]:
    sys.path.insert(0, str(_RECIPES.parent))

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlkd.data.curriculum import exchanged_stages, in_stages, stages_of_row
from rlkd.data.example_weights import scaled_weights, weights_of_row
from rlkd.data.loading import to_dataset
from rlkd.data.samples import WARM_START
from rlkd.engines.tokens import template_arguments
from rlkd.errors import UsageError
from rlkd.models import ADAPTED, EMBEDDED, adapter_folder, shipped_adapters
from rlkd.rendering import fitted_conversations
from rlkd.teachers.traces import trace_text
from trainers.common.arguments import apply_model_config, peft_config, require_trl, say, start
from trainers.common.data_arguments import SOURCES, DataArguments

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig

    from trainers.common.student import ModelFacts
    from trainers.dry_run.dry_run import DryRun


@dataclass
class SFTScriptArguments(DataArguments):
    """Data, evaluation and the saved adapter; everything else is in TRL's configs."""

    dataset_name: list[str] | str = field(default=WARM_START, metadata={"help": SOURCES})
    max_completion_length: int = field(default=96, metadata={"help": "max_new_tokens of the held-out evaluation"})
    similar_lengths: bool = field(
        default=True, metadata={"help": "micro-batches of rows of similar length, which save padding"}
    )
    curriculum: bool = field(
        default=False,
        metadata={"help": "train in the stages of the selector srd (column stages), each with all before it"},
    )
    shuffle_stages: int | None = field(
        default=None, metadata={"help": "a control: the examples exchange their stages, in an order of this seed"}
    )
    weight_column: str | None = field(
        default=None,
        metadata={"help": "column with the weight of an example in the loss, a number per row or one per rationale"},
    )
    weight_temperature: float | None = field(
        default=None,
        metadata={"help": "weight examples by exp(-loss / temperature), by the student's own loss (after CoPeD)"},
    )
    shuffle_weights: bool = field(
        default=False,
        metadata={"help": "a control: each example has the weight of its neighbour in its batch, if there is one"},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'arguments of the chat template, e.g. {"enable_thinking": false}'}
    )
    filter_overlong_prompts: bool = field(
        default=False, metadata={"help": "leave out examples that do not fit the model's context, and say how many"}
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "LoRA adapter to train further (embedded-warm, or a folder), instead of a new one"},
    )
    round_adapter: bool = field(
        default=False, metadata={"help": "save the adapter in bfloat16: half the size; evaluated as saved"}
    )

    def _train_rows(
        self, wrong_rationales: Any, *further_columns: str, per_rationale: Sequence[str] = ()
    ) -> Sequence[Any]:
        weights = () if self.weight_column is None else (self.weight_column,)
        read = (*further_columns, *weights)
        return super()._train_rows(wrong_rationales, *read, per_rationale=(*per_rationale, *weights))


def main(script: SFTScriptArguments, args: "SFTConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and evaluate the result."""

    from trainers.common.model_card import origin_of
    from trainers.common.recipes import held_out_accuracy, run
    from trainers.common.sft import check_examples

    train_rows, test_rows = script.train_rows(), script.test_rows()
    examples, student = prepare(script, args, model, train_rows)
    say(
        args,
        f"{len(examples)} examples from {len(train_rows)} rows of {script.source_name}, "
        f"{len(test_rows)} rows for evaluation.",
    )
    if script.shuffle_weights:
        say(args, "*** A CONTROL RUN: each example has the weight of its neighbour (--shuffle_weights). ***")
    if script.shuffle_stages is not None:
        say(args, "*** A CONTROL RUN: the examples exchange their stages (--shuffle_stages). ***")
    trainer = build(script, args, model, examples, student)
    check_examples(trainer, len(examples))
    held_out = held_out_accuracy(trainer, script, test_rows, limit=script.max_completion_length)
    origin = origin_of(script, train_rows, test_rows) if args.process_index == 0 else None
    run(trainer, held_out=held_out, origin=origin)


def prepare(
    script: SFTScriptArguments,
    args: "SFTConfig",
    model: "ModelConfig",
    rows: Sequence[Mapping[str, Any]],
    catch: Callable[[], Any] = nullcontext,
) -> tuple[list[dict[str, Any]], "ModelFacts"]:
    """The examples, as they fit the student, and its facts, all checked without weights.

    Raises `UsageError`, unless `catch` (`trainers.common.refusals`) keeps it.
    """
    from trainers.common.example_weights import WEIGHT, check_weighting
    from trainers.common.models import check_student
    from trainers.common.preflight import check_settings
    from trainers.common.student import read_model, reading_options

    examples: list[dict[str, Any]] = []
    with catch():
        if script.shuffle_stages is not None and not script.curriculum:
            raise UsageError("shuffle_stages: there are no stages. Set curriculum")
    with catch():
        examples = to_examples(rows, script.prompt_style, staged=script.curriculum, weight_column=script.weight_column)
    apply_model_config(args, model)
    name = model.model_name_or_path or EMBEDDED
    with catch():
        check_settings(args, None)
    with catch():
        column = script.weight_column is not None
        check_weighting(args, script.weight_temperature, script.shuffle_weights, column=column)
    with catch():
        if script.adapter:
            adapter_source(name, script.adapter)
        check_student(args, name, script.adapter or peft_config(model))
    student = read_model(name, **reading_options(args))
    template = template_arguments(script.chat_template_kwargs)
    with catch():
        if examples:
            examples = fit_examples(examples, student, args, template, leave_out=script.filter_overlong_prompts)
            if script.weight_column is not None:
                weights = scaled_weights([example[WEIGHT] for example in examples])
                examples = [{**each, WEIGHT: weight} for each, weight in zip(examples, weights, strict=True)]
            if script.curriculum:
                size, order = args.per_device_train_batch_size, by_length if script.similar_lengths else shuffled
                stages = [example.pop("stage") for example in examples]
                if script.shuffle_stages is not None:
                    stages = exchanged_stages(stages, script.shuffle_stages)
                examples = in_stages(examples, stages, size, lambda own, s: order(own, size, args.seed + s))
    return examples, student


def build(
    script: SFTScriptArguments,
    args: "SFTConfig",
    model: "ModelConfig",
    examples: list[dict[str, Any]],
    student: "ModelFacts",
) -> Any:
    """The trainer."""
    from trainers.common.sft import RunSFTTrainer

    name = model.model_name_or_path or EMBEDDED
    if script.similar_lengths or script.curriculum:
        # The examples are then in their final order, so the trainer must not shuffle them again.
        if not script.curriculum:  # which has ordered them
            examples = by_length(examples, args.per_device_train_batch_size, args.seed)
        args.train_sampling_strategy = "sequential"

    # TRL makes a new adapter; an existing one comes with its model.
    return RunSFTTrainer(
        model=with_adapter(name, script.adapter, args) if script.adapter else name,
        args=args,
        train_dataset=to_dataset(examples),
        processing_class=student.tokenizer,
        peft_config=None if script.adapter else peft_config(model),
        base_model=name,
        chat_template_kwargs=template_arguments(script.chat_template_kwargs),
        round_adapter=script.round_adapter,
        weight_temperature=script.weight_temperature,
        shuffle_weights=script.shuffle_weights,
    )


def dry_run(run: "DryRun", script: SFTScriptArguments, args: "SFTConfig", model: "ModelConfig") -> None:
    """Show what the run would do (`--dry_run`)."""
    from trainers.dry_run.sft import show_sft

    rows, test_rows = run.attempt(script.train_rows, []), run.attempt(script.test_rows, [])
    examples, student = prepare(script, args, model, rows, run.catch)
    show_sft(
        run, script, args, student, rows, test_rows, examples, lambda: build(script, args, model, examples, student)
    )


def to_examples(
    rows: Sequence[Mapping[str, Any]],
    prompt_style: Mapping[str, Any],
    *,
    staged: bool = False,
    weight_column: str | None = None,
) -> list[dict[str, Any]]:
    """One example per rationale: `prompt` and `completion`, both conversations or both texts, as the row's prompt is.

    With `staged`, also `stage`; with `weight_column`, also `example_weight`. Raises `UsageError` where no row has a
    rationale, or a rationale no stage or weight.
    """
    from trainers.common.example_weights import WEIGHT

    examples = []
    prompts = to_dataset([{k: row.get(k) for k in ("id", "prompt", "question")} for row in rows], **prompt_style)
    for row, prompt in zip(rows, prompts["prompt"], strict=True):
        stages = stages_of_row(row) if staged else [None] * len(row["rationales"])
        weights = weights_of_row(row, weight_column) if weight_column else [None] * len(row["rationales"])
        for rationale, stage, weight in zip(row["rationales"], stages, weights, strict=True):
            text = trace_text(rationale, row.get("answer"))
            completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            further = {"stage": stage, WEIGHT: weight}
            known = {name: value for name, value in further.items() if value is not None}
            examples.append({"prompt": prompt, "completion": completion, **known})
    if not examples:
        raise UsageError(
            f"none of the {len(rows)} rows has a rationale to learn from. Name their column: "
            f'--columns \'{{"rationales": "COLUMN"}}\''
        )
    return examples


def fit_examples(
    examples: list[dict[str, Any]],
    student: Any,
    args: "SFTConfig",
    template: dict[str, Any] | None,
    *,
    leave_out: bool = False,
) -> list[dict[str, Any]]:
    """The examples as the chat template takes them, with its arguments; without those that do not fit the context.

    `student`: its `trainers.common.student.ModelFacts`. Raises `UsageError` where there is no template, or an example
    does not fit and is not to be left out.
    """
    from trainers.common.prompts import PromptCheck

    tokenizer = student.tokenizer
    if tokenizer is None:  # the loading of the model says why
        return examples
    shown = copy.deepcopy(tokenizer)
    if args.chat_template_path:  # TRL sets it later
        shown.chat_template = read_template(args.chat_template_path)
    check = PromptCheck(replace(student, tokenizer=shown), 0, "completion", template, leave_out)
    check.check_form(examples[0]["prompt"], "the training rows")
    if not isinstance(examples[0]["prompt"], str):
        prompts = fitted_conversations(shown, [example["prompt"] for example in examples])
        examples = [
            {**example, "prompt": prompt, **({"chat_template_kwargs": template} if template else {})}
            for example, prompt in zip(examples, prompts, strict=True)
        ]
    return check.fitted_examples(examples, args.max_length)


def read_template(path: str) -> str | None:
    """The chat template that TRL's `chat_template_path` names: a file, or that of a model."""
    from transformers import AutoTokenizer

    if path.endswith((".jinja", ".j2")) and Path(path).is_file():
        return Path(path).read_text(encoding="utf-8")
    found: str | None = AutoTokenizer.from_pretrained(path).chat_template
    return found


def with_adapter(name: str, adapter: str, args: "SFTConfig") -> Any:
    """The model `name` with a LoRA adapter (one of ours, or its folder) to train further.

    Rank, alpha and layers are those of the adapter; its weights are trained in float32. Empties `model_init_kwargs`,
    which TRL accepts only for a model that it loads itself. Raises `UsageError` for a folder without an adapter, and
    for an adapter of ours on another model than `embedded`.
    """
    from trainers.common import adapters

    return adapters.with_adapter(name, adapter_source(name, adapter), args)


def adapter_source(name: str, adapter: str) -> Path:
    """The folder of an adapter; raises `UsageError` as `with_adapter`."""
    if adapter in ADAPTED and name != EMBEDDED:
        raise UsageError(f"--adapter {adapter} is an adapter of the model {EMBEDDED!r}, not of {name!r}")
    folder = adapter_folder(adapter) if adapter in ADAPTED else Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"--adapter {adapter}: no adapter_config.json there. Shipped adapters: {', '.join(shipped_adapters())}"
        )
    return folder


def by_length(examples: Sequence[dict[str, Any]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """The examples in batches of similar lengths, the batches in random order.

    Our choice instead of transformers' `group_by_length`, which sorts about fifty batches at a time from long to
    short: a mix of easy short rows and long ones would be learnt in waves, and end on the short ones.
    """
    shuffle = random.Random(seed).shuffle
    ordered = list(examples)
    shuffle(ordered)  # so that equal lengths do not always meet
    ordered.sort(key=lambda example: len(str(example["prompt"])) + len(str(example["completion"])))
    # An incomplete batch would shift all batches after it, so it stays last.
    whole = len(ordered) - len(ordered) % batch_size
    batches = [ordered[start : start + batch_size] for start in range(0, whole, batch_size)]
    shuffle(batches)
    return [*(example for batch in batches for example in batch), *ordered[whole:]]


def shuffled(examples: Sequence[dict[str, Any]], batch_size: int, seed: int) -> list[dict[str, Any]]:
    """The examples in random order."""
    return random.Random(seed).sample(examples, len(examples))


if __name__ == "__main__":
    require_trl()
    from trl import ModelConfig, SFTConfig

    start(
        main,
        (SFTScriptArguments, SFTConfig, ModelConfig),
        default_config=_RECIPES / "sft.yaml",
        dry_run=dry_run,
    )
