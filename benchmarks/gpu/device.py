"""What PyTorch sees, and which implementations of attention work."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from statistics import median
from typing import Any

from gpu.day import GpuDay, describe, now, peak_gb
from gpu.models import SHAPES, build_model


def device(day: GpuDay) -> Iterator[dict[str, Any]]:
    """What PyTorch sees; `gpu` is None without a CUDA or ROCm device."""
    import torch

    yield {"gpu": None, "torch": torch.__version__}
    if torch.cuda.is_available() and not day.smoke:
        properties = torch.cuda.get_device_properties(0)
        yield {
            "gpu": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }


def attention(day: GpuDay) -> Iterator[dict[str, Any]]:
    """Milliseconds of forward + backward by attention implementation, and how far its output is from eager's."""
    import torch

    shape = SHAPES[day.pick("0.5b", "tiny")]
    model = build_model(shape, day.device).model
    rows, length = 8, day.pick(512, 32)
    ids = torch.randint(300, shape.vocab_size, (rows, length), device=day.device)
    mask = torch.ones_like(ids)
    mask[: rows // 2, : length // 8] = 0  # left padding, as prompts of different lengths have it

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        hidden[mask.bool()].float().square().mean().backward()
        return hidden[mask.bool()].detach().float()

    packages = {"flash_attention_2": "flash_attn", "kernels-community/flash-attn2": "kernels"}
    reference = None
    for name in ("eager", "sdpa", *packages):
        if name in packages and find_spec(packages[name]) is None:
            yield {name: {"skipped": f"not installed: {packages[name]}"}}
            continue
        try:
            model.set_attn_implementation(name)
            output = step()
            reference = output if reference is None else reference
            times = []
            for _ in range(day.pick(5, 2)):
                start = now()
                step()
                times.append(now() - start)
            far = round((output - reference).abs().mean().item(), 6)
            yield {name: {"ms": round(median(times) * 1000, 2), "mean_difference": far}}
        except Exception as error:  # the others are worth measuring all the same
            yield {name: {"failed": describe(error)}}
    yield {"peak_gb": peak_gb()}
