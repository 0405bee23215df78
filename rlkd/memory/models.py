"""A model without weights, from its configuration alone: its parameters, and the bytes that they take.

    config = AutoConfig.from_pretrained("Qwen/Qwen2.5-7B")
    model = WeightlessModel(config, dtype="bfloat16", adapter=LoraConfig(r=16, target_modules="all-linear"))
    model.parameters, model.weights, model.gradients, model.optimizer("adamw_torch")

transformers and PEFT build the model themselves, on tensors that have shapes and no data, so the counts are exact for
every model that they know. `rlkd.memory.passes` has the memory of its forward and backward passes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from rlkd.errors import UsageError
from rlkd.memory.live import without_data
from rlkd.memory.optimizers import optimizer_bytes
from rlkd.memory.weights import quantised_layers, weight_bytes


class WeightlessModel:
    """A causal language model whose tensors have shapes and no data.

    Args:
        config: the model's configuration, of transformers.
        dtype: that of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the configuration's own.
        adapter: a PEFT configuration; then its parameters alone are trained, in float32 as PEFT makes them (in
            bfloat16 on quantised weights, as TRL does).
        bits: 4 or 8 for quantised weights.
        double_quantised: whether the scales of 4-bit weights are quantised, too.
        checkpointing: whether the backward pass computes activations again (gradient checkpointing).
        autocast: the dtype of mixed precision, None for none.
        trains: whether it is trained at all; teachers and structure models are not.
        masked: whether attention takes a mask; kernels such as flash attention do not.

    Raises `UsageError` where transformers or PEFT cannot build it.
    """

    def __init__(
        self,
        config: Any,
        *,
        dtype: str = "float32",
        adapter: Any = None,
        bits: int | None = None,
        double_quantised: bool = False,
        checkpointing: bool = False,
        autocast: str | None = None,
        trains: bool = True,
        masked: bool = True,
    ) -> None:
        self.config = config
        self.dtype = str(config.dtype or "float32").removeprefix("torch.") if dtype == "auto" else dtype
        self.bits, self.autocast, self.masked = bits, autocast, masked
        self.checkpointing = checkpointing and trains
        self.fake = without_data()
        try:
            with torch.device("meta"):
                self.plain = model = _build(config, getattr(torch, self.dtype))
                self.base_weights = weight_bytes(model, bits, double_quantised=double_quantised)
                own = _bytes(model.parameters())
                layers = [] if bits is None else quantised_layers(model)
                # A pass turns one layer after the other into plain numbers.
                self.dequantised = max((layer.weight.numel() * self.number for layer in layers), default=0)
                self.quantised_from = _bytes(layer.weight for layer in layers)
                if adapter is not None:
                    model = _adapted(model, adapter, half=bits is not None)
                elif not trains:
                    model.requires_grad_(False)
                self.adapter_weights = _bytes(model.parameters()) - own
            with self.fake:
                _without_data(model)
            if self.checkpointing:
                _checkpoint(self.plain)
                model.enable_input_require_grads()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"the memory of a model of type {getattr(config, 'model_type', '?')!r} cannot be estimated: it cannot "
                f"be built from its configuration ({type(error).__name__}: {reason})"
            ) from error
        model.train(trains)
        self.all_parameters = list(model.parameters())
        self._trained = [parameter for parameter in self.all_parameters if parameter.requires_grad]

    @property
    def parameters(self) -> int:
        """The number of parameters, tied ones once, with those of the adapter."""
        return sum(parameter.numel() for parameter in self.all_parameters)

    @property
    def trained(self) -> int:
        """The number of parameters that are trained."""
        return sum(parameter.numel() for parameter in self._trained)

    @property
    def weights(self) -> int:
        """Bytes of parameters and buffers, with the adapter's."""
        return self.base_weights + self.adapter_weights

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of all trained parameters, each in its parameter's dtype."""
        return _bytes(self._trained)

    @property
    def head(self) -> torch.nn.Parameter:
        """The matrix that makes logits of hidden states, (vocabulary, width)."""
        weight: torch.nn.Parameter = self.plain.get_output_embeddings().weight
        return weight

    @property
    def embedding(self) -> torch.nn.Parameter:
        """The matrix that makes states of ids."""
        weight: torch.nn.Parameter = self.plain.get_input_embeddings().weight
        return weight

    @property
    def vocabulary(self) -> int:
        """The number of rows of the head."""
        return self.head.shape[0]

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return self.head.shape[1]

    @property
    def number(self) -> int:
        """Bytes of a number that passes compute with."""
        return torch.finfo(getattr(torch, self.autocast or self.dtype)).bits // 8

    def is_trained(self, parameter: torch.nn.Parameter) -> bool:
        """Whether a parameter is trained."""
        return any(parameter is one for one in self._trained)

    def optimizer(self, optim: str) -> int:
        """Bytes of the optimizer's state; `optim` as in a config. Raises `UsageError` for an unknown one."""
        return optimizer_bytes(optim, [(tuple(p.shape), p.element_size()) for p in self._trained])

    def matrices(self, *, only_adapted: bool = False) -> int:
        """Bytes of the matrices of linear layers, without those that several modules share.

        `only_adapted`: only of layers that have an adapter.
        """
        modules = list(self.plain.modules())
        owners: dict[int, int] = {}
        for module in modules:
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        adapted = {id(module.get_base_layer()) for module in modules if hasattr(module, "lora_A")}
        return _bytes(
            module.weight
            for module in modules
            if type(module) is torch.nn.Linear
            and owners[id(module.weight)] == 1
            and (id(module) in adapted or not only_adapted)
        )


def _build(config: Any, dtype: torch.dtype) -> Any:
    """A model of the class that its checkpoint names, as TRL builds it, or of a causal language model."""
    import transformers
    from transformers.initialization import no_init_weights

    kind: Any = getattr(transformers, (config.architectures or [""])[0], None)
    with no_init_weights():  # which leaves out tying, too
        if hasattr(kind, "_from_config") and hasattr(kind, "generate"):
            model = kind._from_config(copy.deepcopy(config), dtype=dtype)
        else:
            model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def _adapted(model: Any, adapter: Any, *, half: bool) -> Any:
    from peft import get_peft_model

    model = get_peft_model(model, copy.deepcopy(adapter))
    if half:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _without_data(model: Any) -> None:
    """Turn tensors on the meta device into ones of the CPU without data; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}

    def of_cpu(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = of_cpu(tensor)


def _checkpoint(model: Any) -> None:
    """Switch gradient checkpointing on; without the random state, which tensors without data do not have."""
    settings = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.23
        model.activation_checkpointing_enable(settings)
    else:
        model.gradient_checkpointing_enable(settings)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
