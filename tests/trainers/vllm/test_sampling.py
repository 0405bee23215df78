"""Sampling whose probabilities TRL's importance sampling correction would take for another policy's."""

from types import SimpleNamespace

import pytest

from rlkd.errors import UsageError
from trainers.vllm.sampling import check_sampling


def settings(changes):
    values = {
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "generation_kwargs": None,
        "process_index": 0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": None,
        "repetition_penalty": 1.0,
    }
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize("mode", ["sequence_mask", "sequence_truncate"])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"top_p": 0.9}, "top_p 0.9"),
        ({"top_k": 50}, "top_k 50"),
        ({"top_p": 0.95, "top_k": 20}, "top_p 0.95, top_k 20"),
        ({"min_p": 0.05}, "min_p 0.05"),
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1"),
        ({"generation_kwargs": {"top_p": 0.8}}, "top_p 0.8"),
        ({"generation_kwargs": {"presence_penalty": 0.5}, "top_k": 5}, "top_k 5, presence_penalty 0.5"),
    ],
)
def test_ratios_over_completions_are_refused_with_the_mode_of_tokens_first(changes, named, mode) -> None:
    way_out = r"Set vllm_importance_sampling_mode: token_truncate.*vllm_importance_sampling_correction: false"
    with pytest.raises(UsageError, match=rf"use_vllm with {named}: .*{mode}.* {way_out}"):
        check_sampling(settings(changes | {"vllm_importance_sampling_mode": mode}))


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask"])
def test_ratios_of_tokens_are_a_warning_in_the_first_process(caplog, mode) -> None:
    changes = {"top_p": 0.95, "top_k": 20, "vllm_importance_sampling_mode": mode}
    check_sampling(settings(changes | {"process_index": 1}))
    assert not caplog.text
    check_sampling(settings(changes))
    assert f"vllm_importance_sampling_mode {mode} scales the update of each token" in caplog.text


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_a_handful_of_tokens_is_refused_in_every_mode(mode) -> None:
    with pytest.raises(UsageError, match=r"use_vllm with top_k 2: .*far less than 1\. Raise top_k to 5 or more"):
        check_sampling(settings({"top_k": 2, "vllm_importance_sampling_mode": mode}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1},
        {"temperature": 0.7, "generation_kwargs": {"seed": 1, "top_p": 1.0}, "top_p": 0.9},
        {"top_p": 0.9, "vllm_importance_sampling_correction": False},
        {"top_p": 0.9, "use_vllm": False},
    ],
)
def test_sampling_by_the_trainers_own_probabilities_passes_in_silence(caplog, changes) -> None:
    check_sampling(settings(changes))
    assert not caplog.text
