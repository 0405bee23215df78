"""What RLKDTrainer costs over TRL's GRPOTrainer where both do the same work.

    python benchmarks/trainer_overhead.py            # 18 rounds of 4 steps, about three minutes
    python benchmarks/trainer_overhead.py --quick    # 3 rounds of 2 steps

Compared: three arms with the same model, data, seed and deterministic reward.

    stock A, stock B    trl.GRPOTrainer, twice; what differs between them is noise
    ours                RLKDTrainer with its defaults: reward outcomes, save_rollouts, metrics.jsonl

All arms run in one process on one thread, interleaved, in an order that changes from round to round. A round trains a
fresh trainer of each arm; what counts is the CPU time (user + system, all threads) of `trainer.train()`, so that
building the trainers stays out and another load on the machine matters little. The model is random and small, so that
a step takes about half a CPU-second: a fixed cost a step shows more than it would beside a model worth training.

Printed: the median over the rounds of ours / stock, where stock is the mean of A and B; the same for B / A, which
says how far to believe it (the figure counts where that is within 2 % of 1); a 95 % interval of each; our extra cost a
step; and whether all arms end with the same parameters, bit for bit. Exits with 1 if they do not.
"""

import os

# One thread, and no hub: before torch and huggingface_hub are imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import gc
import itertools
import json
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
from trl import GRPOConfig, GRPOTrainer

from rlkd.statistics import median_interval
from trainers import RLKDConfig, RLKDTrainer

ARMS = {"stock A": (GRPOTrainer, GRPOConfig), "stock B": (GRPOTrainer, GRPOConfig), "ours": (RLKDTrainer, RLKDConfig)}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NOISE_LIMIT = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure RLKDTrainer against GRPOTrainer.")
    parser.add_argument(
        "--quick", action="store_true", help="3 rounds of 2 steps: a smoke test, its figures say little"
    )
    parser.add_argument("--rounds", type=int, default=18, help="rounds of all arms; 6 orders (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a round and arm (default: %(default)s)")
    given = parser.parse_args()
    rounds, steps = (3, 2) if given.quick else (given.rounds, given.steps)

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    reference: list[torch.Tensor] | None = None
    equal = True
    with tempfile.TemporaryDirectory(prefix="rlkd-overhead-") as folder:
        model = save_model(Path(folder) / "model")
        before = [p.detach().clone() for p in LlamaForCausalLM.from_pretrained(model).parameters()]
        rows = questions()
        orders = list(itertools.permutations(ARMS))
        # Round 0 warms up: its times are not used, its parameters are.
        for turn in range(rounds + 1):
            spent = {}
            for name in orders[turn % len(orders)]:
                output = Path(folder) / f"{name.replace(' ', '-')}-{turn}"
                spent[name], parameters = train(*ARMS[name], model, rows, output, steps)
                reference = reference or parameters
                equal &= all(torch.equal(one, other) for one, other in zip(reference, parameters, strict=True))
            if turn == 0:
                continue
            for name, value in spent.items():
                seconds[name].append(value)
            print(f"round {turn:>2}: " + ", ".join(f"{n} {spent[n] / steps:.3f}" for n in ARMS) + " CPU-s a step")
        assert reference is not None
        moved = not all(torch.equal(one, other) for one, other in zip(before, reference, strict=True))

    stock = [(a + b) / 2 for a, b in zip(seconds["stock A"], seconds["stock B"], strict=True)]
    ours_to_stock = [ours / both for ours, both in zip(seconds["ours"], stock, strict=True)]
    b_to_a = [b / a for a, b in zip(seconds["stock A"], seconds["stock B"], strict=True)]
    extra_ms = [(ours - both) / steps * 1000 for ours, both in zip(seconds["ours"], stock, strict=True)]
    stock_ratio = median(b_to_a)
    counts = abs(stock_ratio - 1) <= NOISE_LIMIT and not given.quick
    print()
    for label, ratios in (("ours / stock", ours_to_stock), ("stock B / A", b_to_a)):
        low, high = median_interval(ratios)
        print(f"{label:<15}  {median(ratios):.4f}   ({low:.4f} to {high:.4f})")
    print(f"extra a step     {median(extra_ms):.1f} ms of CPU time")
    print(f"same parameters  {equal}, after {steps} steps that {'changed' if moved else 'did NOT change'} them")
    print(f"counts           {counts} (needs stock against stock within {NOISE_LIMIT:.0%}, at full size)")
    figures = {
        "step_ratio": round(median(ours_to_stock), 4),
        "step_ratio_interval": [round(bound, 4) for bound in median_interval(ours_to_stock)],
        "stock_ratio": round(stock_ratio, 4),
        "counts": counts,
        "extra_ms_per_step": round(median(extra_ms), 2),
        "stock_step_cpu_s": round(median(stock) / steps, 3),
        "parameters_equal": equal and moved,
        "rounds": rounds,
        "steps": steps,
    }
    print(json.dumps(figures))
    return 0 if equal and moved else 1


def train(
    trainer_class: Any, config_class: Any, model: str, rows: Dataset, output: Path, steps: int
) -> tuple[float, list[torch.Tensor]]:
    """Train a fresh trainer; return the CPU-seconds of `train()` and the parameters after it."""
    args = config_class(
        output_dir=str(output),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=64,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=7,
    )
    trainer = trainer_class(model, reward_funcs=letters, args=args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # both would print their logs
    gc.collect()
    start = time.process_time()
    trainer.train()
    spent = time.process_time() - start
    return spent, [parameter.detach().clone() for parameter in trainer.model.parameters()]


def letters(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that depends on the text only, and differs within a group: a constant one would train nothing."""
    return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


def questions() -> Dataset:
    """Sixteen sums as chats, with an answer column."""
    rows = [{"a": 17 * i + 3, "b": 5 * i + 11} for i in range(16)]
    prompts = [
        [{"role": "user", "content": f"Ann has {r['a']} shells and finds {r['b']} more. How many are there?"}]
        for r in rows
    ]
    return Dataset.from_dict({"prompt": prompts, "answer": [str(r["a"] + r["b"]) for r in rows]})


def save_model(folder: Path) -> str:
    """A random Llama of 4 layers over single bytes (3 million parameters), with its tokenizer; returns the folder."""
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
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
