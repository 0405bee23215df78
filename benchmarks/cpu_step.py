"""Completions per second through a whole step of RLKD on a CPU, ours over TRL's GRPOTrainer.

    python benchmarks/cpu_step.py                # SmolLM2-135M, short MAWPS answers: about ten minutes
    python benchmarks/cpu_step.py --threads 2    # on two cores
    python benchmarks/cpu_step.py --quick        # a random tiny model

Both trainers have the same rewards, prompts, adapter, seed and sizes, and take steps in turns. Their completions are
drawn by the same distribution, but not the same ones. `completions_ratio` is the median of the ratios of the rounds.
The first step of each trainer is not counted: its completions are given, the same for both, and `rewards_equal` says
whether their rewards are the same; the norms of the gradient stand next to it.

The seconds per part: `generation` (of it `prefill` for ours), `rewards`, and `training`, which is everything else of a
step: forward and backward pass, and the optimizer. `cpu` is the CPU time of the whole step.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewards import build_rewards
from rlkd import decoding
from rlkd.data.loading import load_rows, to_dataset
from rlkd.models import resolve_model
from rlkd.statistics import median_interval
from tiny import save_llama, training_arguments
from trainers import RLKDConfig, RLKDTrainer

SYSTEM = 'Solve the problem in short lines, one calculation a line. The last line is "####" and the number.'
STRUCTURE = {"decomposer": "rules", "level": "equation", "alignment": "ordered"}
GOAL = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure a whole step on a CPU against TRL.")
    parser.add_argument("--rounds", type=int, default=6, help="steps of each trainer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    given = harness.parse(parser, quick="two rounds on a random tiny model")
    rounds = 2 if given.quick else given.rounds
    with tempfile.TemporaryDirectory(prefix="rlkd-cpu-step-") as folder:
        model = save_llama(f"{folder}/model") if given.quick else str(resolve_model("embedded-warm"))
        sizes = {"num_generations": 4, "max_completion_length": 12} if given.quick else {}
        arms = {name: SteppedTrainer(name, model, folder, rounds, given.threads, sizes) for name in ("trl", "ours")}
        first = {name: arm.step() for name, arm in arms.items()}  # with given completions
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for turn, results in enumerate(harness.in_turn({name: arm.step for name, arm in arms.items()}, rounds)):
            for name, result in results.items():
                seconds[name].append(result["seconds"])
            shown = ", ".join(f"{name} {result['seconds']['step']:.2f} s" for name, result in results.items())
            print(f"round {turn + 1:>2}: {shown}", flush=True)
        for arm in arms.values():
            arm.close()
    print()
    parts: dict[str, dict[str, float]] = {}
    for name, found in seconds.items():
        parts[name] = {part: round(median(one[part] for one in found), 3) for part in found[0]}
        print(f"{name:<5} " + ", ".join(f"{part} {value:.2f} s" for part, value in parts[name].items()))
    figures: dict[str, Any] = {}
    for part, label in (("step", "completions_ratio"), ("cpu", "completions_ratio_cpu")):
        ratios = [trl[part] / ours[part] for trl, ours in zip(seconds["trl"], seconds["ours"], strict=True)]
        low, high = median_interval(ratios)
        print(f"{label}: {median(ratios):.2f} ({low:.2f} to {high:.2f})")
        figures |= {label: round(median(ratios), 3), f"{label}_interval": [round(low, 3), round(high, 3)]}
    count = first["ours"]["completions"]
    equal = first["trl"]["rewards"] == first["ours"]["rewards"]
    figures |= {
        "rewards_equal": equal,
        "grad_norm": {name: round(result["grad_norm"], 6) for name, result in first.items()},
        "completions_per_step": count,
        "completions_per_s": {name: round(count / values["step"], 3) for name, values in parts.items()},
        "seconds": parts,
        "threads": given.threads,
        "rounds": rounds,
    }
    enough = given.quick or figures["completions_ratio"] >= GOAL
    return harness.report(figures, {"rewards_equal": equal, f"completions_ratio >= {GOAL:g}": enough})


class SteppedTrainer:
    """A trainer in a process of its own, which takes one step at a time."""

    def __init__(self, *arguments: Any):
        processes = multiprocessing.get_context("spawn")
        self.pipe, other = processes.Pipe()
        self.process = processes.Process(target=serve, args=(other, *arguments), daemon=True)
        self.process.start()
        other.close()

    def step(self) -> dict[str, Any]:
        """Take a step; returns what it took and found. Raises EOFError where the process has ended."""
        self.pipe.send("step")
        result: dict[str, Any] = self.pipe.recv()
        return result

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.join()


def serve(
    pipe: Any, name: str, model: str, folder: str, rounds: int, threads: int, sizes: dict[str, Any]
) -> None:  # in the process of an arm
    harness.quiet()
    torch.set_num_threads(threads)
    ours = name == "ours"
    values = {"per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 40} | sizes
    values |= {"temperature": 0.9, "beta": 0.0, "max_steps": rounds + 1, "learning_rate": 1e-5}
    args = (RLKDConfig if ours else GRPOConfig)(**training_arguments(Path(folder) / name, **values))
    trainer: Any = (RLKDTrainer if ours else GRPOTrainer)(
        model,
        reward_funcs=build_rewards(["accuracy", "structure"], {"structure": STRUCTURE}, cache=False),
        args=args,
        train_dataset=to_dataset(load_rows("mawps-sample")[:64], system_prompt=SYSTEM),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepTimes(trainer, pipe))
    trainer.train()


class StepTimes(TrainerCallback):
    """Begins a step when asked to, and tells what it took and found.

    In the first step the completions are given: parts of the teacher's traces, the same for every arm.
    """

    def __init__(self, trainer: Any, pipe: Any):
        self.trainer, self.pipe = trainer, pipe
        self.seconds: dict[str, float] = {}
        self.rewards: Any = None
        self._timed(trainer, "_generate_single_turn", "generation")
        self._timed(trainer, "_calculate_rewards", "rewards")
        self._timed(decoding, "_read", "prefill")

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the turn."""
        self.pipe.recv()
        self.seconds = dict.fromkeys(("step", "cpu", "generation", "prefill", "rewards", "training"), 0.0)
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the time."""
        seconds = self.seconds
        seconds["step"] = time.perf_counter() - self.start[0]
        seconds["cpu"] = time.process_time() - self.start[1]
        seconds["training"] = seconds["step"] - seconds["generation"] - seconds["rewards"]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send the figures of the step."""
        if "grad_norm" in logs:
            found = {"grad_norm": logs["grad_norm"], "completions": args.per_device_train_batch_size}
            self.pipe.send({"seconds": self.seconds, "rewards": self.rewards, **found})

    def _timed(self, owner: Any, name: str, part: str) -> None:
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if part == "generation" and self.trainer.state.global_step == 0:
                return self._given(args[0]), None
            start = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            if part == "rewards":
                self.rewards = result.tolist()
            return result

        setattr(owner, name, call)

    def _given(self, prompts: list[list[int]]) -> list[list[int]]:
        trainer = self.trainer
        tokenizer = trainer.processing_class
        traces = {}
        for row in trainer.train_dataset:
            [ids] = trainer._tokenize_prompts([row["prompt"]])[0]
            traces[tuple(ids)] = tokenizer(row["rationales"][0])["input_ids"]
        lengths = [(5 * index) % trainer.max_completion_length + 1 for index in range(len(prompts))]
        return [
            [*traces[tuple(prompt)][: length - 1], tokenizer.eos_token_id]
            for prompt, length in zip(prompts, lengths, strict=True)
        ]


if __name__ == "__main__":
    sys.exit(main())
