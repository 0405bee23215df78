"""Continues a run whose rollout server was restarted, as `rlkd serve` does with a server that dies.

A restarted server has the weights of its model and not those of the trainer: its completions would come from another
policy. Before each request the client checks that the server is the process that got the last weights, by the start
time in its metrics. If it is not, or does not answer, the client waits for it, connects again, sends the trainer's
weights, and repeats the request. A weight update may arrive twice that way, with the same weights both times. Where
the same process is well, as after a connection that it closed between two requests, only the request is repeated.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import requests
import torch
from trl.generation.vllm_client import VLLMClient

from trainers.vllm.errors import ServerLost, SyncFailed
from trainers.vllm.sessions import is_healthy, send_once

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Restarts during one request; a request that ends the server each time must end the run.
ATTEMPTS = 3
PAUSE = 1.0
STARTED = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


class RestartSafe(VLLMClient):
    """A client that outlives restarts of its server; goes in front of the client that transfers the weights.

    `seconds`: longest wait for the server. `weights` iterates over the trainer's weights as they are now; without it,
    a lost server ends the run. (Iterating over weights that are divided among processes would take all of them.)
    """

    seconds: float
    weights: Callable[[], Iterator[tuple[str, torch.Tensor]]] | None = None
    _metadata: Any = None
    _process = ""

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        """Connect, and remember the server's process."""
        send_once(self.session)  # TRL's retries for a minute, after which another process may answer
        super().init_communicator(device)
        self._process = self._start_time()
        if not self._process:
            logger.warning(
                "%s does not tell when it was started (/metrics), so a restart between two requests goes unnoticed "
                "until the next weight update",
                self.base_url,
            )

    def update_named_params(self, metadata: Any, named_params: Any) -> None:
        """Send weights, and all of the trainer's if the server was lost."""
        if self._updating_weights:  # a part of an update
            super().update_named_params(metadata, named_params)
            return
        self._metadata = metadata
        try:
            self._check_process()
            super().update_named_params(metadata, named_params)
        except SyncFailed as error:
            if isinstance(named_params, Generator):  # with an adapter, one that was abandoned leaves it merged
                named_params.close()
            self._raise_refusal(error)
            self._restore(error)

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """As TRL's client, by a server that has the trainer's weights."""
        return self._by_same_process(functools.partial(super().generate, *arguments, **settings))

    def reset_prefix_cache(self) -> None:
        """As TRL's client."""
        self._by_same_process(self._reset)

    def _reset(self) -> None:
        try:
            super().reset_prefix_cache()
        except requests.RequestException as error:  # not by `_post` for vLLM before 0.26
            raise ServerLost.of(self.base_url, "does not answer /reset_prefix_cache", error) from error

    def _by_same_process(self, request: Callable[[], T]) -> T:
        for _ in range(ATTEMPTS):
            try:
                self._check_process()
                return request()
            except ServerLost as error:
                if not self._is_well():
                    self._restore(error)
        return request()

    def _restore(self, error: SyncFailed) -> None:
        """Wait for the server and send it the trainer's weights; raises the last error after `seconds`."""
        if self.weights is None:
            raise error
        deadline = time.monotonic() + self.seconds
        waiting = "%s. Waiting up to %g s for it (vllm_server_timeout); then it gets the trainer's weights"
        logger.warning(waiting, error.what, self.seconds)
        while time.monotonic() < deadline:
            if not is_healthy(self.base_url):
                time.sleep(PAUSE)
                continue
            try:
                self.close_communicator()
                self.init_communicator()
                super().update_named_params(self._metadata, self.weights())
                self._reset()
            except SyncFailed as again:
                self._raise_refusal(again)
                error = again
                time.sleep(PAUSE)
                continue
            logger.warning("the rollout server %s is back and has the trainer's weights", self.base_url)
            return
        raise error

    def _raise_refusal(self, error: SyncFailed) -> None:
        """Raise an error that is the answer of the server itself, and not that of one that is about to end."""
        if not isinstance(error, ServerLost) and self._is_well():
            raise error

    def _is_well(self) -> bool:
        """Whether the server is healthy, and the process that got the last weights."""
        try:
            return bool(self._process) and is_healthy(self.base_url) and self._start_time() == self._process
        except ServerLost:
            return False

    def _check_process(self) -> None:
        if self._start_time() != self._process:
            raise ServerLost.of(self.base_url, "has been restarted", "its weights are not the trainer's")

    def _start_time(self) -> str:
        """When the server's process was started, by its metrics; empty where they do not say."""
        for attempt in (1, 2):  # the server may have closed a connection since the last request
            try:
                response = self.session.get(f"{self.base_url}/metrics", timeout=self.seconds)
            except requests.RequestException as error:
                if attempt == 2:
                    raise ServerLost.of(self.base_url, "does not answer /metrics", error) from error
            else:
                break
        found = STARTED.search(response.text)
        return found[1] if found else ""

    def _get(self, url: str, **settings: Any) -> Any:
        return self._request("get", url, settings)

    def _post(self, url: str, **settings: Any) -> Any:
        return self._request("post", url, settings)

    def _request(self, method: str, url: str, settings: dict[str, Any]) -> Any:
        name = url.removeprefix(self.base_url)
        try:
            response = self.session.request(method, url, **settings)
        except requests.RequestException as error:
            raise ServerLost.of(self.base_url, f"does not answer {name}", error) from error
        if response.status_code >= 500:
            raise ServerLost.of(self.base_url, f"fails at {name} (HTTP {response.status_code})", response.text[:600])
        if response.status_code != 200:
            raise SyncFailed.of(self.base_url, f"refuses {name} (HTTP {response.status_code})", response.text[:600])
        return response.json()


def give_weights_again(trainer: Any) -> None:
    """Let a trainer's rollout server have the weights again after a restart, where one process has all of them."""
    generation: Any = getattr(trainer, "vllm_generation", None)
    client = getattr(generation, "vllm_client", None)
    if isinstance(client, RestartSafe) and trainer.accelerator.distributed_type.name not in SHARDED:
        client.weights = generation._iter_named_params
