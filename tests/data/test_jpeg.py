from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from corit_cli.data.jpeg import _MARKER, END, Scans, scans

SCAN = b"\xff\xda\0\x08\1\1\0\0\x3f\0"


def test_a_run_of_fill_bytes_is_passed_once() -> None:
    """Else ten million of them take weeks."""
    fill = b"\xff" * 10_000_000
    assert scans(b"\xff\xd8" + fill + b"\0" + SCAN) == Scans(1, False, False)
    assert scans(b"\xff\xd8" + SCAN + fill + END) == Scans(1, True, False)


@given(st.lists(st.sampled_from([b"\xff", b"\0", b"\xd0", b"\xda", b"x"]), max_size=40).map(b"".join))
def test_markers_end_where_those_with_their_fill_bytes_do(data: bytes) -> None:
    with_fill = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
    assert [m.end() for m in _MARKER.finditer(data)] == [m.end() for m in with_fill.finditer(data)]


def test_what_follows_the_last_scan_that_counts_is_not_looked_at() -> None:
    assert scans(b"\xff\xd8" + 1000 * SCAN + END).count == 1000
    assert scans(b"\xff\xd8" + 1000 * SCAN + END, 3) == Scans(4, False, False)
    assert scans(b"\xff\xd8" + 3 * SCAN + END, 3) == Scans(3, True, False)


def test_components_are_complete_once_each_coefficient_has_all_bits() -> None:
    def scan(*components: int, first: int = 0, last: int = 63, bits: int = 0) -> bytes:
        body = bytes((len(components), *(b for c in components for b in (c, 0)), first, last, bits))
        return b"\xff\xda" + (len(body) + 2).to_bytes(2, "big") + body

    head = b"\xff\xd8\xff\xc2\0\x0b\x08\0\x40\0\x40\2"
    for found, complete in (
        (scan(1, 2), True),
        (scan(1) + scan(2), True),
        (scan(1), False),
        (scan(1, 2, bits=1), False),
        (scan(1, 2, bits=1) + scan(1, 2, bits=0x10), True),
        (scan(1, 2, last=62), False),
        (scan(1, 2, last=0) + scan(1, first=1) + scan(2, first=1, last=255), True),
        (scan(1, 2, first=70, last=80) + scan(1, 2, first=9, last=3), False),
        (scan(1, 2, 3, 4, 5), False),  # more than a scan can have
    ):
        assert scans(head + b"\0" * 6 + found).complete == complete
