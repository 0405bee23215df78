"""With `vllm_adapter_sync` servers compute with the trainer's adapter after each sync, and keep their own weights."""

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd.data.loading import to_dataset
from rlkd.data.samples import sample_rows
from rlkd.process import descendants
from tests.helpers.ports import free_port
from tests.helpers.vllm_server import VLLMServer, start_server, stop_server
from tests.with_vllm.test_weight_sync import EXACT, TEXT, gap, share_of_letter_e, token_scores
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.vllm.adapter_clients import CLIENTS
from trainers.vllm.adapter_sync import FOLDER, gathered_adapter, write_adapter
from trainers.vllm.weight_sync import GlooClient

# Longer than a block of the prefix cache (128 tokens on a CPU), so that a step could continue from the step before.
START = "A long list of things that one finds in a kitchen, in a garden, or in a workshop: " * 8
LORA = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


@pytest.fixture(scope="module")
def token_ids(smollm: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(smollm)(TEXT)["input_ids"])


@pytest.fixture
def base(server: VLLMServer, smollm: str) -> VLLMServer:
    """The server of the session with the weights of the embedded model: other tests change them."""
    client = GlooClient(server.url, group_port=free_port(), connection_timeout=60)
    client.init_communicator("cpu")
    client.update_model_params(AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32))
    client.reset_prefix_cache()
    client.close_communicator()
    return server


def settings(output: Path, urls: list[str], transfer: str, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": ",".join(urls),
        "vllm_group_port": free_port(),
        "vllm_weight_transfer": transfer,
        "vllm_adapter_sync": True,
        "vllm_server_timeout": 120,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 1,
    } | options


def trainer_for(smollm: str, reward: Any, *where: Any, **options: Any) -> RLKDTrainer:
    return RLKDTrainer(
        model=smollm,
        reward_funcs=reward,
        args=RLKDConfig(num_generations=2, **settings(*where, **options)),
        train_dataset=Dataset.from_dict({"prompt": [START + word for word in ("cups,", "rakes,")] * 2}),
        peft_config=LoraConfig(**LORA),
    )


def names(server: VLLMServer) -> list[str]:
    """The adapters that the server has of this kind of sync."""
    return [card["id"] for card in server.get("/v1/models")["data"] if card["id"].startswith("rlkd-")]


@pytest.mark.parametrize("transfer", ["gloo", pytest.param("disk", marks=pytest.mark.nightly)])
def test_each_sync_is_a_new_adapter_that_the_server_computes_with_as_the_trainer_does(
    base: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path, transfer: str, capsys: Any
) -> None:
    trainer = trainer_for(smollm, share_of_letter_e, tmp_path / "run", [base.url], transfer, max_steps=2)
    untrained = base.scores(token_ids)
    assert gap(untrained, token_scores(trainer.model.get_base_model(), token_ids)) < EXACT
    served: list[list[float]] = []
    seen: list[list[str]] = []
    gaps: list[float] = []
    sync = trainer.vllm_generation.sync_weights

    def sync_and_compare() -> None:
        sync()
        seen.append(names(base))
        served.append(base.scores(token_ids, model=seen[-1][0]))
        gaps.append(gap(served[-1], token_scores(trainer.model, token_ids)))

    trainer.vllm_generation.sync_weights = sync_and_compare
    trainer.train()
    sync_and_compare()

    changes = [gap(before, after) for before, after in itertools.pairwise(served)]
    print(f"adapter by {transfer}: gaps {gaps}, changes {changes}")
    run = seen[0][0].removesuffix("-v1")
    assert seen == [[f"{run}-v{version}"] for version in (1, 2, 3)]
    assert max(gaps) < EXACT, gaps
    assert min(changes) > 1e-2, changes
    # What was sampled is of the adapter of its step, not continued from a prefix of the step before.
    sampled = [log["sampling/sampling_logp_difference/max"] for log in trainer.state.log_history if "reward" in log]
    assert len(sampled) == 2
    assert max(sampled) < EXACT, sampled
    assert gap(base.scores(token_ids), untrained) == 0
    # Two versions are kept where the server reads them.
    folders = {path.name for path in (tmp_path / "run" / FOLDER).iterdir()}
    assert folders == {f"{run}-v2", f"{run}-v3"}
    received = sorted(path.name.rpartition("-")[0] for path in Path("/tmp").glob(f"{run}-v*"))
    assert received == ([f"{run}-v2", f"{run}-v3"] if transfer == "gloo" else [])
    said = capsys.readouterr().out
    assert "Each weight sync sends an adapter of 9.8 MB to 1 rollout server(s)" in said
    assert "all weights are 538.1 MB" in said
    trainer.vllm_generation.vllm_client.close_communicator()
    assert not names(base)


def adapters(smollm: str, folder: Path, count: int) -> tuple[list[Path], list[Any]]:
    """Random adapters in folders, and their models."""
    from accelerate import Accelerator

    models = []
    folders = [folder / f"rlkd-{os.urandom(4).hex()}-v1"]
    folders += [folder / folders[0].name.replace("-v1", f"-v{version}") for version in range(2, count + 1)]
    for number, path in enumerate(folders):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
        models.append(get_peft_model(model, LoraConfig(**(LORA | {"init_lora_weights": False}))))
        write_adapter(models[-1], gathered_adapter(models[-1], Accelerator(cpu=True)), path)
    return folders, models


@pytest.mark.nightly
def test_a_request_in_progress_ends_with_the_adapter_that_it_began_with(
    base: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    folders, models = adapters(smollm, tmp_path, 2)
    client = CLIENTS["gloo"](base.url, group_port=free_port(), connection_timeout=60)
    client.init_communicator("cpu")
    client.load(folders[0])
    # Joined before the request begins, so that nothing but the load falls into its time.
    other = CLIENTS["gloo"](base.url, group_port=free_port(), connection_timeout=60)
    other.init_communicator("cpu")
    output: dict[str, Any] = {}

    def request() -> None:
        output.update(
            client.generate([token_ids], max_tokens=160, temperature=0.0, generation_kwargs={"min_tokens": 160})
        )

    thread = threading.Thread(target=request)
    thread.start()
    base.wait_for_requests()
    other.load(folders[1])
    still = thread.is_alive()
    thread.join()
    assert still, "the request had ended before the sync: nothing was tested"
    completion = output["completion_ids"][0]
    logprobs = [entry[0] for entry in output["logprobs"][0]]
    of_first, of_second = (token_scores(model, token_ids + completion)[len(token_ids) - 1 :] for model in models)
    assert len(completion) == 160
    assert gap(logprobs, of_first) < EXACT
    assert gap(logprobs, of_second) > 1e-2
    assert names(base) == [folders[1].name]
    other.unload()
    other.close_communicator()


@pytest.mark.nightly
def test_distillation_sends_its_adapter_as_well(
    base: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    args = ValidityKDConfig(lmbda=1.0, **settings(tmp_path / "run", [base.url], "disk", max_steps=2))
    rows = to_dataset(sample_rows("train")[:8])
    trainer = ValidityKDTrainer(smollm, "embedded-warm", args, rows, peft_config=LoraConfig(**LORA))
    untrained = base.scores(token_ids)
    trainer.train()
    assert [name.rpartition("-")[2] for name in names(base)] == ["v2"]
    trainer.vllm_generation.sync_weights()
    (name,) = names(base)
    served = base.scores(token_ids, model=name)
    assert gap(served, token_scores(trainer.model, token_ids)) < EXACT
    assert gap(served, untrained) > 1e-2
    trainer.vllm_generation.vllm_client.close_communicator()


@pytest.mark.nightly
def test_a_student_in_4_bit_has_its_adapter_on_the_servers_full_precision(
    base: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options = {"model_init_kwargs": four_bit, "max_steps": 2}
    trainer = trainer_for(smollm, share_of_letter_e, tmp_path / "run", [base.url], "disk", **options)
    assert trainer.model.is_loaded_in_4bit
    trainer.train()
    trainer.vllm_generation.sync_weights()
    (name,) = names(base)
    full = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    served = base.scores(token_ids, model=name)
    assert (
        gap(served, token_scores(PeftModel.from_pretrained(full, tmp_path / "run" / FOLDER / name), token_ids)) < EXACT
    )
    # The trainer's base is another one.
    assert gap(served, token_scores(trainer.model, token_ids)) > 1e-2
    logs = [log for log in trainer.state.log_history if "reward" in log]
    print("4 bit:", [{key: log[key] for key in log if "sampling" in key or "grad" in key} for log in logs])
    assert all(log["sampling/sampling_logp_difference/max"] > 1e-2 for log in logs)
    assert all(log["grad_norm"] > 0 for log in logs)
    trainer.vllm_generation.vllm_client.close_communicator()


@pytest.fixture
def second(smollm: str, tmp_path: Path) -> Iterator[VLLMServer]:
    started = start_server(smollm, tmp_path / "second.log", "--enable-lora", "--max-lora-rank", "8", backend=None)
    yield started
    stop_server(started)


def kill(server: VLLMServer) -> None:
    """With SIGKILL, its engine and workers too."""
    for process in [psutil.Process(server.process.pid), *descendants(server.process.pid)]:
        process.kill()
    server.process.wait()


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_run_on_two_servers_goes_on_when_one_is_killed_and_takes_it_back(
    base: VLLMServer, second: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    both = [base.url, second.url]
    calls = []

    def reward(completions: list[Any], **_: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 2:
            kill(second)
        return share_of_letter_e(completions)

    trainer = trainer_for(smollm, reward, tmp_path / "run", both, "disk", max_steps=4)
    client = trainer.vllm_generation.vllm_client
    assert client.live == both
    trainer.train()
    assert calls == [4] * 4
    assert client.live == both[:1]
    sampled = [log["sampling/sampling_logp_difference/max"] for log in trainer.state.log_history if "reward" in log]
    assert len(sampled) == 4
    assert max(sampled) < EXACT, sampled

    port = int(second.url.rpartition(":")[2])
    log = tmp_path / "third.log"
    third = start_server(smollm, log, "--enable-lora", "--max-lora-rank", "8", backend=None, port=port)
    try:
        trainer.vllm_generation.sync_weights()
        assert client.live == both
        here = token_scores(trainer.model, token_ids)
        for server in (base, third):
            (name,) = names(server)
            assert gap(server.scores(token_ids, model=name), here) < EXACT

        # In the middle of a request, too.
        threading.Timer(1.0, kill, [third]).start()
        length = {"max_tokens": 200, "generation_kwargs": {"min_tokens": 200}}
        output = client.generate([token_ids[:at] for at in range(4, 12)], n=2, **length)
        assert [len(ids) for ids in output["prompt_ids"]] == list(range(4, 12))
        assert [len(ids) for ids in output["completion_ids"]] == [200] * 16
        assert client.live == both[:1]
    finally:
        stop_server(third)
        client.close_communicator()
