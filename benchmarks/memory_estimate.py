"""The estimate of memory against the measured peak, on a CPU, for six shapes of a run.

    python benchmarks/memory_estimate.py                  # six shapes
    python benchmarks/memory_estimate.py --only full      # one shape
    python benchmarks/memory_estimate.py --gpu            # estimates for GPUs, which nothing measures
    python benchmarks/memory_estimate.py --quick          # tiny random models

| shape | run |
| --- | --- |
| `lab` | RLKD, all weights of the laboratory's student, the default recipe's batch |
| `lora` | RLKD, LoRA on SmolLM2-135M, 8 completions of 48 tokens |
| `long` | the same with 4 completions of 256 tokens |
| `structure` | the same with 4 of 48 tokens, and the embedded structure model in this process |
| `kd` | validity-calibrated distillation, LoRA on SmolLM2-135M, a teacher of that size |
| `full` | RLKD, all weights of a random model with the shape of SmolLM2-360M, gradient checkpointing |

The estimates are made in a process of their own, as a dry run does it, and each run takes two steps in another one,
whose largest resident size is the measured peak (VmHWM). Completions run to their limit, as the estimate supposes.
Exits with 1 where an estimate is off by more than 20 %.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 0.2
SHAPES = ("lab", "lora", "long", "structure", "kd", "full")
GIB = 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare estimated with measured memory.")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=SHAPES, help="run only these shapes")
    parser.add_argument("--tables", action="store_true", help="print the whole estimates")
    parser.add_argument("--gpu", action="store_true", help="print estimates for GPUs instead")
    given = harness.parse(parser, quick="tiny random models, without bounds", child=work)
    if given.gpu:
        return gpu_estimates(given.tables)
    figures: dict[str, Any] = {}
    plans = harness.in_child({"plan": list(given.only), "quick": given.quick})
    for name in given.only:
        plan, run = plans[name], harness.in_child({"run": name, "quick": given.quick})
        ratio = plan["bytes"] / run["bytes"]
        figures[name] = {
            "estimated_gib": round(plan["bytes"] / GIB, 3),
            "measured_gib": round(run["bytes"] / GIB, 3),
            "ratio": round(ratio, 3),
            "phase": plan["phase"],
        }
        print(f"{name:<10} " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
        if given.tables:
            print(plan["table"], flush=True)
    bounds = {f"{name} within {LIMIT:.0%}": abs(one["ratio"] - 1) <= LIMIT for name, one in figures.items()}
    return harness.report(figures, {} if given.quick else bounds)


# Model (the shape of Qwen2.5), how it is trained, completions in a micro-batch and in a generation batch, tokens of a
# completion after a prompt of 512.
GPU_RUNS = [
    ("0.5B", "LoRA", 4, 32, 512),
    ("0.5B", "LoRA", 8, 64, 2048),
    ("1.5B", "LoRA", 8, 64, 2048),
    ("1.5B", "all weights", 8, 64, 2048),
    ("7B", "LoRA, 4 bit", 4, 32, 1024),
    ("7B", "LoRA", 4, 32, 1024),
    ("7B", "LoRA", 8, 64, 2048),
    ("7B", "all weights", 8, 64, 2048),
]
QWEN = {
    "0.5B": (896, 24, 14, 2, 4864, 151936, True),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
}


def gpu_estimates(tables: bool) -> int:
    """Print the estimates for GPUs."""
    harness.quiet()
    from transformers import Qwen2Config

    from trainers import RLKDConfig
    from trainers.rlkd.memory import memory_plan

    figures = {}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    names += ("vocab_size", "tie_word_embeddings")
    with tempfile.TemporaryDirectory(prefix="rlkd-memory-") as folder:
        for size, trained, micro_batch, rows, completion in GPU_RUNS:
            Qwen2Config(**dict(zip(names, QWEN[size], strict=True))).save_pretrained(f"{folder}/{size}")
            args = RLKDConfig(
                f"{folder}/run",
                use_cpu=True,
                bf16=True,
                report_to="none",
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=rows // micro_batch,
                num_generations=4,
                max_completion_length=completion,
                beta=0.0,
                model_init_kwargs={"dtype": "bfloat16", "load_in_4bit": "4 bit" in trained},
            )
            adapter = lora() if "LoRA" in trained else None
            plan = memory_plan(args, f"{folder}/{size}", adapter, prompt_tokens=512, rewards=[letters], device="cuda")
            label = f"{size}, {trained}, {micro_batch} of {rows} x {completion}"
            figures[label] = {"gib": round(plan.peak.total / GIB, 1), "phase": plan.peak.name}
            print(f"{label:<40} {figures[label]}", flush=True)
            if tables:
                print(plan.table(), flush=True)
    return harness.report(figures, {})


def work(task: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the estimates of all shapes, or the run of one."""
    harness.quiet()
    found = {}
    for name in task.get("plan") or [task["run"]]:
        with tempfile.TemporaryDirectory(prefix="rlkd-memory-") as folder:
            shape = kd_shape if name == "kd" else rlkd_shape
            found[name] = shape(name, Path(folder), task["quick"], "plan" in task)
    return found if "plan" in task else found[task["run"]]


def rlkd_shape(name: str, folder: Path, quick: bool, plans: bool) -> dict[str, Any]:
    """The estimate or the run of a shape of RLKD."""
    from trainers import RLKDConfig, RLKDTrainer
    from trainers.rlkd.memory import memory_plan

    sizes: dict[str, Any] = {
        "lab": {"per_device_train_batch_size": 64, "max_completion_length": 96, "num_generations": 8},
        "lora": {"per_device_train_batch_size": 8, "max_completion_length": 48},
        "long": {"per_device_train_batch_size": 4, "max_completion_length": 256},
        "structure": {"per_device_train_batch_size": 4, "max_completion_length": 48},
        "full": {"per_device_train_batch_size": 2, "max_completion_length": 32, "gradient_checkpointing": True},
    }[name]
    generations = min(4, sizes["per_device_train_batch_size"])
    sizes = {"num_generations": generations, "reward_funcs": ["structure"], **sizes}
    model, tokenizer = student_of(name, folder, quick)
    dataset, longest = some_prompts("lab-dependency" if name == "lab" else "gsm8k-sample", tokenizer)
    if name == "structure" and not quick:
        sizes["reward_kwargs"] = {"structure": {"decomposer": "generative", "store": str(folder)}}
    adapter = None if name in ("lab", "full") else lora()
    args = RLKDConfig(**arguments(folder, tokenizer, beta=0.0, reward_cache="off", **sizes))
    rewards = None if name == "structure" else [letters]
    if plans:
        return planned(memory_plan(args, model, adapter, prompt_tokens=longest, rewards=rewards))
    return measured(RLKDTrainer(model, rewards, args=args, train_dataset=dataset, peft_config=adapter))


def kd_shape(name: str, folder: Path, quick: bool, plans: bool) -> dict[str, Any]:
    """The estimate or the run of distillation."""
    from trainers import ValidityKDConfig, ValidityKDTrainer
    from trainers.validity_kd.memory import memory_plan

    model, tokenizer = student_of(name, folder, quick)
    dataset, longest = some_prompts("gsm8k-sample", tokenizer)
    teacher = model if quick else "embedded-expert"
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": 48}
    args = ValidityKDConfig(**arguments(folder, tokenizer, teacher=teacher, lmbda=1.0, **sizes))
    if plans:
        return planned(memory_plan(args, model, lora(), prompt_tokens=longest))
    return measured(ValidityKDTrainer(model, args=args, train_dataset=dataset, peft_config=lora()))


def planned(plan: Any) -> dict[str, Any]:
    """The figures of an estimate."""
    return {"bytes": plan.peak.total, "phase": plan.peak.name, "table": plan.table()}


def measured(trainer: Any) -> dict[str, Any]:
    """Train; the largest resident size of this process."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"bytes": int(harness.peak_mib() * 2**20)}


def student_of(name: str, folder: Path, quick: bool) -> tuple[str, Any]:
    """The folder or name of a shape's student, and its tokenizer."""
    from transformers import AutoTokenizer

    from rlkd.models import resolve_model
    from tiny import save_llama

    if name == "lab":
        model = "lab-student"
    elif quick:
        model = save_llama(folder / "model")
    elif name == "full":
        tokenizer = AutoTokenizer.from_pretrained(resolve_model("embedded"))
        # The shape of SmolLM2-360M.
        shape = {"hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5}
        shape |= {"intermediate_size": 2560, "tie_word_embeddings": True}
        model = save_llama(folder / "model", tokenizer, **shape)
    else:
        model = "embedded-warm"
    return model, AutoTokenizer.from_pretrained(resolve_model(model))


def some_prompts(source: str, tokenizer: Any) -> tuple[Any, int]:
    """Sixteen rows whose prompts are about as long, and the tokens of the longest."""
    from rlkd.data.loading import load_rows, to_dataset

    dataset = to_dataset(load_rows(source)[:200])
    texts = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in dataset
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    chosen = sorted(range(len(lengths)), key=lambda index: lengths[index])[50:66]
    return dataset.select(chosen), max(lengths[index] for index in chosen)


def arguments(folder: Path, tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """Arguments of a config: two steps, and completions that do not end before their limit."""
    from tiny import training_arguments

    ends = [tokenizer.eos_token_id]
    values = {"max_steps": 2, "learning_rate": 1e-5, "generation_kwargs": {"suppress_tokens": ends}}
    return training_arguments(folder / "run", **values | changes)


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs within a group."""
    return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


if __name__ == "__main__":
    sys.exit(main())
