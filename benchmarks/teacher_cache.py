"""Cost of a teacher from its cache: bytes per token, time compared with its forward, and the error of the coding.

    python benchmarks/teacher_cache.py            # the embedded model, 32 traces: about 2 minutes on two cores
    python benchmarks/teacher_cache.py --quick    # a random model, seconds

The top 64 log-probabilities of batches of 8 traces come from `LocalTeacher` (`forward`) and from `CachedTeacher`
(`lookup`), in CPU-seconds; the files are in the system's page cache. `forward_kl_error` and `reverse_kl_error` are
those of the divergence of teacher and student on the support with one tail: of the mean over all tokens, and the
largest of a token. `bits_equal`: the cache returns `quantised` of its input, bit for bit. Exits with 1 where that is
false or a token takes more than 400 bytes; in full, also where `lookup_over_forward` exceeds 0.1.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rlkd.data.rows import build_prompt
from rlkd.data.samples import sample_rows
from rlkd.models import resolve_model
from rlkd.teachers.cache import CachedTeacher, CachedTrace, build_cache
from rlkd.teachers.coding import quantised
from rlkd.teachers.local import LocalTeacher
from rlkd.teachers.topk import TopK
from rlkd.teachers.traces import trace_ids, trace_text

K = 64
BATCH = 8
MOST_BYTES, MOST_LOOKUP = 400, 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the offline cache of a top-k teacher.")
    quick = harness.parse(parser, quick="a random model and 16 traces").quick
    harness.quiet()
    model, student, tokenizer, traces = random_setup() if quick else embedded_setup()
    teacher = LocalTeacher(model, tokenizer, K, name="benchmark")
    batches = [traces[start : start + BATCH] for start in range(0, len(traces), BATCH)]
    rounds = 1 if quick else 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cache"
        width = model.config.vocab_size
        # A shard is a batch here, so that the live teacher sees the batches that the cache was made of.
        for batch in batches:
            built = build_cache(folder, teacher, batch, vocabulary_size=width, made_by={}, shard_bytes=2**30)
        size = sum(path.stat().st_size for path in folder.iterdir())
        cached, open_s, _ = harness.timed(lambda: CachedTeacher(folder, tokenizer=tokenizer, k=K))

        seconds: dict[str, list[float]] = {"forward": [], "lookup": []}
        live: list[TopK] = []
        found: list[TopK] = []
        for batch in batches:
            ids, starts = [trace.ids for trace in batch], [trace.start for trace in batch]
            work = {"forward": partial(teacher.top_k, ids, starts), "lookup": partial(cached.top_k, ids, starts)}
            arms = {name: partial(harness.timed, call) for name, call in work.items()}
            for results in harness.in_turn(arms, rounds):
                for name, (_, _, spent) in results.items():
                    seconds[name].append(spent)
            live += results["forward"][0]
            found += results["lookup"][0]

    equal = all(same(one, quantised(other)) for one, other in zip(found, live, strict=True))
    gaps = [float((one.logprobs - other.logprobs).abs().max()) for one, other in zip(found, live, strict=True)]
    forward_gaps, reverse_gaps, forward_kl = kl_errors(student, traces, live, found)
    ratio = median(seconds["lookup"]) / median(seconds["forward"])
    per_batch = {name: median(times) for name, times in seconds.items()}
    figures = {
        "bytes_per_token": round(size / built.tokens, 1),
        "lookup_over_forward": round(ratio, 5),
        "forward_s": round(per_batch["forward"], 5),
        "lookup_s": round(per_batch["lookup"], 5),
        "open_s": round(open_s, 5),
        "largest_error": float(f"{max(gaps):.3g}"),
        "forward_kl": round(forward_kl, 4),
        "forward_kl_error": [float(f"{value:.3g}") for value in (forward_gaps.mean().abs(), forward_gaps.abs().max())],
        "reverse_kl_error": [float(f"{value:.3g}") for value in (reverse_gaps.mean().abs(), reverse_gaps.abs().max())],
        "bits_equal": equal,
        "tokens": built.tokens,
        "k": K,
        "vocabulary": width,
        "rounds": rounds,
    }
    print(f"{len(traces)} traces, {built.tokens} tokens, k = {K}, {width} ids, batches of {BATCH}\n")
    print(f"on disk                  {figures['bytes_per_token']:>9} bytes a token")
    print(f"forward of a batch       {per_batch['forward'] * 1e3:>9.2f} ms of CPU time")
    print(f"lookup of a batch        {per_batch['lookup'] * 1e3:>9.2f} ms, {1 / ratio:.0f} times as fast")
    print(f"largest error            {max(gaps):>9.1e} of a log-probability; bits as coded: {equal}")
    print(f"error of the forward KL  {forward_gaps.abs().max():>9.1e} of a token at most, KL {forward_kl:.3f}")
    print(f"error of the reverse KL  {reverse_gaps.abs().max():>9.1e} of a token at most")
    bounds = {
        "bits_equal": equal,
        f"bytes_per_token <= {MOST_BYTES}": figures["bytes_per_token"] <= MOST_BYTES,
        f"lookup_over_forward <= {MOST_LOOKUP}": quick or ratio <= MOST_LOOKUP,
    }
    return harness.report(figures, bounds)


def embedded_setup() -> tuple[Any, Any, Any, list[CachedTrace]]:
    """Teacher, student, tokenizer and traces: the embedded model, its warm start, GSM8K test questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("embedded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, student = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (folder, resolve_model("embedded-warm"))
    )
    traces = []
    for row in sample_rows("test")[:32]:
        text = trace_text(row["rationales"][0], row["answer"])
        prompt, completion = trace_ids(tokenizer, build_prompt(row["question"]), text, 256)
        traces.append(CachedTrace(row["id"], prompt + completion, len(prompt)))
    return model, student, tokenizer, traces


def random_setup() -> tuple[Any, Any, Any, list[CachedTrace]]:
    """The same of a random model of 2 million parameters, with random traces."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(4096)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4
    )
    torch.manual_seed(0)
    model, student = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    for each in (model, student):
        each.lm_head.weight.data *= 20  # as sharp as a trained model's distribution
    ids = torch.randint(4096, (16, 120)).tolist()
    return model, student, tokenizer, [CachedTrace(str(n), row, 40) for n, row in enumerate(ids)]


def same(one: TopK, other: TopK) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "logprobs", "taken"))


def kl_errors(
    student: Any, traces: list[CachedTrace], live: list[TopK], found: list[TopK]
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Errors of forward and reverse KL, a value for each token, and the mean of the forward KL."""
    errors, sizes = [], []
    for trace, one, other in zip(traces, live, found, strict=True):
        with torch.no_grad():
            logits = student(torch.tensor([list(trace.ids)])).logits[0, trace.start - 1 : -1]
        theirs = logits.double().log_softmax(-1).gather(-1, one.ids.long())
        exact, coded = (divergences(top.logprobs.double(), theirs) for top in (one, other))
        errors.append(coded - exact)
        sizes.append(exact[0])
    forward, reverse = torch.cat(errors, dim=1)
    return forward, reverse, float(torch.cat(sizes).mean())


def divergences(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Forward and reverse KL of log-probabilities [n, k] with one tail each: [2, n]."""
    p, q = teacher.exp(), student.exp()
    # The least that a difference to 1 tells apart in float32.
    tail_p, tail_q = ((1 - mass.sum(-1)).clamp(min=1e-7) for mass in (p, q))
    forward = (p * (teacher - student)).sum(-1) + tail_p * (tail_p / tail_q).log()
    return torch.stack([forward, (q * (student - teacher)).sum(-1) + tail_q * (tail_q / tail_p).log()])


if __name__ == "__main__":
    sys.exit(main())
