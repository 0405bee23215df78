"""`--dry_run` of the recipes that train nothing."""

from tests.helpers.dry_runs import dry_run_of, plain


def test_rationales_are_planned(monkeypatch, capsys, template_model, tmp_path):
    engine = f"transformers:{template_model('chatml')}"
    arguments = ["--teacher", engine, "--student", engine, "--output_dir", tmp_path / "run"]
    assert dry_run_of("rationales", monkeypatch, *arguments) == 0
    shown = plain(capsys.readouterr().out)
    assert "train 24 of gsm8k-sample" in shown
    assert "48 candidates, up to 320 tokens each" in shown
    assert "selectors clean, correct, diverse, difficulty" in shown
    assert not (tmp_path / "run").exists()


def test_refusals_of_teacher_and_student_are_listed_together(monkeypatch, capsys, tmp_path):
    arguments = ["--teacher", "transformers:no/teacher", "--student", "transformers:no/student"]
    assert dry_run_of("rationales", monkeypatch, *arguments, "--output_dir", tmp_path / "run") == 1
    refused = plain(capsys.readouterr().out).partition("refused (2)")[2]
    assert "no/teacher" in refused
    assert "no/student" in refused


def test_rows_that_are_ready_need_rationales(monkeypatch, capsys, template_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    arguments = ["--dataset_name", file, "--writers", "ready", "--student", f"transformers:{template_model('chatml')}"]
    assert dry_run_of("rationales", monkeypatch, *arguments, "--dry_run", "probe") == 1
    refused = plain(capsys.readouterr().out).partition("refused (2)")[2]
    assert "has a rationale: name their column" in refused
    assert "this recipe trains nothing" in refused


def test_a_teacher_cache_is_planned(monkeypatch, capsys, template_model, tmp_path):
    model = template_model("chatml")
    arguments = ["--model_name_or_path", model, "--teacher", model, "--cache_dir", tmp_path / "cache"]
    assert dry_run_of("teacher_cache", monkeypatch, *arguments, "--dataset_name", "gsm8k-sample") == 0
    shown = plain(capsys.readouterr().out)
    assert "traces of gsm8k-sample" in shown
    assert "'<|im_end|>' ends a turn" in shown
    assert not (tmp_path / "cache").exists()


def test_a_teacher_of_another_vocabulary_is_refused(monkeypatch, capsys, template_model, tmp_path):
    arguments = ["--model_name_or_path", template_model("chatml"), "--teacher", template_model("two_ends")]
    arguments += ["--cache_dir", tmp_path / "cache", "--dataset_name", "gsm8k-sample"]
    assert dry_run_of("teacher_cache", monkeypatch, *arguments) == 1
    assert "refused (1)" in capsys.readouterr().out


def test_an_evaluation_is_planned(monkeypatch, capsys, template_model, tmp_path):
    arguments = ["--model_name_or_path", template_model("chatml"), "--dataset_name", "gsm8k-sample", "--eval_rows", 3]
    arguments += ["--samples", 2, "--out", tmp_path / "out"]
    assert dry_run_of("evaluate", monkeypatch, *arguments) == 0
    shown = plain(capsys.readouterr().out)
    assert "command line eval_samples: 2" in shown
    assert "9: greedy, 2 samples per row at temperature 1, up to 512 tokens each" in shown
    assert "accuracy right solution 1.00" in shown
    assert not (tmp_path / "out").exists()


def test_refusals_of_an_evaluation_are_listed_together(monkeypatch, capsys):
    arguments = ["--model_name_or_path", "no/model", "--dataset_name", "gsm8k-sample", "--metrics", "nothing"]
    assert dry_run_of("evaluate", monkeypatch, *arguments) == 1
    refused = plain(capsys.readouterr().out).partition("refused (3)")[2]
    for words in ("--out FOLDER is missing", "nothing", "no/model"):
        assert words in refused
