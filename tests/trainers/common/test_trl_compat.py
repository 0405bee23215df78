"""A TRL whose methods have changed is refused, instead of silently training without us."""

import pytest
import trl

from rlkd.errors import UsageError
from trainers.common import trl_compat
from trainers.common.trl_compat import build_vllm_with, check_distillation, check_trl, check_vllm_generation


def test_the_installed_trl_has_the_methods_that_we_override() -> None:
    assert check_trl() is None


def test_a_method_with_other_parameters_is_named_with_the_version(monkeypatch) -> None:
    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", lambda self, batch: batch)
    with pytest.raises(UsageError, match=rf"TRL {trl.__version__}: GRPOTrainer._calculate_rewards takes .*'batch'"):
        check_trl()


def test_a_method_that_is_gone_is_named(monkeypatch) -> None:
    monkeypatch.delattr(trl.GRPOTrainer, "_generate_and_score_completions")
    with pytest.raises(UsageError, match=r"_generate_and_score_completions takes \[\]"):
        check_trl()


def test_the_installed_trl_distils_as_we_know_it() -> None:
    assert check_distillation() is None


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("_compute_loss", lambda self, model, inputs: None, r"_compute_loss takes \['self', 'model', 'inputs'\]"),
        ("_get_last_hidden_state", None, r"_get_last_hidden_state takes \[\]"),
    ],
)
def test_a_distillation_trainer_with_other_methods_is_refused(monkeypatch, name, method, message) -> None:
    monkeypatch.setattr(trl.DistillationTrainer, name, method)
    with pytest.raises(UsageError, match=rf"TRL {trl.__version__}: .*DistillationTrainer.*{message}"):
        check_distillation()


def test_a_trl_with_another_divergence_is_refused(monkeypatch) -> None:
    theirs = trl_compat.trl_kernel
    monkeypatch.setattr(trl_compat, "trl_kernel", lambda *arguments: [1.1 * value for value in theirs(*arguments)])
    with pytest.raises(UsageError, match=r"its divergence at beta 0.0 is .*, ours "):
        check_distillation()


def test_the_installed_trl_makes_its_vllm_side_by_the_names_that_we_replace() -> None:
    assert check_vllm_generation() is None


def test_vllm_is_built_with_our_client_and_later_with_trls_own_again() -> None:
    from trl.generation import vllm_generation

    before = vars(vllm_generation).copy()
    with build_vllm_with(VLLMClient="ours", LLM="ours, too"):
        assert vllm_generation.VLLMClient == "ours"
        assert vllm_generation.LLM == "ours, too"
    assert {name: vars(vllm_generation).get(name) for name in ("VLLMClient", "LLM")} == {
        name: before.get(name) for name in ("VLLMClient", "LLM")
    }


def test_a_client_with_other_methods_is_refused(monkeypatch) -> None:
    from trl.generation.vllm_client import VLLMClient

    monkeypatch.setattr(VLLMClient, "update_named_params", lambda self, tensors: tensors)
    with pytest.raises(UsageError, match=r"VLLMClient.update_named_params takes \['self', 'tensors'\]"):
        check_vllm_generation()
