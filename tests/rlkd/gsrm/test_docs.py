"""The examples of the docs work as they are written."""

import asyncio
import re

import pytest

from rewards import build_reward
from rlkd.gsrm.cli import main
from rlkd.structure import Step, Structure, render

TEACHER = "She sold 48/2 = 24 clips in May.\nIn all she sold 48+24 = 72 clips."
WRONG = TEACHER.replace("72", "96")


@pytest.fixture
def example(root, tmp_path, monkeypatch):
    """Writes the Python example of a page to a file; returns its spec as the page's YAML has it."""
    monkeypatch.chdir(tmp_path)

    def write(page, key):
        text = (root / "docs" / page).read_text(encoding="utf-8")
        [(name, code)] = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)
        (tmp_path / name).write_text(code)
        [spec] = re.findall(rf"structure: {{{key}: (\S+)}}", text)
        assert f"rlkd gsrm explain --{key} {spec}" in text
        return spec

    return write


def scores(parameters, completions, **columns):
    reward = build_reward("structure", parameters)
    n = len(completions)
    return asyncio.run(
        reward(prompts=["?"] * n, completions=completions, **{key: [value] * n for key, value in columns.items()})
    )


def test_the_alignment_rule_scores_the_last_step(example, capsys):
    spec = example("structure.md", "alignment")
    assert scores({"alignment": spec}, [TEACHER, WRONG, "Nothing."], rationales=[TEACHER]) == [1.0, 0.5, 0.0]
    assert main(["explain", "--alignment", spec]) == 0
    assert "step 4 ~ 3: yes / yes / yes -> 1" in capsys.readouterr().out


def test_the_judge_compares_texts(example, capsys):
    spec = example("judges.md", "judge")
    gold = Structure([Step("How many in May?", "48/2", "24")])
    other = Structure([Step("How many in May?", None, "24")])
    native = {"decomposer": "native", "judge": spec}
    assert scores(native, [render(gold), render(other)], structures=[gold.to_list()]) == [1.0, 0.5]
    assert main(["judges", "--judge", spec, "--sample", "20"]) == 0
    assert "20 pairs, 0 without a verdict" in capsys.readouterr().out


def test_the_decomposer_takes_lines_for_steps(example, capsys):
    spec = example("gsrm.md", "decomposer")
    assert scores({"decomposer": spec}, [TEACHER, WRONG], rationales=[TEACHER], structures=[[]]) == [1.0, 0.75]
    assert main(["explain", "--decomposer", spec]) == 0
    assert "decomposer" not in capsys.readouterr().err
