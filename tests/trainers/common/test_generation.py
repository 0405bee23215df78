"""Greedy completions in the middle of a run: in order, repeatable, and without a trace in the run."""

import pytest
import torch
from datasets import Dataset

from benchmarks.tiny import training_arguments
from rlkd.data.loading import load_rows, to_dataset
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.common.generation import greedy_completions, sampled_completions, shown_prompts


@pytest.fixture
def trainer(tiny_model, tmp_path):
    args = RLKDConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=4,
        num_generations=4,
        report_to="none",
    )
    rows = to_dataset(load_rows("gsm8k-sample")[:4])
    return RLKDTrainer(tiny_model, reward_funcs="accuracy", args=args, train_dataset=rows)


def test_the_order_is_that_of_the_prompts_and_the_batch_changes_nothing(trainer) -> None:
    prompts = [row["question"] for row in load_rows("gsm8k-sample")[:5]]
    together = greedy_completions(trainer, prompts, max_new_tokens=6)
    assert together == [greedy_completions(trainer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == greedy_completions(trainer, prompts, max_new_tokens=6, batch_size=2)
    assert len(set(together)) > 1


def test_completions_are_the_same_with_and_without_the_fast_path(trainer) -> None:
    prompts = [row["question"] for row in load_rows("gsm8k-sample")[:3]]
    fast = greedy_completions(trainer, prompts, max_new_tokens=12)
    samples = sampled_completions(trainer, prompts, samples=4, temperature=1.5, max_new_tokens=12, seed=1)
    assert samples == sampled_completions(trainer, prompts, samples=4, temperature=1.5, max_new_tokens=12, seed=1)
    assert all(len(set(drawn)) > 1 for drawn in samples)
    trainer.args.fast_path = "never"
    assert greedy_completions(trainer, prompts, max_new_tokens=12) == fast


ASK = [{"role": "user", "content": "1+1?"}]
SOLVE = [{"role": "system", "content": "Solve it."}, *ASK]
OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize("kind", ["rlkd", "kd"])
@pytest.mark.parametrize(
    ("name", "prompt", "config"),
    [
        ("thinking", ASK, {}),
        ("thinking", ASK, OFF),
        ("thinking", SOLVE, OFF),
        ("think_special", ASK, OFF),
        ("chatml", "1+1?", {}),
        ("no_system", ASK, {}),
        ("no_system", SOLVE, {}),
        ("no_system", "1+1?", {}),
        ("opens_thought", ASK, {}),
        ("opens_thought", SOLVE, {}),
        ("opens_thought", "1+1?", {}),
        ("two_ends", SOLVE, {}),
        ("two_ends", "1+1?", {}),
        ("base", "1+1?", {}),
    ],
)
def test_evaluation_shows_the_model_what_training_shows(template_model, tmp_path, kind, name, prompt, config) -> None:
    model, shown = template_model(name), {}
    rows = Dataset.from_list([{"prompt": prompt, "answer": "2", "rationales": ["2"], "id": str(i)} for i in range(4)])
    values = training_arguments(tmp_path, per_device_train_batch_size=4, max_completion_length=4, max_steps=1)
    values |= {"num_generations": 4} if kind == "rlkd" else {"teacher": model, "lmbda": 1.0}
    trained = (
        RLKDTrainer(model, reward_funcs="accuracy", args=RLKDConfig(**values, **config), train_dataset=rows)
        if kind == "rlkd"
        else ValidityKDTrainer(model, args=ValidityKDConfig(**values, **config), train_dataset=rows)
    )
    generate = trained.model.generate

    def watch(key):
        def watched(*args, **given):
            mask = given["attention_mask"].bool()
            shown[key] = [ids[keep].tolist() for ids, keep in zip(given["input_ids"], mask, strict=True)]
            return generate(*args, **given)

        trained.model.generate = watched

    watch("training")
    trained.train()
    watch("evaluation")
    greedy_completions(trained, [prompt], max_new_tokens=2)
    assert shown["evaluation"] == shown["training"][:1] == shown_prompts(trained, [prompt])


@pytest.mark.parametrize("training", [True, False])
def test_neither_random_state_nor_mode_of_the_model_is_changed(trainer, training) -> None:
    trainer.model.train(training)
    state = torch.get_rng_state()
    greedy_completions(trainer, ["One and one?"], max_new_tokens=4)
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training is training
