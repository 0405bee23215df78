"""Ends the build of an image that does not work: imports trl and rlkd, with --with-vllm also vLLM and rlkd's plugin.

python check_image.py [--with-vllm] [--unchanged PINS]     (PINS: lines NAME==VERSION that must still hold)
"""

import argparse
import sys
from importlib import import_module, metadata
from pathlib import Path

PLUGIN = "rlkd_weight_transfer"


def changed(pins: str) -> list[str]:
    """Each installed package whose version is not the pinned one."""
    found = []
    for line in pins.split():
        name, _, wanted = line.partition("==")
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version != wanted:
            found.append(f"{name} is {version} and was {wanted}")
    return found


def check_vllm() -> list[str]:
    """What is wrong with vLLM in this environment."""
    from trainers.vllm.checks import SUPPORTED_VLLM, check_installed, installed_vllm

    check_installed()
    factory = import_module("vllm.distributed.weight_transfer.factory").WeightTransferEngineFactory
    points = {point.name: point for point in metadata.entry_points(group="vllm.general_plugins")}
    if PLUGIN not in points:
        return [f"vLLM finds no plugin {PLUGIN}, only {sorted(points)}"]
    points[PLUGIN].load()()
    missing = {"gloo", "disk"} - set(factory._registry)
    print("vllm", installed_vllm(), "; TRL takes", *SUPPORTED_VLLM, "; weight transfer", *sorted(factory._registry))
    return [f"the plugin did not register {sorted(missing)}"] if missing else []


def main() -> int:
    """Print versions; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-vllm", action="store_true")
    parser.add_argument("--unchanged", type=Path)
    arguments = parser.parse_args()
    for name in ("torch", "trl", "rlkd", "rewards", "trainers"):
        module = import_module(name)
        print(name, getattr(module, "__version__", ""), module.__file__)
    import_module("trainers").RLKDTrainer  # noqa: B018  (imported on first use)
    problems = check_vllm() if arguments.with_vllm else []
    if arguments.unchanged:
        problems += changed(arguments.unchanged.read_text())
    print(*problems, sep="\n", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
