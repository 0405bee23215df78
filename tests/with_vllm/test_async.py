"""recipes/rlkd_async.py as a user runs it, on a server of its own: other tests change the shared one's weights."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.vllm_server import VLLMServer, start_server, stop_server
from tests.with_vllm.test_weight_sync import EXACT, TEXT, gap, token_scores

QUESTIONS = [("a", "What is 2 + 3?", "5"), ("b", "What is 4 + 4?", "8"), ("c", "What is 9 - 2?", "7")]
REWARD = """
def variety(completions, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [len(set(text)) / 30 + text.count("e") / 10 for text in texts]
"""


@pytest.fixture(scope="module")
def adapter_server(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    log = tmp_path_factory.mktemp("vllm-async") / "server.log"
    lora = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2")
    started = start_server(smollm, log, *lora, backend=None)
    yield started
    stop_server(started)


def adapters(server: VLLMServer) -> set[str]:
    return {card["id"] for card in server.get("/v1/models")["data"] if card.get("parent")}


def tell(server: VLLMServer, path: str, **content: Any) -> None:
    """Like `server.post`, where the answer is plain text."""
    with contextlib.suppress(json.JSONDecodeError):
        server.post(path, content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With questions and a reward."""
    (tmp_path / "variety.py").write_text(REWARD)
    rows = [{"id": i, "question": q, "answer": a, "rationales": [f"It is {a}."]} for i, q, a in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def leave_behind_what_a_killed_run_leaves(server: VLLMServer, folder: Path) -> None:
    """An adapter under the name that the next run begins with, and a pause."""
    model = AutoModelForCausalLM.from_pretrained(server.model)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(folder)
    tell(server, "/v1/load_lora_adapter", lora_name="trl-policy-v1", lora_path=str(folder))
    tell(server, "/pause?mode=keep")


def run_recipe(root: Path, folder: Path, server: VLLMServer) -> tuple[subprocess.Popen[str], set[str]]:
    """Two steps; returns the process and the adapters that the server had on the way."""
    options = {
        "vllm_server_base_url": server.url,
        "model_name_or_path": "embedded",
        "dataset_name": folder / "questions.jsonl",
        "system_prompt": "Be brief.",
        "reward_funcs": ["accuracy", f"{folder / 'variety.py'}:variety"],
        "reward_kwargs": "{}",
        "reward_options": '{"variety": {"per_sample": true}}',
        "reward_weights": [1.0, 1.0],
        "max_steps": 2,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_inflight_tasks": 4,
        "max_staleness": 0,
        "token_budget": 56,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "lora_r": 8,
        "save_strategy": "no",
        "output_dir": folder / "run",
    }
    words = [sys.executable, str(root / "recipes" / "rlkd_async.py")]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    seen: set[str] = set()
    with (folder / "recipe.log").open("w") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, text=True, cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    deadline = time.monotonic() + 900
    try:
        while process.poll() is None and time.monotonic() < deadline:
            seen |= adapters(server)
            time.sleep(1)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process, seen


def test_asynchronous_training_syncs_its_adapter_and_agrees_with_the_server(
    root: Path, folder: Path, adapter_server: VLLMServer
) -> None:
    run = folder / "run"
    leave_behind_what_a_killed_run_leaves(adapter_server, run / ".vllm_lora" / "trl-policy-v1")

    process, seen = run_recipe(root, folder, adapter_server)
    assert process.returncode == 0, (folder / "recipe.log").read_text()[-6000:]

    # The first policy and the one after the first step were both there; nothing is left.
    assert {"trl-policy-v1", "trl-policy-v2"} <= seen
    assert not adapters(adapter_server)

    # The trainer computes what the server sampled with.
    metrics: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2]
    assert metrics[0]["ratio"] == pytest.approx(1, abs=1e-3)
    assert abs(metrics[0]["kl"]) < 1e-6
    # The next step's completions were taken before this one had trained, so they are one policy older.
    assert metrics[1]["ratio"] == pytest.approx(1, abs=5e-2)
    assert 1e-6 < metrics[1]["kl"] < 1e-2

    # Rewards with worker processes of their own have scored every completion, in whole groups.
    assert "runs in this process" not in (folder / "recipe.log").read_text()
    records = [json.loads(line) for line in (run / "rollouts" / "async.jsonl").read_text().splitlines()]
    groups: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
        assert {name: o["status"] for name, o in record["rewards"].items()} == {
            "accuracy": "score",
            "variety": "score",
        }
        assert record["score"] == pytest.approx(sum(o["value"] for o in record["rewards"].values()))
    assert list(groups) == list(range(len(groups)))
    assert {len(group) for group in groups.values()} == {4}
    assert all(len({record["id"] for record in group}) == 1 for group in groups.values())

    # The adapter that was saved is another policy than the student was, and the server computes with it as PEFT does.
    token_ids = list(AutoTokenizer.from_pretrained(adapter_server.model)(TEXT)["input_ids"])
    tell(adapter_server, "/v1/load_lora_adapter", lora_name="trained", lora_path=str(run))
    base = AutoModelForCausalLM.from_pretrained(adapter_server.model)
    before = token_scores(base, token_ids)
    after = token_scores(PeftModel.from_pretrained(base, str(run)), token_ids)
    assert gap(before, after) > 1e-2
    assert gap(adapter_server.scores(token_ids), before) < EXACT
    assert gap(adapter_server.scores(token_ids, model="trained"), after) < EXACT
    # What was sent after the last step is what was saved.
    sent = run / ".vllm_lora" / "trl-policy-v3" / "adapter_model.safetensors"
    saved = load_file(run / "adapter_model.safetensors")
    assert all(tensor.equal(saved[name]) for name, tensor in load_file(sent).items())


def test_a_second_run_on_a_busy_server_is_told_whose_adapters_are_there(
    root: Path, folder: Path, adapter_server: VLLMServer
) -> None:
    other = folder / "elsewhere"
    left = other / ".vllm_lora" / "trl-policy-v1"
    model = AutoModelForCausalLM.from_pretrained(adapter_server.model)
    lora = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(left)
    tell(adapter_server, "/v1/load_lora_adapter", lora_name="trl-policy-v1", lora_path=str(left))
    try:
        process, _ = run_recipe(root, folder, adapter_server)
    finally:
        tell(adapter_server, "/v1/unload_lora_adapter", lora_name="trl-policy-v1")
    told = (folder / "recipe.log").read_text()
    assert process.returncode == 1
    assert f"holds adapters of a run in {other}" in told
    assert "curl -X POST" in told
    assert "Traceback" not in told
