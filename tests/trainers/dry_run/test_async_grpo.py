"""The dry run of `recipes/rlkd_async.py`."""

import pytest

from tests.helpers.dry_runs import dry_run_of, plain
from trainers.async_grpo import preflight
from trainers.vllm import adapter_checks


@pytest.fixture
def small(template_model, tmp_path, monkeypatch) -> list[object]:
    monkeypatch.setattr(preflight, "installed_vllm", lambda: "0.30.0")
    monkeypatch.setattr(preflight, "_check_packages", lambda: None)
    return [
        *("--model_name_or_path", template_model("chatml"), "--output_dir", tmp_path / "run", "--reward_kwargs", "{}"),
        *("--dataset_name", "gsm8k-sample", "--vllm_server_base_url", "http://127.0.0.1:9"),
        *("--token_budget", 4096),
    ]


def test_a_missing_server_is_refused_with_its_command_and_the_rest_is_shown(monkeypatch, capsys, small):
    assert dry_run_of("rlkd_async", monkeypatch, *small) == 1
    shown = plain(capsys.readouterr().out)
    assert "'<|im_end|>' ends a turn" in shown
    assert "completions of finished groups" in shown
    assert "accuracy right solution 1.00" in shown
    refused = shown.partition("refused (1)")[2]
    assert "no rollout server at http://127.0.0.1:9 after 0 seconds" in refused
    assert "vllm serve" in refused


def test_a_fitting_server_is_left_as_it_is(monkeypatch, capsys, small):
    monkeypatch.setattr(
        preflight, "request_server", lambda *_: ({}, {"lora_config": {"max_lora_rank": 64, "max_loras": 9}})
    )
    monkeypatch.setattr(adapter_checks, "get_json", lambda url, **_: (405, {}))
    monkeypatch.setattr(preflight, "_clear_earlier_run", lambda *_: pytest.fail("the server is changed"))
    assert dry_run_of("rlkd_async", monkeypatch, *small) == 0
    assert "http://127.0.0.1:9 fits this run" in plain(capsys.readouterr().out)


def test_there_is_no_probe(monkeypatch, capsys, small):
    assert dry_run_of("rlkd_async", monkeypatch, *small, "--dry_run", "probe") == 1
    assert "an asynchronous run has no step by itself" in plain(capsys.readouterr().out)
