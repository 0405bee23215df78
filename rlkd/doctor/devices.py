"""GPUs with their memory and compute capability, and the types of numbers that the devices compute in.

PyTorch is imported only where there is a GPU to be found.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkd.doctor.findings import Finding, listed, size

# Devices of NVIDIA, AMD, and WSL.
DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_QUERY = "name,memory.total,memory.free,compute_cap,driver_version"
# Flags of CPUs that multiply bfloat16.
_BFLOAT16 = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True)
class GPU:
    """A GPU as its driver describes it; memory in bytes."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]
    driver: str


def check_devices() -> Iterator[Finding]:
    """The devices that models can run on."""
    gpus = list_gpus()
    if gpus or any(map(Path.exists, map(Path, DEVICES))) or sys.platform == "darwin":
        yield from _seen_by_torch(gpus)
    else:
        yield Finding("devices", "ok", "no GPU: models run on the CPU")
    flags = cpu_flags()
    found = [flag for flag in _BFLOAT16 if flag in flags]
    if found:
        text = f"the CPU computes in float32 and in bfloat16 ({listed(found)}): --bf16 true is faster there"
    else:
        text = "the CPU computes in float32; bfloat16 would be emulated (leave bf16 false), float16 needs a GPU"
    yield Finding("devices", "ok", text)


def list_gpus() -> list[GPU]:
    """The GPUs of NVIDIA's driver; none without the command `nvidia-smi`."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        done = subprocess.run(
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in done.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        try:
            name, total, free, (major, _, minor), driver = *parts[:3], parts[3].partition("."), parts[4]
            gpus.append(GPU(name, int(total) << 20, int(free) << 20, (int(major), int(minor)), driver))
        except (IndexError, ValueError):  # "[N/A]", or a message in place of a row
            continue
    return gpus


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The flags of the first CPU; none where the system does not list them."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def check_gpu(number: int, gpu: GPU, kernels: Sequence[str]) -> Iterator[Finding]:
    """What a GPU can do. `kernels`: the architectures that PyTorch was built for (`sm_90`), none where unknown."""
    major, minor = gpu.capability
    text = (
        f"GPU {number}: {gpu.name}, {size(gpu.total)} of memory ({size(gpu.free)} free), compute capability "
        f"{major}.{minor}, driver {gpu.driver}"
    )
    built = [(int(name[3:].rstrip("af")[:-1]), int(name.rstrip("af")[-1])) for name in kernels if name[:3] == "sm_"]
    has_code = any(name.startswith("compute_") for name in kernels)
    if built and not has_code and not any(one == major and two <= minor for one, two in built):
        yield Finding(
            "devices", "problem", text, f"This PyTorch has no code for it ({listed(kernels)}). Install another build."
        )
    elif major < 8:
        yield Finding("devices", "warning", text, "It has no bfloat16: set bf16: false and fp16: true.")
    elif gpu.free < gpu.total // 2:
        yield Finding(
            "devices", "warning", text, "Other processes hold more than half of its memory (see  nvidia-smi)."
        )
    else:
        yield Finding("devices", "ok", f"{text}; bfloat16 and float16")


def _seen_by_torch(gpus: Sequence[GPU]) -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", "problem", f"PyTorch cannot be imported: {error}", "Install it again.")
        return
    if torch.cuda.is_available():
        if torch.version.cuda is None or not gpus:  # AMD, or a driver without nvidia-smi
            for number in range(torch.cuda.device_count()):
                memory = torch.cuda.get_device_properties(number).total_memory
                bf16 = "bfloat16 and float16" if torch.cuda.is_bf16_supported(False) else "float16, no bfloat16"
                name = torch.cuda.get_device_name(number)
                yield Finding("devices", "ok", f"GPU {number}: {name}, {size(memory)} of memory; {bf16}")
        for number, gpu in enumerate(gpus):
            yield from check_gpu(number, gpu, torch.cuda.get_arch_list())
        if len(gpus) > torch.cuda.device_count():
            count = torch.cuda.device_count()
            yield Finding("devices", "ok", f"CUDA_VISIBLE_DEVICES shows {count} of the {len(gpus)} GPUs to PyTorch")
    elif torch.backends.mps.is_available():
        yield Finding("devices", "ok", "Apple's GPU (mps), which shares the memory of the machine")
    elif sys.platform == "darwin":
        yield Finding("devices", "ok", "no GPU that PyTorch uses: models run on the CPU")
    else:
        yield Finding(
            "devices",
            "warning",
            f"a GPU is there ({listed(gpu.name for gpu in gpus) or 'its driver is'}), and PyTorch "
            f"{torch.__version__} does not see it: models would run on the CPU",
            "Install a PyTorch for this driver (https://pytorch.org/get-started/locally), or check "
            "CUDA_VISIBLE_DEVICES.",
        )
