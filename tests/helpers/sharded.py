"""Short runs of the trainers in two processes on a CPU, with weights sharded as files of `recipes/accelerate` say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.two_processes import CONFIGS, LAUNCHER, environment_of
from tests.helpers import ROOT

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from benchmarks.two_processes import allow_cpu
from tests.helpers.sharded import train
allow_cpu()
for job in json.load(open(sys.argv[2])):
    train(**job)
from trainers.common.arguments import end_processes
end_processes()
"""

# Traces of different lengths, two per row, with two steps each at least.
ROWS = [
    {
        "id": f"row-{i}",
        "prompt": f"{i} apples?",
        "answer": str(2 * i),
        "rationales": [
            f"There are {i} apples{' and pears' * (i % 3)}. Twice that is {2 * i}.",
            f"First {i}.\nThen {i} + {i} = {2 * i}{'!' * (i % 4 + 1)}",
        ],
    }
    for i in range(16)
]
SETTINGS: dict[str, Any] = {
    "bf16": False,
    "gradient_checkpointing": False,
    "max_steps": 3,
    "learning_rate": 0.3,
    "optim": "sgd",  # the weights then move by the gradients themselves
    "max_grad_norm": 100.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 3,
}


def save_other_weights(model: str, folder: Path) -> str:
    """Save a model with the tokenizer and the shapes of another one, as a teacher; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = AutoModelForCausalLM.from_pretrained(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return str(folder)


def train(
    trainer: str,
    model: str,
    folder: str,
    teacher: str | None = None,
    settings: Mapping[str, Any] | None = None,
    lora: bool = False,
    resume: bool = False,
    save: bool = True,
) -> list[dict[str, Any]]:
    """Train as `trainer` ("kd" or "rlkd") does, save the model, and return the entries of `metrics.jsonl`.

    `share.json` in the folder has, of each process, the parameters that it holds and those of the whole model.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
    from trainers.common.run_files import read_steps

    torch.manual_seed(3)  # the adapter is drawn before the trainer sets the seed
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    values = {**SETTINGS, "output_dir": folder, **(settings or {})}
    rows = Dataset.from_list(ROWS)
    if trainer == "kd":
        values = {"max_completion_length": 140, "lmbda": 0.0, "tau": "adapt", "v_0": 0.0, **values}
        made: Any = ValidityKDTrainer(
            model, teacher, _sharding_all(ValidityKDConfig(**values)), rows, peft_config=adapter
        )
    else:
        values = {"max_completion_length": 12, "num_generations": 2, "beta": 0.1, "fast_path": "never", **values}
        values |= {"teacher": teacher, "teacher_kl": 0.5} if teacher else {}
        further: dict[str, Any] = {} if values.pop("generate", False) else {"rollout_func": write}
        args = _sharding_all(RLKDConfig(**values))
        made = RLKDTrainer(model, score, args, rows, peft_config=adapter, **further)
    made.train(resume_from_checkpoint=resume)
    held = made.accelerator.gather(torch.tensor([_held(made.model)])).tolist()
    whole = _held(made.model, whole=True)
    if made.accelerator.is_main_process:
        Path(folder, "share.json").write_text(json.dumps({"held": held, "whole": whole}))
    if save:
        made.save_final()
    made.accelerator.wait_for_everyone()
    return [entry for entry in read_steps(made.metrics_path) if "loss" in entry]


def write(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
    """Completions that depend on the prompt and its place in the group alone, as TRL's `rollout_func` gives them."""
    tokenizer = trainer.processing_class
    prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    texts = [f"{prompt[::-1]}{'abc'[: 1 + place % 2]}"[:12] for place, prompt in enumerate(prompts)]
    completion_ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def score(completions: Sequence[str], **_: Any) -> list[float]:
    """The share of letters that come late in the alphabet, and a point for each second completion of a group."""
    return [sum(letter > "b" for letter in text) / 12 + place % 2 for place, text in enumerate(completions)]


def train_in_two_processes(config: Path, jobs: Sequence[Mapping[str, Any]], folder: Path, **environment: str) -> None:
    """Run `train` with each job's arguments in two processes that `accelerate launch` has told of `config`."""
    (folder / "train.py").write_text(SCRIPT)
    (folder / "jobs.json").write_text(json.dumps(list(jobs)))
    done = subprocess.run(
        [*LAUNCHER, str(folder / "train.py"), str(ROOT), str(folder / "jobs.json")],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        | environment_of(config)
        | environment,
        capture_output=True,
        text=True,
        timeout=550,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def with_keys(config: str, folder: Path, **changes: Any) -> Path:
    """A copy of a file of `recipes/accelerate`, with other keys in its section for FSDP or DeepSpeed."""
    values = yaml.safe_load((CONFIGS / config).read_text())
    section = next(name for name in ("fsdp_config", "deepspeed_config") if name in values)
    values[section] |= changes
    path = folder / config
    path.write_text(yaml.safe_dump(values))
    return path


def _sharding_all(args: Any) -> Any:
    """The arguments, under which DeepSpeed shards tiny layers, too."""
    if args.deepspeed_plugin is not None:
        args.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return args


def _held(model: Any, *, whole: bool = False) -> int:
    """The parameters of a model that are in this process, or `whole`: of all."""
    total = 0
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):  # a piece of equal size for each process
            total += parameter.ds_numel if whole else parameter.ds_tensor.numel()
        else:
            total += (
                parameter.to_local().numel() if hasattr(parameter, "to_local") and not whole else parameter.numel()
            )
    return total
