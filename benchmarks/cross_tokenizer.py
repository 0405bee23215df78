"""The loss of a teacher with another tokenizer against that of TRL's experimental GOLD: value, time, what is learnt.

    python benchmarks/cross_tokenizer.py            # 150 steps of each, about three minutes
    python benchmarks/cross_tokenizer.py --quick    # 10 steps

A teacher of 400 byte-level BPE tokens learns generated sums from their texts. A student of single bytes then learns
from it by each loss on the same texts, from one start, with one optimizer: ours as forward KL, GOLD as its hybrid loss
with both of its ways to merge tokens. What was learnt is the student's negative log-likelihood on other sums, in nats
per character. The losses differ in scale: only the likelihoods compare.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlkd.divergence import Divergence
from tiny import byte_tokenizer, save_llama
from trainers.common.token_spans import token_spans
from trainers.teachers.batches import padded_batch
from trainers.teachers.models import head_of
from trainers.teachers.span_teacher import SpanTeacher

PROMPT = "Sum:"
ROWS = 16
Loss = Callable[[Any, Sequence[str]], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the loss on spans with TRL's GOLD.")
    quick = harness.parse(parser, quick="10 steps of each").quick
    harness.quiet()
    warnings.filterwarnings("ignore")
    steps = 10 if quick else 150
    with tempfile.TemporaryDirectory(prefix="rlkd-cross-") as folder:
        own, other = byte_tokenizer(), words([sums(seed) for seed in range(64)])
        start = save_llama(f"{folder}/student", own, hidden_size=64)
        teacher = AutoModelForCausalLM.from_pretrained(save_llama(f"{folder}/teacher", other, hidden_size=96, seed=1))
        fit(teacher, lambda model, texts: likelihood(model, other, texts), 2 * steps)
        teacher.eval().requires_grad_(False)
        held_out = [sums(seed) for seed in range(10**6, 10**6 + 64)]
        characters = sum(map(len, held_out))
        figures: dict[str, Any] = {"teacher": loss_of(teacher, other, held_out, characters), "steps": steps}
        losses = {
            "ours": ours(own, other, teacher),
            "gold_observed": gold(own, other, teacher, "observed"),
            "gold_bayesian": gold(own, other, teacher, "bayesian"),
        }
        figures["start"] = loss_of(AutoModelForCausalLM.from_pretrained(start), own, held_out, characters)
        for name, loss in losses.items():
            student = AutoModelForCausalLM.from_pretrained(start)
            first, last, seconds = fit(student, loss, steps)
            learnt = loss_of(student, own, held_out, characters)
            figures[name] = {"first": first, "last": last, "seconds": seconds, "nats_per_character": learnt}
            print(
                f"{name:14} loss {first:.4f} -> {last:.4f}, {learnt:.3f} nats per character, {seconds:.1f} CPU-seconds"
            )
    figures["time_ratio"] = round(figures["ours"]["seconds"] / figures["gold_observed"]["seconds"], 2)
    print(f"start {figures['start']:.3f}, teacher {figures['teacher']:.3f}; time ratio {figures['time_ratio']}")
    return harness.report(figures, {"ours learns": figures["ours"]["nats_per_character"] < figures["start"]})


def sums(seed: int) -> str:
    """A generated sum in words and digits."""
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randint(1, 50, (2,), generator=random).tolist()
    return f" {a} apples and {b} pears are {a + b} pieces of fruit."


def words(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of up to 400 entries."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<s>", eos_token="</s>")


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
def loss_of(model: Any, tokenizer: Any, texts: Sequence[str], characters: int) -> float:
    return round(float(likelihood(model, tokenizer, texts)) / characters, 4)


def fit(model: Any, loss: Loss, steps: int) -> tuple[float, float, float]:
    """The first and the last loss, and CPU-seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    start = time.process_time()
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(model, [sums(1000 + step * ROWS + row) for row in range(ROWS)])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        values.append(value.item())
    return round(values[0], 5), round(values[-1], 5), round(time.process_time() - start, 2)


def ours(own: Any, other: Any, teacher: Any) -> Loss:
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
            states, mask, hidden, head_of(model), Divergence(beta=0.0), torch.ones(len(hidden))
        )
        return per_token.sum() / mask.sum()

    return loss


def gold(own: Any, other: Any, teacher: Any, merge: str) -> Loss:
    """GOLD's hybrid loss on aligned spans; beta 0 is its forward KL."""
    from trl.experimental.gold import GOLDConfig
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = GOLDConfig(
        tempfile.gettempdir(),
        use_cpu=True,
        bf16=False,
        report_to="none",
        beta=0.0,
        use_uld_loss=True,
        use_extended_uld=True,
        uld_use_hybrid_loss=True,
        uld_token_merge_strategy=merge,
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
