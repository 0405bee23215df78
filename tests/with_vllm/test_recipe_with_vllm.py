"""The RLKD recipe as a user runs it, with vLLM for the rollouts: on a server, and in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ports import free_port
from tests.helpers.vllm_server import VLLMServer
from tests.with_vllm.test_weight_sync import EXACT, gap, token_scores

REWARD = """
def variety(completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [len(set(text)) / 30 + text.count("e") / 10 for text in texts]
"""


def run_recipe(root: Path, folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Three steps of recipes/rlkd.py on the embedded model; returns the logged metrics, one record a step."""
    reward = folder / "variety.py"
    reward.write_text(REWARD)
    defaults = {
        "model_name_or_path": "embedded",
        "reward_funcs": f"{reward}:variety",
        "reward_weights": 1.0,
        "reward_kwargs": "{}",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 5e-3,
        "lora_r": 8,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 4,
        "eval_rows": 0,
        "use_vllm": "true",
        "output_dir": str(folder / "run"),
    }
    config = root / "recipes" / "rlkd_smollm2.yaml"
    words = [str(word) for name, value in (defaults | options).items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, str(root / "recipes" / "rlkd.py"), "--config", str(config), *words],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=folder,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def logged_gaps(metrics: list[dict[str, Any]]) -> list[float]:
    return [record["sampling/sampling_logp_difference/max"] for record in metrics]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_recipe_trains_against_a_rollout_server(
    root: Path, server: VLLMServer, smollm: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = run_recipe(
        root,
        tmp_path,
        vllm_mode="server",
        vllm_server_base_url=server.url,
        vllm_group_port=free_port(),
        vllm_weight_transfer="gloo",
    )
    gaps = logged_gaps(metrics)
    print(f"recipe, server: gaps {gaps}")
    assert len(gaps) == 3
    assert max(gaps) < EXACT, gaps
    # What the server holds at the end is what the third step was generated with: the model after two steps.
    token_ids = list(AutoTokenizer.from_pretrained(smollm)("One egg and two spoons of sugar make")["input_ids"])
    base = AutoModelForCausalLM.from_pretrained(smollm)
    untrained = token_scores(base, token_ids)
    trained = PeftModel.from_pretrained(base, str(tmp_path / "run" / "checkpoint-2"))
    served = server.scores(token_ids)
    assert gap(served, token_scores(trained, token_ids)) < EXACT
    assert gap(served, untrained) > 1e-2


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_recipe_trains_with_vllm_in_its_own_process(root: Path, tmp_path: Path) -> None:
    metrics = run_recipe(root, tmp_path, vllm_mode="colocate", vllm_max_model_length=512)
    gaps = logged_gaps(metrics)
    print(f"recipe, colocate: gaps {gaps}")
    assert len(gaps) == 3
    assert max(gaps) < EXACT, gaps
    # Had the engine kept the first weights, the gaps would have grown with what was learnt.
    assert all(record["grad_norm"] > 0 for record in metrics)
