"""Where a model in this process runs when nothing else is configured."""

import os


def best_device() -> str:
    """The fastest device that torch sees here: `cuda`, `mps` or `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def own_device() -> str:
    """`best_device`, with the number of this process's GPU where a launcher gave it one (LOCAL_RANK).

    Torch's current GPU is that of a thread: in another thread than the main one, "cuda" is the first GPU.
    """
    import torch

    device, rank = best_device(), os.environ.get("LOCAL_RANK", "")
    if device == "cuda" and rank.isdecimal() and int(rank) < torch.cuda.device_count():
        return f"cuda:{rank}"
    return device
