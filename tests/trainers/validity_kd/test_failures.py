"""A validity scorer that breaks down: the run ends after a checkpoint, with the cause."""

import pytest
from peft import LoraConfig

from rlkd.data.loading import load_rows, to_dataset
from rlkd.validity import ValidityError
from trainers import ValidityKDConfig, ValidityKDTrainer
from trainers.common.checkpoints import find_checkpoint, step_of
from trainers.common.run_files import read_steps

SCORERS = """
from pathlib import Path

def down(questions, *, switch=""):
    if not switch or Path(switch).exists():
        raise ConnectionError("no answer from the judge")
    return [0.5] * len(questions)

def silent(questions):
    return [None] * len(questions)

def half(questions):
    return [None if index % 2 else 0.5 for index in range(len(questions))]

def undecided(questions):
    return ["undecided"] * len(questions)
"""


@pytest.fixture
def trainer(tiny_model, tmp_path):
    (tmp_path / "scorers.py").write_text(SCORERS)
    fitting = [row for row in load_rows("gsm8k-sample") if 100 < len(row["rationales"][0]) < 250]
    rows = to_dataset([row | {"question": row["question"][:40]} for row in fitting[:4]])

    def build(scorer: str, **changes) -> ValidityKDTrainer:
        values = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 2,
            "max_completion_length": 60,
            "max_steps": 4,
            "lmbda": 0.0,
            "proposals": "generate",
            "max_step_tokens": 4,
            "validity": f"{tmp_path / 'scorers.py'}:{scorer}",
            "failure_window": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        lora = LoraConfig(r=2, target_modules="all-linear")
        return ValidityKDTrainer(tiny_model, tiny_model, ValidityKDConfig(**values | changes), rows, peft_config=lora)

    return build


@pytest.fixture(autouse=True)
def proposed(monkeypatch) -> None:
    """A whole step as every proposal; the tiny model writes none."""
    monkeypatch.setattr(
        "trainers.teachers.proposals.propose",
        lambda writer, tokenizer, prefixes, *rest: [list(tokenizer("1 + 1 = 2\n")["input_ids"])] * len(prefixes),
    )


@pytest.mark.parametrize(
    ("scorer", "cause"),
    [("down", "ConnectionError: no answer from the judge"), ("silent", "it returned None or nan")],
)
def test_a_scorer_that_fails_on_every_step_ends_the_run(trainer, tmp_path, scorer, cause) -> None:
    with pytest.raises(ValidityError, match=rf"{scorer}.* failed on (\d+) of \1 questions in the last 2 .*{cause}"):
        trainer(scorer).train()
    checkpoint = find_checkpoint(True, tmp_path / "run")
    assert step_of(checkpoint) == 2


@pytest.mark.slow
def test_the_ended_run_continues_once_the_cause_is_gone(trainer, tmp_path) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    settings = {"validity_kwargs": {"switch": str(switch)}}
    with pytest.raises(ValidityError, match="continue with --resume_from_checkpoint"):
        trainer("down", **settings).train()
    switch.unlink()
    resumed = trainer("down", **settings)
    resumed.train(resume_from_checkpoint=True)
    failed = [entry["validity/failed"] for entry in read_steps(resumed.metrics_path) if "loss" in entry]
    assert failed[:2] == [1.0, 1.0]
    assert max(failed[2:]) < 1.0


@pytest.mark.parametrize(
    ("scorer", "changes"),
    [
        ("down", {"max_failure_rate": None}),
        ("down", {"control": "uniform"}),
        ("half", {}),
        ("undecided", {"max_failure_rate": 0.0}),
    ],
)
def test_other_runs_go_on_to_their_end(trainer, scorer, changes) -> None:
    run = trainer(scorer, **changes)
    run.train()
    assert run.state.global_step == 4
