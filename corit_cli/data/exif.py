"""EXIF and XMP: the few tags and properties that say where a picture comes from. Bounded, as in
:mod:`corit_cli.data.metadata`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from xml.etree import ElementTree

MAX_BLOCK = 1 << 20  # bytes read of one text, XMP packet or EXIF value
MAX_MANIFEST = 1 << 24  # bytes searched of a C2PA manifest

Read = Callable[[int, int], bytes]  # (offset, length) to bytes, fewer at the end

XMP_TAG, C2PA_TAG = 700, 0xCD41
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
_WANTED = {*_POINTERS, *TEXT_TAGS, *POSITION, PREVIEW, ("main", XMP_TAG), ("main", C2PA_TAG)}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


def exif_values(read: Read) -> Iterator[tuple[tuple[str, int], bytes]]:
    """((directory, tag), value) of the wanted tags of a TIFF structure: main, exif, gps, preview. Each directory is
    read once, the first of each tag in it, and each value up to ``MAX_BLOCK``, or ``MAX_MANIFEST`` for C2PA, so that no
    file can make it long."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(read(0, 4))
    if order is None:
        return
    (start,) = struct.unpack(order + "I", read(4, 4))
    waiting, seen, wanted = [("main", start)], set(), set(_WANTED)
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
            if key not in wanted:
                continue
            wanted.remove(key)
            (pointer,) = struct.unpack(order + "I", inline)
            size = number * _SIZES.get(kind, 0)
            limit = MAX_MANIFEST if tag == C2PA_TAG else MAX_BLOCK
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


def xmp_properties(packet: bytes) -> Iterator[tuple[str, str]]:
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
