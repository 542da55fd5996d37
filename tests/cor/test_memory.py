from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

#: Twenty results of 12 MB that stay, each behind a block of 8 MB that is freed: holes that nothing later fits into.
#: Told are the megabytes that were taken for them, before and after holes are given back.
HOLES = """
import resource
import numpy as np
from corit_cli.cor.memory import give_back

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

np.ones(28 << 20, np.uint8)  # from here on glibc keeps blocks of this size
kept, before = [], resident()
for number in range(20):
    block = np.ones((8 << 20) + number * (64 << 10), np.uint8)
    kept.append(np.ones(12 << 20, np.uint8))
    del block
taken = resident() - before
give_back()
print(taken, resident() - before, all(value.all() for value in kept))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc"
)
def test_holes_are_given_back() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, check=True, text=True, env=environment)
    taken, left, unharmed = told.stdout.split()
    assert int(left) < 20 * 12 + 20 < int(taken) and unharmed == "True"
