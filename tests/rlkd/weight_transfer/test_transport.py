"""Tensors from one rank to another, and an end to every wait."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from rlkd.weight_transfer.transport import TransferFailed, WeightGroup, host, join, lead
from tests.helpers.ports import free_port


def nothing() -> None:
    pass


def pair(threads: ThreadPoolExecutor, seconds: float = 20) -> tuple[WeightGroup, WeightGroup]:
    port = free_port()
    store = host(port, 2, seconds)
    joined: Future[WeightGroup] = threads.submit(join, "127.0.0.1", port, 1, 2, seconds)
    return lead(store, 2, seconds, nothing), joined.result()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5),
        torch.randn(4, 4).bfloat16(),
        torch.randn(2, 6).half().t(),  # not contiguous
        torch.tensor(2.5),
        torch.tensor([True, False]),
        torch.arange(7, dtype=torch.int8),
        torch.empty(0, 3),
        torch.randn(4).to(torch.float8_e4m3fn),
    ],
    ids=lambda tensor: f"{str(tensor.dtype).removeprefix('torch.')}-{tuple(tensor.shape)}",
)
def test_a_tensor_of_any_dtype_and_shape_arrives_bit_by_bit(tensor: torch.Tensor) -> None:
    with ThreadPoolExecutor(2) as threads:
        trainer, worker = pair(threads)
        received = threads.submit(worker.receive, list(tensor.shape), tensor.dtype)
        trainer.send(tensor, nothing)
        got = received.result()
    assert got.dtype == tensor.dtype
    assert got.shape == tensor.shape
    expected = tensor.contiguous().reshape(-1).view(torch.uint8)
    assert torch.equal(got.reshape(-1).view(torch.uint8), expected)


def test_a_worker_whose_trainer_goes_away_stops_waiting_at_once() -> None:
    with ThreadPoolExecutor(2) as threads:
        trainer, worker = pair(threads, seconds=60)
        waiting = threads.submit(worker.receive, [4], torch.float32)
        trainer.close()
        with pytest.raises(TransferFailed):
            waiting.result(timeout=30)


@pytest.mark.slow
def test_a_worker_whose_trainer_hangs_waits_no_longer_than_its_timeout() -> None:
    with ThreadPoolExecutor(2) as threads:
        trainer, worker = pair(threads, seconds=1)
        with pytest.raises(TransferFailed, match="imed out"):
            worker.receive([4], torch.float32)
        trainer.close()


def test_a_trainer_whose_workers_do_not_come_says_which() -> None:
    store = host(free_port(), 3, 0.5)
    with pytest.raises(TransferFailed, match=r"worker 1 of 2 did not join within 0\.5 seconds"):
        lead(store, 3, 0.5, nothing)


def test_a_trainer_that_waits_hears_at_once_what_the_server_says() -> None:
    refused = threading.Event()

    def watch() -> None:
        if refused.is_set():
            raise LookupError("the server said no")

    threading.Timer(0.2, refused.set).start()
    store = host(free_port(), 2, 600)
    began = time.monotonic()
    with pytest.raises(LookupError, match="the server said no"):
        lead(store, 2, 600, watch)
    assert time.monotonic() - began < 300  # and not the ten minutes


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TransferFailed, match=f"port {port} cannot be opened"):
            host(port, 2, 2)


@pytest.mark.slow
def test_nobody_at_the_meeting_point_is_an_error_with_its_address() -> None:
    port = free_port()
    with pytest.raises(TransferFailed, match=rf"127\.0\.0\.1:{port} cannot be reached"):
        join("127.0.0.1", port, 1, 2, 1)


def test_a_closed_group_sends_nothing() -> None:
    with ThreadPoolExecutor(2) as threads:
        trainer, worker = pair(threads)
        trainer.close()
        with pytest.raises(TransferFailed, match="the connection is closed"):
            trainer.send(torch.ones(2), nothing)
        worker.close()
