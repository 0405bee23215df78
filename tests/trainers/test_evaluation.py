"""Held-out accuracy along a run: at the right steps, once each, and without a trace in the run."""

import json
import logging

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from rlkd.answers import accuracy
from rlkd.data.loading import load_rows, to_dataset
from rlkd.errors import UsageError
from trainers import RLKDConfig, RLKDTrainer
from trainers.common.generation import WrittenCompletion
from trainers.common.run_files import StepLog, read_steps
from trainers.evaluation import HeldOutAccuracy, _record

HELD_OUT = load_rows("gsm8k-sample", split="test")[:3]


@pytest.fixture
def run(tiny_model, tmp_path):
    """Makes a trainer of `steps` steps, with the callback unless `every` is None."""

    def make(steps: int, every: int | None = 2, model: str = tiny_model, samples: int = 0, reward=None, **options):
        args = RLKDConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=4,
            num_generations=4,
            max_steps=steps,
            save_steps=2,
            **{"learning_rate": 1e-2, "report_to": "none", "max_completion_length": 6, **options},
            logging_steps=1,
        )
        rows = to_dataset(load_rows("gsm8k-sample")[:8])
        trainer = RLKDTrainer(model, reward_funcs=reward or letters, args=args, train_dataset=rows)
        held_out = None
        if every is not None:
            held_out = HeldOutAccuracy(trainer, HELD_OUT, to_dataset(HELD_OUT)["prompt"], every=every, samples=samples)
            trainer.add_callback(held_out)
        return trainer, held_out

    return make


def letters(completions, **columns) -> list[float]:
    return [sum(map(ord, completion[0]["content"])) % 97 / 97 for completion in completions]


def parameters(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_it_measures_before_after_and_every_n_steps(run) -> None:
    trainer, held_out = run(5, every=2)
    trainer.train()
    records = read_steps(held_out.path)
    assert [record["step"] for record in records] == [0, 2, 4, 5]
    for record in records:
        assert record["accuracy"]["n"] == record["ended"]["n"] == 3
        assert record["accuracy"]["mean"] == sum(row["correct"] for row in record["rows"]) / 3
        assert record["tokens"] == pytest.approx(sum(row["tokens"] for row in record["rows"]) / 3)
        assert [row["id"] for row in record["rows"]] == [row["id"] for row in HELD_OUT]
        texts = [row["completion"] for row in record["rows"]]
        assert [row["correct"] for row in record["rows"]] == [
            accuracy(row, text) for row, text in zip(HELD_OUT, texts, strict=True)
        ]
    # Weights have moved in between.
    assert records[0]["rows"] != records[-1]["rows"]
    assert [step for step, _ in held_out.estimates()] == [0, 2, 4, 5]


@pytest.mark.parametrize("silent", [False, True])
def test_a_long_evaluation_says_how_far_it_is(run, capsys, silent) -> None:
    trainer, held_out = run(1, every=0, samples=30, disable_tqdm=silent, max_completion_length=2)
    held_out.rows, held_out.prompts = held_out.rows * 7, held_out.prompts * 7
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluation: ")]
    # Of 21 greedy completions and 630 samples in batches of 64, before and after the only step.
    shares = [13, 23, 33, 43, 52, 62, 72, 82, 92]
    assert lines == ([] if silent else [f"evaluation: {share}% done" for share in shares] * 2)


def test_samples_are_drawn_besides_the_greedy_answers_and_again_the_same_from_the_same_model(run) -> None:
    trainer, held_out = run(2, every=0, samples=3, learning_rate=0.0)
    trainer.train()
    before, after = read_steps(held_out.path)
    for record in (before, after):
        sampled = record["sampled"]
        assert (sampled["samples"], sampled["temperature"]) == (3, trainer.args.temperature)
        assert sampled["accuracy"]["n"] == sampled["ended"]["n"] // 3 == 3
        assert all(0 <= row["sampled_correct"] <= 1 for row in record["rows"])
    del before["seconds"], after["seconds"]
    assert before | {"step": 2} == after  # nothing was learnt at a rate of 0
    for line in ("sampled before:", "sampled after:", "sampled change:", "3 completions per row at temperature"):
        assert line in held_out.summary(2)


def test_the_settings_of_its_evaluations_are_recorded_for_later_ones(run) -> None:
    trainer, held_out = run(1, every=0)
    assert not held_out.path.with_name("evaluation.json").exists()
    held_out.settings = {"dataset_name": "gsm8k-sample", "eval_rows": 3}
    trainer.train()
    assert json.loads(held_out.path.with_name("evaluation.json").read_text()) == held_out.settings


@pytest.mark.slow
def test_a_run_trains_the_same_with_and_without_samples(run) -> None:
    trained = []
    for samples in (0, 2):
        trainer, _ = run(2, every=1, samples=samples)
        trainer.train()
        trained.append(parameters(trainer))
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


class Structure:
    """A reward whose mean rises by 0.01 a step."""

    __name__ = "structure"
    calls = 0

    def __call__(self, completions, **columns) -> list[float]:
        self.calls += 1
        return [0.01 * self.calls + 0.1 * place for place in range(len(completions))]


@pytest.mark.slow
@pytest.mark.parametrize(("later", "steps"), [("8", [21]), ("7", [])], ids=["falls", "stays"])
def test_the_log_warns_once_of_a_reward_that_rises_where_accuracy_falls(
    run, monkeypatch, caplog, later, steps
) -> None:
    trainer, held_out = run(23, every=1, reward=Structure(), max_completion_length=2, save_strategy="no")
    held_out.rows = [{"id": str(number), "answer": "7"} for number in range(40)]

    def answers(trainer, prompts, **settings) -> list[WrittenCompletion]:
        return [WrittenCompletion(f"#### {later if trainer.state.global_step else 7}", 3, True)] * 40

    monkeypatch.setattr("trainers.evaluation.greedy_completions", answers)
    with caplog.at_level(logging.WARNING, logger="trainers.evaluation"):
        trainer.train()
    # A step is logged after its evaluation, so at step 21 there are 20, the fewest of which a trend is taken.
    assert len(read_steps(held_out.path)) == 24
    said = [record.message for record in caplog.records if record.name == "trainers.evaluation"]
    assert [message.partition(": ")[0] for message in said] == [f"step {step}" for step in steps]
    for message in said:
        assert "held-out accuracy has changed by -100.0% " in message
        assert "since step 0, while 'structure' rose in training" in message


def test_zero_means_before_and_after_only_and_the_last_step_is_measured_once(run) -> None:
    trainer, held_out = run(2, every=0)
    trainer.train()
    assert [record["step"] for record in read_steps(held_out.path)] == [0, 2]


@pytest.mark.slow
def test_a_run_trains_the_same_with_and_without_measurements(run) -> None:
    without, _ = run(3, every=None)
    without.train()
    trainer, _ = run(3, every=1)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(parameters(without), parameters(trainer), strict=True))


@pytest.mark.slow
def test_a_resumed_run_has_each_measurement_once_and_the_same_as_a_whole_one(run) -> None:
    whole, held_out = run(6, every=3)
    whole.train()
    expected = read_steps(held_out.path)
    # Killed after the measurement of step 6: the checkpoint of step 4 stands, that of step 6 does not.
    (whole.metrics_path.parent / "checkpoint-6" / "trainer_state.json").unlink()
    trainer, held_out = run(6, every=3)
    trainer.train(resume_from_checkpoint=True)
    found = read_steps(held_out.path)
    assert [record["step"] for record in found] == [0, 3, 6]
    assert [record["rows"] for record in found] == [record["rows"] for record in expected]


def test_the_last_measurement_is_written_before_the_last_checkpoint(run) -> None:
    # So a run that has its last checkpoint lacks nothing, whenever it is killed.
    known = {}

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            known[state.global_step] = [record["step"] for record in read_steps(held_out.path)]

    trainer, held_out = run(4, every=0)
    trainer.add_callback(Watch())
    trainer.train()
    assert known == {2: [0], 4: [0, 4]}


def test_a_run_that_is_stopped_early_is_measured_where_it_stopped(run) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer, held_out = run(9, every=0)
    trainer.add_callback(Stop())
    trainer.train()
    assert [record["step"] for record in read_steps(held_out.path)] == [0, 3]


@pytest.mark.slow
def test_an_earlier_run_in_the_same_folder_keeps_its_measurements_aside(run) -> None:
    for _ in range(3):
        trainer, held_out = run(1, every=0)
        trainer.train()
    assert [record["step"] for record in read_steps(held_out.path)] == [0, 1]
    for number in (1, 2):
        earlier = held_out.path.parent / f"earlier-{number}"
        assert [record["step"] for record in read_steps(earlier / "eval.jsonl")] == [0, 1]
        assert (earlier / "metrics.jsonl").exists()


def test_an_orphan_of_a_run_that_was_killed_at_once_overwrites_nothing(run) -> None:
    trainer, held_out = run(1, every=0)
    folder = held_out.path.parent
    StepLog(folder / "earlier-1" / "eval.jsonl").append([{"step": 7}])
    StepLog(held_out.path).append([{"step": 8}])
    trainer.train()
    assert read_steps(folder / "earlier-1" / "eval.jsonl") == [{"step": 7}]
    assert read_steps(folder / "earlier-2" / "eval.jsonl") == [{"step": 8}]


def test_trackers_get_the_figures_and_the_metrics_of_the_step_stay_whole(run, monkeypatch) -> None:
    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs)))

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"])
    trainer, held_out = run(2, every=1, samples=2, report_to="tensorboard")
    trainer.train()
    measured = [(step, logs) for step, logs in seen if "eval_accuracy" in logs]
    assert [step for step, _ in measured] == [0, 1, 2]
    names = ("accuracy", "accuracy_low", "accuracy_high", "ended", "tokens", "calculations")
    assert set(measured[0][1]) == {f"{prefix}_{name}" for prefix in ("eval", "eval_sampled") for name in names}
    for (_, logs), record in zip(measured, read_steps(held_out.path), strict=True):
        accuracy = record["sampled"]["accuracy"]
        assert [logs[f"eval_sampled_{name}"] for name in names[:3]] == [
            accuracy[key] for key in ("mean", "low", "high")
        ]
    metrics = read_steps(trainer.metrics_path)
    assert [entry["step"] for entry in metrics] == [1, 2]
    assert all("rewards/letters/mean" in entry for entry in metrics)


@pytest.mark.parametrize(
    ("name", "tokens", "limit", "ended", "counted", "text"),
    [
        # Tokenised anew, the text may be shorter; and special tokens are no text.
        ("chatml", ["a", "b", "a", "b"], 4, False, 4, "abab"),
        ("chatml", ["<|im_start|>"] * 3 + ["a"], 4, False, 4, "a"),
        ("chatml", ["<|endoftext|>"] * 4, 4, False, 4, ""),
        # The end token is the last one that fits, or the first; padding follows.
        ("chatml", ["a", "b", "a", "<|im_end|>"], 4, True, 3, "aba"),
        ("chatml", ["<|im_end|>", *["<|endoftext|>"] * 3], 4, True, 0, ""),
        # Every end token of the model ends a completion.
        ("no_system", ["a", "<end_of_turn>", "<pad>"], 3, True, 1, "a"),
        ("no_system", ["a", "<eos>", "<pad>"], 3, True, 1, "a"),
        ("two_ends", ["a", "b", "<|end|>"], 3, True, 2, "ab"),
        ("two_ends", ["a", "<|head|>", "b"], 3, False, 3, "ab"),
        # The end token is the padding token too.
        ("opens_thought", ["a", "<|end|>", "<|end|>"], 3, True, 1, "a"),
    ],
)
def test_end_and_length_are_those_of_the_generated_tokens(
    run, template_model, name, tokens, limit, ended, counted, text
) -> None:
    trainer, held_out = run(1, every=0, model=template_model(name), max_completion_length=limit)
    ids = trainer.processing_class.convert_tokens_to_ids(tokens)
    trainer.model.generate = lambda **given: torch.cat(
        [given["input_ids"], torch.tensor([ids] * len(given["input_ids"]))], 1
    )
    held_out._measure(trainer.args, trainer.state, trainer.control)
    record = read_steps(held_out.path)[0]
    assert record["ended"]["mean"] == ended
    assert [row["tokens"] for row in record["rows"]] == [counted] * 3
    assert [row["completion"] for row in record["rows"]] == [text] * 3


def test_held_out_rows_without_answers_are_refused(run) -> None:
    trainer, _ = run(1, every=None)
    rows = [{"id": "a", "answer": None}]
    with pytest.raises(UsageError, match="none of the 1 held-out rows has an answer"):
        HeldOutAccuracy(trainer, rows, ["One?"])
    with pytest.raises(UsageError, match="eval_every -1"):
        HeldOutAccuracy(trainer, HELD_OUT, ["One?"] * 3, every=-1)
    with pytest.raises(UsageError, match="eval_samples -1"):
        HeldOutAccuracy(trainer, HELD_OUT, ["One?"] * 3, samples=-1)


def test_an_answer_within_a_thought_that_the_prompt_opened_is_none() -> None:
    rows = [{"answer": "5"}] * 3
    said = [
        WrittenCompletion("maybe \\boxed{5}", 5, False, in_thought=True),
        WrittenCompletion("yes</think>\\boxed{5}", 5, True, in_thought=True),
        WrittenCompletion("\\boxed{5}", 5, True),
    ]
    assert [row["correct"] for row in _record(rows, said)["rows"]] == [0.0, 1.0, 1.0]


def test_held_out_prompts_that_leave_no_room_for_an_answer_are_refused(run, template_model) -> None:
    trainer, _ = run(1, every=None, model=template_model("chatml"))
    with pytest.raises(UsageError, match=r"the held-out rows, row 1: a prompt of 2040 tokens and .* 2048 tokens"):
        HeldOutAccuracy(trainer, HELD_OUT[:2], ["One?", "x" * 2040], limit=9)
    HeldOutAccuracy(trainer, HELD_OUT[:2], ["One?", "x" * 2040], limit=8)
