from pathlib import Path
from types import SimpleNamespace

from transformers import TrainingArguments

from trainers.dry_run.probe import ProbeTimes, measure, peak_memory


class Trainer:
    def __init__(self, args):
        self.args = args

    def _generate(self, count):
        return count + 1

    def train(self):
        Path(self.args.output_dir, "file").touch()
        assert self._generate(1) == 2
        self.trained = self.args.max_steps


def test_a_step_is_measured_in_a_folder_that_is_removed(tmp_path):
    args = TrainingArguments(
        str(tmp_path / "run"), use_cpu=True, save_strategy="steps", report_to="none", push_to_hub=False
    )
    made = []
    times = measure(args, lambda: made.append(Trainer(args)) or made[0])
    assert made[0].trained == 1
    assert args.save_strategy.value == "no"
    assert args.eval_strategy.value == "no"
    assert not Path(args.output_dir).exists()
    assert not (tmp_path / "run").exists()
    assert 0 <= times.generation <= times.step


def test_one_generation_of_several_steps_is_shared():
    assert ProbeTimes(9.0, 5.0, 4.0).per_step(4) == 2.0
    assert ProbeTimes(9.0, 5.0, 0.0).per_step(1) == 5.0


def test_a_trainer_without_generation_is_measured_too():
    trainer = SimpleNamespace(train=lambda: None)
    assert measure(SimpleNamespace(max_steps=5), lambda: trainer).generation == 0
    assert "GiB at most in this process" in peak_memory()
