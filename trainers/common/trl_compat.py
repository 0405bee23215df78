"""The methods of TRL that our trainers override, and a check at start-up that they are still what we know.

Overridden in `trainers/rlkd/trainer.py`, with unchanged names and parameters from TRL 0.24 to 1.16; tested with
1.16.0:

- `_generate_and_score_completions(inputs)`: rows of this process in, tensors out; rollouts are written after it;
- `_calculate_rewards(inputs, prompts, completions, completion_ids_list)`: the gathered rewards of all processes come
  out, one row a completion and NaN for a missing reward; missing entries and gates are settled on them.

Called there: `_log_metric(name, value)`, which TRL gives to rewards as `log_metric`; values are
averaged over processes.

Read there: `num_generations`, `num_generations_eval`, `reward_funcs`, `reward_func_names`; and, in the config,
extended: `_VALID_DICT_FIELDS`.

Overridden in `trainers/validity_kd/trainer.py`, with unchanged names and parameters from TRL 1.12 to 1.16; tested with
1.16.0:

- `DistillationTrainer._generate_and_score_completions(inputs)`: rows of this process in, tensors out;
- `DistillationTrainer._compute_loss(unwrapped_student, inputs, num_items_in_batch)`: the loss of a micro-batch, with
  the student's entropies summed and the number of tokens, out;
- `DistillationTrainer._get_train_sampler(dataset)`: a `RepeatSampler`, whose `generator` orders each epoch.

Called there: `_get_last_hidden_state(unwrapped_model, input_ids, attention_mask, logits_to_keep)`; read: `_tokenizer`,
`eos_token_ids`, `chat_template_kwargs`, `model_wrapped`, `vllm_generation` (and of it, in
`trainers/validity_kd/proposals.py`, `max_completion_length`, `generation_kwargs`, `sync_weights`, `generate`); read
and written: `_metrics`, `generation_config`, `_last_loaded_step`, `teacher_model`; of the sampler `data_source`,
`shuffle` and `generator`. The keys `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `tool_mask`,
`num_items_in_batch` of a batch are TRL's.
`trl_kernel` is TRL's divergence. `check_distillation` compares ours with it, and looks for methods and attributes.

Replaced for the time a trainer is built, and only where vLLM runs on a CPU or takes weights without NCCL: the names
`LLM` and `VLLMClient` in `trl.generation.vllm_generation` (`build_vllm_with`); see `trainers/vllm/weight_sync.py`,
whose clients override methods of `VLLMClient` (`check_vllm_generation` names them).

For `trainers/async_grpo/trainer.py`, on TRL's experimental AsyncGRPOTrainer: its question for the peak speed of the
GPU is answered and its attention kernel replaced where there is no CUDA (`async_with`).
"""

import ast
import contextlib
import inspect
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

from rlkd.errors import UsageError

_HOOKS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_log_metric": ["self", "name", "value"],
}

_DISTILLATION_HOOKS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "unwrapped_student", "inputs", "num_items_in_batch"],
    "_get_train_sampler": ["self", "dataset"],
    "_get_last_hidden_state": ["self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"],
}

# Set by its `__init__`, and read or written by us.
_DISTILLATION_ATTRIBUTES = {
    "_last_loaded_step",
    "_metrics",
    "_tokenizer",
    "chat_template_kwargs",
    "eos_token_ids",
    "generation_config",
    "teacher_model",
    "vllm_generation",
}

# What TRL gives to its kernel for attention in packed rows, computed for each of them.
_PACKED = [
    "tree_kv_index",
    "tree_cu_seqlens_q",
    "tree_cu_seqlens_k",
    "tree_max_seqlen_q",
    "tree_max_seqlen_k",
]


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


def check_distillation() -> None:
    """Raise `UsageError` if TRL's DistillationTrainer has other methods than we override, or another loss than ours.

    The loss is compared on a few random numbers, for the three kinds of `beta`: with weights of 1 ours is TRL's.
    """
    import torch
    import trl

    from rlkd.divergence import Divergence, Head, chunked_divergence

    wrong = []
    for name, expected in _DISTILLATION_HOOKS.items():
        method = getattr(trl.DistillationTrainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found is None or found[: len(expected)] != expected:
            wrong.append(f"DistillationTrainer.{name} takes {found}, expected {expected}")
    if lacking := sorted(_DISTILLATION_ATTRIBUTES - _names(trl.DistillationTrainer.__init__)):
        wrong.append(f"DistillationTrainer does not set {', '.join(lacking)}")
    if not wrong:
        # A generator of its own: the random state belongs to the run.
        random = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(3, 4, generator=random) for _ in range(2))
        heads = [Head(torch.randn(5, 4, generator=random)) for _ in range(2)]
        for beta in (0.0, 0.5, 1.0):
            arguments = (student, heads[0], teacher, heads[1], Divergence("jsd", beta=beta, temperature=0.7))
            ours, theirs = chunked_divergence(*arguments)[0], trl_kernel(*arguments)[0]
            if not torch.allclose(ours, theirs, atol=1e-5):
                wrong.append(f"its divergence at beta {beta} is {theirs.tolist()}, ours {ours.tolist()}")
    if wrong:
        raise UsageError(
            f"TRL {trl.__version__}: {'; '.join(wrong)}. Install a TRL that rlkd is tested with:  "
            f'pip install "trl==1.16.0"'
        )


def trl_kernel(student_hidden: Any, student: Any, teacher_hidden: Any, teacher: Any, divergence: Any) -> Any:
    """TRL's divergence as a `rlkd.divergence.DivergenceKernel`: Triton on a GPU. Raises ValueError for skewed ones."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    if divergence.kind != "jsd":
        raise ValueError(f"TRL's kernel has the divergence 'jsd' only, not {divergence.kind!r}")
    return ChunkedDivergenceFunction.apply(
        student_hidden,
        student.weight,
        student.bias,
        teacher_hidden,
        teacher.weight,
        teacher.bias,
        divergence.beta,
        divergence.temperature,
        student.scale,
        student.softcap,
        teacher.scale,
        teacher.softcap,
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
    """Raise `UsageError` if TRL's vLLM side has other methods than `build_vllm_with` and our clients expect."""
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


def check_async_trl() -> None:
    """Raise `UsageError` if TRL's asynchronous trainer is not the one that `async_with` and our subclass know."""
    import trl
    from trl.experimental.async_grpo import async_grpo_trainer, async_rollout_worker, packing, vllm_client

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters) if callable(function) else []

    attention = getattr(packing, "tree_attention", None)
    speed = getattr(async_grpo_trainer, "get_peak_flops_per_device", None)
    loop = getattr(async_rollout_worker, "_AsyncRolloutLoop", object)
    client = getattr(vllm_client, "VLLMClient", object)
    wrong = [
        what
        for what, known in {
            "packed attention": [name for name in parameters(attention) if name.startswith("tree_")] == _PACKED,
            "the question for the GPU's speed": parameters(speed) == ["accelerator", "dtype"],
            "the trainer's start": "get_peak_flops_per_device" in _names(async_grpo_trainer.AsyncGRPOTrainer.__init__),
            "the rollout process": "response_template" in _names(getattr(loop, "__init__", None)),
            "the names of adapters": "load_lora_adapter" in dir(client),
        }.items()
        if not known
    ]
    if wrong:
        raise UsageError(
            f"TRL {trl.__version__}: its asynchronous trainer has changed ({', '.join(wrong)}), and rlkd does not "
            f'know it. Install a TRL that rlkd is tested with:  pip install "trl==1.16.0"'
        )


@contextlib.contextmanager
def async_with(attention: Callable[..., Any]) -> Iterator[None]:
    """While TRL's AsyncGRPOTrainer is built, fit it to a machine without CUDA, with `attention` for its kernel.

    `attention` is told of at transformers' own registry, under the name that TRL registers, and stays there. With
    CUDA, nothing changes.
    """
    import torch

    if torch.cuda.is_available():
        yield
        return
    from transformers import AttentionInterface
    from trl.experimental.async_grpo import async_grpo_trainer
    from trl.experimental.async_grpo.packing import TREE_ATTENTION

    # It looks the GPU up by name, which raises without one. None is its own answer for GPUs that it does not know.
    asked = async_grpo_trainer.get_peak_flops_per_device
    async_grpo_trainer.get_peak_flops_per_device = lambda accelerator, dtype: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = asked
    # Last, as the trainer registers the kernel when it is built. Models look an attention up at every call.
    AttentionInterface.register(TREE_ATTENTION, attention)


def _names(function: Any) -> set[str]:
    code = getattr(function, "__code__", None)
    return {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))} if code else set()
