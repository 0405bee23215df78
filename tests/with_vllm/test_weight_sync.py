"""After each sync, the server's log-probabilities are the trainer's: both transports, all weights and LoRA."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.ports import free_port
from tests.helpers.vllm_server import VLLMServer, start_server, stop_server
from trainers import RLKDConfig, RLKDTrainer
from trainers.vllm.weight_sync import DiskClient, GlooClient, SyncFailed

TEXT = "The capital of France is Paris. Seven times eight is fifty-six, and the sky over Rome is blue."
EXACT = 1e-4


def share_of_letter_e(completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between short completions, so that there is something to learn."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [text.count("e") / max(len(text), 1) + len(set(text)) / 100 for text in texts]


def token_scores(model: Any, token_ids: list[int]) -> torch.Tensor:
    """The model's own log-probabilities of `token_ids[1:]`."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, :-1].float()
    model.train(training)
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]


def gap(one: Any, other: Any) -> float:
    return float((torch.as_tensor(one) - torch.as_tensor(other)).abs().max())


@pytest.fixture(scope="module")
def token_ids(smollm: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(smollm)(TEXT)["input_ids"])


@pytest.fixture(scope="module")
def disk_server(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    started = start_server(smollm, tmp_path_factory.mktemp("vllm-disk") / "server.log", backend="disk")
    yield started
    stop_server(started)


@pytest.fixture(params=["gloo", "disk"])
def any_server(request: pytest.FixtureRequest) -> VLLMServer:
    return request.getfixturevalue("server" if request.param == "gloo" else "disk_server")


def client_of(server: VLLMServer, tmp_path: Path) -> GlooClient | DiskClient:
    if server.backend == "disk":
        return DiskClient(server.url, folder=tmp_path / "weights", shard_bytes=2**28, connection_timeout=60)
    return GlooClient(server.url, group_port=free_port(), connection_timeout=60)


@pytest.mark.parametrize(
    ("any_server", "kind"),
    [
        ("gloo", "full"),
        pytest.param("gloo", "lora", marks=pytest.mark.nightly),
        pytest.param("disk", "full", marks=pytest.mark.nightly),
        ("disk", "lora"),
    ],
    indirect=["any_server"],
)
def test_the_server_follows_the_trainer_at_every_step(
    any_server: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path, kind: str
) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights="gaussian")
    args = RLKDConfig(
        str(tmp_path / "run"),
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=any_server.url,
        vllm_group_port=free_port(),
        vllm_weight_transfer=any_server.backend,
        vllm_server_timeout=120,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=3,
        learning_rate=2e-4 if kind == "full" else 1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=1,
    )
    prompts = [f"Name {n} things that one finds in a kitchen:" for n in ("two", "three", "four", "five")]
    trainer = RLKDTrainer(
        model=smollm,
        reward_funcs=share_of_letter_e,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=lora if kind == "lora" else None,
    )
    served: list[list[float]] = []
    gaps: list[float] = []
    sync = trainer.vllm_generation.sync_weights

    def sync_and_compare() -> None:
        sync()
        served.append(any_server.scores(token_ids))
        gaps.append(gap(served[-1], token_scores(trainer.model, token_ids)))

    trainer.vllm_generation.sync_weights = sync_and_compare
    trainer.train()
    sync_and_compare()

    changes = [gap(before, after) for before, after in itertools.pairwise(served)]
    print(f"{any_server.backend} {kind}: gaps {gaps}, changes {changes}")
    assert len(served) == 4
    assert max(gaps) < EXACT, gaps
    assert min(changes) > 1e-2, changes
    sampled = [log["sampling/sampling_logp_difference/max"] for log in trainer.state.log_history if "reward" in log]
    assert len(sampled) == 3
    assert max(sampled) < EXACT, sampled
    trainer.vllm_generation.vllm_client.close_communicator()
    assert not list(tmp_path.rglob("weights-for-vllm/*"))


def test_a_changed_embedding_reaches_the_tied_head(
    any_server: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    client = client_of(any_server, tmp_path)
    client.init_communicator("cpu")
    client.update_model_params(model)
    assert gap(any_server.scores(token_ids), before := token_scores(model, token_ids)) < EXACT
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(torch.randn_like(model.model.embed_tokens.weight) * 0.01)
    client.update_named_param("model.embed_tokens.weight", model.model.embed_tokens.weight.data)
    client.reset_prefix_cache()
    after = token_scores(model, token_ids)
    assert gap(before, after) > 0.05
    assert gap(any_server.scores(token_ids), after) < EXACT
    client.close_communicator()


def test_a_part_of_a_fused_layer_is_refused_by_name_and_changes_nothing(
    any_server: VLLMServer, token_ids: list[int], tmp_path: Path
) -> None:
    client = client_of(any_server, tmp_path)
    client.init_communicator("cpu")
    before = any_server.scores(token_ids)
    with pytest.raises(SyncFailed, match=r"qkv_proj.*keep their old weights"):
        client.update_named_param("model.layers.0.self_attn.q_proj.weight", torch.zeros(576, 576))
    client.reset_prefix_cache()
    assert gap(any_server.scores(token_ids), before) < 1e-6
    client.close_communicator()


def test_the_next_update_works_after_one_that_was_refused(
    any_server: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    client = client_of(any_server, tmp_path)
    client.init_communicator("cpu")
    with pytest.raises(SyncFailed, match="no module or parameter named 'no'"):
        client.update_named_param("no.such.layer", torch.zeros(2, 2))
    client = client_of(any_server, tmp_path)
    client.init_communicator("cpu")
    client.update_model_params(model)
    client.reset_prefix_cache()
    assert gap(any_server.scores(token_ids), token_scores(model, token_ids)) < EXACT
    client.close_communicator()


def test_a_trainer_that_dies_while_sending_leaves_the_server_as_it_was_and_the_next_one_connects(
    server: VLLMServer, smollm: str, token_ids: list[int], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32)
    client = client_of(server, tmp_path)
    client.init_communicator("cpu")
    before = server.scores(token_ids)
    announced = [(name, "float32", list(weight.shape)) for name, weight in model.named_parameters()]

    def breaks_off() -> Iterator[tuple[str, torch.Tensor]]:
        for count, (name, weight) in enumerate(model.named_parameters()):
            if count == 30:
                raise KeyboardInterrupt
            yield name, torch.zeros_like(weight)

    with pytest.raises(KeyboardInterrupt):
        client.update_named_params(announced, breaks_off())
    client.reset_prefix_cache()
    assert gap(server.scores(token_ids), before) < 1e-6
    following = client_of(server, tmp_path)
    following.init_communicator("cpu")
    following.update_model_params(model)
    following.reset_prefix_cache()
    assert gap(server.scores(token_ids), token_scores(model, token_ids)) < EXACT
    following.close_communicator()
