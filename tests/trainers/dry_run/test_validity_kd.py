"""The dry run of `recipes/validity_kd.py`."""

import pytest

from tests.helpers import ROOT
from tests.helpers.dry_runs import dry_run_of, plain


@pytest.fixture
def small(template_model, tmp_path) -> list[object]:
    model = template_model("chatml")
    return [
        *("--config", ROOT / "recipes/lab/validity_kd.yaml", "--model_name_or_path", model, "--teacher", model),
        *("--dataset_name", "gsm8k-sample", "--eval_rows", 2),
        *("--output_dir", tmp_path / "run", "--max_completion_length", 512),
    ]


def test_refusals_of_teacher_and_scorer_are_listed_together(monkeypatch, capsys, small):
    arguments = [*small, "--teacher", "no/teacher", "--validity", "nothing", "--control", "none"]
    assert dry_run_of("validity_kd", monkeypatch, *arguments) == 1
    refused = plain(capsys.readouterr().out).partition("refused (")[2]
    assert "teacher 'no/teacher' cannot be read" in refused
    assert "nothing" in refused


def test_another_template_of_the_teacher_is_refused(monkeypatch, capsys, small, template_model):
    assert dry_run_of("validity_kd", monkeypatch, *small, "--teacher", template_model("two_ends")) == 1
    assert "refused (" in capsys.readouterr().out


def test_a_served_teacher_is_asked_and_shown(monkeypatch, capsys, small):
    monkeypatch.setattr("rlkd.teachers.engine.EngineTeacher.top_k", lambda self, sequences, starts: [])
    arguments = [*small, "--teacher", "http://127.0.0.1:9/v1#m", "--lmbda", 0]
    dry_run_of("validity_kd", monkeypatch, *arguments)
    assert "engine http://127.0.0.1:9/v1#m, 64 tokens per position" in plain(capsys.readouterr().out)


def test_without_a_teacher_the_run_is_refused(monkeypatch, capsys, small, tmp_path):
    file = tmp_path / "kd.yaml"
    text = (ROOT / "recipes/lab/validity_kd.yaml").read_text()
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("teacher")))
    assert dry_run_of("validity_kd", monkeypatch, "--config", file, *small[2:4], *small[6:]) == 1
    assert "there is no teacher. Set teacher" in plain(capsys.readouterr().out)


@pytest.mark.slow
def test_the_laboratorys_distillation_is_shown_and_probed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    small = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--max_rows", 40)
    config = ROOT / "recipes/lab/validity_kd.yaml"
    arguments = ["--config", config, *small, "--eval_rows", 4, "--dry_run", "probe"]
    assert dry_run_of("validity_kd", monkeypatch, *arguments) == 0
    shown = plain(capsys.readouterr().out)
    assert "teacher model lab-expert, context 256 tokens" in shown
    assert "end tokens '<|end|>' ends a turn; '<|end|>' ends a generation" in shown
    assert "Memory, estimated, cpu, float32" in shown
    assert "teacher weights" in shown
    assert "of the steps on the student's rollouts" in shown
    assert "steps take about" in shown
    assert "The step of the probe is discarded." in shown
    assert list(tmp_path.iterdir()) == []
