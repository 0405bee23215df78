"""Rewards in files of their own."""

import random
from pathlib import Path

import pytest

from tests.helpers.reward_files import FORMS, MISBEHAVING
from tests.helpers.rewards import build_reward


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    """A file with one reward of each form that a spec can name."""
    path = tmp_path / "my_rewards.py"
    path.write_text(FORMS)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with rewards that hang, fail and log; a module of its own for each test, with the same text."""
    path = tmp_path / f"rewards_{random.randrange(10**9)}.py"
    path.write_text(MISBEHAVING)
    return path


@pytest.fixture
def build(file, tmp_path):
    """Builds rewards of the file, and ends their processes."""
    built = []

    def make(name, arguments=None, *, cached=False, **options):
        path = tmp_path / "scores.sqlite" if cached is True else cached
        built.append(build_reward(f"{file}:{name}", arguments, options, cache=path))
        return built[-1]

    yield make
    for reward in built:
        reward.close()
