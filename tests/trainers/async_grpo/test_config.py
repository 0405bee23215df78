"""The keys of an asynchronous run."""

import pytest

from rlkd.errors import UsageError
from trainers.async_grpo.config import RLKDAsyncConfig


def test_step_credit_is_refused_with_the_way_out(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"step_credit 'local': .* one advantage per completion. Set step_credit: no"):
        RLKDAsyncConfig(str(tmp_path), use_cpu=True, bf16=False, step_credit="local")
