"""The fast path of the loss: TRL's loss and gradients, with less work."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config

from benchmarks.tiny import save_llama, training_arguments
from rewards import StepScore
from trainers import RLKDConfig, RLKDTrainer
from trainers.rlkd import fast_loss
from trainers.rlkd.shared_prompts import pack

TYPES = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
PROMPTS = ["Ann has 12 shells, 3 of them white. How many are not?", "What is 2 + 3?"]


def even_groups(completions, **columns):
    """All completions of every second prompt are worth the same."""
    values = [len(set(text)) % 5 / 5 for text in completions]
    return [0.5 if "2 + 3" in prompt else value for prompt, value in zip(columns["prompts"], values, strict=True)]


even_groups.step_scores = lambda text, detail: [StepScore(0.3, (0, 1)), StepScore(0.1, (1, len(text)))]


def gradients(model, folder, fast_path, all_weights=False, highest=250, **changes):
    """The gradients of the last step, and the first logged metrics; with the same rollouts whatever the path."""
    args = training_arguments(folder, per_device_train_batch_size=8, num_generations=4, max_completion_length=10)
    rows = Dataset.from_dict({"prompt": PROMPTS})
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(3)
    trainer = RLKDTrainer(
        model,
        reward_funcs=even_groups,
        args=RLKDConfig(**args | {"max_steps": 1, "max_grad_norm": 0.0} | changes, fast_path=fast_path),
        train_dataset=rows,
        peft_config=None if all_weights else lora,
    )
    random = torch.Generator().manual_seed(5)

    def rollouts(prompt_ids, *args):
        lengths = [3, 10, 7, 5, 2, 9, 10, 4]
        ids = [torch.randint(5, highest, (length,), generator=random).tolist() for length in lengths]
        return [row if index % 3 else [*row[:-1], 1] for index, row in enumerate(ids)], None  # some end

    trainer._generate_single_turn = rollouts
    found = {}

    def keep(optimizer, args, kwargs):
        named = trainer.model.named_parameters()
        found.update({name: value.grad.clone() for name, value in named if value.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return found, trainer.state.log_history[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("model"), num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        *({"loss_type": name} for name in TYPES),
        {"beta": 0.1},
        {"beta": 0.1, "all_weights": True, "num_iterations": 2},
        {"num_iterations": 2},
        {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-4},  # against log-probabilities before the first
        {"top_entropy_quantile": 0.5},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"model_init_kwargs": {"attn_implementation": "eager"}},
        {"mask_truncated_completions": True},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_gradients_are_those_of_trl(model, tmp_path, changes, monkeypatch) -> None:
    packed = []
    monkeypatch.setattr(fast_loss, "pack", lambda *args: packed.append(pack(*args)) or packed[-1])
    expected, plain = gradients(model, tmp_path / "plain", "never", **changes)
    assert not packed
    found, fast = gradients(model, tmp_path / "fast", "always", **changes)
    assert any(one is not None for one in packed)
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 1e-4 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert fast["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert fast["reward"] == plain["reward"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "to_go"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_iterations": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}],
    ids=["one batch", "micro-batches"],
)
def test_gradients_of_step_credit_are_those_of_trl(model, tmp_path, kind, changes) -> None:
    expected, plain = gradients(model, tmp_path / "plain", "never", highest=90, step_credit=kind, **changes)
    found, fast = gradients(model, tmp_path / "fast", "always", highest=90, step_credit=kind, **changes)
    without, _ = gradients(model, tmp_path / "none", "always", highest=90, **changes)
    assert plain["step_credit/aligned"] == fast["step_credit/aligned"] == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    assert any((value - without[name]).abs().max() > 1e-3 for name, value in expected.items())


def test_absolute_positions_are_those_of_trl_too(tmp_path) -> None:
    folder = save_llama(tmp_path / "model")
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3, resid_pdrop=0.0)
    config.attn_pdrop = config.embd_pdrop = 0.0
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    expected, _ = gradients(folder, tmp_path / "plain", "never", all_weights=True)
    found, _ = gradients(folder, tmp_path / "fast", "always", all_weights=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


def test_only_rows_with_an_advantage_are_trained_on(model, tmp_path, monkeypatch) -> None:
    rows = []
    monkeypatch.setattr(fast_loss, "pack", lambda ids, *args: rows.append(len(ids)) or pack(ids, *args))
    gradients(model, tmp_path / "half", "always")
    assert rows == [4]
    monkeypatch.setitem(globals(), "PROMPTS", ["What is 2 + 3?", "Again, what is 2 + 3?"])
    found, logged = gradients(model, tmp_path / "none", "always")
    assert rows == [4, 1]  # a process without a loss would hold up the others
    assert all(value.abs().max() == 0 for value in found.values())
    assert logged["loss"] == 0


def test_all_processes_train_on_as_many_rows(model, tmp_path, monkeypatch) -> None:
    args = training_arguments(tmp_path, per_device_train_batch_size=4, num_generations=4)
    trainer = RLKDTrainer(
        model, reward_funcs=even_groups, args=RLKDConfig(**args), train_dataset=Dataset.from_dict({"prompt": PROMPTS})
    )
    mask = torch.ones(5, 4).tril()[[1, 0, 4, 2, 3]]
    inputs = {"advantages": torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), "completion_mask": mask}
    trainer.model.train()
    of_tokens = {"advantages": torch.tensor([[0.0, 0.0], [0.0, -1.0]]), "completion_mask": torch.ones(2, 2)}
    assert trainer._rows_with_gradient(of_tokens).tolist() == [1]
    for others, expected in ((0, [2]), (1, [2]), (2, [1, 2]), (3, [0, 1, 2])):
        monkeypatch.setattr(trainer.accelerator, "gather", lambda own, others=others: torch.tensor([int(own), others]))
        assert trainer._rows_with_gradient(inputs).tolist() == expected
    monkeypatch.setattr(trainer.accelerator, "gather", lambda own: torch.tensor([int(own), 5]))
    assert trainer._rows_with_gradient(inputs) is None
