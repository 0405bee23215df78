"""The loss of a teacher with another tokenizer against that of TRL's experimental GOLD: what is learnt, and time.

    python benchmarks/cross_tokenizer.py                          # 4 pairs of tokenizers, 4 seeds: 10 CPU-minutes
    python benchmarks/cross_tokenizer.py --pair words --seeds 1   # half a minute of that
    python benchmarks/cross_tokenizer.py --quick                  # 10 steps, 1 seed

A teacher of 360 byte-level BPE tokens learns generated sums from their texts. A student with other tokens
(`student_of`) then learns from it by each loss on the same texts, from one start, with one optimizer. What was learnt
is the student's negative log-likelihood on other sums, in nats per character, without the end token, which GOLD leaves
out by default. The losses differ in scale: only the likelihoods compare. The arms:

- `ours`: the divergence on spans, forward KL;
- `gold_bayesian`, `gold_observed`: GOLD's hybrid loss with forward KL, by its way to merge tokens;
- `text`: the likelihood of the texts, without a teacher;
- `gold_matched`, `gold_unmatched`, for bytes: one of the two terms of `gold_bayesian` alone.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import itertools
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlkd.divergence import Divergence
from rlkd.statistics import crossed_mean
from tiny import byte_tokenizer, save_llama
from trainers.common.token_spans import token_spans
from trainers.teachers.batches import padded_batch
from trainers.teachers.models import head_of
from trainers.teachers.span_teacher import SpanTeacher

PROMPT = "Sum:"
ROWS = 16
PAIRS = ("same", "words", "digits", "bytes")
ITEMS = ("apples", "pears", "pieces of fruit")
OTHER_ITEMS = (("figs", "plums", "fruits"), ("dogs", "cats", "animals"), ("cups", "plates", "dishes"))
Loss = Callable[[Any, Sequence[str]], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the loss on spans with TRL's GOLD.")
    parser.add_argument("--pair", choices=PAIRS, help="one pair of tokenizers (default: each in turn)")
    parser.add_argument("--seeds", type=int, default=4, help="number of seeds (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="that of AdamW (default: %(default)s)")
    parser.add_argument("--beta", type=float, default=0.0, help="0: forward KL, 1: reverse KL (default: %(default)s)")
    given = harness.parse(parser, quick="10 steps of each, one seed")
    harness.quiet()
    warnings.filterwarnings("ignore")
    steps, seeds = (10, 1) if given.quick else (150, given.seeds)
    figures: dict[str, Any] = {"steps": steps, "seeds": seeds}
    bounds = {}
    for pair in [given.pair] if given.pair else PAIRS:
        runs = [one_seed(pair, seed, steps, given.learning_rate, given.beta) for seed in range(seeds)]
        figures[pair] = of_seeds(runs)
        learnt = {arm: figures[pair][arm]["nats_per_character"] for arm in ("start", "ours", "gold_bayesian")}
        bounds[f"ours learns from {pair}"] = learnt["ours"] < learnt["start"]
        if pair != "bytes":
            bounds[f"GOLD learns from {pair}"] = learnt["gold_bayesian"] < learnt["start"]
    return harness.report(figures, bounds)


def one_seed(pair: str, seed: int, steps: int, learning_rate: float, beta: float) -> dict[str, Any]:
    """The figures of each arm with one teacher and one start of the student."""
    held_out = [sums(number) for number in range(10**6, 10**6 + 64)]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rlkd-cross-") as folder:
        own, other = student_of(pair), teachers_own()
        start = save_llama(f"{folder}/student", own, hidden_size=64, seed=2 * seed)
        teacher = AutoModelForCausalLM.from_pretrained(
            save_llama(f"{folder}/teacher", other, hidden_size=96, seed=2 * seed + 1)
        )
        fit(teacher, lambda model, texts: likelihood(model, other, texts), training(seed, held_out), 2 * steps, 3e-3)
        teacher.eval().requires_grad_(False)
        figures["vocabularies"] = {
            "student": len(own),
            "teacher": len(other),
            "shared": len(set(own.get_vocab()) & set(other.get_vocab())),
        }
        figures["teacher"] = measure(teacher, other, own, held_out)
        figures["start"] = measure(AutoModelForCausalLM.from_pretrained(start), own, other, held_out)

        def gold_of(merge: str = "bayesian", **settings: Any) -> Loss:
            return gold(own, other, teacher, uld_token_merge_strategy=merge, beta=beta, **settings)

        losses = {
            "ours": ours(own, other, teacher, beta),
            "gold_bayesian": gold_of(),
            "gold_observed": gold_of("observed"),
            "text": lambda model, texts: likelihood(model, own, texts) / sum(map(len, texts)),
        }
        if pair == "bytes":
            losses["gold_matched"] = gold_of(uld_hybrid_matched_weight=1.0, uld_hybrid_unmatched_weight=0.0)
            losses["gold_unmatched"] = gold_of(uld_hybrid_matched_weight=0.0, uld_hybrid_unmatched_weight=1.0)
        for arm, loss in losses.items():
            student = AutoModelForCausalLM.from_pretrained(start)
            first, last, seconds = fit(student, loss, training(seed, held_out), steps, learning_rate)
            figures[arm] = measure(student, own, other, held_out) | {"first": first, "last": last, "seconds": seconds}
            learnt = mean(figures[arm]["rows"])
            print(
                f"{pair} seed {seed}  {arm:14}  loss {first:8.4f} -> {last:8.4f}  {learnt:7.3f} nats per character",
                flush=True,
            )
    return figures


def of_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each arm over the seeds: means, with 95 % intervals over seeds and held-out texts, which are crossed."""
    figures: dict[str, Any] = {"vocabularies": runs[0]["vocabularies"]}
    ours_SR = np.array([run["ours"]["rows"] for run in runs])
    print("\n                nats per character          minus ours                  unshared   CPU-seconds")
    for arm in list(runs[0])[1:]:
        rows_SR = np.array([run[arm]["rows"] for run in runs])
        learnt, minus_ours = crossed_mean(rows_SR), crossed_mean(rows_SR - ours_SR)
        assert learnt is not None
        assert minus_ours is not None
        figures[arm] = {
            "nats_per_character": round(learnt.value, 4),
            "interval": [round(learnt.low, 4), round(learnt.high, 4)],
            "minus_ours": [round(value, 4) for value in (minus_ours.value, minus_ours.low, minus_ours.high)],
            "by_seed": [round(float(value), 4) for value in rows_SR.mean(1)],
            "unshared": round(mean(run[arm]["unshared"] for run in runs), 4),
        }
        if "seconds" in runs[0][arm]:
            for key in ("first", "last", "seconds"):
                figures[arm][key] = round(mean(run[arm][key] for run in runs), 5)
        print(
            f"{arm:14}  {learnt.short():26}  {minus_ours.short():26}  {figures[arm]['unshared']:8.3f}"
            f"   {figures[arm].get('seconds', ''):>11}"
        )
    figures["time_ratio"] = round(figures["ours"]["seconds"] / figures["gold_bayesian"]["seconds"], 2)
    print(f"time of ours / gold_bayesian {figures['time_ratio']}\n", flush=True)
    return figures


def sums(number: int, items: tuple[str, str, str] = ITEMS) -> str:
    """A generated sum in words and digits."""
    random = torch.Generator().manual_seed(number)
    a, b = torch.randint(1, 50, (2,), generator=random).tolist()
    first, second, together = items
    return f" {a} {first} and {b} {second} are {a + b} {together}."


def training(seed: int, held_out: Sequence[str]) -> Iterator[str]:
    """Sums without end, none of them held out."""
    drawn = (sums(1000 + 10**5 * seed + number) for number in itertools.count())
    return (text for text in drawn if text not in held_out)


def student_of(pair: str) -> PreTrainedTokenizerFast:
    """The student's tokenizer: the `same`, BPE of these and other `words`, that with single `digits`, or `bytes`.

    But for the first, each vocabulary has tokens that the other lacks, if only special ones.
    """
    if pair == "same":
        return teachers_own()
    if pair == "bytes":
        return byte_tokenizer()
    texts = [sums(number, items) for items in (ITEMS, *OTHER_ITEMS) for number in range(32)]
    return words(texts, special=("<pad>", "<end>"), digits=pair == "digits")


def teachers_own() -> PreTrainedTokenizerFast:
    return words([sums(number) for number in range(64)])


def words(
    texts: Sequence[str], special: tuple[str, str] = ("<s>", "</s>"), digits: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of up to 400 entries. `digits`: each digit is a token."""
    made = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=special[0], eos_token=special[1])


def batch_of(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    completions = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    return padded_batch([prompt] * len(texts), completions, tokenizer.pad_token_id, "cpu")


def hidden_states(model: Any, batch: Any) -> Tensor:
    """The head's input at the completion's tokens, [B, C, H]."""
    ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    return model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, batch["prompt_ids"].shape[1] - 1 : -1]


def likelihood(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The negative log-likelihood of the texts, a sum."""
    batch = batch_of(tokenizer, texts)
    logprobs = model.lm_head(hidden_states(model, batch)).log_softmax(-1)
    taken = logprobs.gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    return -(taken * batch["completion_mask"]).sum()


@torch.no_grad()
def measure(model: Any, tokenizer: Any, of_other: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Per text the negative log-likelihood per character without the end token (`rows`), and the mean probability, at
    the tokens of the texts, of all tokens that the other tokenizer lacks (`unshared`)."""
    batch = batch_of(tokenizer, texts)
    logprobs = model.lm_head(hidden_states(model, batch)).log_softmax(-1)
    taken = logprobs.gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    written = batch["completion_mask"].bool() & (batch["completion_ids"] != tokenizer.eos_token_id)
    lengths = torch.tensor([len(text) for text in texts])
    shared = of_other.get_vocab()
    alone = torch.tensor([i for token, i in tokenizer.get_vocab().items() if token not in shared], dtype=torch.long)
    return {
        "rows": (-(taken * written).sum(1) / lengths).tolist(),
        "unshared": logprobs.exp()[..., alone].sum(-1)[written].mean().item(),
    }


def fit(model: Any, loss: Loss, texts: Iterator[str], steps: int, learning_rate: float) -> tuple[float, float, float]:
    """The first and the last loss, and CPU-seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    values = []
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, list(itertools.islice(texts, ROWS)))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(value.item())
    return round(values[0], 5), round(values[-1], 5), round(time.process_time() - start, 2)


def ours(own: Any, other: Any, teacher: Any, beta: float) -> Loss:
    spans = SpanTeacher(
        teacher,
        lambda batch: hidden_states(teacher, batch),
        (own, other),
        student_ends={own.eos_token_id},
        ends=(own.eos_token_id, other.eos_token_id),
        student_rows=len(own),
        k=64,
        temperature=1.0,
        rows=ROWS,
    )

    def loss(model: Any, texts: Sequence[str]) -> Tensor:
        batch = batch_of(own, texts)
        told = batch_of(other, texts)
        batch |= {f"teacher_prompt_{part}": told[f"prompt_{part}"] for part in ("ids", "mask")}
        with torch.no_grad():
            states = spans.observe(batch)
        mask = batch["completion_mask"].bool()
        hidden = hidden_states(model, batch)[mask]
        per_token, _ = spans.compare(
            states, mask, hidden, head_of(model), Divergence(beta=beta), torch.ones(len(hidden))
        )
        return per_token.sum() / mask.sum()

    return loss


def gold(own: Any, other: Any, teacher: Any, **settings: Any) -> Loss:
    """GOLD's hybrid loss on aligned spans, as its trainer computes it for texts of the data set (`lmbda: 0`)."""
    from trl.experimental.gold import GOLDConfig
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = GOLDConfig(
        tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        use_uld_loss=True,
        use_extended_uld=True,
        uld_use_hybrid_loss=True,
        **settings,
    )
    made = ULDLoss(config, student_tokenizer=own, teacher_tokenizer=other, device=torch.device("cpu"))

    def side(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, labels, ids and byte offsets; the texts are ASCII, so characters are bytes."""
        batch = batch_of(tokenizer, texts)
        ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        first = batch["prompt_ids"].shape[1]
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :first] = -100
        offsets = torch.zeros(*ids.shape, 2, dtype=torch.long)
        for row, completion in enumerate(batch["completion_ids"].tolist()):
            places = token_spans(tokenizer, completion)[1]
            offsets[row, first : first + len(places)] = torch.tensor(places)
        return model(input_ids=ids, attention_mask=mask).logits, labels, ids, offsets

    def loss(model: Any, texts: Sequence[str]) -> Tensor:
        student = side(model, own, texts)
        with torch.no_grad():
            told = side(teacher, other, texts)
        pairs = [value for pair in zip(student, told, strict=True) for value in pair]
        return made(*pairs)

    return loss


if __name__ == "__main__":
    sys.exit(main())
