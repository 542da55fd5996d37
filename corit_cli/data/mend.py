"""Files with a fault that viewers look past: what is left of them when the fault is taken away.

Only tried where a file could not be read as it is.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from corit_cli.data import jpeg

LARGEST = 1 << 28  # bytes of a file that is tried
PASSED_OVER = "metadata that is damaged or too large to read was passed over"
CUT_SHORT = "the end of the file is missing: up to a row of blocks at the bottom may be grey"
_PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks without which the pixels would not look the same.
_OF_PIXELS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"))
_LARGEST_PROFILE = 1 << 20  # bytes; Pillow reads no larger one
_TAILS = (2, 8, 32, 128)  # bytes


def mended(data: bytes) -> Iterator[tuple[bytes, str]]:
    """The file without its fault, and a note on that; nothing where none is known that can be looked past."""
    if data.startswith(_PNG):
        kept = _without_texts(data)
        if len(kept) < len(data):
            yield kept, PASSED_OVER
    elif data.startswith(b"\xff\xd8") and _nearly_whole(data):
        yield data + jpeg.END, CUT_SHORT


def _without_texts(data: bytes) -> bytes:
    """A PNG with the chunks alone that its pixels need; a colour profile only if it can be unpacked."""
    kept, at = [_PNG], len(_PNG)
    while len(data) - at >= 12:
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        if name in _OF_PIXELS or (name == b"iCCP" and _profile_fits(chunk[8:-4])):
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept)


def _profile_fits(body: bytes) -> bool:
    try:
        unpacking = zlib.decompressobj()
        unpacking.decompress(body[body.index(b"\0") + 2 :], _LARGEST_PROFILE)
    except (zlib.error, ValueError):
        return False
    return not unpacking.unconsumed_tail


def _nearly_whole(data: bytes) -> bool:
    """Whether of a JPEG that was cut off no more than the last row of blocks is missing: what its last bytes change
    lies in that row. Of a progressive one every scan must have begun."""
    found = jpeg.scans(data)
    if found.end or not found.complete:
        return False
    try:
        whole, blocks = _rows(data + jpeg.END)
        for tail in _TAILS:
            less, _ = _rows(data[:-tail] + jpeg.END)
            changed = next((i for i, (row, other) in enumerate(zip(whole, less, strict=True)) if row != other), None)
            if changed is not None:
                last = (len(whole) - 1) // blocks * blocks
                return changed >= last - 2  # colours are interpolated over two rows at most
    except Exception:  # of a decoder, on a file that is known to be damaged
        return False
    return True  # nothing that is seen depends on them


def _rows(data: bytes) -> tuple[list[int], int]:
    """A hash of every row of a JPEG's pixels, so that never two large pictures are held at once, and how many rows its
    blocks take."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        blocks = 8 * max(layer[2] for layer in image.layer)
        bands = (image.crop((0, top, image.width, top + 1)) for top in range(image.height))
        return [hash(band.tobytes()) for band in bands], blocks
