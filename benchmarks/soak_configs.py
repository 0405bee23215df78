"""The files that a soak (`soak.py`) starts from: configs of servers and trainer, and a reward that hangs and fails."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

import yaml

from soak_server import pretend_vllm
from soak_verdict import BATCH, GROUP

SERVER = Path(__file__).resolve().parent / "soak_server.py"
SHARE = 0.01

FLAKY = f'''
import time
import zlib

from rewards import RewardOptions


def flaky(prompts, completions, **columns):
    """The length of a completion; some hang, some fail."""
    scores = []
    for prompt, completion in zip(prompts, completions):
        draw = zlib.crc32(str((prompt, completion)).encode()) % 10_000 / 10_000
        if draw < {SHARE}:
            time.sleep(1e6)
        if draw < {2 * SHARE}:
            raise RuntimeError("a failure at random")
        scores.append(min(1.0, len(completion[0]["content"]) / 300))
    return scores


flaky.reward_options = RewardOptions(per_sample=True, timeout=1.0, cache=False)
'''


def write_configs(folder: Path, given: argparse.Namespace, ports: dict[str, int]) -> dict[str, str]:
    """Write the configs and the reward of a soak with the options `given`; returns the variables of its processes."""
    (folder / "flaky.py").write_text(FLAKY)
    stand_in = {"command": [sys.executable, str(SERVER)], "gpus": "cpu", "model": given.student}
    rollout = {**stand_in, "port": ports["rollout"], "weight_transfer": given.transfer}
    if given.vllm:
        del rollout["command"]
        rollout |= {"python": given.vllm, "max_model_len": 512}
    judge = {**stand_in, "port": ports["judge"], "served_model_name": "judge"}
    judge["extra"] = ["--judge", str(SHARE)]
    servers = {"output_dir": "serve", "restarts": 10, "workers": {"rollout": rollout, "judge": judge}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(servers, sort_keys=False))
    engine = f"http://127.0.0.1:{ports['judge']}/v1?timeout=1#judge"
    structure = {"decomposer": "rules", "judge": "model", "judge_engine": engine, "store": str(folder)}
    settings = {
        "dataset_name": "lab-dependency",
        "model_name_or_path": given.student,
        "use_peft": False,
        "reward_funcs": ["accuracy", "structure", f"{folder / 'flaky.py'}:flaky"],
        "reward_weights": [1.0, 1.0, 0.1],
        "reward_kwargs": {"structure": structure},
        "reward_cache": "off",
        "max_steps": 1_000_000,
        "per_device_train_batch_size": BATCH,
        "num_generations": GROUP,
        "max_completion_length": 96,
        "temperature": 1.0,
        "learning_rate": 1.0e-5,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "gradient_checkpointing": False,
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": "env:RLKD_ROLLOUT_URL",
        "vllm_weight_transfer": given.transfer,
        "vllm_group_port": free_port(),
        "output_dir": str(folder / "run"),
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 25,
        "save_total_limit": 2,
        "report_to": "none",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    variables = {"RLKD_CACHE": str(folder / "cache")}
    if not given.vllm:
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(pretend_vllm(folder / "no-vllm")), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
    return variables


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
