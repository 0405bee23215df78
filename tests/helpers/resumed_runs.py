"""Runs of both trainers on a tiny model that end, resume and are compared."""

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from datasets import Dataset
from peft import LoraConfig

from rewards import StepScore
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.common.run_files import read_steps

STEPS = 6
# Four steps for each batch of rollouts. With three rows, an epoch has one batch of two.
WINDOW = {"steps_per_generation": 2, "num_iterations": 2}
_TRACES = ["{i} and {i} are {d}.", "First {i}.\nThen {i} + {i} = {d}.", "One has {i}. Twice that is {d}. So {d}."]
ROWS = [
    {
        "id": f"row-{i}",
        "prompt": [{"role": "user", "content": f"Twice {i}?"}],
        "answer": str(2 * i),
        "rationales": [trace.format(i=i, d=2 * i) for trace in _TRACES],
    }
    for i in range(8)
]


def letters(completions, **columns):
    """Deterministic, and not equal within a group: every step moves the parameters."""
    return [sum(map(ord, c[0]["content"])) % 97 / 97 for c in completions]


letters.step_scores = lambda text, detail: [
    StepScore(0.5, (0, len(text) // 2)),
    StepScore(0.1, (len(text) // 2, len(text))),
]


def odd_rows(completions, id, **columns):
    """Equal within the groups of every second row, and not within the others."""
    scores = letters(completions)
    return [score if int(name[-1]) % 2 else 0.0 for score, name in zip(scores, id, strict=True)]


def trainer(kind: str, model: str, output: Path, *, rows: int = 3, reward: Any = letters, **changes: Any) -> Any:
    """A trainer of six steps that saves each: `rlkd`, or `kd` on eight rows with LoRA and dropout."""
    values: dict[str, Any] = {
        "output_dir": str(output),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    if kind == "rlkd":
        args = RLKDConfig(**values | {"num_generations": 2, "max_completion_length": 4} | changes)
        return RLKDTrainer(model, reward, args, Dataset.from_list(ROWS[:rows]))
    values |= {"lmbda": 0.5, "tau": "adapt", "max_completion_length": 48, "gradient_accumulation_steps": 2}
    return ValidityKDTrainer(
        model,
        model,
        ValidityKDConfig(**values | changes),
        Dataset.from_list(ROWS),
        peft_config=LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear"),
    )


def result(run: Any) -> dict[str, Any]:
    """What two runs must have in common: parameters, metrics without times, tables, and this process's rollouts."""
    metrics = read_steps(run.metrics_path) if run.accelerator.is_main_process else []
    return {
        "parameters": {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()},
        "metrics": [{k: v for k, v in m.items() if k != "step_time" and "/seconds_" not in k} for m in metrics],
        "tables": {
            path.name: parquet.read_table(path).to_pylist()
            for path in sorted(run.metrics_path.parent.glob("completions/*.parquet"))
        },
        "rollouts": [
            record | {"rewards": {name: reward["value"] for name, reward in record.get("rewards", {}).items()}}
            for record in read_steps(run.rollouts_path)
        ],
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs between two results, bit for bit: their parts, and parameters by name."""
    parts = ["rollouts"] if found["rollouts"] != expected["rollouts"] else []
    parts += [part for part in ("metrics", "tables") if json.dumps(found[part]) != json.dumps(expected[part])]
    parameters, others = found["parameters"], expected["parameters"]
    names = parameters.keys() ^ others.keys()
    names |= {name for name in parameters.keys() & others.keys() if not torch.equal(parameters[name], others[name])}
    return parts + sorted(names)


def killed_after(whole: Path, folder: Path, step: int) -> Path:
    """A copy of a run's folder as a kill leaves it after the checkpoint of `step`, and before the next one."""
    later = [f"checkpoint-{number}" for number in range(step + 1, STEPS + 1)]
    return shutil.copytree(whole, folder, ignore=shutil.ignore_patterns(*later))


def compare_resumed_runs(
    make: Callable[[Path], Any],
    folder: Path,
    steps: Sequence[int] = range(1, STEPS),
    barrier: Callable[[], Any] = lambda: None,
) -> dict[int, list[str]]:
    """How runs that continue from a run's checkpoints at `steps` differ from it, by the step they continued from.

    `make` builds a trainer for a folder. `barrier` waits for the other processes, which share the folders.
    """
    whole = make(folder / "whole")
    whole.train()
    expected = result(whole)
    assert len({record["step"] for record in expected["rollouts"]}) > 1
    found: dict[int, list[str]] = {}
    for step in steps:
        copy = folder / f"after-{step}"
        barrier()
        if whole.accelerator.is_main_process:
            killed_after(folder / "whole", copy, step)
        barrier()
        resumed = make(copy)
        resumed.train(resume_from_checkpoint=True)
        found[resumed._initial_global_step] = differences(result(resumed), expected)
    return found


def resume_in_two_processes(model: str, folder: Path) -> None:
    """To be called in each of two processes: a run, and one that replaces groups without spread."""
    for name, changes in {"plain": {}, "resampling": {"reward": odd_rows, "resample_zero_std": 2}}.items():

        def make(output: Path, changes: dict[str, Any] = changes) -> Any:
            return trainer("rlkd", model, output, rows=5, ddp_backend="gloo", **WINDOW, **changes)

        found = compare_resumed_runs(make, folder / name, (2, 5), lambda: torch.distributed.barrier())
        assert found == {2: [], 5: []}, name
    torch.distributed.destroy_process_group()
    os._exit(0)  # the end of the interpreter may abort in a thread of gloo


def resume_after_kills(model: str, folder: Path) -> None:
    """A run that is killed as the operating system does it, while it saves and within a step."""
    output = folder / "killed"

    def train(at: str = "", step: int = 0) -> Any:
        run = trainer("rlkd", model, output, **WINDOW)
        if at:
            _kill_at(run, at, step)
        run.train(resume_from_checkpoint=True)
        return run

    def compare() -> None:
        resumed = train()
        assert resumed._initial_global_step == 5
        whole = trainer("rlkd", model, folder / "whole", **WINDOW)
        whole.train()
        assert differences(result(resumed), result(whole)) == []

    def checkpoints() -> list[str]:
        return sorted(path.name for path in output.glob("checkpoint-*"))

    assert in_child(lambda: train("_save_rng_state", 4)) == -signal.SIGKILL
    assert checkpoints() == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert list(output.glob("_unfinished/checkpoint-4/*"))
    with (output / "checkpoint-3" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    assert in_child(lambda: train("training_step", 5)) == -signal.SIGKILL
    assert checkpoints() == [f"checkpoint-{step}" for step in range(1, 6)]
    assert (output / "earlier-1" / "checkpoint-3").exists()
    assert in_child(compare) == 0


def _kill_at(run: Any, method: str, step: int) -> None:
    """Have a run kill its process at the start of a method, once `step` optimizer steps are done."""
    original = getattr(run, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        if run.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(run, method, call)


def in_child(work: Callable[[], Any]) -> int:
    """Run something in a fork of this process; its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
