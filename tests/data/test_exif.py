from __future__ import annotations

import struct

import pytest

from corit_cli.data.exif import MAX_BLOCK, MAX_MANIFEST, exif_values


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tag_that_stands_there_again_is_not_read(order: str) -> None:
    entries = b"".join(
        struct.pack(order + "HHII", tag, 7, 1 << 30, 8) for tag in (0x010E, 0xCD41, 0x010F) for _ in range(300)
    )
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 900) + entries
    data += b"x" * (2 * MAX_MANIFEST)
    taken = []

    def read(offset: int, length: int) -> bytes:
        taken.append(length)
        return data[offset : offset + length]

    found = list(exif_values(read))
    assert [(key, len(value)) for key, value in found] == [
        (("main", 0x010E), MAX_BLOCK),
        (("main", 0xCD41), MAX_MANIFEST),
        (("main", 0x010F), MAX_BLOCK),
    ]
    assert sum(taken) < 2 * MAX_BLOCK + MAX_MANIFEST + 12 * 900 + 100


def test_of_two_values_of_a_tag_the_first_counts() -> None:
    entries = struct.pack("<HHI4sHHI4s", 0x0110, 2, 4, b"One\0", 0x0110, 2, 4, b"Two\0")
    data = b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    assert dict(exif_values(lambda offset, length: data[offset : offset + length])) == {("main", 0x0110): b"One\0"}
