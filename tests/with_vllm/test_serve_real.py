"""`rlkd serve` with real vLLM servers: they answer, a recipe trains against them, and all are gone at the end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rlkd.engines import Sampling, open_engine, run
from rlkd.http import get_json
from rlkd.process import carriers
from tests.helpers.ports import free_port
from tests.with_vllm.test_recipe_with_vllm import REWARD
from tests.with_vllm.test_weight_sync import EXACT

HANG_GUARD = 540.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def left(secret: str) -> list[int]:
    """The running processes of a test, found by a variable that only they have."""
    return [process.pid for process in carriers("SERVE_TEST", secret)]


def until_gone(secret: str, end: float) -> None:
    while pids := left(secret):
        assert time.monotonic() < end, f"still there: {pids}"
        time.sleep(0.2)


def test_structure_and_rollout_servers_come_up_answer_and_are_gone_after_a_kill(tmp_path: Path) -> None:
    ports = {"gsrm": free_port(), "rollout": free_port()}
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"""
output_dir: {tmp_path}/out
workers:
  gsrm: {{model: embedded-gsrm, gpus: cpu, port: {ports["gsrm"]}, max_model_len: 512}}
  rollout: {{model: embedded-warm, gpus: cpu, port: {ports["rollout"]}, max_model_len: 512, weight_transfer: gloo}}
"""
    )
    secret = uuid.uuid4().hex
    environment = os.environ | {"SERVE_TEST": secret}
    output = tmp_path / "output"
    with output.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlkd.cli", "serve", "--config", str(config)],
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=environment,
        )
    end = time.monotonic() + HANG_GUARD
    try:
        while "in a recipe's YAML" not in (shown := output.read_text(errors="replace")):
            assert process.poll() is None, shown[-6000:]
            assert time.monotonic() < end, shown[-6000:]
            time.sleep(0.5)
        lines = shown.splitlines()
        specs = {
            role: f"http://127.0.0.1:{port}/v1#embedded-{kind}"
            for (role, port), kind in zip(ports.items(), ("gsrm", "warm"), strict=True)
        }
        for role, spec in specs.items():
            assert any(line.split() == [role, spec.partition("/v1")[0], spec] for line in lines), shown[-3000:]
            # The line of the table is what an engine takes.
            (completion,) = run(open_engine(spec).generate(["2 + 2 ="], Sampling(max_new_tokens=4)))
            assert completion.text
            assert any(line.startswith(f"[{role}]") for line in lines)
        # An endpoint of the development mode, which weight_transfer needs.
        assert get_json(f"http://127.0.0.1:{ports['rollout']}/get_world_size") == (200, {"world_size": 1})
        # Supervisor; for each server a guard, vLLM's front, its engine, and a worker or a tracker of resources.
        assert len(left(secret)) >= 7
        process.kill()
        process.wait(HANG_GUARD)
        until_gone(secret, end)
    finally:
        for pid in left(secret):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


RUN = """
dataset_name: gsm8k-sample
system_prompt: Solve the problem in short lines, one calculation a line.
model_name_or_path: embedded-warm
use_peft: true
lora_target_modules: all-linear
lora_dropout: 0.0
gradient_checkpointing: false
reward_funcs: [structure, {reward}:variety]
reward_weights: [1.0, 1.0]
reward_kwargs:
  structure: {{decomposer: generative, engine: "env:RLKD_GSRM_SPEC", judge: deterministic, store: {folder}/structures}}
use_vllm: true
vllm_mode: server
vllm_server_base_url: env:RLKD_ROLLOUT_URL
vllm_group_port: {port}
vllm_weight_transfer: gloo
max_steps: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 1
num_generations: 4
max_completion_length: 48
learning_rate: 1.0e-3
lora_r: 8
save_strategy: "no"
logging_steps: 1
eval_rows: 0
output_dir: {folder}/run
"""


@pytest.mark.nightly  # the test above and that of the recipe against a rollout server, together
def test_the_recipe_trains_against_the_structure_and_the_rollout_server(root: Path, tmp_path: Path) -> None:
    serve, recipe, reward = tmp_path / "serve.yaml", tmp_path / "run.yaml", tmp_path / "variety.py"
    reward.write_text(REWARD)
    recipe.write_text(RUN.format(reward=reward, folder=tmp_path, port=free_port()))
    serve.write_text(
        f"""
output_dir: {tmp_path}/out
workers:
  gsrm: {{model: embedded-gsrm, gpus: cpu, port: {free_port()}, max_model_len: 1024}}
  rollout: {{model: embedded-warm, gpus: cpu, port: {free_port()}, max_model_len: 1024, weight_transfer: gloo}}
"""
    )
    secret = uuid.uuid4().hex
    trainer = [sys.executable, str(root / "recipes" / "rlkd.py"), "--config", str(recipe)]
    output = tmp_path / "output"
    with output.open("wb") as handle:
        done = subprocess.run(
            [sys.executable, "-m", "rlkd.cli", "serve", "--config", str(serve), "--", *trainer],
            stdout=handle,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=os.environ | {"SERVE_TEST": secret, "HF_HUB_OFFLINE": "1"},
            timeout=1500,
        )
    shown = output.read_text(errors="replace")
    assert done.returncode == 0, shown[-8000:]
    until_gone(secret, time.monotonic() + 60)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2]
    # After each sync the server's log-probabilities are the trainer's, though the weights change at every step.
    gaps = [record["sampling/sampling_logp_difference/max"] for record in metrics]
    print(f"recipe, behind rlkd serve: gaps {gaps}, structure {[m['rewards/structure/mean'] for m in metrics]}")
    assert max(gaps) < EXACT, gaps
    assert all(record["grad_norm"] > 0 for record in metrics)
    assert all(record["rewards/structure/failed"] == 0 for record in metrics)
    # The structure model received requests over the network.
    assert '"POST /v1/' in (tmp_path / "out" / "logs" / "gsrm.log").read_text(errors="replace")
