"""What a JPEG's bytes tell without its pixels: quality, scans, whether all of it is there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

# ITU-T T.81, annex K, table K.1: the luminance table, row by row.
_LUMA = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)
# How libjpeg scales that table for the quality settings 1 to 100.
_SCALES = np.array([5000 // q if q < 50 else 200 - 2 * q for q in range(1, 101)])
LUMA_TABLES = np.clip((_LUMA * _SCALES[:, None] + 50) // 100, 1, 255)  # (100, 64)
#: The end of the image.
END = b"\xff\xd9"
#: A marker, but for stuffed bytes and restarts within a scan. Of the bytes that may fill up before it the last alone is
#: matched: a run of them without a marker would else be looked at from each of its bytes anew.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MOST_PARTS = 4  # components of a scan
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, of every process


def quality(table: list[int]) -> int:
    """The quality whose scaled standard table is nearest, by sum of absolute differences, to a luma table (64,)."""
    return int(np.abs(LUMA_TABLES - np.asarray(table)).sum(1).argmin()) + 1


@dataclass(frozen=True)
class Scans:
    """The scans of a JPEG up to the end of its image (what a camera appends is not looked at): how many there are,
    whether the ``end`` is marked, and whether they give every coefficient of every component all of its bits."""

    count: int
    end: bool
    complete: bool


def scans(data: bytes, most: float = math.inf) -> Scans:
    """Walk over the segments of a JPEG, up to the first scan that is more than ``most``."""
    at, count, end, components = 2, 0, False, 0
    missing: dict[int, bytearray] = {}  # bits that the coefficients of each component still lack; of none all
    while count <= most and (found := _MARKER.search(data, at)):
        marker, at = data[found.end() - 1], found.end()
        if marker == END[1]:
            end = True
            break
        body = data[at + 2 : at + 40]
        if marker in _FRAMES:
            components = body[5] if len(body) > 5 else 0
        count += marker == 0xDA
        parts = body[0] if marker == 0xDA and body else 0
        if 0 < parts <= _MOST_PARTS and len(body) > 2 * parts + 3:  # a scan: its pixels end at the next marker
            first, last, bits = body[2 * parts + 1 : 2 * parts + 4]
            given = range(64)[first : last + 1]
            for component in body[1 : 2 * parts : 2]:
                left = missing.setdefault(component, bytearray(64 * b"\xff"))
                left[first : last + 1] = len(given) * bytes((bits & 15,))
        if marker not in (0x01, 0xD8):  # all others tell their length
            at += int.from_bytes(data[at : at + 2], "big")
    complete = len(missing) == components > 0 and not any(map(any, missing.values()))
    return Scans(count, end, complete)
