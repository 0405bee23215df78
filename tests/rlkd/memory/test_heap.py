import subprocess
import sys

import pytest

from rlkd.memory.heap import HeapReplay
from tests.helpers import ROOT

MIB = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")


SCRIPT = """
import psutil
from rlkd.memory.heap import HeapReplay
heap, before = HeapReplay(), psutil.Process().memory_info().rss
addresses = [heap.request(2**20) for _ in range(300)]
print(heap.taken, psutil.Process().memory_info().rss - before)
for address in addresses[::2]:
    heap.free(address)
print(heap.taken)
"""


def test_blocks_take_addresses_and_no_memory_and_holes_between_them_count():
    # In a process of its own: the heap of this one has free blocks.
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    taken, resident, half = map(int, done.stdout.split())
    assert 299 * MIB < taken < 330 * MIB
    assert resident < 30 * MIB
    assert half > 250 * MIB  # of which 150 exist


def test_an_impossible_block_is_an_error():
    with pytest.raises(OSError, match="no block"):
        HeapReplay().request(2**62)
