"""A TRL whose methods have changed is refused, instead of silently training without us."""

import pytest
import trl

from rlkd.errors import UsageError
from trainers._compat import check_trl


def test_the_installed_trl_has_the_methods_that_we_override() -> None:
    assert check_trl() is None


def test_a_method_with_other_parameters_is_named_with_the_version(monkeypatch) -> None:
    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", lambda self, batch: batch)
    with pytest.raises(UsageError, match=rf"TRL {trl.__version__}: GRPOTrainer._calculate_rewards takes .*'batch'"):
        check_trl()


def test_a_method_that_is_gone_is_named(monkeypatch) -> None:
    monkeypatch.delattr(trl.GRPOTrainer, "_generate_and_score_completions")
    with pytest.raises(UsageError, match="_generate_and_score_completions takes None"):
        check_trl()
