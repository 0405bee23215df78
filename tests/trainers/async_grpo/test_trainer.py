"""The asynchronous trainer's config, and what it asks the rollout server before a model loads."""

import copy
import json
import pickle
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl.chat_template_utils import parse_response
from trl.experimental.async_grpo import async_rollout_worker

from rewards import RewardError
from rlkd.errors import UsageError
from trainers.async_grpo import preflight
from trainers.async_grpo.config import RLKDAsyncConfig
from trainers.async_grpo.preflight import _clear, check_async, serve_command, server_url
from trainers.async_grpo.rollouts import whole_text
from trainers.async_grpo.trainer import RLKDAsyncTrainer, reward_error


class Rollouts(ThreadingHTTPServer):
    """What a vLLM server says of itself; notes what it is told."""

    def __init__(self, model: str):
        super().__init__(("127.0.0.1", 0), Answer)
        self.models: list[dict[str, Any]] = [{"id": model, "root": model, "parent": None, "max_model_len": 512}]
        self.config: dict[str, Any] | None = {
            "lora_config": {"max_lora_rank": 16, "max_loras": 6},
            "parallel_config": {"data_parallel_size": 1},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
        self.takes_adapters = True
        self.paused = False
        self.told: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Rollouts

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/v1/load_lora_adapter":
            return self.answer(405 if self.server.takes_adapters else 404, {"detail": "no"})
        known: dict[str, Any] = {
            "/health": {},
            "/v1/models": {"data": self.server.models},
            "/is_paused": {"is_paused": self.server.paused},
        }
        if self.server.config is not None:
            known["/server_info"] = {"vllm_config": self.server.config}
        return self.answer(200 if path in known else 404, known.get(path, {"detail": "Not Found"}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.told.append((self.path, json.loads(body)["lora_name"] if body else ""))
        self.answer(200, {})

    def answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tiny_model: str) -> Iterator[Rollouts]:
    with Rollouts(tiny_model) as started:
        thread = threading.Thread(target=started.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield started
        started.shutdown()
        thread.join(10)


@pytest.fixture(autouse=True)
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "installed_vllm", lambda: "0.30.0")
    monkeypatch.setattr(preflight, "_check_packages", lambda: None)


def config(tmp_path: Path, **settings: Any) -> RLKDAsyncConfig:
    defaults = {"use_cpu": True, "bf16": False, "max_completion_length": 64, "vllm_server_timeout": 0.2}
    return RLKDAsyncConfig(str(tmp_path / "run"), **(defaults | settings))


def check(args: RLKDAsyncConfig, model: str, lora: LoraConfig | None = None, **tokenizer: Any) -> None:
    prompts = [[{"role": "user", "content": "x" * 40}]]
    loaded = AutoTokenizer.from_pretrained(model)
    for name, value in tokenizer.items():
        setattr(loaded, name, value)
    check_async(args, model, lora or LoraConfig(r=8), Dataset.from_dict({"prompt": prompts}), loaded)


def test_a_server_that_fits_is_left_as_it_is(tmp_path, tiny_model, server) -> None:
    check(config(tmp_path, vllm_server_base_url=server.url + "/v1/"), tiny_model)
    assert server.told == []


def change(server: Rollouts, part: str, key: str, value: Any) -> None:
    assert server.config is not None
    server.config = copy.deepcopy(server.config)
    server.config[part][key] = value


@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        (lambda s: s.models[0].update(id="other", root="other"), "serves other, and the student is"),
        (lambda s: s.models[0].update(max_model_len=100), "takes 100 tokens"),
        (lambda s: s.models.clear(), "is not a vLLM server"),
        (lambda s: setattr(s, "config", None), "without VLLM_SERVER_DEV_MODE=1"),
        (lambda s: s.config.update(lora_config=None), "without --enable-lora"),
        (lambda s: change(s, "lora_config", "max_lora_rank", 1), "up to rank 1, and this one has 8"),
        (lambda s: change(s, "lora_config", "max_loras", 5), "5 adapters at once .* max_staleness 4 needs 6"),
        (lambda s: change(s, "parallel_config", "data_parallel_size", 2), "several replicas"),
        (lambda s: change(s, "model_config", "logprobs_mode", "raw_logprobs"), "gives raw_logprobs"),
        (lambda s: setattr(s, "takes_adapters", False), "without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    ],
)
def test_what_does_not_fit_ends_with_the_command_that_does(tmp_path, tiny_model, server, change_it, message) -> None:
    change_it(server)
    args = config(tmp_path, vllm_server_base_url=server.url, temperature=0.9)
    with pytest.raises(UsageError, match=message) as error:
        check(args, tiny_model)
    assert "  VLLM_SERVER_DEV_MODE=1 VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 VLLM_CPU_KVCACHE_SPACE=1" in str(error.value)
    assert f"vllm serve {tiny_model} --host 127.0.0.1 --port {server.server_address[1]} " in str(error.value)


def test_at_temperature_1_both_kinds_of_log_probabilities_are_the_same(tmp_path, tiny_model, server) -> None:
    change(server, "model_config", "logprobs_mode", "raw_logprobs")
    with pytest.raises(UsageError, match="logprobs"):
        check(config(tmp_path, vllm_server_base_url=server.url, temperature=0.5), tiny_model)
    assert check(config(tmp_path, vllm_server_base_url=server.url, temperature=1.0), tiny_model) is None


def test_truncated_sampling_needs_log_probabilities_before_truncation(tmp_path, tiny_model, server) -> None:
    args = config(tmp_path, vllm_server_base_url=server.url, temperature=1.0, top_p=0.9)
    with pytest.raises(UsageError, match=r"processed_logprobs, in which top_p 0\.9 counts"):
        check(args, tiny_model)
    change(server, "model_config", "logprobs_mode", "raw_logprobs")
    assert check(args, tiny_model) is None


def test_a_rank_that_one_layer_has_counts(tmp_path, tiny_model, server) -> None:
    lora = LoraConfig(r=8, rank_pattern={"q_proj": 32})
    with pytest.raises(UsageError, match="this one has 32") as error:
        check(config(tmp_path, vllm_server_base_url=server.url), tiny_model, lora)
    assert "--max-lora-rank 32" in str(error.value)


def test_without_a_server_the_command_is_printed_at_once(tmp_path, tiny_model, server, capsys) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UsageError, match="no rollout server at"):
        check(config(tmp_path, vllm_server_base_url=server.url), tiny_model)
    assert "yet. Start it with:\n  VLLM_SERVER_DEV_MODE=1" in capsys.readouterr().out


def test_the_command_fits_the_run(tmp_path) -> None:
    args = config(tmp_path, max_staleness=1, vllm_server_base_url="http://host:9/")
    command = serve_command(args, "m", rank=9, tokens=700)
    assert "vllm serve m --host host --port 9 --dtype float32 --enforce-eager" in command
    assert "--max-model-len 768 --enable-lora --max-lora-rank 16 --max-loras 3 --logprobs-mode" in command


def adapter(name: str, folder: Path) -> dict[str, Any]:
    return {"id": name, "root": str(folder / ".vllm_lora" / name), "parent": "student"}


def test_what_a_killed_run_in_the_same_folder_left_is_cleared_away(tmp_path, tiny_model, server) -> None:
    server.models += [adapter(f"trl-policy-v{i}", tmp_path / "run") for i in (3, 4)]
    server.models.append(adapter("judge", tmp_path))
    server.paused = True
    check(config(tmp_path, vllm_server_base_url=server.url), tiny_model)
    unload = "/v1/unload_lora_adapter"
    assert server.told == [("/resume", ""), (unload, "trl-policy-v3"), (unload, "trl-policy-v4")]


def test_another_runs_adapters_are_not_touched(tmp_path, tiny_model, server) -> None:
    server.models.append(adapter("trl-policy-v3", tmp_path / "other"))
    with pytest.raises(UsageError, match=f"holds adapters of a run in {tmp_path / 'other'}") as error:
        check(config(tmp_path, vllm_server_base_url=server.url), tiny_model)
    assert f"curl -X POST {server.url}/v1/unload_lora_adapter" in str(error.value)
    assert """-d '{"lora_name": "trl-policy-v3"}'""" in str(error.value)
    assert server.told == []


def test_a_budget_that_no_completion_fits_is_refused(tmp_path, tiny_model) -> None:
    with pytest.raises(UsageError, match=r"token_budget 100 is less than the longest prompt \(\d+ tokens\)"):
        check(config(tmp_path, token_budget=100), tiny_model)


def test_a_tokenizer_without_chat_template_is_refused(tmp_path, tiny_model) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        check(config(tmp_path), tiny_model, chat_template=None)


def test_without_vllm_it_says_what_to_install(tmp_path, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "installed_vllm", lambda: None)
    with pytest.raises(UsageError, match=r"pip install \"rlkd\[vllm\]\""):
        check(config(tmp_path), tiny_model)


def test_the_config_makes_one_reward_that_survives_pickling(tmp_path) -> None:
    args = config(
        tmp_path,
        reward_funcs=["accuracy", "tag_count"],
        reward_weights=[1.0, 0.5],
        reward_gates='{"tag_count": "accuracy"}',
        reward_cache="off",
        on_failure="drop",
    )
    reward = pickle.loads(pickle.dumps(args.composite(tmp_path / "async.jsonl")))
    assert [one.__name__ for one in reward.rewards] == ["accuracy", "tag_count"]
    assert (reward.weights, reward.gates, reward.on_failure) == ([1.0, 0.5], {"tag_count": "accuracy"}, "drop")
    assert reward.log == tmp_path / "async.jsonl"
    # AsyncGRPOTrainer calls a reward with one group.
    assert reward.group_size is None


def test_the_trainer_is_built_for_this_machine(tmp_path, tiny_model, server, monkeypatch) -> None:
    monkeypatch.setattr(async_rollout_worker, "is_vllm_available", lambda: True)
    monkeypatch.setattr(async_rollout_worker, "is_aiohttp_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    rows = {"prompt": [[{"role": "user", "content": "2 + 3?"}]] * 2, "answer": ["5", "5"], "id": ["a", "b"]}
    trainer = RLKDAsyncTrainer(
        tiny_model,
        config(tmp_path, vllm_server_base_url=server.url, reward_funcs=["accuracy"], report_to="none"),
        Dataset.from_dict(rows),
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    handed_over = trainer.rollout_worker._loop_kwargs
    assert trainer._lora_sync
    assert [reward.__name__ for reward in handed_over["reward_funcs"]] == ["composite"]
    assert handed_over["reward_funcs"][0].log == trainer.rollouts_path
    # What the rollout process gets is read whole; what is saved says nothing of it.
    assert handed_over["processing_class"].response_template["fields"]["content"]["close"] == ["<|end|>"]
    assert getattr(trainer.processing_class, "response_template", None) is None
    pickle.dumps(handed_over)


def test_data_without_a_column_that_a_reward_needs_is_refused(tmp_path, tiny_model) -> None:
    prompts = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]]})
    with pytest.raises(RewardError, match="'answer'"):
        RLKDAsyncTrainer(tiny_model, config(tmp_path, reward_funcs=["accuracy"]), prompts, LoraConfig(r=8))


def test_prompts_and_answers_are_checked_as_in_the_synchronous_trainer(template_model, tmp_path, server) -> None:
    def build(name: str, prompt: str, **settings: Any) -> None:
        rows = {"prompt": [[{"role": "user", "content": prompt}]], "answer": ["many"]}
        args = config(tmp_path, vllm_server_base_url=server.url, report_to="none", **settings)
        RLKDAsyncTrainer(template_model(name), args, Dataset.from_dict(rows), LoraConfig(r=8))

    with pytest.raises(RewardError, match="'numeric': 1 of 1 answers cannot be read"):
        build("chatml", "?", reward_funcs=["numeric"])
    with pytest.raises(UsageError, match="do not fit the 128 tokens"):
        build("short", "x" * 200, reward_funcs=["think_format"])


def test_a_template_that_opens_a_thought_sets_prefilled(template_model, tmp_path, server, caplog) -> None:
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]]})
    args = config(tmp_path, vllm_server_base_url=server.url, reward_funcs=["think_format"], report_to="none")
    with pytest.raises(UsageError, match="and the student is"):  # the server has another model
        RLKDAsyncTrainer(template_model("opens_thought"), args, rows, LoraConfig(r=8))
    assert "prefilled is set for think_format" in caplog.text


def test_think_tags_that_are_special_tokens_stay_for_rewards(template_model, tmp_path, server, caplog) -> None:
    name = template_model("think_special")
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.response_template = whole_text([tokenizer.eos_token])
    ids = tokenizer("<think>x</think>y<|im_end|>")["input_ids"]
    assert parse_response(tokenizer, ids, prefix=[])["content"] == "<think>x</think>y"
    rows = Dataset.from_dict({"prompt": [[{"role": "user", "content": "?"}]]})
    args = config(tmp_path, vllm_server_base_url=server.url, reward_funcs=["think_format"], report_to="none")
    with pytest.raises(UsageError, match="and the student is"):
        RLKDAsyncTrainer(name, args, rows, LoraConfig(r=8))
    assert "special tokens of" not in caplog.text


def test_the_mistake_of_a_reward_is_reported_as_trl_passes_it_on() -> None:
    worker = async_rollout_worker.AsyncRolloutWorker.__new__(async_rollout_worker.AsyncRolloutWorker)
    worker._failed_event = threading.Event()
    worker._failed_event.set()
    worker._exception_info_queue = queue.Queue()
    for kind, expected in (("RewardError", "reward 'a' failed: down"), ("OSError", None)):
        told = (kind, "reward 'a' failed: down", "Traceback (most recent call last):\n  ...")
        worker._exception_info_queue.put(told)
        with pytest.raises(RuntimeError) as error:
            worker.check_health(60)
        found = reward_error(error.value)
        assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": ["accurracy"]}, "accuracy"),
        ({"reward_funcs": ["accuracy"], "reward_weights": [1.0, 2.0]}, "2 entries"),
        ({"reward_funcs": ["accuracy"], "reward_gates": {"accuracy": "structure"}}, "'structure' is no reward"),
        ({"reward_funcs": ["accuracy"], "reward_gates": {"accuracy": "accuracy"}}, "its own condition"),
        ({"reward_funcs": ["accuracy"], "on_failure": "ignore"}, "on_failure 'ignore'"),
        ({"reward_kwargs": "{"}, "not a JSON object"),
        ({"reward_kwargs": {"structure": 3}}, "expected a mapping for 'structure'"),
    ],
)
def test_bad_reward_settings_are_named(tmp_path, settings, message) -> None:
    with pytest.raises((UsageError, RewardError), match=message):
        config(tmp_path, **settings).composite()


def test_the_servers_address_may_stand_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKD_ROLLOUT_URL", "http://127.0.0.1:8161")
    args = config(tmp_path, vllm_server_base_url="env:RLKD_ROLLOUT_URL")
    assert server_url(args) == "http://127.0.0.1:8161"


def test_an_adapter_that_is_gone_already_leaves_none_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded = []

    def post(url: str, content: dict[str, str] | None = None) -> None:
        if content == {"lora_name": "trl-policy-v1"}:
            raise OSError("HTTP 404")
        unloaded.append(content)

    monkeypatch.setattr("trainers.async_grpo.preflight._post", post)
    monkeypatch.setattr("trainers.async_grpo.preflight.get_json", lambda url: (200, {"is_paused": False}))
    _clear("http://127.0.0.1:1", ["trl-policy-v1", "trl-policy-v2"])
    assert unloaded == [{"lora_name": "trl-policy-v2"}]
