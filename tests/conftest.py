"""Fixtures for all tests: no hub, one thread, and tiny models made on the spot."""

import os

# Before torch and huggingface_hub are imported anywhere.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background by a shell. Tests interrupt processes that they start, and ignoring is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def reward_scores_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds the scores of another one, or leaves any in the user's cache."""
    monkeypatch.setattr("rewards.build.default_cache", lambda: tmp_path_factory.mktemp("scores") / "rewards.sqlite")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama of two layers over single characters, saved as a folder; it never ends a text by itself."""
    from benchmarks.tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def process_models(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of tiny random process reward models: `token` and `sequence` by their head.

    Their tokenizer has `<extra_0>` and a chat template, as Qwen2.5-Math-PRM's.
    """
    from tests.helpers.process_models import save_process_models

    return save_process_models(tiny_model, tmp_path_factory.mktemp("process-models"))


@pytest.fixture(scope="session")
def template_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model with the chat template of a family (`tests.helpers.template_models`), made once."""
    from tests.helpers.template_models import save_template_model

    made: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in made:
            made[name] = save_template_model(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder
