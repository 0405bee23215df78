"""Errand: an alignment rule of your own, one file, trains, is evaluated and is explained."""

import json
from pathlib import Path

import pytest

from rlkd.data.loading import load_rows, to_dataset
from rlkd.gsrm.cli import main
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps

RULE = '''
from dataclasses import dataclass

from rlkd.gsrm import Alignment, BranchScore, Explanation
from rlkd.structure import Structure


@dataclass(frozen=True)
class LengthAndEnd(Alignment):
    """Half for the right number of steps, half for the right last step."""

    name = "length_and_end"

    def pairs(self, student, branch):
        return [(Structure(student.steps[-1:]), Structure(branch.steps[-1:]))] if len(student) else []

    def score(self, student, branch, verdicts, n_longest):
        length = 1 / (1 + abs(len(student) - len(branch)))
        end = float(bool(verdicts) and verdicts[0][0].answer is True)
        return BranchScore(student, branch, self.name, (length, end), 2.0)

    def explain(self, score):
        return Explanation(("length", "end"), ("number of steps", "last answer"), "two halves", ("Ends well or not.",))
'''


@pytest.fixture
def rule(tmp_path: Path) -> str:
    (tmp_path / "rule.py").write_text(RULE)
    return f"{tmp_path / 'rule.py'}:LengthAndEnd"


def test_a_rule_from_a_file_trains_and_its_rollouts_are_explained(tiny_model, rule, tmp_path, capsys) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'run'}\n"
        "reward_funcs: [structure]\n"
        f"reward_kwargs: {{structure: {{alignment: '{rule}'}}}}\n"
        "use_cpu: true\nbf16: false\ngradient_checkpointing: false\nreport_to: none\ndisable_tqdm: true\n"
        "per_device_train_batch_size: 4\nnum_generations: 4\nmax_completion_length: 8\nmax_steps: 1\n"
        "save_strategy: 'no'\nlogging_steps: 1\n"
    )
    [args] = parse([], (RLKDConfig,), default_config=config)
    rows = to_dataset(load_rows("gsm8k-sample")[:4])
    RLKDTrainer(tiny_model, args=args, train_dataset=rows).train()

    [metrics] = read_steps(tmp_path / "run" / "metrics.jsonl")
    assert 0 < metrics["rewards/structure/mean"] < 1
    rollouts = tmp_path / "run" / "rollouts" / "rank0.jsonl"
    for record in read_steps(rollouts):
        detail = record["rewards"]["structure"]["detail"]
        assert detail["alignment"] == "length_and_end"
        assert detail["value"] == sum(detail["steps"]) / 2

    assert main(["explain", "--rollouts", str(rollouts), "--alignment", rule]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "alignment length_and_end, teacher branch 0" in text
    assert "step 1: number of steps" in text
    assert "(two halves)" in text
    assert main(["explain", "--rollouts", str(rollouts)]) == 0  # without the file: verdicts and sums, no words
    assert "alignment length_and_end:" in " ".join(capsys.readouterr().out.split())


def test_a_rule_from_a_file_is_evaluated(rule, tmp_path, capsys) -> None:
    figures = tmp_path / "figures.json"
    assert (
        main(["evaluate", "--alignment", rule, "answers", "--rows", "4", "--draws", "20", "--json", str(figures)]) == 0
    )
    found = json.loads(figures.read_text())
    assert found["setup"]["alignments"] == ["length_and_end", "answers"]
    assert found["joined"]["structure score against gold, length_and_end"]["n"] == 4
    assert "alignment length_and_end: swapped traces" in capsys.readouterr().out


def test_a_rule_from_a_file_explains_two_traces(rule, capsys) -> None:
    assert main(["explain", "--alignment", rule]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "step 2: last answer" in text
    assert "alignment length_and_end: 1.5 / 2 = 0.75 (two halves) Ends well or not." in text
