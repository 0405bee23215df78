"""The steps that a dry run counts are those that the trainers run."""

import math
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.helpers.dry_runs import shown_by
from trainers import RLKDConfig, RLKDTrainer, ValidityKDConfig, ValidityKDTrainer
from trainers.dry_run.batches import StepPlan, distillation_plan, example_plan, rollout_plan, show_steps

ROWS = [
    {"prompt": [{"role": "user", "content": f"{n} + 1?"}], "answer": str(n), "rationales": ["a"]} for n in range(11)
]
COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "num_train_epochs": 1.5}


def real_steps(trainer) -> int:
    values = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return values[-1]


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({"per_device_train_batch_size": 4}, 1),
        ({"per_device_train_batch_size": 4, "num_iterations": 2}, 2),
        ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 1),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
        ({"per_device_train_batch_size": 2, "steps_per_generation": 4, "num_iterations": 3}, 12),
        ({"per_device_train_batch_size": 4, "max_steps": 3}, 1),
    ],
)
def test_rlkd_runs_the_steps_of_the_plan(tiny_model, tmp_path, settings, window):
    args = RLKDConfig(
        str(tmp_path),
        num_generations=2,
        max_completion_length=4,
        reward_funcs=["accuracy"],
        save_steps=12,
        **COMMON,
        **settings,
    )
    plan, _ = rollout_plan(args, len(ROWS))
    trainer = RLKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))
    assert plan.window == window
    assert plan.steps == real_steps(trainer)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"max_steps": 2}])
def test_a_distillation_runs_the_steps_of_the_plan(tiny_model, tmp_path, settings):
    args = ValidityKDConfig(
        str(tmp_path),
        per_device_train_batch_size=2,
        max_completion_length=4,
        lmbda=0,
        teacher=tiny_model,
        **COMMON,
        **settings,
    )
    trainer = ValidityKDTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(ROWS))
    plan, factors = distillation_plan(args, len(ROWS))
    assert plan.steps == real_steps(trainer)
    assert "0% of the steps on the student's rollouts" in factors


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"max_steps": 2}])
def test_a_fine_tuning_runs_the_steps_of_the_plan(tiny_model, tmp_path, settings):
    args = SFTConfig(str(tmp_path), per_device_train_batch_size=2, max_length=64, **COMMON, **settings)
    examples = [{"prompt": "a", "completion": "b"}] * 11
    trainer = SFTTrainer(tiny_model, args=args, train_dataset=Dataset.from_list(examples))
    plan, _ = example_plan(args, len(examples))
    assert plan.steps == real_steps(trainer)


def test_the_lines_say_what_is_left_out(capsys):
    plan = StepPlan(11, 4, 3, True, -1, 1.5)
    shown = shown_by(lambda run: show_steps(run, plan, "4 rows"), capsys)
    assert "11 rows are 6 steps; 3 rows are left out (less than a batch)" in shown
    assert "run 9 steps, 1.5 epochs (num_train_epochs 1.5)" in shown
    assert "(max_steps)" in shown_by(lambda run: show_steps(run, StepPlan(1, 4, max_steps=7), "4 rows"), capsys)


def test_generations_and_packing_are_named():
    args = SimpleNamespace(
        generation_batch_size=16,
        num_generations=4,
        num_iterations=2,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
        world_size=1,
        max_steps=-1,
        num_train_epochs=1,
        packing=True,
    )
    plan, factors = rollout_plan(args, 9)
    assert "4 prompts x 4 completions = 16 are generated every 2 steps (num_iterations 2)" in factors
    assert (plan.steps, plan.left_out) == (4, 1)
    assert "packing: true" in example_plan(args, 9)[1]
    assert example_plan(args, 9)[0].steps == math.ceil(9 / 16)
