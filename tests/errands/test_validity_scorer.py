"""Errand: a validity scorer of the user's own that reads the teacher's log-probabilities, named in a YAML file."""

import json
import runpy
import textwrap

import pytest
import yaml

from tests.helpers import ROOT
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps

SCORER = textwrap.dedent("""
    from rlkd.validity import StepValidities

    class FirstTokens:
        '''The log-probability of the first tokens of a step, where the model decides what to do next.'''

        scale = "log"

        def __init__(self, count=3):
            self.count = count

        def from_token_logprobs(self, logprobs):
            return [sum(step[: self.count]) / len(step[: self.count]) for step in logprobs]

        def from_token_statistics(self, statistics, spans, on_policy):
            taken, entropy = statistics.teacher_logprob.tolist(), statistics.teacher_entropy.tolist()
            if on_policy:
                teacher, student = [-value for value in entropy], taken
            else:
                teacher, student = taken, [-value for value in statistics.cross_entropy.tolist()]
            first = [(start, min(stop, start + self.count)) for start, stop in spans]
            return StepValidities(*([sum(v[a:b]) / (b - a) for a, b in first] for v in (teacher, student)))
""")


@pytest.mark.parametrize(("proposals", "lmbda"), [("generate", 0), ("expected", 0), ("expected", 1)])
def test_a_scorer_file_that_reads_the_teachers_log_probabilities_trains(tiny_model, tmp_path, proposals, lmbda):
    (tmp_path / "mine.py").write_text(SCORER)
    rows = [
        {
            "id": f"row-{i}",
            "question": f"{i} apples and {i} pears?",
            "answer": str(2 * i),
            "rationales": [f"There are {i} apples.\nWith the pears it is {i} + {i} = {2 * i}."],
        }
        for i in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "eval_rows": 0,
        "model_name_or_path": tiny_model,
        "teacher": tiny_model,
        "validity": f"{tmp_path / 'mine.py'}:FirstTokens",
        "validity_kwargs": {"count": 2},
        "proposals": proposals,
        "lmbda": lmbda,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "max_completion_length": 60,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    recipe = runpy.run_path(str(ROOT / "recipes/validity_kd.py"), run_name="recipe")
    from trl import ModelConfig

    from trainers import ValidityKDConfig

    kinds = (recipe["ValidityKDScriptArguments"], ValidityKDConfig, ModelConfig)
    recipe["main"](*parse(["--config", str(tmp_path / "mine.yaml")], kinds, default_config=tmp_path))
    [entry] = read_steps(tmp_path / "run/metrics.jsonl")
    assert entry["step"] == 1
    traces = read_steps(tmp_path / "run/rollouts/rank0.jsonl")
    steps = [step for trace in traces for step in trace["steps"]]
    scored = [step for step in steps if step["teacher"] is not None]
    assert scored
    assert all(step["teacher"] < 0 and step["student"] < 0 for step in scored)
    assert {step["weight"] for step in scored} != {1.0}
