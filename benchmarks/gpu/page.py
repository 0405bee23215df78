"""The figures of docs/gpu.md, from the results in `recorded/`: between two markers, nothing is written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu import ROOT

PAGE = ROOT / "docs" / "gpu.md"
RECORDED = Path(__file__).parent / "recorded"
BEGIN = "<!-- gpu_day.py render: begin -->"
END = "<!-- gpu_day.py render: end -->"

Results = Mapping[str, Any]
# A feature, what a CPU has shown of it, and the parts that show it on a GPU.
FEATURES: list[tuple[str, str, tuple[str, ...]]] = [
    ("`RLKDTrainer`, fp32, generation by transformers", "tested", ("equality",)),
    ("`ValidityKDTrainer`, rlkd's divergence and TRL's kernel", "tested", ("kd", "divergence")),
    ("LoRA", "runs (`rlkd_smollm2.yaml`)", ("rlkd_0.5b", "rlkd_1.5b")),
    (
        "bf16",
        "used in the [recorded run](recorded_run.md) and in the figures of [gsrm.md](gsrm.md)",
        ("rlkd_0.5b", "rlkd_1.5b"),
    ),
    (
        "vLLM in the same process",
        "yes, vLLM 0.30.0: weights after each sync equal to 1e-4 ([vllm.md](vllm.md))",
        ("vllm",),
    ),
    ("vLLM as a server for rollouts", "yes, vLLM 0.30.0 ([vllm.md](vllm.md))", ()),
    (
        "an engine on a vLLM server: `generate`, `score`, guided JSON",
        "tested (`tests/with_vllm`), vLLM 0.30.0: greedy text equal to transformers, scores within 3e-5",
        (),
    ),
    (
        "4-bit weights (bitsandbytes)",
        "tested: adapters, gradients, merging ([machines](machines.md))",
        ("bitsandbytes",),
    ),
    ("a [study](studies.md) of the laboratory", "yes ([results](results.md))", ("lab",)),
    ("several processes or nodes", "two of each, gloo", ()),
    (
        "FSDP2, DeepSpeed ZeRO stage 3",
        "two processes, gloo: losses equal to one process to 1e-5 ([sharding](sharding.md))",
        (),
    ),
]


def write_page() -> str:
    """Write the recorded results into the page; returns what was done."""
    recorded = read_recorded()
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{render(recorded)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return f"{PAGE}: {len(recorded)} recorded results"


def read_recorded(folder: Path = RECORDED) -> list[Results]:
    """The results of GPUs in a folder, by file name. Raises SystemExit for those of a CPU: they mean nothing."""
    found = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.get("smoke") or not results.get("gpu"):
            raise SystemExit(f"{path} is of no GPU: its figures mean nothing. Remove it")
        found.append(results)
    return found


def render(recorded: Sequence[Results]) -> str:
    """All between the markers."""
    lines = [summary(recorded), "", "| feature | on a CPU | on a GPU |", "| --- | --- | --- |"]
    lines += [f"| {name} | {cpu} | {seen(parts, recorded)} |" for name, cpu, parts in FEATURES]
    for results in recorded:
        lines += ["", *device_section(results)]
    return "\n".join(lines)


def summary(recorded: Sequence[Results]) -> str:
    """The first paragraph: what has been run at all."""
    if not recorded:
        return (
            "**Nothing in this project has been run on a GPU so far.** All results come from a CPU: the tests, the\n"
            "default recipe, and the parts below at toy size. This documentation therefore states no step times and\n"
            "tokens per second on a GPU, and of memory [estimates](memory.md) alone."
        )
    runs = "; ".join(f"{results['gpu']}, {results['date']}" for results in recorded)
    failed = sorted({name for results in recorded for name in names_with(results, "failed")})
    return f"**Run on: {runs}.** " + (f"Parts that failed: {', '.join(failed)}." if failed else "No part failed.")


def names_with(results: Results, status: str) -> list[str]:
    """The parts that ended in this way."""
    return [name for name, figures in results["parts"].items() if figures["status"] == status]


def seen(parts: Sequence[str], recorded: Sequence[Results]) -> str:
    """Whether a feature's parts have run on a GPU."""
    good = [name for name in parts if any(name in names_with(results, "ok") for results in recorded)]
    bad = [name for name in parts if any(name in names_with(results, "failed") for results in recorded)]
    words = [f"yes: {', '.join(good)}"] if good else []
    words += [f"failed: {', '.join(bad)}"] if bad else []
    return "; ".join(words) or "not seen"


def device_section(results: Results) -> Iterator[str]:
    """The tables of one device."""
    parts, device = results["parts"], results["parts"]["device"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"### {results['gpu']}"
    yield ""
    yield f"{results['date']}, {device.get('memory_gb')} GB, {results['total_s']:.0f} s in all. {versions}."
    yield from steps_table(parts)
    yield from kd_table(parts)
    yield from divergence_table(parts.get("divergence", {}))
    yield from equality_lines(parts.get("equality", {}))
    yield from lab_lines(parts.get("lab", {}))
    for name, figures in parts.items():
        if figures["status"] == "failed":
            yield from ["", f"`{name}` failed: {figures.get('error', '')}"]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """A table, after an empty line; nothing without rows."""
    if rows:
        yield from ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        yield from (f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows)


def steps_table(parts: Mapping[str, Any]) -> Iterator[str]:
    """RLKD steps of each kind that was measured."""
    head = [
        "RLKD, LoRA",
        "completions",
        "s per step",
        "tokens/s",
        "tokens/s of generation",
        "peak, GB",
        "estimate, GB",
    ]
    keys = ["completions_per_step", "step_s", "tokens_per_s", "generation_tokens_per_s", "peak_gb", "estimated_gb"]
    names = [name for name in ("rlkd_0.5b", "rlkd_1.5b", "bitsandbytes", "vllm") if "step_s" in parts.get(name, {})]
    return table(head, [[name, *(parts[name].get(key) for key in keys)] for name in names])


def kd_table(parts: Mapping[str, Any]) -> Iterator[str]:
    """Distillation steps by both kernels."""
    head = ["distillation, 0.5B from 1.5B", "s per step, traces", "s per step, rollouts", "peak, GB", "estimate, GB"]
    keys = ["traces_step_s", "rollouts_step_s", "peak_gb", "estimated_gb"]
    kernels = [("chunked", "rlkd's divergence"), ("trl", "TRL's kernel")]
    found = [(label, parts["kd"][name]) for name, label in kernels if name in parts.get("kd", {})]
    return table(head, [[label, *(figures.get(key) for key in keys)] for label, figures in found])


def divergence_table(figures: Mapping[str, Any]) -> Iterator[str]:
    """Implementations of the divergence, with the student's head frozen and trained."""
    labels = {"products": "matrix products alone", "ours": "rlkd", "trl": "TRL (Triton)", "liger": "Liger"}
    rows = []
    for head in ("frozen", "trained"):
        for name, found in figures.get(f"head_{head}", {}).items():
            error = found.get("gradient_error")
            shown = found.get("failed") or found.get("skipped") or (None if error is None else f"{error:.1e}")
            rows.append([labels.get(name, name), head, found.get("ms"), found.get("peak_mib"), shown])
    yield from table(["divergence", "student's head", "ms", "MiB", "error of the gradient"], rows)
    if rows:
        yield ""
        yield f"{figures['tokens']:,} tokens, V = {figures['vocabulary']:,}, {figures['dtype']}, forward and backward."


def equality_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """How far our trainers' parameters are from TRL's."""
    for name, label in (("rlkd", "RLKDTrainer and GRPOTrainer"), ("kd", "ValidityKDTrainer and DistillationTrainer")):
        if found := figures.get(name):
            yield ""
            yield (
                f"{label} in float32: first losses {found['our_loss']:.6g} and {found['loss']:.6g}, parameters after "
                f"two steps {found['parameter_gap']:.1e} of what they changed apart (TRL from itself: "
                f"{found['stock_gap']:.1e})."
            )


def lab_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """How many runs of the laboratory were done, and what they say."""
    if not figures.get("runs"):
        return
    yield ""
    yield (
        f"Laboratory, `{figures['study']}`: {figures['runs']} runs, {figures['at_once']} side by side, "
        f"{figures['runs_per_minute']:.1f} a minute."
    )
    for one in figures.get("comparisons", []):
        if found := one["difference"]:
            low = -math.inf if found["low"] is None else found["low"]
            high = math.inf if found["high"] is None else found["high"]
            yield (
                f"`{one['arm']}` against `{one['base']}`: {100 * found['value']:+.1f} points "
                f"({100 * low:+.1f} to {100 * high:+.1f})."
            )
