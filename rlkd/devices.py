"""Where a model in this process runs when nothing else is configured."""


def best_device() -> str:
    """The fastest device that torch sees here: `cuda`, `mps` or `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
