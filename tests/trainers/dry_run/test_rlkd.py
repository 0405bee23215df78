"""The dry run of `recipes/rlkd.py`: its lines, all refusals at once, and no weights."""

import json
import sys

import pytest

from tests.helpers import ROOT
from tests.helpers.dry_runs import dry_run_of, plain, without_weights
from tests.helpers.scripts import run_script


@pytest.fixture
def small(template_model, tmp_path) -> list[object]:
    """Arguments that put a tiny student in the place of the default's."""
    return [
        *("--model_name_or_path", template_model("chatml"), "--dataset_name", "gsm8k-sample", "--eval_rows", 4),
        *("--output_dir", tmp_path / "run", "--max_completion_length", 512),
    ]


@pytest.mark.slow
def test_the_default_could_start_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dry_run_of("rlkd", monkeypatch, "--learning_rate", "2e-5") == 0
    shown = plain(capsys.readouterr().out)
    for line in (
        "command line learning_rate: 2e-05",
        "file model_name_or_path: lab-student",
        "this machine use_cpu: true",
        "train 2000 of lab-dependency",
        "answers 2000 of 2000 rows; 256 sampled can be read",
        "no question occurs twice",
        "test 300 of lab-dependency",
        "no test question is a training question",
        "lab-student, context 256 tokens",
        "a system role; prompts open no thought",
        "'<|end|>' ends a turn; '<|end|>' ends a generation",
        "+ max_completion_length 96 =",
        "8 prompts x 8 completions = 64 are generated each step",
        "2000 rows are 250 steps",
        "60 steps, 0.24 epochs (max_steps)",
        "Memory, estimated, cpu, float32, all weights, 64 x 141 tokens in a micro-batch",
        "student weights",
        "accuracy right solution 1.00 (0 for 0 of 32); another row's 0.0",
        "structure right solution 1.00",
        "This run could start. Nothing was trained or written.",
    ):
        assert line in shown
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_weights_are_no_weights_passes(monkeypatch, capsys, tmp_path, small, template_model):
    folder = without_weights(template_model("chatml"), tmp_path / "model")
    control = ["--shuffle_rewards", '{"accuracy": 7}']
    assert dry_run_of("rlkd", monkeypatch, *small, "--model_name_or_path", folder, *control) == 0
    shown = plain(capsys.readouterr().out)
    assert "could start" in shown
    assert "a control run the values of accuracy change places within each group" in shown


def test_a_teacher_is_named_and_its_bytes_are_counted(monkeypatch, capsys, small, template_model):
    teacher = ["--teacher_kl", 0.5, "--teacher", template_model("chatml")]
    assert dry_run_of("rlkd", monkeypatch, *small, *teacher) == 0
    shown = plain(capsys.readouterr().out)
    assert f"model {template_model('chatml')}, context 2048 tokens" in shown
    assert "teacher weights" in shown
    assert dry_run_of("rlkd", monkeypatch, *small, *teacher, "--loss_type", "sapo") == 1
    assert "teacher_kl 0.5 with loss_type 'sapo'" in plain(capsys.readouterr().out).partition("refused (")[2]


def test_all_refusals_are_listed(monkeypatch, capsys, small, tmp_path):
    status = dry_run_of(
        "rlkd",
        monkeypatch,
        *(*small, "--model_name_or_path", "no/model", "--report_to", "wandb", "--eval_strategy", "steps"),
        *("--reward_funcs", "accuracy", "nothing", "--reward_weights", 1, 1, "--dataset_test_name", "no/file.jsonl"),
    )
    shown = plain(capsys.readouterr().out)
    assert status == 1
    for refusal in (
        "model_name_or_path 'no/model' cannot be read",
        "eval_strategy steps without an eval_dataset",
        "'nothing'",
        "no/file.jsonl",
    ):
        assert refusal in shown.partition("refused (")[2]
    assert "This run would be refused: 4 reasons above." in shown
    assert "not tried, since they are refused (below)" in shown
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_read_leaves_the_other_sections(monkeypatch, capsys, small):
    assert dry_run_of("rlkd", monkeypatch, *small, "--dataset_name", "no.jsonl", "--dataset_test_split", "none") == 1
    shown = plain(capsys.readouterr().out)
    assert "train 0 of no.jsonl" in shown
    assert "'<|im_end|>' ends a turn" in shown
    assert "no row has a rationale" in shown


def test_a_prompt_without_room_is_refused_for_both_parts(monkeypatch, capsys, small, template_model):
    arguments = [*small, "--model_name_or_path", template_model("short"), "--max_completion_length", 100]
    assert dry_run_of("rlkd", monkeypatch, *arguments) == 1
    refused = plain(capsys.readouterr().out).partition("refused (")[2]
    assert "train_dataset, row" in refused
    assert "the held-out rows" in refused


def test_quirks_of_a_reasoning_model_are_warnings(monkeypatch, capsys, small, template_model):
    arguments = [*small, "--model_name_or_path", template_model("opens_thought"), "--reward_kwargs", "{}"]
    arguments += ["--reward_funcs", "accuracy", "think_format", "--reward_weights", 1, 1]
    assert dry_run_of("rlkd", monkeypatch, *arguments) == 0
    shown = plain(capsys.readouterr().out)
    assert "prompts end with an opened <think>" in shown
    assert "prompts end with <think>, so prefilled is set for" in shown.partition("warnings (")[2]
    assert "think_format right solution 1.00" in shown


def test_a_server_that_does_not_answer_is_asked_once(monkeypatch, capsys, small):
    monkeypatch.setattr("trainers.rlkd.preflight.check_installed", lambda: None)
    arguments = [*small, "--use_vllm", "true", "--vllm_mode", "server", "--vllm_weight_transfer", "disk"]
    arguments += ["--vllm_server_base_url", "http://127.0.0.1:9"]
    assert dry_run_of("rlkd", monkeypatch, *arguments) == 1
    assert "no rollout server at http://127.0.0.1:9 after 0 seconds" in plain(capsys.readouterr().out)


def test_repeated_rows_and_unreadable_answers_are_counted(monkeypatch, capsys, small, tmp_path):
    row = {"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2\n#### 2"]}
    others = [{"question": f"{n} + 1?", "answer": str(n + 1), "rationales": [f"#### {n + 1}"]} for n in range(2, 9)]
    lines = [row, row, *others, {"question": "What?", "answer": "", "rationales": ["So."]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [*small, "--dataset_name", file, "--dataset_test_name", file, "--dataset_test_split", "train"]
    dry_run_of("rlkd", monkeypatch, *arguments)
    shown = plain(capsys.readouterr().out)
    assert "train 10 of" in shown
    assert "10 of 10 rows; 1 of 10 cannot be read, such as ''" in shown
    assert "1 rows have the question of an earlier row" in shown
    assert "4 of 4 test questions are training questions" in shown


def test_the_rows_of_two_teachers_are_joined_to_branches(monkeypatch, capsys, small, tmp_path):
    files = []
    for name in ("first", "second"):
        lines = [
            {"question": f"{n} + 1?", "answer": str(n + 1), "rationales": [f"By the {name} way.\n{n} + 1 = {n + 1}"]}
            for n in range(8)
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    dry_run_of("rlkd", monkeypatch, *small, "--dataset_name", *files)
    shown = plain(capsys.readouterr().out)
    assert "rationales 16 of 16 rows, 1.0 each" in shown
    assert "join_questions: true makes one row of them" in shown
    dry_run_of("rlkd", monkeypatch, *small, "--dataset_name", *files, "--join_questions", "true")
    shown = plain(capsys.readouterr().out)
    assert "rationales 8 of 8 rows, 2.0 each; 8 rows have several" in shown
    assert "no question occurs twice" in shown


def test_an_unknown_mode_is_refused(monkeypatch, capsys, small):
    assert dry_run_of("rlkd", monkeypatch, *small, "--dry_run", "fast") == 1
    assert "dry_run 'fast': expected nothing (--dry_run), or probe" in capsys.readouterr().out


@pytest.mark.slow
def test_a_probe_runs_one_step_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    small = ("--per_device_train_batch_size", 4, "--num_generations", 2, "--max_completion_length", 16)
    small += ("--max_rows", 40, "--eval_rows", 0)
    assert dry_run_of("rlkd", monkeypatch, *small, "--dry_run", "probe") == 0
    shown = plain(capsys.readouterr().out)
    assert "s of it generation" in shown
    assert "60 steps take about" in shown
    assert "at most in this process" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_ends_with_its_status(tmp_path):
    command = [sys.executable, ROOT / "recipes/rlkd.py", "--dry_run", "--max_completion_length", 250]
    command += ["--max_rows", 20, "--eval_rows", 0]
    done = run_script(command, tmp_path)
    assert done.returncode == 1
    assert "do not fit the 256 tokens of lab-student" in plain(done.stdout)
    assert done.stderr == ""
