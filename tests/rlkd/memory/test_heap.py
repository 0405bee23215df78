import sys

import psutil
import pytest

from rlkd.memory.heap import HeapReplay

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")


def test_blocks_take_addresses_and_no_memory():
    heap, before = HeapReplay(), psutil.Process().memory_info().rss
    addresses = [heap.request(MIB) for _ in range(300)]
    assert 299 * MIB < heap.taken < 330 * MIB
    assert psutil.Process().memory_info().rss - before < 30 * MIB
    for address in addresses:
        heap.free(address)


def test_holes_between_blocks_count():
    heap = HeapReplay()
    addresses = [heap.request(MIB) for _ in range(200)]
    for address in addresses[::2]:
        heap.free(address)
    assert heap.taken > 150 * MIB  # of which 100 exist
    for address in addresses[1::2]:
        heap.free(address)


def test_an_impossible_block_is_an_error():
    with pytest.raises(OSError, match="no block"):
        HeapReplay().request(2**62)
