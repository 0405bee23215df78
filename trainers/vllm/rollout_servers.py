"""One rollout server or several with the same adapter, as TRL's trainers see them: one client.

A server that fails is left out, and the others take its prompts. At every sync, and whenever none is left, it is tried
again: once it answers, it gets the adapter and takes its share. So a run outlives its servers as long as one of them
comes back within `vllm_server_timeout`, which restarts by `rlkd serve` do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from trainers.vllm.adapter_clients import AdapterClient
from trainers.vllm.command import addresses
from trainers.vllm.errors import SyncFailed
from trainers.vllm.sessions import is_healthy

logger = logging.getLogger(__name__)


class RolloutServers:
    """The client of all servers at `base_url`, which lists them with commas.

    `client`: makes the client of one of them. The i-th server connects to `group_port` + i.
    """

    def __init__(
        self,
        base_url: str,
        group_port: int = 51216,
        connection_timeout: float = 240.0,
        *,
        client: Callable[..., AdapterClient],
    ):
        self._makes = {
            url: functools.partial(
                client, base_url=url, group_port=group_port + index, connection_timeout=connection_timeout
            )
            for index, url in enumerate(addresses(base_url))
        }
        self._seconds = connection_timeout
        self._device: Any = None
        self._adapter: Path | None = None
        self._clients = {url: make() for url, make in self._makes.items()}

    @property
    def live(self) -> list[str]:
        """The addresses of the servers that take part."""
        return list(self._clients)

    def init_communicator(self, device: Any = 0) -> None:
        """Connect to all servers; raises the error of one that does not."""
        self._device = device
        for client in self._clients.values():
            client.init_communicator(device)
        atexit.register(self.close_communicator)

    def get_server_info(self) -> dict[str, Any]:
        """The configuration of the first server."""
        return next(iter(self._clients.values())).get_server_info()

    def load(self, adapter: Path) -> None:
        """Load an adapter into all servers.

        Raises `SyncFailed` if none takes it: at once where one is well and refuses it, else after the time limit.
        """
        self._adapter = adapter
        clients = list(self._clients.values())
        failed = []
        for client, result in zip(clients, _all(lambda client: client.load(adapter), clients), strict=True):
            if isinstance(result, Exception):
                failed.append((client, result))
                self._leave_out(client, result)
        self._restore()
        for client, failure in failed:
            if not self._clients and is_healthy(client.base_url):
                raise failure
        self._wait_for_one()

    def generate(
        self, prompts: Sequence[Any], features: Sequence[Any] | None = None, n: int = 1, **sampling: Any
    ) -> dict[str, Any]:
        """As TRL's client: `n` completions of each prompt; the servers share the prompts.

        Raises the error of a server that is well, as the request is at fault then, and `SyncFailed` where no server
        answers within the time limit.
        """
        done: dict[int, dict[str, list[Any] | None]] = {}
        failures = 0
        while len(done) < len(prompts):
            self._wait_for_one()
            clients = list(self._clients.values())
            waiting = [index for index in range(len(prompts)) if index not in done]
            shares = [(client, waiting[at :: len(clients)]) for at, client in enumerate(clients)]

            def request(share: tuple[AdapterClient, list[int]]) -> list[dict[str, list[Any] | None]]:
                client, indices = share
                if not indices:
                    return []
                images: dict[str, Any] = (
                    {} if features is None else {"features": [features[index] for index in indices]}
                )
                return _of_prompts(client.generate([prompts[i] for i in indices], n=n, **images, **sampling), n)

            for (client, indices), result in zip(shares, _all(request, shares), strict=True):
                if not isinstance(result, Exception):
                    done.update(zip(indices, result, strict=True))
                    continue
                failures += 1
                # A well server may have closed a connection between two requests; it takes part again at once.
                refused = client.is_well() and not isinstance(result, requests.RequestException)
                if refused or failures > 2 * len(self._makes):
                    raise result
                self._leave_out(client, result)
        return _joined([done[index] for index in range(len(prompts))])

    def image_features(self, images: Sequence[Any]) -> Any:
        """As TRL's client, by the first server."""
        self._wait_for_one()
        return next(iter(self._clients.values())).image_features(images)  # type: ignore[arg-type]

    def reset_prefix_cache(self) -> None:
        """Nothing: each adapter has a cache of its own."""

    def close_communicator(self) -> None:
        """Unload the adapter everywhere and close all connections."""
        for url, client in self._clients.items():
            if is_healthy(url):
                client.unload()
            client.close_communicator()
        self._clients = {}

    def _leave_out(self, client: AdapterClient, failure: Exception) -> None:
        logger.warning("the rollout server %s is left out until it answers again: %s", client.base_url, failure)
        with contextlib.suppress(Exception):  # of a connection that is broken anyway
            client.close_communicator()
        self._clients.pop(client.base_url, None)

    def _restore(self) -> Exception | None:
        """Take back the servers that answer again, with the adapter; returns the last failure."""
        failure: Exception | None = None
        for url, make in self._makes.items():
            if url in self._clients or not is_healthy(url):
                continue
            try:
                client = make()
                client.init_communicator(self._device)
                if self._adapter is not None:
                    client.load(self._adapter)
            except Exception as error:  # TRL raises plain ones
                failure = error
                continue
            self._clients[url] = client
            logger.warning("the rollout server %s takes part again", url)
        # In the order of the config, so that shares do not depend on who failed.
        self._clients = {url: self._clients[url] for url in self._makes if url in self._clients}
        return failure

    def _wait_for_one(self) -> None:
        deadline = time.monotonic() + self._seconds
        while not self._clients:
            failure = self._restore()
            if not self._clients and time.monotonic() > deadline:
                raise SyncFailed(
                    f"none of the rollout servers {', '.join(self._makes)} has answered within {self._seconds:g} "
                    f"seconds (vllm_server_timeout){f': {failure}' if failure else ''}. The run continues from its "
                    f"last checkpoint with --resume_from_checkpoint, once one is up"
                )
            if not self._clients:
                time.sleep(min(1.0, self._seconds))


def _all(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """The result for each item, or its exception; all at the same time."""

    def attempt(item: Any) -> Any:
        try:
            return work(item)
        except Exception as error:  # TRL raises plain ones
            return error

    with ThreadPoolExecutor(max_workers=max(len(items), 1)) as executor:
        return list(executor.map(attempt, items))


def _of_prompts(output: dict[str, Any], n: int) -> list[dict[str, list[Any] | None]]:
    """TRL's lists over all completions, divided by prompt."""
    return [
        {"prompt_ids": [ids]}
        | {
            key: None if values is None else values[at * n : (at + 1) * n]
            for key, values in output.items()
            if key != "prompt_ids"
        }
        for at, ids in enumerate(output["prompt_ids"])
    ]


def _joined(parts: Sequence[dict[str, list[Any] | None]]) -> dict[str, Any]:
    """The inverse, over the prompts of all servers."""
    return {
        key: None if any(part[key] is None for part in parts) else [item for part in parts for item in part[key] or ()]
        for key in parts[0]
    }
