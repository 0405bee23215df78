"""What ValidityKDTrainer costs over TRL's DistillationTrainer: at weight 1, where both do the same work, and weighing.

    python benchmarks/kd_step.py            # 18 rounds of 4 steps, about five minutes
    python benchmarks/kd_step.py --quick    # 3 rounds of 2 steps

Compared: arms with the same model, teacher, data and seed, on the student's rollouts (`lmbda: 1`).

    stock A, stock B    trl.DistillationTrainer, twice; what differs between them is noise
    ours                ValidityKDTrainer with `control: uniform`: weight 1 everywhere
    weighing            ValidityKDTrainer with its defaults, likelihood weights (not part of `step_ratio`)

All arms run in one process on one thread, interleaved, in an order that changes from round to round. A round trains a
fresh trainer of each arm; what counts is the CPU time (user + system, all threads) of `trainer.train()`, so that
building the trainers stays out and another load on the machine matters little. The models are random and small, with a
vocabulary of 8,192, so that the divergence has its share of a step.

Printed: the median over the rounds of ours / stock, where stock is the mean of A and B; the same for B / A, which
says how far to believe it (the figure counts where that is within 2 % of 1); what weighing adds; a 95 % interval of
each; and how far the parameters of ours are from TRL's. Exits with 1 if they are further than 1e-3 of what was learnt.
"""

import os

# One thread, and no hub: before torch and huggingface_hub are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import gc
import json
import math
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import DistillationConfig, DistillationTrainer

from rlkd.statistics import median_interval
from trainers import ValidityKDConfig, ValidityKDTrainer

ARMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "stock A": (DistillationTrainer, DistillationConfig, {}),
    "stock B": (DistillationTrainer, DistillationConfig, {}),
    "ours": (ValidityKDTrainer, ValidityKDConfig, {"lmbda": 1.0, "control": "uniform"}),
    "weighing": (ValidityKDTrainer, ValidityKDConfig, {"lmbda": 1.0}),
}
NOISE_LIMIT = 0.02
VOCABULARY = 8192


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure ValidityKDTrainer against DistillationTrainer.")
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds of 2 steps: a smoke test, its figures say little"
    )
    parser.add_argument("--rounds", type=int, default=18, help="rounds of all arms (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a round and arm (default: %(default)s)")
    given = parser.parse_args()
    rounds, steps = (3, 2) if given.quick else (given.rounds, given.steps)

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    names = list(ARMS)
    distance = 0.0
    with tempfile.TemporaryDirectory(prefix="rlkd-kd-step-") as folder:
        student = save_model(Path(folder) / "student", hidden=256, layers=4, seed=0)
        teacher = save_model(Path(folder) / "teacher", hidden=384, layers=6, seed=1)
        before = [p.detach().clone() for p in LlamaForCausalLM.from_pretrained(student).parameters()]
        rows = questions()
        # Round 0 warms up: its times are not used, its parameters are.
        for turn in range(rounds + 1):
            spent, ends = {}, {}
            # Each arm stands in each place equally often.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                output = Path(folder) / f"{name.replace(' ', '-')}-{turn}"
                spent[name], ends[name] = train(*ARMS[name], student, teacher, rows, output, steps)
            learnt = gap(before, ends["stock A"])
            distance = max(distance, gap(ends["stock A"], ends["ours"]) / learnt)
            if turn == 0:
                continue
            for name, value in spent.items():
                seconds[name].append(value)
            print(f"round {turn:>2}: " + ", ".join(f"{n} {spent[n] / steps:.3f}" for n in ARMS) + " CPU-s a step")

    stock = [(a + b) / 2 for a, b in zip(seconds["stock A"], seconds["stock B"], strict=True)]
    ratios = {
        "ours / stock": [ours / both for ours, both in zip(seconds["ours"], stock, strict=True)],
        "weighing / stock": [ours / both for ours, both in zip(seconds["weighing"], stock, strict=True)],
        "stock B / A": [b / a for a, b in zip(seconds["stock A"], seconds["stock B"], strict=True)],
    }
    stock_ratio = median(ratios["stock B / A"])
    counts = abs(stock_ratio - 1) <= NOISE_LIMIT and not given.quick
    print()
    for label, values in ratios.items():
        low, high = median_interval(values)
        print(f"{label:<17}  {median(values):.4f}   ({low:.4f} to {high:.4f})")
    print(f"parameters         differ from TRL's by {distance:.2g} of what {steps} steps changed")
    print(f"counts             {counts} (needs stock against stock within {NOISE_LIMIT:.0%}, at full size)")
    figures = {
        "step_ratio": round(median(ratios["ours / stock"]), 4),
        "step_ratio_interval": [round(bound, 4) for bound in median_interval(ratios["ours / stock"])],
        "stock_ratio": round(stock_ratio, 4),
        "weighing_ratio": round(median(ratios["weighing / stock"]), 4),
        "counts": counts,
        "stock_step_cpu_s": round(median(stock) / steps, 3),
        "parameter_gap": float(f"{distance:.2g}"),
        "rounds": rounds,
        "steps": steps,
    }
    print(json.dumps(figures))
    return 0 if distance < 1e-3 else 1


def train(
    trainer_class: Any,
    config_class: Any,
    settings: dict[str, Any],
    student: str,
    teacher: str,
    rows: Dataset,
    output: Path,
    steps: int,
) -> tuple[float, list[torch.Tensor]]:
    """Train a fresh trainer; return the CPU-seconds of `train()` and the parameters after it."""
    args = config_class(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        max_completion_length=48,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
        beta=0.5,
        # Adam's first steps have the size of the learning rate whatever the gradient, which would blow up rounding.
        optim="sgd",
        **settings,
    )
    trainer = trainer_class(student, teacher, args=args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # all would print their logs
    gc.collect()
    start = time.process_time()
    trainer.train()
    spent = time.process_time() - start
    return spent, [parameter.detach().clone() for parameter in trainer.model.parameters()]


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The distance of two sets of parameters."""
    return math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True)))


def questions() -> Dataset:
    """Sixteen sums, with an answer column."""
    rows = [{"a": 17 * i + 3, "b": 5 * i + 11} for i in range(16)]
    prompts = [f"Ann has {r['a']} shells and finds {r['b']} more. How many are there?" for r in rows]
    return Dataset.from_dict({"prompt": prompts, "answer": [str(r["a"] + r["b"]) for r in rows]})


def save_model(folder: Path, *, hidden: int, layers: int, seed: int) -> str:
    """A random Llama over single bytes and many made-up words; returns the folder."""
    special = ["<|pad|>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġw{i}" for i in range(VOCABULARY - len(special) - len(alphabet))]
    vocabulary = {token: i for i, token in enumerate(special + alphabet + words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
