"""Greedy completions in the middle of a run: in order, repeatable, and without a trace in the run."""

import pytest
import torch

from rlkd.data.loading import load_rows, to_dataset
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.generation import greedy_completions


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


@pytest.mark.parametrize("training", [True, False])
def test_neither_random_state_nor_mode_of_the_model_is_changed(trainer, training) -> None:
    trainer.model.train(training)
    state = torch.get_rng_state()
    greedy_completions(trainer, ["One and one?"], max_new_tokens=4)
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training is training
