"""A package of somebody else brings a reward: listed without being imported, shown, tested, and trained by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
"""Rewards of a package that knows nothing of a repository."""

import sys

from rewards import RewardOptions

print("third_party_rewards is imported", file=sys.stderr)


def exclamations(completions, *, cap=3, **columns):
    """The share of `cap` exclamation marks that a completion has.

    A text for `rlkd rewards show`.
    """
    return [min(completion[0]["content"].count("!"), cap) / cap for completion in completions]


exclamations.reward_options = RewardOptions(per_sample=True, timeout=20.0)
'''
METADATA = "Metadata-Version: 2.1\nName: third-party-rewards\nVersion: 1.0\n"
ENTRY_POINTS = "[rlkd.rewards]\nexclamations = third_party_rewards:exclamations\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the package as an installer leaves it: the module, and what the distribution says of itself."""
    site = tmp_path / "site"
    information = site / "third_party_rewards-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "third_party_rewards.py").write_text(MODULE)
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (information / "RECORD").write_text("third_party_rewards.py,,\nthird_party_rewards-1.0.dist-info/METADATA,,\n")
    return site


def start(site: Path, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Start this Python elsewhere than in the repository, with the package installed."""
    environment = os.environ | {"PYTHONPATH": str(site), "RLKD_CACHE": str(site.parent / "cache")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=timeout)


def test_it_is_listed_with_its_distribution_and_not_imported(site):
    done = start(site, "-m", "rlkd.cli", "rewards", "list")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    [place] = [i for i, line in enumerate(lines) if line.split()[:1] == ["exclamations"]]
    assert lines[place].endswith("third_party_rewards.exclamations (third-party-rewards)")
    assert lines[place + 1].strip() == "The share of `cap` exclamation marks that a completion has."
    assert "is imported" not in done.stderr


def test_it_is_shown_by_name(site):
    done = start(site, "-m", "rlkd.cli", "rewards", "show", "exclamations")
    assert done.returncode == 0, done.stderr
    assert "A text for `rlkd rewards show`." in done.stdout
    assert "  cap  3" in done.stdout
    assert str(site / "third_party_rewards.py") in done.stdout


@pytest.mark.slow
def test_it_is_tested_by_name(site):
    (site.parent / "rows.jsonl").write_text('{"question": "Say wow!", "completions": ["Wow!!", "Wow."]}\n')
    arguments = ["--data", "rows.jsonl", "--kwargs", '{"cap": 4}', "--json"]
    done = start(site, "-m", "rlkd.cli", "rewards", "test", "exclamations", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [sample["value"] for sample in found["samples"]] == [0.5, 0.0]
    assert {check["verdict"] for check in found["checks"]} == {"holds"}


@pytest.mark.slow
def test_it_trains_by_name(site, root, tiny_model):
    run = site.parent / "run"
    small = (
        f"--model_name_or_path {tiny_model} --max_steps 2 --eval_rows 0 --max_completion_length 8 --output_dir {run} "
        f"--per_device_train_batch_size 8 --num_generations 4"
    ).split()
    rewards = [
        "--reward_funcs",
        "exclamations",
        "--reward_weights",
        "1",
        "--reward_kwargs",
        '{"exclamations": {"cap": 1}}',
    ]
    done = start(site, root / "recipes" / "rlkd.py", *small, *rewards, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (run / "rollouts" / "rank0.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1] * 8 + [2] * 8
    for record in records:
        outcome = record["rewards"]["exclamations"]
        assert (outcome["status"], outcome["value"]) == ("score", float("!" in record["completion"]))
    reported = start(site, "-m", "rlkd.cli", "rewards", "report", run, "--json")
    assert reported.returncode == 0, reported.stderr
    assert json.loads(reported.stdout)["rewards"]["exclamations"]["samples"] == 16
