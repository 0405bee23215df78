"""The parts of a GPU day in their order: the most telling first, the one that takes all the time there is last."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuPart:
    """A generator `module:function`, a package that it needs, and whether a CPU can do it.

    `limit_s`: seconds until it is killed. `least_s`: it is not started with less time left.
    """

    place: str
    limit_s: float
    least_s: float = 20
    package: str | None = None
    on_cpu: bool = True


PARTS = {
    "device": GpuPart("gpu.device:device", 60),
    "divergence": GpuPart("gpu.divergence:divergence", 90),
    "equality": GpuPart("gpu.equality:equality", 90),
    "rlkd_0.5b": GpuPart("gpu.training:rlkd_small", 80),
    "rlkd_1.5b": GpuPart("gpu.training:rlkd_large", 90),
    "kd": GpuPart("gpu.training:kd", 110),
    "attention": GpuPart("gpu.device:attention", 50),
    "bitsandbytes": GpuPart("gpu.training:bitsandbytes", 80, package="bitsandbytes", on_cpu=False),
    "vllm": GpuPart("gpu.training:vllm", 150, package="vllm", on_cpu=False),
    "lab": GpuPart("gpu.lab:lab", 300, least_s=90),
}
