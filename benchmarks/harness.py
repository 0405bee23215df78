"""What the benchmarks share: one quiet thread, arms that take turns, CPU-seconds, child processes, the last line.

Import it before torch and huggingface_hub: it restricts the process to one thread and keeps it off the hub.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rlkd.statistics import median_interval

T = TypeVar("T")
NOISE_LIMIT = 0.02


# Command line and report


def parse(
    parser: argparse.ArgumentParser, *, quick: str, child: Callable[[Any], Any] | None = None
) -> argparse.Namespace:
    """The arguments, with `--quick`. In a process that `in_child` started, do its task and exit instead."""
    parser.add_argument("--quick", action="store_true", help=f"{quick}: a smoke test, its figures are not quoted")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if child and given.child:
        result = child(json.loads((given.child / "task.json").read_text()))
        if os.environ.get("RANK", "0") == "0":
            (given.child / "result.json").write_text(json.dumps(result))
        if "RANK" in os.environ:
            os._exit(0)  # threads of gloo can abort the interpreter as it ends
        sys.exit()
    return given


def report(figures: Mapping[str, Any], bounds: Mapping[str, bool]) -> int:
    """Print the figures as the last line; return the exit status, 1 with the names of bounds that do not hold."""
    broken = [name for name, holds in bounds.items() if not holds]
    if broken:
        print(f"out of bounds: {', '.join(broken)}", file=sys.stderr)
    print(json.dumps(figures))
    return int(bool(broken))


def in_child(task: Any, *, processes: int = 1, **environment: str) -> Any:
    """The result of `child` (see `parse`) for a task, from a new process of this script; both are JSON.

    `processes`: several that torch's launcher starts, whose results are equal. Raises RuntimeError with the end of
    its stderr if it fails.
    """
    script = sys.modules["__main__"].__file__
    with tempfile.TemporaryDirectory(prefix="rlkd-benchmark-") as name:
        folder = Path(name)
        (folder / "task.json").write_text(json.dumps(task))
        with (folder / "log.txt").open("wb") as log:
            # Into a file: a process that outlives its parent would keep a pipe open.
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
            command = [sys.executable, *(launcher if processes > 1 else []), str(script), "--child", name]
            done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | environment)
        if done.returncode:
            tail = (folder / "log.txt").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"status {done.returncode} (-9: it was out of memory) for {str(task)[:500]}\n{tail}")
        return json.loads((folder / "result.json").read_text())


# Measuring


def quiet() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def in_turn(arms: Mapping[str, Callable[[], T]], rounds: int) -> Iterator[dict[str, T]]:
    """Call every arm once in each round, in an order that changes: each stands in each position equally often."""
    names = list(arms)
    rotations = [names[i:] + names[:i] for i in range(len(names))]
    orders = list(itertools.permutations(names)) if len(names) <= 3 else rotations
    for turn in range(rounds):
        results = {name: arms[name]() for name in orders[turn % len(orders)]}
        yield {name: results[name] for name in names}


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """A result, and the seconds of wall clock and of CPU time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def reset_peak() -> float:
    """The resident memory in MiB; `peak_mib` counts from here on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak_mib() -> float:
    """The greatest resident memory of this process so far, in MiB."""
    try:
        return _memory("VmHWM")  # `getrusage` would count what the parent held before this program was loaded
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


def _memory(name: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


# Trainers against stock trainers


def stock_size(parser: argparse.ArgumentParser) -> tuple[int, int, bool]:
    """Rounds, steps and `--quick` of a `StockComparison`, from the command line."""
    parser.add_argument("--rounds", type=int, default=18, help="rounds of all arms (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps per round and arm (default: %(default)s)")
    given = parse(parser, quick="1 round of 2 steps")
    return (1, 2, True) if given.quick else (given.rounds, given.steps, False)


def train(trainer: Any) -> tuple[float, list[Any]]:
    """Train; return the CPU-seconds of `train()` and the parameters after it."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # every arm would print its logs
    gc.collect()
    _, _, seconds = timed(trainer.train)
    return seconds, [parameter.detach().clone() for parameter in trainer.model.parameters()]


class StockComparison:
    """CPU-seconds of trainers, in rounds, against the arms `stock A` and `stock B`, which are the same twice."""

    def __init__(self, arms: Mapping[str, Callable[[], tuple[float, list[Any]]]], rounds: int, steps: int):
        self.arms, self.rounds, self.steps = arms, rounds, steps
        self.seconds: dict[str, list[float]] = {name: [] for name in arms}

    def run(self) -> Iterator[dict[str, list[Any]]]:
        """Train all arms in every round; yield the parameters they end with. The first round only warms up."""
        for turn, results in enumerate(in_turn(self.arms, self.rounds + 1)):
            if turn:
                for name, (seconds, _) in results.items():
                    self.seconds[name].append(seconds)
                shown = ", ".join(f"{name} {seconds / self.steps:.3f}" for name, (seconds, _) in results.items())
                print(f"round {turn:>2}: {shown} CPU-s per step", flush=True)
            yield {name: parameters for name, (_, parameters) in results.items()}

    @property
    def stock(self) -> list[float]:
        """The mean of both stock arms in each round."""
        return [(a + b) / 2 for a, b in zip(self.seconds["stock A"], self.seconds["stock B"], strict=True)]

    def figures(self, quick: bool) -> dict[str, Any]:
        """Print each arm's ratio to the stock trainer with its interval; return those that the last line has."""
        ratios = {
            f"{name} / stock": [one / both for one, both in zip(values, self.stock, strict=True)]
            for name, values in self.seconds.items()
            if not name.startswith("stock")
        }
        pairs = zip(self.seconds["stock A"], self.seconds["stock B"], strict=True)
        ratios["stock B / A"] = [b / a for a, b in pairs]
        noise = median(ratios["stock B / A"])
        counts = abs(noise - 1) <= NOISE_LIMIT and not quick
        print()
        for label, values in ratios.items():
            low, high = median_interval(values)
            print(f"{label:<17}  {median(values):.4f}   ({low:.4f} to {high:.4f})")
        print(f"counts             {counts} (needs stock against stock within {NOISE_LIMIT:.0%}, at full size)")
        return {
            "step_ratio": round(median(ratios["ours / stock"]), 4),
            "step_ratio_interval": [round(bound, 4) for bound in median_interval(ratios["ours / stock"])],
            "stock_ratio": round(noise, 4),
            **{
                f"{name}_ratio": round(median(ratios[f"{name} / stock"]), 4)
                for name in self.seconds
                if name not in ("ours", "stock A", "stock B")
            },
            "counts": counts,
            "stock_step_cpu_s": round(median(self.stock) / self.steps, 3),
            "rounds": self.rounds,
            "steps": self.steps,
        }
