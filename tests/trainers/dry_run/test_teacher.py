"""The section on teachers."""

from types import SimpleNamespace

from benchmarks.tiny import training_arguments
from trainers import RLKDConfig
from trainers.dry_run.dry_run import DryRun
from trainers.dry_run.teacher import show_teachers


def test_each_of_several_teachers_is_shown_with_its_values(tiny_model, tmp_path, capsys) -> None:
    teachers = {"math": tiny_model, "code": "http://me:secret@127.0.0.1:1/v1#coder", "logic": tiny_model}
    settings = {"teacher_kl": 1.0, "teachers": teachers, "teacher_column": "domain"}
    args = RLKDConfig(**training_arguments(tmp_path, **settings))
    show_teachers(DryRun(), args, [None, SimpleNamespace(k=1)], None)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"rows domain: math, logic model {tiny_model}, context 4096 tokens" in shown
    assert "rows domain: code engine http://***@127.0.0.1:1/v1#coder, 1 tokens per position" in shown
