from __future__ import annotations

import subprocess
import sys

import pytest

#: Twenty results of 12 MB that stay, each behind a block of 8 MB that is freed: holes that nothing later fits into.
HOLES = """
import resource
import numpy as np
from contextlib import nullcontext
from corit_cli.cor.memory import given_back

np.ones(28 << 20, np.uint8)  # from here on glibc keeps blocks of this size

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

with {context}():
    kept, before = [], resident()
    for number in range(20):
        block = np.ones((8 << 20) + number * (64 << 10), np.uint8)
        kept.append(np.ones(12 << 20, np.uint8))
        del block
    print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_freed_is_given_back() -> None:
    def taken(context: str) -> int:
        code = HOLES.format(context=context)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    assert taken("given_back") < 20 * 12 + 20
    assert taken("nullcontext") > 20 * 12 + 60  # otherwise there is nothing to test
