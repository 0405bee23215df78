"""vLLM's own engine for NCCL, which also takes adapters: those are received like weights and stored as files.

Not run by us on GPUs: on a CPU, a test replaces the broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from rlkd.weight_transfer.adapters import ReceivedAdapters, are_files


class NCCLAdapterEngine(NCCLWeightTransferEngine):
    """Weights and adapters over NCCL."""

    model: torch.nn.Module
    _adapters: ReceivedAdapters | None = None
    _reloads = False

    def start_weight_update(self) -> None:
        """Nothing yet: vLLM's engine would prepare the model for weights, and an adapter leaves it as it is."""
        self._reloads = False

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receive weights into the model, or files of an adapter."""
        if are_files(update_info.names):
            self._adapters = self._adapters or ReceivedAdapters()
            model: torch.nn.Module = self.model
            self.model = _Files(self._adapters)
            try:
                super().receive_weights(update_info)
            finally:
                self.model = model
            return
        if not self._reloads:
            super().start_weight_update()
            self._reloads = True
        super().receive_weights(update_info)

    def finish_weight_update(self) -> None:
        """Finish the loading of weights, if there were any."""
        if self._reloads:
            super().finish_weight_update()

    def shutdown(self) -> None:
        """Leave the group, and remove the adapters."""
        super().shutdown()
        if self._adapters is not None:
            self._adapters.clear()


class _Files(torch.nn.Module):
    """Takes the place of the model while files arrive."""

    def __init__(self, adapters: ReceivedAdapters):
        super().__init__()
        self._adapters = adapters

    def load_weights(self, received: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._adapters.store(received)
