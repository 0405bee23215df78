"""The laboratory's process reward model: its examples are what the reward `prm` reads, and a short run makes one."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from rewards.prm import ProcessReward
from rlkd.lab.step_labels import faulty_solutions, true_steps
from rlkd.lab.students import tokenizer
from tests.helpers import ROOT
from tests.helpers.scripts import run_here

RECIPE = ROOT / "recipes/lab/prm.py"


def test_an_example_has_the_ids_that_the_reward_reads_and_the_labels_of_the_steps_at_their_ends() -> None:
    words, solutions = tokenizer(), faulty_solutions(40, faults=0.4, flawless=0.2)
    facts = SimpleNamespace(tokenizer=words, per_token=True)
    made = runpy.run_path(str(RECIPE), run_name="recipe")["examples"](words, solutions)
    wrong_tokens = 0
    for example, (problem, steps) in zip(made, solutions, strict=True):
        [(ids, ends)] = ProcessReward("any")._rows(facts, problem.question, steps)
        assert example["input_ids"] == ids
        labels = example["labels"]
        true = true_steps(problem)
        assert [bool(labels[end]) for end in ends] == [step in true for step in steps]
        first = ends[0] - len(words(f"{steps[0]}", add_special_tokens=False)["input_ids"]) - 2
        assert set(labels[:first]) == {-100}
        assert labels[first] in (0, 1)
        # A step that has gone wrong stays wrong.
        for start, end in zip([first, *(end + 1 for end in ends)], ends, strict=False):
            own = labels[start : end + 1]
            assert own == sorted(own, reverse=True)
            wrong_tokens += 0 < sum(own) < len(own)
    assert wrong_tokens  # of steps that begin well


@pytest.mark.slow
def test_a_short_run_makes_a_model_that_the_reward_loads(tmp_path: Path) -> None:
    done = run_here(RECIPE, ["--out", "prm", "--solutions", "64"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    reward = ProcessReward(str(tmp_path / "prm"))
    reward.check_ready()
    [found] = reward._score([("Ann has 3 pens. How many pens does Ann have?", ("Ann has 3.", "So 3."))])
    assert len(found.detail["steps"]) == 2
    assert found.value == min(found.detail["steps"])
