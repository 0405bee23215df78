"""The methods of TRL that our trainers override, and a check at start-up that they are still what we know.

Overridden in `trainers/rlkd.py`, with unchanged names and parameters from TRL 0.24 to 1.16; tested with 1.16.0:

- `_generate_and_score_completions(inputs)`: rows of this process in, tensors out; rollouts are written after it;
- `_calculate_rewards(inputs, prompts, completions, completion_ids_list)`: the gathered rewards of all processes come
  out, one row a completion and NaN for a missing reward; missing entries and gates are settled on them.

Called there: `_log_metric(name, value)`, which TRL gives to rewards as `log_metric`; values are
averaged over processes.

Read there: `num_generations`, `num_generations_eval`, `reward_funcs`, `reward_func_names`; and, in the config,
extended: `_VALID_DICT_FIELDS`.

Replaced for the time a trainer is built, and only where vLLM runs on a CPU or takes weights without NCCL: the names
`LLM` and `VLLMClient` in `trl.generation.vllm_generation` (`build_vllm_with`); see `trainers/weight_sync.py`.
"""

import ast
import contextlib
import inspect
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

from rlkd.errors import UsageError

_HOOKS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_log_metric": ["self", "name", "value"],
}


def check_trl() -> None:
    """Raise `UsageError` if TRL has no such method, or with other parameters: overrides would be silently skipped."""
    import trl

    for name, expected in _HOOKS.items():
        method = getattr(trl.GRPOTrainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found != expected:
            raise UsageError(
                f"TRL {trl.__version__}: GRPOTrainer.{name} takes {found}, expected {expected}. "
                f'Install a TRL that rlkd is tested with:  pip install "trl==1.16.0"'
            )


def check_generate() -> None:
    """Raise `UsageError` if TRL's `_generate` is not the one that `completions_of` reads (TRL 1.15 and 1.16).

    It has changed its results from version to version, so only `reward_prefetch` touches it.
    """
    import trl

    method = trl.GRPOTrainer._generate
    parameters = list(inspect.signature(method).parameters)
    ends = [node for node in ast.walk(ast.parse(dedent(inspect.getsource(method)))) if isinstance(node, ast.Return)]
    returned = [ast.unparse(item) for item in getattr(ends[-1].value, "elts", [])] if ends else []
    if parameters[:2] != ["self", "prompts"] or returned[1:4:2] != ["completion_ids", "completions"]:
        raise UsageError(
            f"reward_prefetch: TRL {trl.__version__}'s GRPOTrainer._generate takes {parameters} and returns "
            f'{returned}, which rlkd does not know. Set reward_prefetch: false, or  pip install "trl==1.16.0"'
        )


def completions_of(generated: Any, count: int) -> tuple[list[Any], list[Any]]:
    """The completion ids and the completions in what `_generate` returned, one each for `count` prompts."""
    if isinstance(generated, tuple) and len(generated) > 3:
        completion_ids, completions = generated[1], generated[3]
        if isinstance(completions, list) and len(completion_ids) == len(completions) == count:
            return completion_ids, completions
    raise UsageError(
        "reward_prefetch: TRL's GRPOTrainer._generate returned something that rlkd does not know; "
        "set reward_prefetch: false"
    )


@contextlib.contextmanager
def build_vllm_with(**replacements: Any) -> Iterator[None]:
    """While TRL's trainer is built, let it find these in place of its own `VLLMClient` or `LLM`.

    TRL makes both by name in one method and offers no other way in. Checked on TRL 1.16.0.
    """
    from trl.generation import vllm_generation

    check_vllm_generation()
    missing = object()
    saved = {name: getattr(vllm_generation, name, missing) for name in replacements}
    vars(vllm_generation).update(replacements)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is missing:
                delattr(vllm_generation, name)
            else:
                setattr(vllm_generation, name, value)


def check_vllm_generation() -> None:
    """Raise `UsageError` if TRL's vLLM side is not the one that `build_vllm_with` and `trainers.weight_sync` know."""
    import trl
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    known = {
        "init_communicator": ["self", "device"],
        "update_named_params": ["self", "metadata", "named_params"],
        "close_communicator": ["self"],
        "_start_weight_update": ["self"],
        "_finish_weight_update": ["self"],
        "get_world_size": ["self"],
    }
    wrong = [
        f"VLLMClient.{name} takes {found}, expected {expected}"
        for name, expected in known.items()
        if (found := list(inspect.signature(getattr(VLLMClient, name, lambda: 0)).parameters)) != expected
    ]
    made = set(VLLMGeneration._init_vllm.__code__.co_names) if hasattr(VLLMGeneration, "_init_vllm") else set()
    wrong += [f"VLLMGeneration makes no {name}" for name in ("LLM", "VLLMClient") if name not in made]
    if wrong:
        raise UsageError(
            f"TRL {trl.__version__}: {'; '.join(wrong)}. With this version, rlkd can use vLLM only on a GPU with "
            f'vllm_weight_transfer: nccl. Install  pip install "trl==1.16.0"'
        )
