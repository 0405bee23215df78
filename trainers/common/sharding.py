"""Models whose weights are sharded over processes: FSDP2 and DeepSpeed ZeRO stage 3.

Both gather the weights of a layer when the layer is called, and shard its gradients after the backward pass. Code
that reads a weight by itself, as a loss reads the last layer's, finds only a piece of it. So it runs `within` a call
of that layer: to FSDP2 and DeepSpeed it is the layer's own computation, and one layer is whole at a time.

| setting | how a run asks for it |
| --- | --- |
| FSDP2 | `accelerate launch --config_file recipes/accelerate/fsdp2.yaml`, or `fsdp: true` |
| ZeRO stage 3 | `accelerate launch --config_file recipes/accelerate/zero3.yaml`, or `deepspeed: FILE` |
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from packaging.version import Version
from torch import Tensor

from rlkd.errors import UsageError

Result = TypeVar("Result")

# The first version of accelerate whose FSDP2 makes the last layer a unit of its own, which `within` needs.
OLDEST_ACCELERATE = "1.15.0"
_open: list[Any] = []  # the layers that are within a call at the moment


def sharding_of(args: Any) -> str | None:
    """How the weights of a run are sharded over processes: `fsdp1`, `fsdp2`, `zero3`, or None for whole models.

    `args`: the training arguments; what `accelerate launch` was given is in the environment.
    """
    if args.fsdp:
        return f"fsdp{(args.fsdp_plugin_args or {}).get('fsdp_version', 2)}"
    if _is_set("ACCELERATE_USE_FSDP"):
        return f"fsdp{os.environ.get('FSDP_VERSION', '1')}"
    stage = args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0
    return "zero3" if stage == 3 else None


def check_sharding(args: Any, *, reads_head: bool = True) -> None:
    """Raise `UsageError` where our losses do not work with the way a run shards weights or sequences.

    `reads_head`: whether the run reads the last layer by itself.
    """
    check_sequences()
    kind = sharding_of(args)
    if kind is None:
        return
    if kind == "fsdp1" and reads_head:
        raise UsageError(
            "FSDP version 1 does not let a loss read the last layer. Set fsdp_version: 2, as "
            "recipes/accelerate/fsdp2.yaml has it"
        )
    if kind == "fsdp1" and getattr(args, "vllm_adapter_sync", False):
        raise UsageError("vllm_adapter_sync with FSDP version 1: adapters cannot be gathered. Set fsdp_version: 2")
    if kind == "fsdp2" and Version(version("accelerate")) < Version(OLDEST_ACCELERATE):
        raise UsageError(
            f"FSDP2 with accelerate {version('accelerate')}: the last layer is sharded together with others. Run  "
            f"pip install 'accelerate>={OLDEST_ACCELERATE}'"
        )
    if getattr(args, "fast_path", None) == "always":
        raise UsageError(
            f"fast_path: always with {name_of(kind)}: it reads single layers, which are sharded over the processes. "
            f"Set fast_path: auto"
        )
    if getattr(args, "kernel", None) == "trl":
        raise UsageError(
            f"kernel: trl with {name_of(kind)}: it reads both heads again in the backward pass, when the teacher's is "
            f"sharded. Set kernel: chunked"
        )


def check_sequences() -> None:
    """Raise `UsageError` where `accelerate launch` was configured to divide sequences or layers.

    TRL refuses its own keys for that, and does not see these.
    """
    for name, what in (("cp", "context"), ("sp", "sequence"), ("tp", "tensor")):
        size = launched_size(name)
        if size != 1:
            raise UsageError(
                f"parallelism_config_{name}_size {size}: the loss reads whole completions and layers, so "
                f"{what} parallelism does not work here. Set it to 1; recipes/sft.py can divide sequences"
            )


def launched_size(kind: str) -> int:
    """`parallelism_config_{kind}_size` of `accelerate launch`, 1 without. `kind`: `cp`, `sp` or `tp`."""
    if not _is_set("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1
    return int(os.environ.get(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "1"))


def refuse_sharded(args: Any, what: str, way_out: str) -> None:
    """Raise `UsageError` where the weights of a run are sharded, since `what` needs whole models."""
    kind = sharding_of(args)
    if kind is not None:
        raise UsageError(f"{what} with {name_of(kind)}: it needs whole models on each process. {way_out}")


def name_of(kind: str) -> str:
    """The name of a `sharding_of` in messages."""
    return {"zero3": "DeepSpeed ZeRO stage 3"}.get(kind, kind.upper())


def is_sharded(trainer: Any) -> bool:
    """Whether the models of a trainer that has been built are sharded over processes."""
    return sharding_of(trainer.args) is not None


class ShardedTraining:
    """Mixin for a TRL trainer, before it among the bases: what it needs to train sharded models."""

    args: Any
    accelerator: Any
    _forward_redirection: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Keep what models return in float32 in mixed precision: FSDP2 would round losses like activations."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        policy: Any = getattr(plugin, "mixed_precision_policy", None)
        if plugin is not None and getattr(policy, "output_dtype", None) is not None:
            plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)

    def redirect_loss(self) -> None:
        """Have a loss get its arguments as they are, in a call of the student; FSDP2 would round those of a call."""
        trainer: Any = self
        if is_sharded(self):
            trainer._forward_redirection = _redirected

    def save_final(self) -> None:
        """Save the trained model, whole also where its checkpoints are sharded."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:
            plugin.set_state_dict_type("FULL_STATE_DICT")
        self.save_model(self.args.output_dir)  # type: ignore[attr-defined]


def shard_frozen(model: Any, accelerator: Any) -> Any:
    """A model that is not trained, such as a teacher, sharded over the processes as the student is.

    `model` is on the CPU, or as `from_pretrained` has sharded it. Returns the model itself, in evaluation mode.
    """
    if accelerator.state.deepspeed_plugin is not None:
        from trl.models import prepare_deepspeed

        return prepare_deepspeed(model, accelerator).module
    from accelerate.utils import fsdp2_prepare_model
    from torch.distributed.fsdp import register_fsdp_forward_method

    plugin = accelerator.state.fsdp_plugin
    student = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.transformer_cls_names_to_wrap = None  # this model may have other layers than the student
    try:
        model = fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = student
    model.set_reshard_after_forward(True)  # no backward pass would shard its last layer again
    register_fsdp_forward_method(model, "generate")
    return model.eval()


def rows_of_head(model: Any) -> int:
    """The number of tokens that a model's last layer knows, also where its weight is sharded."""
    weight = model.get_output_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def within(layer: Any, compute: Callable[..., Result], *inputs: Tensor, wrapper: Any = None) -> Result:
    """`compute(*inputs)` in the course of a call of `layer`, whose weights are whole meanwhile.

    The weights count as used by the layer, so that gradients of `compute`'s result reach them, and are sharded again
    once the `inputs` have theirs. `wrapper`: is called in the place of the layer, and calls it.
    """
    own = vars(layer).get("forward")
    results: list[Result] = []

    def restore() -> None:
        if own is None:
            vars(layer).pop("forward", None)
        else:
            layer.forward = own

    def forward(*given: Tensor) -> Any:
        restore()
        results.append(compute(*given))
        # Without gradients, results of any type pass by the hooks, which know tensors.
        return results[0] if torch.is_grad_enabled() else torch.empty(0)

    layer.forward = forward
    _open.append(layer)
    try:
        output: Any = (layer if wrapper is None else wrapper)(*inputs)
    finally:
        _open.pop()
        restore()
    return output if torch.is_grad_enabled() else results[0]


def with_whole(module: Any, compute: Callable[..., Result], *inputs: Tensor) -> Result:
    """`compute(*inputs)` within a call of a module; a plain call where its weights are not sharded.

    `module`: a layer, whose weights are whole meanwhile, or a whole model, whose layers then gather theirs in turn.
    """
    return within(module, compute, *inputs) if _has_shards(module) else compute(*inputs)


def with_whole_frozen(layer: Any, compute: Callable[[], Result]) -> Result:
    """As `with_whole` for a layer that is not trained: the result's gradients do not pass by the layer."""
    if not _has_shards(layer) or any(layer is one for one in _open):  # the student's, whose base teaches
        return compute()
    results: list[Result] = []
    trains = torch.is_grad_enabled()

    def inner() -> None:
        with torch.set_grad_enabled(trains):
            results.append(compute())

    with torch.no_grad():
        within(layer, inner)
    return results[0]


def _redirected(wrapper: Any, module: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A method's result in the course of a call of `wrapper`, as TRL's `_ForwardRedirection` has it."""
    return within(module, lambda: method(*args, **kwargs), wrapper=wrapper)


def _has_shards(module: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule) or hasattr(next(module.parameters(), None), "ds_id")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
