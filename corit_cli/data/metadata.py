"""The metadata blocks of image and video files, gathered and not yet interpreted: texts, EXIF, XMP, C2PA.

Files may be hostile: every read, count and text is bounded, XML with a document type is refused, and what is damaged is
left out. No pixel is decoded.
"""

from __future__ import annotations

import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, IptcImagePlugin, JpegPresets

from corit_cli.data.exif import C2PA_TAG, MAX_BLOCK, MAX_MANIFEST, XMP_TAG, Read, exif_values, text_of, xmp_properties
from corit_cli.data.jpeg import LUMA_TABLES
from corit_cli.data.stored import Stored, opened

MAX_TEXT = 2000  # characters kept of any one text
MAX_TEXTS = 32  # PNG text chunks, or actions of a manifest, looked at
MAX_STEPS = 100_000  # chunks or boxes walked over in one file


@dataclass
class Raw:
    """Everything gathered, not yet interpreted: texts by field name, EXIF values by (directory, tag), and whether a
    text was too large to be read as a whole."""

    texts: dict[str, str] = field(default_factory=dict)
    exif: dict[tuple[str, int], bytes] = field(default_factory=dict)
    xmp: dict[str, str] = field(default_factory=dict)
    manifest: bytes | None = None
    credit: str | None = None
    cut: bool = False
    jpeg_tables: str | None = None

    def add_exif(self, read: Read) -> None:
        for key, value in exif_values(read):
            self.exif.setdefault(key, value)

    def add_xmp(self, packet: bytes) -> None:
        self.cut |= len(packet) >= MAX_BLOCK
        for name, text in xmp_properties(packet):
            self.xmp.setdefault(name, text)


def gather(source: Stored, kind: str) -> Raw:
    """Read what stands in a file of the format ``kind``, as Pillow names it, or ``ISO media``. Damage in it only costs
    what would have been found there. Raises OSError when the file cannot be read."""
    raw = Raw()
    with opened(source) as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        _try(lambda: _scan(raw, kind, read))
    if kind != "ISO media":
        _try(lambda: _from_pillow(raw, source, kind))
    return raw


def _try(action: Callable[[], object]) -> None:
    """Damage of any kind ends the reading of one block, not of the file."""
    try:
        action()
    except Exception:  # parsers of hostile bytes; everything gathered so far stays
        return


def _from_bytes(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def _scan(raw: Raw, kind: str, read: Read) -> None:
    """The blocks that Pillow does not hand out, or only after decoding the pixels."""
    if kind == "PNG":
        _scan_png(raw, read)
    elif kind == "TIFF":
        raw.add_exif(read)
        raw.manifest = raw.exif.get(("main", C2PA_TAG))
        raw.add_xmp(raw.exif.get(("main", XMP_TAG), b""))
    elif kind == "WEBP":
        for name, offset, size in _walk(read, 12, "<4sI", padded=True):
            if name == b"C2PA":
                raw.manifest = read(offset, min(size, MAX_MANIFEST))
    elif read(4, 4) == b"ftyp":
        _scan_bmff(raw, read)


def _walk(
    read: Read, offset: int, header: str, padded: bool = False, extra: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset of the content, size) of the chunks of a PNG or RIFF file; ``extra`` bytes follow each content."""
    for _ in range(MAX_STEPS):
        start = read(offset, 8)
        if len(start) < 8:
            return
        fields = struct.unpack(header, start)
        name, size = fields if isinstance(fields[0], bytes) else fields[::-1]
        yield name, offset + 8, size
        offset += 8 + size + extra + (size % 2 if padded else 0)


def _scan_png(raw: Raw, read: Read) -> None:
    texts, exif = 0, False  # of EXIF a PNG has one at the most
    for name, offset, size in _walk(read, 8, ">I4s", extra=4):
        if name in (b"tEXt", b"zTXt", b"iTXt") and texts < MAX_TEXTS:
            texts += 1  # those of one name, too
            raw.cut |= size > MAX_BLOCK
            _try(lambda n=name, o=offset, s=size: _png_text(raw, n, read(o, min(s, MAX_BLOCK))))
        elif name == b"eXIf" and not exif:
            exif = True
            data = read(offset, min(size, MAX_BLOCK))
            _try(lambda d=data: raw.add_exif(_from_bytes(d)))
        elif name == b"caBX":
            raw.manifest = read(offset, min(size, MAX_MANIFEST))


def _png_text(raw: Raw, kind: bytes, data: bytes) -> None:
    """A text chunk: keyword, then plain Latin-1, compressed Latin-1, or (perhaps compressed) UTF-8 with a language."""
    key, _, rest = data.partition(b"\0")
    packed, encoding = kind == b"zTXt", "latin-1"
    if kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[2]
    elif packed:
        rest = rest[1:]
    if packed:
        unpacking = zlib.decompressobj()
        rest = unpacking.decompress(rest, MAX_BLOCK)
        raw.cut |= bool(unpacking.unconsumed_tail)
    name = clean(key.decode("latin-1"))
    if name == "XML:com.adobe.xmp":
        raw.add_xmp(rest)
    elif name:
        raw.texts.setdefault(name, rest.decode(encoding, "replace"))


_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def is_bmff(source: Stored) -> bool:
    try:
        with opened(source) as file:
            return file.read(8)[4:] == b"ftyp"
    except (OSError, ValueError):
        return False


def _scan_bmff(raw: Raw, read: Read) -> None:
    """AVIF, HEIC, MP4, MOV: the uuid boxes at the top."""
    offset = 0
    for _ in range(MAX_STEPS):
        start = read(offset, 32)
        if len(start) < 8:
            return
        size, name = struct.unpack(">I4s", start[:8])
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", start[8:16]), 16
        if name == b"uuid":
            kind = start[head : head + 16]
            content = size - head - 16 if size else MAX_MANIFEST
            if kind == _C2PA_BOX:
                raw.manifest = read(offset + head + 16, min(max(content, 0), MAX_MANIFEST))
            elif kind == _XMP_BOX:
                raw.add_xmp(read(offset + head + 16, min(max(content, 0), MAX_BLOCK)))
        if size < head:  # 0: to the end of the file
            return
        offset += size


def _from_pillow(raw: Raw, source: Stored, kind: str) -> None:
    """What Pillow has when it has read the header: EXIF, XMP, comments, JPEG segments and tables."""
    with opened(source) as file, Image.open(file, formats=(kind,)) as image:
        _from_info(raw, image.info)
        if kind != "JPEG":
            return
        raw.manifest = _jpeg_manifest(segment for name, segment in getattr(image, "applist", ()) if name == "APP11")
        raw.jpeg_tables = _jpeg_tables(getattr(image, "quantization", {}))
        credit = (IptcImagePlugin.getiptcinfo(image) or {}).get((2, 110))
        raw.credit = text_of(credit) if isinstance(credit, bytes) else None


def _from_info(raw: Raw, info: dict[Any, Any]) -> None:
    if isinstance(exif := info.get("exif"), bytes):
        data = exif.removeprefix(b"Exif\0\0")
        _try(lambda: raw.add_exif(_from_bytes(data)))
    if isinstance(xmp := info.get("xmp"), bytes):
        _try(lambda: raw.add_xmp(xmp))
    if isinstance(comment := info.get("comment"), (bytes, str)):
        raw.texts.setdefault("comment", text_of(comment.encode() if isinstance(comment, str) else comment) or "")


# The JUMBF superbox of every C2PA store begins with a description box of this type.
_C2PA_TYPE = bytes.fromhex("63327061" + "00110010800000aa00389b71")


def _jpeg_manifest(segments: Iterable[bytes]) -> bytes | None:
    """The C2PA box put together from APP11 segments: each repeats its header of eight bytes, LBox and TBox."""
    parts: dict[bytes, list[bytes]] = {}
    for segment in segments:
        if segment[:2] == b"JP" and segment[12:16] == b"jumb":
            box = parts.setdefault(segment[2:4], [])
            box.append(segment[16:] if box else segment[8:])
    boxes = (b"".join(box)[:MAX_MANIFEST] for box in parts.values())
    return next((box for box in boxes if box[12:16] == b"jumd" and box[16:32] == _C2PA_TYPE), None)


def _jpeg_tables(tables: dict[int, list[int]]) -> str | None:
    """Whose quantisation tables these are, going by the luma table."""
    if not tables:
        return None
    luma = list(tables[min(tables)])
    if (luma == LUMA_TABLES).all(1).any():
        return "standard"
    if any(luma == list(preset["quantization"][0]) for preset in JpegPresets.presets.values()):
        return "Photoshop"
    return "other"


def clean(text: object) -> str:
    """On one line, without control, format or private characters, at most ``MAX_TEXT`` long."""
    cut = str(text)[: 4 * MAX_TEXT]
    return " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in cut).split())[:MAX_TEXT]
