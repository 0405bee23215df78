"""Errand: the scorer file of docs/validity.md, which reads the teacher's log-probabilities, named in a YAML file."""

import json
import runpy

import pytest
import yaml

from tests.helpers import ROOT
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps


@pytest.mark.parametrize(("proposals", "lmbda"), [("generate", 0), ("expected", 0), ("expected", 1)])
def test_a_scorer_file_that_reads_the_teachers_log_probabilities_trains(tiny_model, tmp_path, proposals, lmbda):
    _, _, text = (ROOT / "docs/validity.md").read_text().partition("class FirstTokens:")
    imports = "from rlkd.validity import expected_margins\n\n\nclass FirstTokens:"
    (tmp_path / "mine.py").write_text(imports + text.split("```")[0])
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
