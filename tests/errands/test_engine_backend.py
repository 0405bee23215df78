"""Errand: the engine backend of docs/engines.md, in a file of the user's, is decomposer, judge and teacher by YAML."""

import asyncio
import json
import math
import pickle
import re
import runpy
from pathlib import Path

import pytest
import yaml

from rlkd.data.loading import load_rows, to_dataset
from rlkd.engines import EngineError, TopLogprobsEngine, open_engine, run
from rlkd.registry import SpecError
from tests.helpers import ROOT
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig
from trainers.common.arguments import parse
from trainers.common.run_files import read_steps

COMMON = {
    "max_steps": 1,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture
def backend(tmp_path: Path) -> str:
    """The first part of a spec: the file and its class."""
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/engines.md").read_text(), re.DOTALL)
        if "(Engine):" in block
    ]
    (tmp_path / "my_backend.py").write_text(code)
    return f"{tmp_path / 'my_backend.py'}:FixedReplies"


@pytest.mark.parametrize(("likely", "agrees"), [(0.8, True), (0.2, False)])
def test_it_decomposes_and_judges_for_the_structure_reward(
    backend, tiny_model, tmp_path, monkeypatch, likely, agrees
) -> None:
    monkeypatch.setenv("RLKD_CACHE", str(tmp_path / "cache"))
    structure = {"decomposer": "prompted", "judge": "model", "engine": f"{backend}?likely={likely}#rehearsal"}
    settings = COMMON | {
        "output_dir": str(tmp_path / "run"),
        "reward_funcs": ["structure"],
        "reward_kwargs": {"structure": structure},
        "per_device_train_batch_size": 2,
        "num_generations": 2,
        "max_completion_length": 8,
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    [args] = parse([], (RLKDConfig,), default_config=tmp_path / "my.yaml")
    rows = to_dataset(load_rows("gsm8k-sample")[:2])
    RLKDTrainer(tiny_model, args=args, train_dataset=rows).train()
    records = read_steps(tmp_path / "run/rollouts/rank0.jsonl")
    details = [record["rewards"]["structure"]["detail"] for record in records]
    assert [[step["meta"] for step in detail["student"]] for detail in details] == [["What is half of it?"]] * 2
    assert [detail["value"] > 0 for detail in details] == [agrees] * 2


def test_it_teaches_validity_calibrated_distillation(backend, tiny_model, tmp_path) -> None:
    from trl import ModelConfig

    rows = [
        {"question": f"{i} and {i}?", "answer": str(2 * i), "rationales": [f"It is {i} + {i} = {2 * i}."]}
        for i in range(2)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = COMMON | {
        "output_dir": str(tmp_path / "run"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "eval_rows": 0,
        "model_name_or_path": tiny_model,
        "teacher": f"{backend}#{tiny_model}",
        "teacher_top_k": 4,
        "lmbda": 0,
        "per_device_train_batch_size": 2,
        "max_completion_length": 40,
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings))
    recipe = runpy.run_path(str(ROOT / "recipes/validity_kd.py"), run_name="recipe")
    kinds = (recipe["ValidityKDScriptArguments"], ValidityKDConfig, ModelConfig)
    recipe["main"](*parse(["--config", str(tmp_path / "my.yaml")], kinds, default_config=tmp_path))
    [entry] = read_steps(tmp_path / "run/metrics.jsonl")
    assert math.isfinite(entry["loss"])


def test_its_spec_sets_options_and_the_defaults_do_the_rest(backend) -> None:
    engine = open_engine(f"{backend}?likely=0.8&reply=Yes#m", defaults={"timeout": 3})
    assert (engine.model, engine.likely, engine.reply) == ("m", 0.8, "Yes")
    assert (engine.identity, engine.is_remote, engine.concurrency) == ("fixed-replies:m", False, 1)
    assert isinstance(engine, TopLogprobsEngine)
    assert run(engine.choose(["Is it?"], ["Yes", "No"])) == [pytest.approx((math.log(0.8), math.log(0.2)))]
    assert run(engine.check_ready()) is None
    assert pickle.loads(pickle.dumps(engine)).likely == 0.8


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("?likly=0.8#m", "no option 'likly'. Did you mean 'likely'?"),
        ("?likely=much#m", "likely='much', expected a number"),
        ("", "needs the parameter 'model'"),
        ("s#m", "has no 'FixedRepliess'. Did you mean 'FixedReplies'?"),
    ],
)
def test_a_spec_that_does_not_fit_it_is_answered_with_the_way_out(backend, rest, message) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        open_engine(backend + rest)


def test_a_backend_that_only_generates_says_so_where_more_is_needed(tmp_path) -> None:
    code = "from rlkd.engines import Engine\nclass Mute(Engine):\n    name = 'mute'\n    async def generate(self): ..."
    (tmp_path / "mute.py").write_text(code)
    engine = open_engine(f"{tmp_path / 'mute.py'}:Mute")
    [error] = asyncio.run(engine.choose(["Is it?"], ["Yes", "No"]))
    assert isinstance(error, EngineError)
    assert "computes no log-probabilities" in str(error)
