"""The dry runs of `recipes/sft.py` and `recipes/gsrm.py`."""

import json

import pytest

from tests.helpers.dry_runs import dry_run_of, plain


@pytest.fixture
def small(template_model, tmp_path) -> list[object]:
    return ["--model_name_or_path", template_model("chatml"), "--output_dir", tmp_path / "run"]


def test_examples_are_counted_and_measured(monkeypatch, capsys, small, tmp_path):
    assert dry_run_of("sft", monkeypatch, *small, "--dataset_name", "gsm8k-sample", "--max_length", 2048) == 0
    shown = plain(capsys.readouterr().out)
    assert "of gsm8k-sample" in shown
    assert "16 examples (per_device_train_batch_size 8 x 1 process x gradient_accumulation_steps 2)" in shown
    assert "longer than max_length 2048: 0 are truncated, 0 are dropped" in shown
    assert "(num_train_epochs 1)" in shown
    assert not (tmp_path / "run").exists()


def test_truncated_examples_are_a_warning(monkeypatch, capsys, small):
    assert dry_run_of("sft", monkeypatch, *small, "--dataset_name", "gsm8k-sample", "--max_length", 300) == 0
    assert "sampled examples are longer than max_length 300" in plain(capsys.readouterr().out)


def test_refusals_of_a_fine_tuning_are_listed_together(monkeypatch, capsys, small):
    arguments = [*small, "--dataset_name", "gsm8k-sample", "--adapter", "no/adapter", "--eval_strategy", "steps"]
    assert dry_run_of("sft", monkeypatch, *arguments) == 1
    refused = plain(capsys.readouterr().out).partition("refused (2)")[2]
    assert "--adapter no/adapter: no adapter_config.json there" in refused
    assert "eval_strategy steps without an eval_dataset" in refused


def test_weights_of_examples_are_shown(monkeypatch, capsys, small, tmp_path):
    row = {"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2"]}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, "trust": weight}) + "\n" for weight in (1, 3, 0, 4)))
    arguments = [*small, "--dataset_name", file, "--weight_column", "trust", "--weight_temperature", 0.5]
    arguments += ["--eval_rows", 0]
    assert dry_run_of("sft", monkeypatch, *arguments) == 0
    shown = plain(capsys.readouterr().out)
    assert "trust 0 to 2, over their mean; 1 are 0" in shown
    assert "own loss exp(-loss / 0.5)" in shown
    assert dry_run_of("sft", monkeypatch, *arguments, "--packing", "true") == 1
    assert "packing: True puts several examples into a row" in plain(capsys.readouterr().out)
    control = [*arguments, "--shuffle_weights", "true"]
    assert dry_run_of("sft", monkeypatch, *control) == 0
    assert "a control run each example has the weight of its neighbour" in plain(capsys.readouterr().out)
    without = [*small, "--dataset_name", file, "--eval_rows", 0, "--shuffle_weights", "true"]
    assert dry_run_of("sft", monkeypatch, *without) == 1
    assert "there are no weights. Set weight_column" in plain(capsys.readouterr().out)


def test_exchanged_stages_are_a_control_of_the_curriculum_alone(monkeypatch, capsys, small, tmp_path):
    row = {"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2", "2"], "stages": [2, 1]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    arguments = [*small, "--dataset_name", tmp_path / "rows.jsonl", "--eval_rows", 0, "--shuffle_stages", 7]
    assert dry_run_of("sft", monkeypatch, *arguments, "--curriculum", "true") == 0
    assert "a control run the examples exchange their stages (seed 7)" in plain(capsys.readouterr().out)
    assert dry_run_of("sft", monkeypatch, *arguments) == 1
    assert "shuffle_stages: there are no stages. Set curriculum" in plain(capsys.readouterr().out)


@pytest.mark.slow
def test_pairs_of_a_structure_model_are_measured(monkeypatch, capsys, small):
    assert dry_run_of("gsrm", monkeypatch, *small) == 0
    shown = plain(capsys.readouterr().out)
    assert "8 examples (per_device_train_batch_size 2 x 1 process x gradient_accumulation_steps 4)" in shown
    assert "completions" in shown


def test_rows_without_structures_need_a_label_engine(monkeypatch, capsys, small, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "2", "rationales": ["1 + 1 = 2"]}\n')
    assert dry_run_of("gsrm", monkeypatch, *small, "--dataset_name", file, "--dataset_train_split", "train") == 1
    refused = plain(capsys.readouterr().out).partition("refused (")[2]
    assert "no row has a rationale with its structure" in refused
    engine = "transformers:no/model"
    arguments = [*small, "--dataset_name", file, "--dataset_train_split", "train", "--label_engine", engine]
    assert dry_run_of("gsrm", monkeypatch, *arguments) == 1
    shown = plain(capsys.readouterr().out)
    assert f"1 rows have no structure, for {engine} to make" in shown
    assert "label_engine:" in shown.partition("refused (")[2]
