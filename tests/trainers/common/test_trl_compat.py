"""A TRL whose methods have changed is refused, instead of silently training without us."""

import contextlib
from types import SimpleNamespace

import pytest
import trl

from rlkd.errors import UsageError
from trainers.common import trl_compat
from trainers.common.trl_compat import (
    build_vllm_with,
    check_distillation,
    check_kernels,
    check_trl,
    check_vllm_generation,
    model_for_generation,
)


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


def test_a_trl_that_trains_on_gpus_only_is_refused_without_one(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(trl, "__version__", "1.15.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for check in (check_kernels, check_trl, check_distillation):
        with pytest.raises(UsageError, match=r"TRL 1.15.0 trains on GPUs only.*pip install"):
            check()
    monkeypatch.setattr(trl, "__version__", "1.16.0")
    assert check_kernels() is None


@pytest.mark.parametrize("knows", [True, False], ids=["trl 1.16", "trl 1.15"])
def test_gradient_checkpointing_is_set_again_as_it_was_where_trl_can(monkeypatch, knows) -> None:
    @contextlib.contextmanager
    def newer(model, accelerator, gradient_checkpointing_kwargs=None):
        yield model, gradient_checkpointing_kwargs

    @contextlib.contextmanager
    def older(model, accelerator):
        yield model, "nothing"

    monkeypatch.setattr("trl.models.unwrap_model_for_generation", newer if knows else older)
    args = SimpleNamespace(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer = SimpleNamespace(model_wrapped="model", accelerator=None, args=args)
    with model_for_generation(trainer) as given:
        assert given == ("model", {"use_reentrant": False} if knows else "nothing")


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
