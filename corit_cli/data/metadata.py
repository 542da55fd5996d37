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
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin, JpegPresets

from corit_cli.data.jpeg import LUMA_TABLES
from corit_cli.data.stored import Stored, opened

MAX_TEXT = 2000  # characters kept of any one text
MAX_TEXTS = 32  # PNG text chunks, or actions of a manifest, looked at
MAX_BLOCK = 1 << 20  # bytes read of one text, XMP packet or EXIF value
MAX_MANIFEST = 1 << 24  # bytes searched of a C2PA manifest
MAX_STEPS = 100_000  # chunks or boxes walked over in one file


Read = Callable[[int, int], bytes]  # (offset, length) to bytes, fewer at the end


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
        for key, value in _exif(read):
            self.exif.setdefault(key, value)

    def add_xmp(self, packet: bytes) -> None:
        self.cut |= len(packet) >= MAX_BLOCK
        for name, text in _xmp(packet):
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
        raw.manifest = raw.exif.get(("main", _C2PA_TAG))
        raw.add_xmp(raw.exif.get(("main", _XMP_TAG), b""))
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
    for name, offset, size in _walk(read, 8, ">I4s", extra=4):
        if name in (b"tEXt", b"zTXt", b"iTXt") and len(raw.texts) < MAX_TEXTS:
            raw.cut |= size > MAX_BLOCK
            _try(lambda n=name, o=offset, s=size: _png_text(raw, n, read(o, min(s, MAX_BLOCK))))
        elif name == b"eXIf":
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


# --- EXIF and XMP ---------------------------------------------------------------------------------

_XMP_TAG, _C2PA_TAG = 700, 0xCD41
_POINTERS = {("main", 0x8769): "exif", ("main", 0x8825): "gps"}
TEXT_TAGS = {
    ("main", 0x010E): "ImageDescription",
    ("main", 0x010F): "Make",
    ("main", 0x0110): "Model",
    ("main", 0x0131): "Software",
    ("main", 0x013B): "Artist",
    ("exif", 0x9003): "DateTimeOriginal",
    ("exif", 0x9286): "UserComment",
    ("exif", 0xA434): "LensModel",
}
POSITION, PREVIEW = {("gps", 2), ("gps", 4)}, ("preview", 0x0201)
_WANTED = {*_POINTERS, *TEXT_TAGS, *POSITION, PREVIEW, ("main", _XMP_TAG), ("main", _C2PA_TAG)}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def _exif(read: Read) -> Iterator[tuple[tuple[str, int], bytes]]:
    """((directory, tag), value) of the wanted tags of a TIFF structure: main, exif, gps, preview. Each directory is
    read once and each value up to ``MAX_BLOCK``, or ``MAX_MANIFEST`` for C2PA, so that no file can make it long."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(read(0, 4))
    if order is None:
        return
    (start,) = struct.unpack(order + "I", read(4, 4))
    waiting, seen = [("main", start)], set()
    while waiting:
        directory, offset = waiting.pop(0)
        seen.add(directory)
        head = read(offset, 2)
        if len(head) < 2:
            continue
        (count,) = struct.unpack(order + "H", head)
        body = read(offset + 2, 12 * count + 4)
        for tag, kind, number, inline in struct.iter_unpack(order + "HHI4s", body[: len(body) // 12 * 12]):
            key = (directory, tag)
            if key not in _WANTED:
                continue
            (pointer,) = struct.unpack(order + "I", inline)
            size = number * _SIZES.get(kind, 0)
            limit = MAX_MANIFEST if tag == _C2PA_TAG else MAX_BLOCK
            yield key, inline[:size] if size <= 4 else read(pointer, min(size, limit))
            if (name := _POINTERS.get(key)) and name not in seen:
                waiting.append((name, pointer))
                seen.add(name)
        if directory == "main" and len(body) == 12 * count + 4:
            (following,) = struct.unpack(order + "I", body[-4:])
            if following:
                waiting.append(("preview", following))


_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_XMP_NAMES = {
    "{http://ns.adobe.com/xap/1.0/}CreatorTool": "CreatorTool",
    "{http://ns.adobe.com/photoshop/1.0/}Credit": "Credit",
    "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType": "DigitalSourceType",
    "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourcefileType": "DigitalSourceType",
    "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}AISystemUsed": "AISystemUsed",
    "{http://ns.adobe.com/exif/1.0/}UserComment": "XMP UserComment",
    "{http://purl.org/dc/elements/1.1/}description": "XMP description",
    "{http://purl.org/dc/terms/}provenance": "provenance",
}


def _xmp(packet: bytes) -> Iterator[tuple[str, str]]:
    """(name, text) of the wanted properties, as elements or attributes. A packet that is too large, declares a
    document type or entities, or is not well-formed gives none."""
    if not 0 < len(packet) <= MAX_BLOCK:
        return
    wide = packet[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = packet.decode("utf-16" if wide else "utf-8", "replace").strip("\0\ufeff \t\r\n")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return
    seen = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in _XMP_NAMES:
                yield _XMP_NAMES[name], value
        if element.tag in _XMP_NAMES and element.tag not in seen:  # each once: nested ones would cost squares of time
            seen.add(element.tag)
            yield (
                _XMP_NAMES[element.tag],
                element.get(_RDF + "resource") or " ".join("".join(element.itertext()).split()),
            )


def text_of(value: bytes | None) -> str | None:
    """An EXIF or IPTC text: up to the first zero, UTF-8 or else Latin-1. None where nothing is left."""
    head = (value or b"")[:MAX_BLOCK].split(b"\0")[0]
    try:
        return head.decode().strip() or None
    except UnicodeDecodeError:
        return head.decode("latin-1").strip() or None


def user_comment(value: bytes) -> str | None:
    """EXIF's UserComment, whose first eight bytes name the encoding. Writers disagree on UTF-16's byte order: the side
    on which more bytes are zero is the high one."""
    kind, body = value[:8], value[8:]
    if kind != b"UNICODE\0":
        return text_of(body if kind in (b"ASCII\0\0\0", b"\0" * 8) else value)
    order = "utf-16-be" if body[::2].count(0) >= body[1::2].count(0) else "utf-16-le"
    return body.decode(order, "replace").strip("\0 \ufeff") or None


def clean(text: object) -> str:
    """On one line, without control, format or private characters, at most ``MAX_TEXT`` long."""
    cut = str(text)[: 4 * MAX_TEXT]
    return " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in cut).split())[:MAX_TEXT]
