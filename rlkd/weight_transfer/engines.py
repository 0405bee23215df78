"""The server's side of weight transfer: a vLLM worker receives weights over gloo or from files.

All weights of an update are received in host memory before any is loaded: if the trainer dies meanwhile, the server
keeps its old weights. `disk` reads its files while loading, and needs no such copy. Three silent failures of loading
into a running vLLM (written for 0.30) are handled:

- On a CPU, vLLM packs a tied output head when it starts, and the head keeps that copy. It is packed again.
- A fused layer of which only a part arrives would be completed with uninitialised memory. It keeps its old weights,
  and the update ends with an error that names it.
- Loading ends with a synchronisation of the accelerator, which fails without one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rlkd.weight_transfer.adapters import ReceivedAdapters, are_files
from rlkd.weight_transfer.transport import WeightGroup, join

TESTED_VLLM = "0.30.0"


@dataclass
class GlooInit(WeightTransferInitInfo):
    """Address of the trainer. `rank_offset`: rank of the first worker; `seconds`: time limit of each wait."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    seconds: float


@dataclass
class GlooUpdate(WeightTransferUpdateInfo):
    """Names, dtypes and shapes of the following tensors, in this order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class DiskInit(WeightTransferInitInfo):
    """No parameters."""


@dataclass
class DiskUpdate(WeightTransferUpdateInfo):
    """Safetensors files that this worker can read until the update is finished."""

    paths: list[str]


class _HostEngine(WeightTransferEngine):
    """Weights in the names and shapes of the checkpoint, from host memory into a running model."""

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module):
        check_vllm()
        super().__init__(config, vllm_config, device, model)
        self._arrived: list[Iterable[tuple[str, torch.Tensor]]] = []

    def start_weight_update(self) -> None:
        self._arrived = []

    def update_weights(self, update_info: dict[str, Any]) -> None:
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            self._arrived = []
            raise

    def finish_weight_update(self) -> None:
        """Load all received weights into the model; raises `RuntimeError` if a fused layer received only a part."""
        if not self._arrived:  # an adapter
            return
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        heads = list(_tied_heads(self.model))  # loading unties them temporarily
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights(pair for part in self._arrived for pair in part)
        finally:
            self._arrived = []
            partial = _revert_partial_layers(self.model)
            finalize_layerwise_reload(self.model, self.model_config)
            for head, embedding in heads:
                head.weight = embedding.weight
                head.quant_method.process_weights_after_loading(head)
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
        if partial:
            raise RuntimeError(
                f"only a part of the weights of {', '.join(partial[:3])}{' ...' if len(partial) > 3 else ''} was "
                f"sent; {len(partial)} fused layers keep their old weights. Send all parts of a layer in one update."
            )


class GlooEngine(_HostEngine):
    """Weights over a TCP connection, and adapters, which are stored as files."""

    init_info_cls = GlooInit
    update_info_cls = GlooUpdate

    _group: WeightGroup | None = None

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module):
        super().__init__(config, vllm_config, device, model)
        self._adapters = ReceivedAdapters()

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        """Join the trainer's group, and leave that of an earlier trainer."""
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._leave()
        self._group = join(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.seconds
        )

    def receive_weights(self, update_info: GlooUpdate) -> None:
        """Receive the announced tensors; weights are loaded into the model when the update is finished."""
        if self._group is None:
            raise RuntimeError("no trainer has called init_weight_transfer_engine, or the connection to it has failed")
        described = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        try:
            received = [
                (name, self._group.receive(shape, getattr(torch, dtype_name))) for name, dtype_name, shape in described
            ]
        except BaseException:
            self._leave()  # the number of tensors still in transit is unknown
            raise
        if are_files(update_info.names):
            self._adapters.store(received)
        else:
            self._arrived.append(received)

    def shutdown(self) -> None:
        """Leave the group, and remove the adapters."""
        self._leave()
        self._adapters.clear()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.close()
        self._group = None


class DiskEngine(_HostEngine):
    """Weights from safetensors files."""

    init_info_cls = DiskInit
    update_info_cls = DiskUpdate

    def init_transfer_engine(self, init_info: DiskInit) -> None:
        """Nothing to prepare."""

    def receive_weights(self, update_info: DiskUpdate) -> None:
        """Record the files; they are read when the update is finished."""
        for path in update_info.paths:
            if not Path(path).is_file():
                raise FileNotFoundError(
                    f"the server cannot see {path}; the trainer's output_dir must be on a file system that both share"
                )
        self._arrived += [_tensors_of(path) for path in update_info.paths]

    def shutdown(self) -> None:
        """Nothing to close."""


def check_vllm() -> None:
    """Raise `RuntimeError` if this vLLM's weight transfer differs from the one this module was written for."""
    import vllm

    try:
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod  # noqa: F401
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # noqa: F401
            ParallelLMHead,
            VocabParallelEmbedding,
        )
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,  # noqa: F401
            initialize_layerwise_reload,  # noqa: F401
        )
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info  # noqa: F401
        from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
    except ImportError as error:
        missing = str(error)
    else:
        found = list(inspect.signature(WeightTransferEngine.__init__).parameters)
        fields = set(inspect.signature(LayerReloadingInfo).parameters)
        if found != ["self", "config", "vllm_config", "device", "model"]:
            missing = f"WeightTransferEngine takes {found}"
        elif not {"load_numel", "load_numel_total", "loaded_weights"} <= fields:
            missing = f"LayerReloadingInfo has {sorted(fields)}"
        else:
            return
    raise RuntimeError(
        f"rlkd's weight transfer does not support vLLM {vllm.__version__} ({missing}). Install vLLM {TESTED_VLLM}, "
        f"the tested version, or use the backend nccl."
    )


def _tensors_of(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            yield name, file.get_tensor(name)


def _tied_heads(model: torch.nn.Module) -> Iterator[tuple[Any, Any]]:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    vocabularies = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    for head in vocabularies:
        if isinstance(head, ParallelLMHead):
            for embedding in vocabularies:
                if not isinstance(embedding, ParallelLMHead) and embedding.weight is head.weight:
                    yield head, embedding


def _revert_partial_layers(model: torch.nn.Module) -> list[str]:
    """Names of unquantized fused layers that received only a part; vLLM restores their old weights."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    partial = []
    for name, layer in model.named_modules():
        if isinstance(layer, LinearBase) and isinstance(layer.quant_method, UnquantizedLinearMethod):
            info = get_layerwise_info(layer)
            if info.can_load() and 0 < info.load_numel < info.load_numel_total:
                info.loaded_weights.clear()
                info.load_numel = 0
                partial.append(name)
    return partial
