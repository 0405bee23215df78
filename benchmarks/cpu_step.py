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
import sys
import tempfile
import threading
import time
from collections import defaultdict
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
    harness.quiet()
    torch.set_num_threads(given.threads)
    rounds = 2 if given.quick else given.rounds
    prefill = timed_prefill()
    with tempfile.TemporaryDirectory(prefix="rlkd-cpu-step-") as folder:
        model = save_llama(f"{folder}/model") if given.quick else str(resolve_model("embedded-warm"))
        sizes = {"num_generations": 4, "max_completion_length": 12} if given.quick else {}
        arms = {name: Arm(name, model, Path(folder), rounds, given.threads, sizes) for name in ("trl", "ours")}
        for arm in arms.values():
            arm.step()  # with given completions
        equal = torch.equal(arms["trl"].rewards, arms["ours"].rewards)
        norms = {name: arm.trainer.state.log_history[0]["grad_norm"] for name, arm in arms.items()}
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for turn, results in enumerate(harness.in_turn({name: arm.step for name, arm in arms.items()}, rounds)):
            for name, parts in results.items():
                seconds[name].append(parts | ({"prefill": prefill.pop()} if name == "ours" else {}))
            shown = ", ".join(f"{name} {parts['step']:.2f} s" for name, parts in results.items())
            print(f"round {turn + 1:>2}: {shown}", flush=True)
        completions = arms["ours"].completions
    ratios = [trl["step"] / ours["step"] for trl, ours in zip(seconds["trl"], seconds["ours"], strict=True)]
    low, high = median_interval(ratios)
    print()
    parts: dict[str, dict[str, float]] = {}
    for name, found in seconds.items():
        parts[name] = {part: round(median(one.get(part, 0.0) for one in found), 3) for part in found[0]}
        print(f"{name:<5} " + ", ".join(f"{part} {value:.2f} s" for part, value in parts[name].items()))
    print(f"ours / TRL in completions per second: {median(ratios):.2f} ({low:.2f} to {high:.2f})")
    figures = {
        "completions_ratio": round(median(ratios), 3),
        "completions_ratio_interval": [round(bound, 3) for bound in (low, high)],
        "rewards_equal": equal,
        "grad_norm": {name: round(value, 6) for name, value in norms.items()},
        "completions_per_step": completions,
        "completions_per_s": {name: round(completions / values["step"], 3) for name, values in parts.items()},
        "seconds": parts,
        "threads": given.threads,
        "rounds": rounds,
    }
    return harness.report(figures, {"rewards_equal": equal, "ratio": given.quick or median(ratios) >= GOAL})


def timed_prefill() -> list[float]:
    """From now on, the seconds that `rlkd.decoding` spends on prompts."""
    seconds: list[float] = []
    read = decoding._read

    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        result = read(*args)
        seconds.append(time.perf_counter() - start)
        return result

    decoding._read = timed
    return seconds


class Arm:
    """A trainer in a thread, which takes one step at a time, and the seconds of its parts.

    In the first step the completions are given: parts of the teacher's traces, the same for every arm.
    """

    def __init__(self, name: str, model: str, folder: Path, rounds: int, threads: int, sizes: dict[str, Any]):
        ours = name == "ours"
        values = {"per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 40} | sizes
        values |= {"temperature": 0.9, "beta": 0.0, "max_steps": rounds + 1, "learning_rate": 1e-5}
        args = (RLKDConfig if ours else GRPOConfig)(**training_arguments(folder / name, **values))
        self.completions = args.per_device_train_batch_size
        self.trainer: Any = (RLKDTrainer if ours else GRPOTrainer)(
            model,
            reward_funcs=build_rewards(["accuracy", "structure"], {"structure": STRUCTURE}, cache=False),
            args=args,
            train_dataset=to_dataset(load_rows("mawps-sample")[:64], system_prompt=SYSTEM),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        self.trainer.remove_callback(PrinterCallback)
        self.rows: list[dict[str, Any]] = []
        self.rewards: torch.Tensor | None = None
        self.parts: dict[str, float] = defaultdict(float)
        for method, part in (("_generate_single_turn", "generation"), ("_calculate_rewards", "rewards")):
            setattr(self.trainer, method, self._timed(getattr(self.trainer, method), part))
        self.trainer.add_callback(self._turns())
        self.may_step, self.has_stepped = threading.Semaphore(0), threading.Semaphore(0)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._train, args=(threads,), daemon=True)
        self.thread.start()

    def step(self) -> dict[str, float]:
        """Take a step; returns the seconds of its parts."""
        self.parts.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        self.may_step.release()
        self.has_stepped.acquire()
        if self.error is not None:
            raise self.error
        found = {"step": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **self.parts}
        return found | {"training": found["step"] - found.get("generation", 0.0) - found.get("rewards", 0.0)}

    def _train(self, threads: int) -> None:
        torch.set_num_threads(threads)  # a setting of each thread
        try:
            self.trainer.train()
        except BaseException as error:
            self.error = error
        self.has_stepped.release()

    def _turns(self) -> TrainerCallback:
        arm = self

        class Turns(TrainerCallback):
            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                arm.may_step.acquire()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                arm.has_stepped.release()

        return Turns()

    def _timed(self, method: Any, part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            if part == "generation" and self.rewards is None:
                return self._given(args[0]), None
            result = method(*args, **kwargs)
            self.parts[part] += time.perf_counter() - start
            if part == "rewards" and self.rewards is None:
                self.rewards = result
            return result

        return call

    def _given(self, prompts: list[list[int]]) -> list[list[int]]:
        tokenizer = self.trainer.processing_class
        traces = {}
        for row in self.trainer.train_dataset:
            [ids] = self.trainer._tokenize_prompts([row["prompt"]])[0]
            traces[tuple(ids)] = tokenizer(row["rationales"][0])["input_ids"]
        lengths = [(5 * index) % self.trainer.max_completion_length + 1 for index in range(len(prompts))]
        return [
            [*traces[tuple(prompt)][: length - 1], tokenizer.eos_token_id]
            for prompt, length in zip(prompts, lengths, strict=True)
        ]


if __name__ == "__main__":
    sys.exit(main())
