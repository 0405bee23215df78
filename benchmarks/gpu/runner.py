"""Runs parts one after the other, each in a process of its own with a time limit, and saves after every figure.

`OUT/gpu_day.json` is replaced whenever a part ends, and `OUT/running.json`, the figures of the part that runs,
whenever it has a new one: a kill, a crash or a hang loses nothing that was measured. `OUT/log.txt` has what the parts
printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu import ROOT
from gpu.day import GpuDay, describe
from gpu.parts import PARTS
from rlkd.files import write_atomically

SCRIPT = ROOT / "benchmarks" / "gpu_day.py"
RESULT = "gpu_day.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "triton")
OPTIONAL = ("vllm", "bitsandbytes", "flash_attn", "kernels", "liger_kernel")
# A CPU may be busy with other work.
SMOKE_LIMIT_S = 600.0
TAIL = 15


@dataclass
class DayRun:
    """The parts of one call, and their results so far. `site`: a folder of packages that the machine lacked."""

    out: Path
    smoke: bool
    budget_s: float
    site: Path | None = None
    installed: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, names: Collection[str]) -> int:
        """Run the parts of these names; the exit status is 1 where one failed, or where there is no GPU."""
        self.out.mkdir(parents=True, exist_ok=True)
        sys.path[:0] = [str(self.site)] if self.site else []  # for the versions that it reports
        if not self.smoke and not self.sees_gpu():
            return 1
        for name in PARTS:
            if name in names and name not in self.parts:
                self.parts[name] = self.skipped(name) or self.start(name)
                self.report(name)
        print(f"\n{time.monotonic() - self.started:.0f} s in all; results: {self.out / RESULT}")
        return int(any(figures["status"] == "failed" for figures in self.parts.values()))

    def sees_gpu(self) -> bool:
        """Run the part `device`; without a GPU nothing else is worth running."""
        self.parts["device"] = seen = self.start("device")
        self.report("device")
        if seen.get("gpu"):
            return True
        why = seen.get("error") or f"PyTorch {seen.get('torch')} sees no CUDA or ROCm device"
        print(f"No GPU, so nothing was measured: {why}. (--smoke rehearses on a CPU.)")
        return False

    def skipped(self, name: str) -> dict[str, Any] | None:
        """Why a part is not started, if so."""
        part, why = PARTS[name], None
        if self.smoke and not part.on_cpu:
            why = "needs a GPU"
        elif part.package and find_spec(part.package) is None:
            why = f"not installed: {part.package}"
        elif self.left() < part.least_s:
            why = f"no time left of {self.budget_s:.0f} s; run it alone: --only {name}"
        return {"status": "skipped", "why": why} if why else None

    def left(self) -> float:
        """Seconds until the budget is used up."""
        return self.budget_s - (time.monotonic() - self.started)

    def start(self, name: str) -> dict[str, Any]:
        """Run a part in a process of its own; its figures with `status` and `seconds`. Raises for nothing it does."""
        limit = min(SMOKE_LIMIT_S if self.smoke else PARTS[name].limit_s, self.left())
        begin = time.monotonic()
        # In the folder of the results, where they survive a kill of this process.
        result, log = self.out / "running.json", self.out / "running.txt"
        result.unlink(missing_ok=True)
        size = "smoke" if self.smoke else "full"
        words = [
            sys.executable,
            SCRIPT,
            "part",
            PARTS[name].place,
            size,
            f"{limit:.0f}",
            result.resolve(),
            self.out.resolve(),
        ]
        with log.open("wb") as sink:
            # A process group of its own, so that what it started ends with it.
            process = subprocess.Popen(
                list(map(str, words)),
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
            try:
                process.wait(limit)
                ending = f"its process ended with status {process.returncode}"
            except subprocess.TimeoutExpired:
                ending = f"not finished after {limit:.0f} s"
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        figures = read_figures(result)
        if figures["status"] == "running":
            figures |= {"status": "failed", "error": ending}
        text = log.read_text(errors="replace")
        if figures["status"] == "failed":
            figures["log"] = text.splitlines()[-TAIL:]
        with (self.out / "log.txt").open("a", encoding="utf-8") as whole:
            whole.write(f"=== {name}\n{text}\n")
        for path in (result, log):
            path.unlink(missing_ok=True)
        return figures | {"seconds": round(time.monotonic() - begin, 1)}

    def environment(self) -> dict[str, str]:
        """Of the parts: no hub, one GPU, our packages from this checkout and missing ones from `site`."""
        values = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        values["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS is deterministic only with a fixed workspace
        # With several visible GPUs the Trainer would use them all (torch.nn.DataParallel).
        values["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        folders = [ROOT, *([self.site] if self.site else [])]
        values["PYTHONPATH"] = os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
        if self.smoke:
            values |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return values

    def report(self, name: str) -> None:
        """Save all results, and print those of a part."""
        write_atomically(self.out / RESULT, json.dumps(self.results(), indent=1) + "\n")
        figures = self.parts[name]
        seconds = f" in {figures['seconds']:.0f} s" if "seconds" in figures else ""
        print(f"{name}: {figures['status']}{seconds}", flush=True)
        for key, value in figures.items():
            if key == "log":
                print("    the end of its output:", *value, sep="\n      ", flush=True)
            elif key not in ("status", "seconds"):
                print(f"    {key:<24} {value}", flush=True)

    def results(self) -> dict[str, Any]:
        """What the file says."""
        versions, missing = installed_versions()
        return {
            "gpu": self.parts.get("device", {}).get("gpu"),
            "smoke": self.smoke,
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions,
            "missing": missing,
            "installed": dict(self.installed),
            "total_s": round(time.monotonic() - self.started, 1),
            "parts": self.parts,
        }


def installed_versions() -> tuple[dict[str, str], list[str]]:
    """Versions of the packages that matter, and the optional ones that are not there."""
    import rlkd

    versions, missing = {"python": sys.version.split()[0], "rlkd": rlkd.__version__}, []
    for package in (*PACKAGES, *OPTIONAL):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            if package in OPTIONAL:
                missing.append(package)
    return versions, missing


def read_figures(result: Path) -> dict[str, Any]:
    """The figures that a part has saved, with its `status`; `running` where it has not come to its end."""
    try:
        figures: dict[str, Any] = json.loads(result.read_text())
    except (OSError, ValueError):
        return {"status": "running"}
    return figures


def run_part(place: str, day: GpuDay, result: Path) -> int:
    """In the part's own process: run its generator, and save its figures, or its error, to the file `result`."""
    import traceback

    warnings.filterwarnings("ignore", category=FutureWarning)
    figures: dict[str, Any] = {"status": "running"}
    try:
        module, _, function = place.partition(":")
        for further in getattr(importlib.import_module(module), function)(day):
            figures |= further
            write_atomically(result, json.dumps(figures))
        figures["status"] = "ok"
    except Exception as error:
        traceback.print_exc()
        figures |= {"status": "failed", "error": describe(error)}
    write_atomically(result, json.dumps(figures))
    return 0
