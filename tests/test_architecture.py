"""docs/architecture.md says which files a step of RLKD passes through; a traced step passes through no other."""

import re
import sys
import threading
from pathlib import Path

import pytest
from datasets import Dataset

from rlkd.data import load_rows, to_dataset
from tests.helpers import ROOT
from trainers import RLKDConfig, RLKDTrainer

PACKAGES = ("trainers", "rewards", "rlkd")
BACKEND = '''
from rlkd.engines import Completion, Engine

REPLY = "<step><meta>How many clips did she sell?</meta><question>2+3</question><answer>5</answer></step>"

class Steps(Engine):
    """Every trace becomes the same step."""

    def __init__(self, model):
        self.model = self.tokenizer = model
        self.name = f"steps:{model}"

    async def generate(self, prompts, sampling, *, deadline=None):
        return [Completion(REPLY, "stop", n_tokens=1) for _ in prompts]

    async def score(self, requests, *, deadline=None):
        raise NotImplementedError
'''


def named_files(text: str) -> set[str]:
    """The Python files and folders in a text; `a/{b,c}.py` names two."""
    found = set()
    for word in re.findall(r"`((?:trainers|rewards|rlkd)/[\w/.,{}]+)`", text):
        start, _, rest = word.partition("{")
        names, _, end = rest.partition("}")
        found |= {f"{start}{name}{end}" for name in names.split(",")} if rest else {word}
    return found


@pytest.fixture(scope="module")
def step_of_rlkd() -> tuple[set[str], set[str]]:
    """The files of the table, and those named below it."""
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.partition("## One step of RLKD\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    below = section.partition("These twelve files")[2].partition("Values that travel")[0]
    return named_files("\n".join(row.split("|")[2] for row in rows)), named_files(below)


def test_a_step_passes_through_twelve_files_at_most(step_of_rlkd) -> None:
    path, below = step_of_rlkd
    assert 10 <= len(path) <= 12
    assert all((ROOT / name).exists() for name in path | below)


@pytest.mark.slow
def test_a_traced_step_passes_through_no_other_file(step_of_rlkd, tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "steps.py").write_text(BACKEND)
    structure = {"decomposer": "prompted", "engine": f"{tmp_path / 'steps.py'}:Steps#none"}
    args = RLKDConfig(
        output_dir=str(tmp_path / "run"),
        reward_funcs=["accuracy", "structure"],
        reward_kwargs={"structure": structure},
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    visited: set[str] = set()
    is_tracing = False

    def trace(frame, event, argument) -> None:
        if is_tracing and event == "call":
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and (name := str(path.relative_to(ROOT))).startswith(PACKAGES):
                visited.add(name)

    class Traced(RLKDTrainer):
        def training_step(self, *arguments, **keywords):
            nonlocal is_tracing
            is_tracing = self.state.global_step == 1  # the first step loads what later ones have
            try:
                return super().training_step(*arguments, **keywords)
            finally:
                is_tracing = False

    rows: Dataset = to_dataset(load_rows("gsm8k-sample")[:2])
    threading.setprofile(trace)  # TRL awaits asynchronous rewards in a thread of its own
    sys.setprofile(trace)
    try:
        Traced(tiny_model, args=args, train_dataset=rows).train()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    path, below = step_of_rlkd
    known = path | below
    others = {name for name in visited if name not in known and not any(name.startswith(f"{k}") for k in known)}
    assert not others
    assert path - visited == {"rlkd/engines/transformers.py"}  # the backend of this test stands in its place
