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

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlkd.data.loading import to_dataset
from rlkd.data.samples import WARM_START
from rlkd.errors import UsageError
from rlkd.models import ADAPTED, EMBEDDED, adapter_folder, resolve_model, shipped_adapters
from rlkd.teachers.traces import trace_text
from trainers.common.arguments import DataArguments, apply_model_config, peft_config, say, start

if TYPE_CHECKING:
    from trl import ModelConfig, SFTConfig


@dataclass
class SFTScriptArguments(DataArguments):
    """Data, evaluation and the saved adapter; everything else is in TRL's configs."""

    dataset_name: str = field(default=WARM_START, metadata={"help": f"{WARM_START}, a file, or a dataset of the hub"})
    max_completion_length: int = field(default=96, metadata={"help": "max_new_tokens of the held-out evaluation"})
    similar_lengths: bool = field(
        default=True, metadata={"help": "micro-batches of rows of similar length, which save padding"}
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": "LoRA adapter to train further (embedded-warm, or a folder), instead of a new one"},
    )
    round_adapter: bool = field(
        default=False, metadata={"help": "save the adapter in bfloat16: half the size; evaluated as saved"}
    )


def main(script: SFTScriptArguments, args: "SFTConfig", model: "ModelConfig") -> None:
    """Load the data, build the trainer, train, and evaluate the result."""
    from transformers import AutoTokenizer

    from trainers.common.models import check_student
    from trainers.common.preflight import check_settings
    from trainers.common.recipes import held_out_accuracy, run
    from trainers.common.sft import RunSFTTrainer, check_examples

    train_rows, test_rows = script.train_rows(), script.test_rows()
    examples = to_examples(train_rows, script.prompt_style)
    say(
        args,
        f"{len(examples)} examples from {len(train_rows)} rows of {script.dataset_name}, "
        f"{len(test_rows)} rows for evaluation.",
    )
    if script.similar_lengths:
        # The examples are then in their final order, so the trainer must not shuffle them again.
        examples = by_length(examples, args.per_device_train_batch_size, args.seed)
        args.train_sampling_strategy = "sequential"

    apply_model_config(args, model)
    name = model.model_name_or_path or EMBEDDED
    adapter = None if script.adapter else peft_config(model)
    check_settings(args, None)
    check_student(args, name, script.adapter or adapter)
    # TRL makes a new adapter; an existing one comes with its model.
    trainer: Any = RunSFTTrainer(
        model=with_adapter(name, script.adapter, args) if script.adapter else resolve_model(name),
        args=args,
        train_dataset=to_dataset(examples),
        processing_class=AutoTokenizer.from_pretrained(resolve_model(name), revision=model.model_revision),
        peft_config=adapter,
        base_model=name,
        round_adapter=script.round_adapter,
    )
    check_examples(trainer, len(examples))
    run(trainer, held_out=held_out_accuracy(trainer, script, test_rows, limit=script.max_completion_length))


def to_examples(rows: Sequence[Mapping[str, Any]], prompt_style: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One example per rationale: `prompt` and `completion`, both conversations or both texts, as the row's prompt is.

    Raises `UsageError` where no row has a rationale.
    """
    examples = []
    prompts = to_dataset([{k: row.get(k) for k in ("id", "prompt", "question")} for row in rows], **prompt_style)
    for row, prompt in zip(rows, prompts["prompt"], strict=True):
        for rationale in row["rationales"]:
            text = trace_text(rationale, row.get("answer"))
            completion = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            examples.append({"prompt": prompt, "completion": completion})
    if not examples:
        raise UsageError(
            f"none of the {len(rows)} rows has a rationale to learn from. Name their column: "
            f'--columns \'{{"rationales": "COLUMN"}}\''
        )
    return examples


def with_adapter(name: str, adapter: str, args: "SFTConfig") -> Any:
    """The model `name` with a LoRA adapter (one of ours, or its folder) to train further.

    Rank, alpha and layers are those of the adapter; its weights are trained in float32. Empties `model_init_kwargs`,
    which TRL accepts only for a model that it loads itself. Raises `UsageError` for a folder without an adapter, and
    for an adapter of ours on another model than `embedded`.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if adapter in ADAPTED and name != EMBEDDED:
        raise UsageError(f"--adapter {adapter} is an adapter of the model {EMBEDDED!r}, not of {name!r}")
    folder = adapter_folder(adapter) if adapter in ADAPTED else Path(adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"--adapter {adapter}: no adapter_config.json there. Shipped adapters: {', '.join(shipped_adapters())}"
        )
    settings: dict[str, Any] = {"dtype": torch.float32}
    settings.update(args.model_init_kwargs or {})  # type: ignore[arg-type]
    args.model_init_kwargs = None
    base = AutoModelForCausalLM.from_pretrained(resolve_model(name), **settings)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


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


if __name__ == "__main__":
    from trl import ModelConfig, SFTConfig

    start(main, (SFTScriptArguments, SFTConfig, ModelConfig), default_config=_RECIPES / "sft.yaml")
