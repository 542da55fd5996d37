"""Files made to break decoders, from a seed: cut, damaged, lying about their size, unpacking to far too much, or
something else altogether."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from tests.conftest import photograph

#: How a picture is saved in each format, by suffix; some formats in several ways, which other code reads.
SAVED: dict[str, list[dict]] = {
    "jpg": [{}, {"progressive": True}, {"quality": 30}],
    "png": [{}, {"compress_level": 0}],
    "webp": [{}, {"lossless": True}],
    "gif": [{}, {"interlace": 0}],
    "tif": [{}, *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"))],
    "bmp": [{}],
}
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP"}

File = tuple[str, bytes]  # a suffix and what is in the file


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[suffix], **options)
    return buffer.getvalue()


def sound(rng: np.random.Generator) -> Iterator[File]:
    """Pictures of 32 to 80 pixels a side, in every format in turn."""
    while True:
        for suffix, ways in SAVED.items():
            size = tuple(int(side) for side in rng.integers(32, 81, 2))
            yield suffix, encoded(photograph(int(rng.integers(1 << 30)), size), suffix, **ways[rng.integers(len(ways))])


def truncated(rng: np.random.Generator) -> Iterator[File]:
    for suffix, content in sound(rng):
        yield suffix, content[: rng.integers(1, len(content))]


def flipped(rng: np.random.Generator) -> Iterator[File]:
    """One to thirty bytes changed, half of the time all of them in the first 200."""
    for suffix, content in sound(rng):
        damaged = bytearray(content)
        reach = len(content) if rng.random() < 0.5 else min(200, len(content))
        for place in rng.integers(0, reach, rng.integers(1, 31)):
            damaged[place] = rng.integers(256)
        yield suffix, bytes(damaged)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG from its header's fields and its chunks, every check sum right."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join((chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")))


def _with_size(suffix: str, content: bytes, width: int, height: int) -> bytes:
    """The file with another width and height in its header."""
    changed = bytearray(content)
    if suffix == "png":
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif suffix == "bmp":
        changed[18:26] = struct.pack("<ii", width, height)
    elif suffix == "gif":  # the screen, and the first frame on it
        changed[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
        frame = changed.index(b",", 13 + 3 * 2 ** ((changed[10] & 7) + 1))
        changed[frame + 5 : frame + 9] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    else:
        start = next(i for i in range(2, len(changed)) if changed[i] == 0xFF and changed[i + 1] in (0xC0, 0xC2))
        changed[start + 5 : start + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return bytes(changed)


def lying(rng: np.random.Generator) -> Iterator[File]:
    """Headers that claim another size: none, a little off, or vast."""
    for suffix, content in sound(rng):
        if suffix in ("png", "bmp", "gif", "jpg"):
            sides = [int(rng.choice([0, 1, 31, 33, 64, 100, 700, 5000, 65535, 2**31 - 1])) for _ in range(2)]
            yield suffix, _with_size(suffix, content, *sides)


def bombs(rng: np.random.Generator) -> Iterator[File]:
    """Small files that unpack to very much, some in the pixels and some in what lies beside them."""
    zeros = zlib.compress(bytes(30_000_000), 9)  # 29 KB
    while True:
        side = int(rng.integers(30_000, 70_000))
        yield "png", png(side, side, 8, 2, chunk(b"IDAT", zlib.compress(bytes(1000))))
        yield "png", png(side, 2_000_000_000 // side, 1, 0, chunk(b"IDAT", zeros))
        picture = zlib.compress(bytes(40 * (3 * 40 + 1)))
        yield "png", png(40, 40, 8, 2, chunk(b"IDAT", zeros))
        yield "png", png(40, 40, 8, 2, *[chunk(b"zTXt", b"Comment\0\0" + zeros)] * 3, chunk(b"IDAT", picture))
        yield "png", png(40, 40, 8, 2, chunk(b"iCCP", b"icc\0\0" + zeros), chunk(b"IDAT", picture))
        yield "png", png(40, 40, 8, 2, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros), chunk(b"IDAT", picture))
        yield "gif", _with_size("gif", encoded(photograph(0), "gif"), 65535, side)
        yield "jpg", _with_size("jpg", encoded(photograph(0), "jpg"), 65500, side)
        yield "bmp", _with_size("bmp", encoded(photograph(0), "bmp"), 60_000, side)


def nonsense(rng: np.random.Generator) -> Iterator[File]:
    """No picture at all under a picture's name: nothing, zeros, noise, text, or a magic number and no more."""
    magic = [content[:12] for _, content in zip(range(len(FORMATS)), (c for _, c in sound(rng)), strict=False)]
    while True:
        for suffix in FORMATS:
            length = int(rng.integers(1, 3000))
            yield suffix, b""
            yield suffix, bytes(length)
            yield suffix, rng.bytes(length)
            yield suffix, b"It was a dark and stormy night.\n" * (length // 30)
            yield suffix, magic[rng.integers(len(magic))] + rng.bytes(length)


def misnamed(rng: np.random.Generator) -> Iterator[File]:
    """Sound pictures with another format's suffix, and documents and programs with a picture's."""
    others = [
        b"%PDF-1.7\n1 0 obj\n",
        b"\x7fELF\x02\x01\x01",
        b"PK\x03\x04\x14\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"GIF89a<",
    ]
    others += [
        b"<svg xmlns='http://www.w3.org/2000/svg'>",
        b"II*\0",
        b"RIFF\xff\xff\xff\xffWEBPVP8X",
        b"\0\0\0\x0cjP  \r\n",
    ]
    for number, (_, content) in enumerate(sound(rng)):
        other = list(FORMATS)[rng.integers(len(FORMATS))]
        yield other, content if number % 2 else others[rng.integers(len(others))] + rng.bytes(500)


def leafed(rng: np.random.Generator) -> Iterator[File]:
    """Animated pictures and pages, and pictures of phones, cut or with bytes changed."""
    pillow_heif.register_heif_opener()
    kinds = (("gif", 4), ("webp", 4), ("png", 4), ("tif", 3), ("heic", 1), ("avif", 1), ("jp2", 1), ("tga", 1))
    names = FORMATS | {"heic": "HEIF", "avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA"}
    while True:
        for suffix, count in kinds:
            pictures = [photograph(int(rng.integers(1 << 30)), (64, 48)) for _ in range(count)]
            buffer = io.BytesIO()
            more = {"save_all": True, "append_images": pictures[1:]} if count > 1 else {}
            pictures[0].save(buffer, names[suffix], **more)
            damaged = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(damaged), rng.integers(0, 20)):
                damaged[place] = rng.integers(256)
            yield suffix, bytes(damaged[: rng.integers(1, len(damaged) + 1) if rng.random() < 0.5 else len(damaged)])


KINDS: dict[str, Callable[[np.random.Generator], Iterator[File]]] = {
    made.__name__: made for made in (truncated, flipped, lying, bombs, nonsense, misnamed, leafed)
}


def write(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """``count`` files of every kind, and among them a ``sound`` picture for every ten; their names begin with the kind.

    The same arguments give the same files.
    """
    paths = []
    for position, (kind, made) in enumerate((KINDS | {"sound": sound}).items()):
        files = made(np.random.default_rng([seed, position]))
        for number in range(count if kind in KINDS else max(1, count * len(KINDS) // 10)):
            suffix, content = next(files)
            paths.append(folder / f"{kind}-{number:04}.{suffix}")
            paths[-1].write_bytes(content)
    np.random.default_rng(seed).shuffle(paths)
    return paths
