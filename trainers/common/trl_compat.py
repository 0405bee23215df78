"""TRL's private surface: every private method and attribute that our trainers use, with checks at start-up.

Checked on TRL 1.15.0 and 1.16.0, the asynchronous trainer on 1.16.0. A method with other parameters ends the start
(`check_trl`, `check_distillation`, `check_vllm_generation`, `check_async_trl`), a value of another shape the first use
of it. Besides the methods in the tables below, our trainers use:

`GRPOTrainer` (since TRL 0.24), for `trainers/rlkd/trainer.py`: `num_generations`, `num_generations_eval`,
`reward_funcs`, `reward_func_names`; in the config, `_VALID_DICT_FIELDS`. For `trainers/common/generation.py`:
`chat_template_kwargs`, `eos_token_ids`, `environment_factories`; of `DistillationTrainer` too. For the fast path
(`trainers/common/fast_path.py`): `model_wrapped`, `use_vllm`, whose `_generate_single_turn` may take and return
anything, as long as it calls `generate` of the model; `loss_type`, `beta`, `top_entropy_quantile`,
`_entropy_bonus_enabled`, `aux_loss_enabled`, the argument `fused_lm_head` of the model, its output's `log_probs` and
`entropy`; keys of a batch: `advantages`, `completion_ids`, `completion_mask`, `tool_mask`, `num_images`. With step
credit (`trainers/rlkd/step_credit.py`): `_metrics`, `reward_weights`, and a loss that takes `advantages` of tokens.
With a teacher (`trainers/rlkd/teacher_kl.py`): `generation_config`; keys of a batch: `prompt_ids`, `prompt_mask`,
`old_per_token_logps`.
With resampling (`trainers/rlkd/resampling.py`): `_metrics`, `reward_weights`, `_step`, `_tokenizer`, and batches that
hold tensors with a row per completion, and `num_items_in_batch`.

`DistillationTrainer` (since TRL 1.12), for `trainers/validity_kd/{trainer,reader,teacher,step_weights,traces}.py`:

- of the `RepeatSampler` that `_get_train_sampler` returns: `data_source`, `shuffle` and `generator`;
- read: `_tokenizer`, `eos_token_ids`, `chat_template_kwargs`, `model_wrapped`, `vllm_generation` (of it, in
  `trainers/teachers/proposals.py`, `max_completion_length`, `generation_kwargs`, `sync_weights`, `generate`);
- read and written: `_metrics`, `_logs` (with `log_completions`), `generation_config`, `_last_loaded_step`,
  `teacher_model`;
- keys of a batch: `prompt_ids`, `prompt_mask`, `completion_ids`, `completion_mask`, `tool_mask`, `num_items_in_batch`;
- its divergence, `trl_kernel`, which `check_distillation` compares with ours.

`trl.generation.vllm_generation`: the names `LLM` and `VLLMClient` are replaced while a trainer is built, and only
where vLLM runs on a CPU or takes weights without NCCL (`build_vllm_with`); the clients in
`trainers/vllm/weight_sync.py` and `restarts.py` override methods of `VLLMClient`; the second reads the weights again
(`VLLMGeneration._iter_named_params`). With `vllm_adapter_sync` the client of `trainers/vllm/rollout_servers.py` takes
their place, and `VLLMGeneration.sync_weights` is replaced (`trainers/vllm/adapter_sync.py`); `model`, `accelerator`
and `vllm_client` are read.

`SFTTrainer`, for weights of examples (`trainers/common/sft.py`): `_set_signature_columns_if_needed`,
`_signature_columns`, `_metrics`, `_total_train_tokens`, and a loss that sums up the `log_probs` of the output of a
model called with `fused_lm_head` (`check_weighted_loss`); of this output also `label_mask`.

`AsyncGRPOTrainer` (experimental), for `trainers/async_grpo/trainer.py`: without CUDA, its lookup of the GPU's peak
FLOPs and its attention kernel are replaced (`async_with`).
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from packaging.version import Version

from rlkd.errors import UsageError

_INSTALL = 'Install a TRL that rlkd is tested with:  pip install "trl==1.16.0"'

_HOOKS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_log_metric": ["self", "name", "value"],
    "_generate": ["self", "prompts"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": ["self"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_per_token_logps_and_entropies": [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
        *("batch_size", "compute_entropy", "compute_aux_loss"),
    ],
}

_DISTILLATION_HOOKS = {
    "_generate_and_score_completions": ["self", "inputs"],
    "_compute_loss": ["self", "unwrapped_student", "inputs", "num_items_in_batch"],
    "_tokenize_prompts": ["self", "prompts"],
    "_generate_single_turn": ["self"],
    "_get_train_sampler": ["self", "dataset"],
    "_get_last_hidden_state": ["self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep"],
}

_CLIENT_METHODS = {
    "init_communicator": ["self", "device"],
    "update_named_params": ["self", "metadata", "named_params"],
    "close_communicator": ["self"],
    "_start_weight_update": ["self"],
    "_finish_weight_update": ["self"],
    "generate": ["self", "prompts"],
    "reset_prefix_cache": ["self"],
    "_post": ["self", "url"],
    "get_world_size": ["self"],
}

_GENERATION_METHODS = {
    "_init_vllm": ["self"],
    "_iter_named_params": ["self"],
    "sync_weights": ["self"],
}

# The arguments of TRL's attention kernel for packed rows.
_PACKED = ["tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k", "tree_max_seqlen_q", "tree_max_seqlen_k"]


def check_trl() -> None:
    """Raise `UsageError` where TRL lacks a method that we override, or has another: TRL would not call ours."""
    import trl

    check_kernels()
    _complain(_wrong_methods(trl.GRPOTrainer, _HOOKS))


def check_distillation() -> None:
    """Raise `UsageError` where TRL's DistillationTrainer has other methods than we override, or another loss.

    The loss is compared on a few random numbers, for the three kinds of `beta`: with weights of 1 ours is TRL's. Not
    with DeepSpeed ZeRO stage 3, where TRL's takes sharded weights only.
    """
    import torch
    import trl
    from transformers.integrations import is_deepspeed_zero3_enabled

    from rlkd.divergence import Divergence, Head, chunked_divergence

    check_kernels()
    wrong = _wrong_methods(trl.DistillationTrainer, _DISTILLATION_HOOKS)
    if not wrong and not is_deepspeed_zero3_enabled():
        # A generator of its own: the random state belongs to the run.
        random = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(3, 4, generator=random) for _ in range(2))
        heads = [Head(torch.randn(5, 4, generator=random)) for _ in range(2)]
        for beta in (0.0, 0.5, 1.0):
            arguments = (student, heads[0], teacher, heads[1], Divergence("jsd", beta=beta, temperature=0.7))
            ours, theirs = chunked_divergence(*arguments)[0], trl_kernel(*arguments)[0]
            if not torch.allclose(ours, theirs, atol=1e-5):
                wrong.append(f"its divergence at beta {beta} is {theirs.tolist()}, ours {ours.tolist()}")
    _complain(wrong)


def check_kernels() -> None:
    """Raise `UsageError` where the loss of TRL's trainers cannot run: before TRL 1.16 it is in Triton, for GPUs."""
    import torch
    import trl

    if Version(trl.__version__) >= Version("1.16") or torch.cuda.is_available() or torch.xpu.is_available():
        return
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton's own switch for kernels on a CPU
        raise UsageError(f"TRL {trl.__version__} trains on GPUs only, and this machine has none. {_INSTALL}")


@contextlib.contextmanager
def model_for_generation(trainer: Any) -> Iterator[Any]:
    """A trainer's model as `generate` needs it; gradient checkpointing is set again afterwards as it was."""
    from trl.models import unwrap_model_for_generation

    # TRL 1.15 sets it again without arguments.
    known = "gradient_checkpointing_kwargs" in _parameters(unwrap_model_for_generation)
    kwargs = {"gradient_checkpointing_kwargs": trainer.args.gradient_checkpointing_kwargs} if known else {}
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator, **kwargs) as model:
        yield model


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


def completions_of(generated: Any, count: int) -> tuple[list[Any], list[Any]]:
    """The completion ids and the completions in the result of `_generate`, one each for `count` prompts.

    Its result has changed between versions of TRL, so only `reward_prefetch` reads it.
    """
    if isinstance(generated, tuple) and len(generated) > 3:
        completion_ids, completions = generated[1], generated[3]
        if isinstance(completions, list) and len(completion_ids) == len(completions) == count:
            return completion_ids, completions
    raise UsageError(
        f"reward_prefetch: TRL's GRPOTrainer._generate returned a value of unknown shape. Set reward_prefetch: false. "
        f"{_INSTALL}"
    )


@contextlib.contextmanager
def build_vllm_with(**replacements: Any) -> Iterator[None]:
    """While TRL's trainer is built, let it find these instead of its own `VLLMClient` or `LLM`; it has no hook."""
    from trl.generation import vllm_generation

    check_vllm_generation()
    names = vars(vllm_generation)
    saved = {name: names[name] for name in replacements if name in names}
    names.update(replacements)
    try:
        yield
    finally:
        for name in replacements:
            del names[name]
        names.update(saved)


def check_vllm_generation() -> None:
    """Raise `UsageError` if TRL's vLLM side has other methods than `build_vllm_with` and our clients expect."""
    import trl
    from trl.generation import vllm_generation
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    wrong = _wrong_methods(VLLMClient, _CLIENT_METHODS) + _wrong_methods(VLLMGeneration, _GENERATION_METHODS)
    # Both names are looked up there; `LLM` exists only if vLLM is installed.
    if not hasattr(vllm_generation, "VLLMClient"):
        wrong.append("vllm_generation has no VLLMClient")
    if wrong:
        raise UsageError(
            f"TRL {trl.__version__}: {'; '.join(wrong)}. With this version, rlkd can use vLLM only on a GPU with "
            f"vllm_weight_transfer: nccl. {_INSTALL}"
        )


def check_async_trl() -> None:
    """Raise `UsageError` if TRL's asynchronous trainer is not the one that `async_with` and our subclass know."""
    from trl.experimental.async_grpo import async_grpo_trainer, async_rollout_worker, packing, vllm_client

    attention = getattr(packing, "tree_attention", None)
    wrong = _wrong_methods(async_grpo_trainer, {"get_peak_flops_per_device": ["accelerator", "dtype"]})
    if [name for name in _parameters(attention) if name.startswith("tree_")] != _PACKED:
        wrong.append(f"packing.tree_attention takes {_parameters(attention)}")
    if "processing_class" not in _parameters(getattr(async_rollout_worker, "_AsyncRolloutLoop", None)):
        wrong.append("_AsyncRolloutLoop takes no processing_class")
    if not hasattr(getattr(vllm_client, "VLLMClient", None), "load_lora_adapter"):
        wrong.append("VLLMClient has no load_lora_adapter")
    _complain(wrong)


@contextlib.contextmanager
def async_with(attention: Callable[..., Any]) -> Iterator[None]:
    """While TRL's AsyncGRPOTrainer is built, fit it to a machine without CUDA, with `attention` for its kernel."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    from transformers import AttentionInterface
    from trl.experimental.async_grpo import async_grpo_trainer
    from trl.experimental.async_grpo.packing import TREE_ATTENTION

    # The lookup raises without a GPU. None is its own result for GPUs that it does not know.
    lookup = async_grpo_trainer.get_peak_flops_per_device
    async_grpo_trainer.get_peak_flops_per_device = lambda accelerator, dtype: None
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device = lookup
    # Last, as the trainer registers the kernel when it is built. Models look an attention up at every call.
    AttentionInterface.register(TREE_ATTENTION, attention)


def _wrong_methods(owner: Any, known: Mapping[str, Sequence[str]]) -> list[str]:
    wrong = []
    for name, expected in known.items():
        found = _parameters(getattr(owner, name, None))
        if found[: len(expected)] != expected:
            wrong.append(f"{owner.__name__}.{name} takes {found}, expected {expected}")
    return wrong


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters) if callable(function) else []


def _complain(wrong: Sequence[str]) -> None:
    import trl

    if wrong:
        raise UsageError(f"TRL {trl.__version__}: {'; '.join(wrong)}. {_INSTALL}")
