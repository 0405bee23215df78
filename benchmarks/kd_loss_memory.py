"""Memory and time of the distillation loss: the whole logits, TRL's kernel, and `rlkd.divergence`.

    python benchmarks/kd_loss_memory.py            # T = 2,048 and V = 151,936, about 5 minutes, 10 GiB of memory
    python benchmarks/kd_loss_memory.py --quick    # a hundredth of that

Compared: one forward and backward pass of sum(weights * divergence) / T, in float32, from the last hidden states
(H = 256) to the gradients of the student's hidden states and of its head; in a second table (full form only) with the
head frozen, as under LoRA. Each measurement is a process of its own, with one thread. The peak is the resident size
that a pass adds, with the gradients that it returns.

    gradient_error    over both gradients and beta 0, 0.5 and 1: the largest difference between ours and those of the
                      dense arm in float64, divided by the largest entry; at T / 8
    growth_over_t     MiB that our peak grows from T to 2 T, without the gradient of the hidden states

Exits with 1 in the full form if ours takes more than 1/10 of dense's or 1/4 of TRL's memory or more time than dense,
if its peak grows by more than 5 % from T to 2 T, or if a gradient is off by more than 1e-5.
"""

import harness  # before torch: one thread, no hub

# isort: split

import argparse
import math
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

MIB = 2**20
ARMS = ("dense", "trl", "ours")


@dataclass(frozen=True)
class LossShape:
    """Of one measurement."""

    tokens: int
    vocabulary: int
    hidden: int
    beta: float = 1.0
    frozen: bool = False
    double: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the distillation loss costs.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the full form (default: %(default)s)")
    options = harness.parse(parser, quick="a hundredth of the size", child=measure)
    rounds = 1 if options.quick else options.rounds
    full = LossShape(128, 16_384, 64) if options.quick else LossShape(2_048, 151_936, 256)
    with tempfile.TemporaryDirectory(prefix="rlkd-kd-loss-") as folder:
        arms, betas = (("ours",), (0.5,)) if options.quick else (ARMS, (0.0, 0.5, 1.0))
        errors = gradient_errors(replace(full, tokens=full.tokens // 8), folder, arms, betas)
    trained = table(full, rounds)
    frozen = {} if options.quick else table(replace(full, frozen=True), rounds)
    twice = child("ours", replace(full, tokens=2 * full.tokens))["peak_mib"]
    ours = trained["ours"]["peak_mib"]
    growth = twice - ours - full.tokens * full.hidden * 4 / MIB
    error = errors["ours"]
    print(f"ours at {2 * full.tokens} tokens: {twice:.0f} MiB")
    print("error of the gradients: " + ", ".join(f"{arm} {value:.1e}" for arm, value in errors.items()))
    figures = {
        "peak_mib": round(ours, 1),
        "peak_over_dense": round(ours / trained["dense"]["peak_mib"], 4),
        "peak_over_trl": round(ours / trained["trl"]["peak_mib"], 4),
        "time_over_dense": round(trained["ours"]["seconds"] / trained["dense"]["seconds"], 3),
        "time_over_trl": round(trained["ours"]["seconds"] / trained["trl"]["seconds"], 3),
        "gradient_error": float(f"{error:.2e}"),
        **{f"{arm}_gradient_error": float(f"{value:.2e}") for arm, value in errors.items() if arm != "ours"},
        "growth_over_t_mib": round(growth, 1),
        "arms": trained,
        "frozen_arms": frozen,
        **asdict(full),
        "rounds": rounds,
    }
    bounds = {
        "peak_over_dense <= 0.1": figures["peak_over_dense"] <= 0.1,
        "peak_over_trl <= 0.25": figures["peak_over_trl"] <= 0.25,
        "time_over_dense <= 1": figures["time_over_dense"] <= 1,
        "gradient_error <= 1e-5": error <= 1e-5,
        "growth_over_t <= 5 %": growth <= 0.05 * ours,
    }
    return harness.report(figures, {} if options.quick else bounds)


def table(size: LossShape, rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for results in harness.in_turn({arm: partial(child, arm, size) for arm in ARMS}, rounds):
        for arm, result in results.items():
            found[arm].append(result)
    medians = {
        arm: {name: round(median(run[name] for run in runs), 3) for name in ("peak_mib", "seconds")}
        for arm, runs in found.items()
    }
    print(f"head {'frozen' if size.frozen else 'trained'}, {size.tokens} tokens:")
    for arm, run in medians.items():
        print(f"  {arm:6} {run['peak_mib']:8.1f} MiB {run['seconds']:7.2f} CPU-s", flush=True)
    return medians


def child(arm: str, size: LossShape, gradients: str | None = None) -> dict[str, float]:
    return harness.in_child({"arm": arm, "size": asdict(size), "gradients": gradients})


def gradient_errors(size: LossShape, folder: str, arms: tuple[str, ...], betas: tuple[float, ...]) -> dict[str, float]:
    import torch

    path = str(Path(folder) / "gradients.pt")
    errors = dict.fromkeys(arms, 0.0)
    for beta in betas:
        child("dense", replace(size, beta=beta, double=True), path)
        exact = torch.load(path)
        for arm in arms:
            child(arm, replace(size, beta=beta), path)
            for one, found in zip(exact, torch.load(path), strict=True):
                errors[arm] = max(errors[arm], float((one - found).abs().max() / one.abs().max()))
    return errors


def measure(task: dict[str, Any]) -> dict[str, float]:
    """Peak (MiB) and time (CPU-seconds) of one pass; saves its gradients where `gradients` names a file."""
    import torch

    torch.set_num_threads(1)
    size = LossShape(**task["size"])
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.double() if size.double else drawn

    # Logits with a deviation of 3, about what a model's have.
    spread = 3 / math.sqrt(size.hidden)
    student_hidden = random(size.tokens, size.hidden).requires_grad_()
    teacher_hidden = random(size.tokens, size.hidden)
    student = random(size.vocabulary, size.hidden).mul_(spread).requires_grad_(not size.frozen)
    teacher = random(size.vocabulary, size.hidden).mul_(spread)
    weights = random(size.tokens).abs_().clamp_(0.2, 1.8)
    one_pass = {"dense": dense_pass, "trl": trl_pass, "ours": our_pass}[task["arm"]]
    one_pass(student_hidden[:2], student, teacher_hidden[:2], teacher, weights[:2], size.beta)
    student_hidden.grad = student.grad = None
    before = harness.reset_peak()
    inputs = student_hidden, student, teacher_hidden, teacher, weights, size.beta
    _, _, seconds = harness.timed(lambda: one_pass(*inputs))
    peak = harness.peak_mib() - before
    if task["gradients"]:
        torch.save([student_hidden.grad, student.grad], task["gradients"])
    return {"peak_mib": peak, "seconds": seconds}


def dense_pass(student_hidden, student, teacher_hidden, teacher, weights, beta) -> None:
    import torch

    with torch.no_grad():
        t = teacher_hidden @ teacher.T
        t.sub_(t.logsumexp(-1, keepdim=True))
    s = (student_hidden @ student.T).log_softmax(-1)
    if beta == 0:
        per_token = (t.exp() * (t - s)).sum(-1)
    elif beta == 1:
        per_token = (s.exp() * (s - t)).sum(-1)
    else:
        mixture = torch.logaddexp(s + math.log1p(-beta), t + math.log(beta))
        per_token = beta * (t.exp() * (t - mixture)).sum(-1) + (1 - beta) * (s.exp() * (s - mixture)).sum(-1)
    ((weights * per_token).sum() / len(weights)).backward()


def trl_pass(student_hidden, student, teacher_hidden, teacher, weights, beta) -> None:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    per_token, _ = ChunkedDivergenceFunction.apply(
        student_hidden, student, None, teacher_hidden, teacher, None, beta, 1.0
    )
    ((weights * per_token).sum() / len(weights)).backward()


def our_pass(student_hidden, student, teacher_hidden, teacher, weights, beta) -> None:
    from rlkd.divergence import Divergence, Head, chunked_divergence, weighted_mean

    per_token, _ = chunked_divergence(
        student_hidden,
        Head(student),
        teacher_hidden,
        Head(teacher),
        Divergence(beta=beta),
        anticipated_weights=weights,
    )
    weighted_mean(per_token, weights, len(weights)).backward()


if __name__ == "__main__":
    sys.exit(main())
