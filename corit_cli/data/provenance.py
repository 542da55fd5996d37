"""What a file says of itself: camera, software, generator settings, declarations and C2PA manifests.

Anybody can write such data and anybody can strip it, so it is evidence of another kind than the pixels' score and is
never mixed into a probability. No pixel is decoded and nothing is fetched. Files may be hostile: every read, count and
text is bounded, XML with a document type is refused, and what is damaged is left out.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin, JpegPresets

from corit_cli.data.images import LUMA_TABLES, FileInfo, ImageError, inspect

MAX_TEXT = 2000  # characters kept of any one text
MAX_TEXTS = 32  # PNG text chunks, or actions of a manifest, looked at
MAX_BLOCK = 1 << 20  # bytes read of one text, XMP packet or EXIF value
MAX_MANIFEST = 1 << 24  # bytes searched of a C2PA manifest
MAX_STEPS = 100_000  # chunks or boxes walked over in one file

Read = Callable[[int, int], bytes]  # (offset, length) to bytes, fewer at the end


@dataclass(frozen=True)
class Finding:
    """One plain sentence. ``kind`` is camera, software, generator, declaration, c2pa or note; ``says`` is what it
    claims the picture to be: generated, edited, camera, or None where it claims nothing."""

    kind: str
    text: str
    says: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A C2PA manifest. ``checked`` tells whether the package c2pa-python read it; if not, ``source_types`` are those
    named anywhere in it and the other fields are empty.

    ``state`` is Trusted, Valid (intact, the signer on no list of trust) or Invalid. ``actions`` and ``source_types``
    are those of the file and of the versions it was made from, newest first.
    """

    checked: bool
    state: str | None = None
    generator: str | None = None
    signer: str | None = None
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What one file says of itself; texts are cleaned and cut to ``MAX_TEXT`` characters.

    ``parameters`` are a generator's settings by the name of the field they stand in. ``source_types`` are IPTC's names
    from the XMP, without their address. ``gps`` says only that a position is there.
    """

    format: str
    camera: str | None = None
    lens: str | None = None
    software: str | None = None
    taken: str | None = None
    gps: bool = False
    thumbnail: bool = False
    generator: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    creator_tool: str | None = None
    credit: str | None = None
    source_types: tuple[str, ...] = ()
    c2pa: Manifest | None = None
    jpeg_quality: int | None = None
    jpeg_tables: str | None = None
    findings: tuple[Finding, ...] = ()


def read_provenance(path: str | Path) -> Provenance:
    """Read what ``path`` says of itself.

    Of videos and HEIC pictures only XMP and C2PA are read. Raises ImageError when the file is missing or neither an
    image nor such a container; damage further in only costs findings.
    """
    path = Path(path)
    try:
        info = inspect(path)
    except ImageError:
        if not _is_bmff(path):
            raise
        info = FileInfo("ISO media", 0, 0, 0, None)
    raw = _Raw()
    try:
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            _try(lambda: _scan(raw, info.format, read))
        if info.format != "ISO media":
            _try(lambda: _from_pillow(raw, path, info.format))
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror or error})") from error
    return _describe(path, info, raw)


# --- what is gathered -----------------------------------------------------------------------------


@dataclass
class _Raw:
    """Everything gathered, not yet interpreted: texts by field name, EXIF values by (directory, tag)."""

    texts: dict[str, str] = field(default_factory=dict)
    exif: dict[tuple[str, int], bytes] = field(default_factory=dict)
    xmp: dict[str, str] = field(default_factory=dict)
    manifest: bytes | None = None
    credit: str | None = None
    jpeg_tables: str | None = None

    def add_exif(self, read: Read) -> None:
        for key, value in _exif(read):
            self.exif.setdefault(key, value)

    def add_xmp(self, packet: bytes) -> None:
        for name, text in _xmp(packet):
            self.xmp.setdefault(name, text)


def _try(action: Callable[[], object]) -> None:
    """Damage of any kind ends the reading of one block, not of the file."""
    try:
        action()
    except Exception:  # parsers of hostile bytes; everything gathered so far stays
        return


def _from_bytes(data: bytes) -> Read:
    return lambda offset, length: data[offset : offset + length]


def _scan(raw: _Raw, kind: str, read: Read) -> None:
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


def _scan_png(raw: _Raw, read: Read) -> None:
    for name, offset, size in _walk(read, 8, ">I4s", extra=4):
        if name in (b"tEXt", b"zTXt", b"iTXt") and len(raw.texts) < MAX_TEXTS:
            _try(lambda n=name, o=offset, s=size: _png_text(raw, n, read(o, min(s, MAX_BLOCK))))
        elif name == b"eXIf":
            data = read(offset, min(size, MAX_BLOCK))
            _try(lambda d=data: raw.add_exif(_from_bytes(d)))
        elif name == b"caBX":
            raw.manifest = read(offset, min(size, MAX_MANIFEST))


def _png_text(raw: _Raw, kind: bytes, data: bytes) -> None:
    """A text chunk: keyword, then plain Latin-1, compressed Latin-1, or (perhaps compressed) UTF-8 with a language."""
    key, _, rest = data.partition(b"\0")
    packed, encoding = kind == b"zTXt", "latin-1"
    if kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[2]
    elif packed:
        rest = rest[1:]
    if packed:
        rest = zlib.decompressobj().decompress(rest, MAX_BLOCK)
    name = _clean(key.decode("latin-1"))
    if name == "XML:com.adobe.xmp":
        raw.add_xmp(rest)
    elif name:
        raw.texts.setdefault(name, rest.decode(encoding, "replace"))


_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def _is_bmff(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False


def _scan_bmff(raw: _Raw, read: Read) -> None:
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
            elif kind == _XMP_BOX and content <= MAX_BLOCK:
                raw.add_xmp(read(offset + head + 16, max(content, 0)))
        if size < head:  # 0: to the end of the file
            return
        offset += size


def _from_pillow(raw: _Raw, path: Path, kind: str) -> None:
    """What Pillow has when it has read the header: EXIF, XMP, comments, JPEG segments and tables."""
    with Image.open(path, formats=(kind,)) as image:
        _from_info(raw, image.info)
        if kind != "JPEG":
            return
        raw.manifest = _jpeg_manifest(segment for name, segment in getattr(image, "applist", ()) if name == "APP11")
        raw.jpeg_tables = _jpeg_tables(getattr(image, "quantization", {}))
        credit = (IptcImagePlugin.getiptcinfo(image) or {}).get((2, 110))
        raw.credit = _text(credit) if isinstance(credit, bytes) else None


def _from_info(raw: _Raw, info: dict[Any, Any]) -> None:
    if isinstance(exif := info.get("exif"), bytes):
        data = exif.removeprefix(b"Exif\0\0")
        _try(lambda: raw.add_exif(_from_bytes(data)))
    if isinstance(xmp := info.get("xmp"), bytes):
        _try(lambda: raw.add_xmp(xmp))
    if isinstance(comment := info.get("comment"), (bytes, str)):
        raw.texts.setdefault("comment", _text(comment.encode() if isinstance(comment, str) else comment) or "")


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
_TEXT_TAGS = {
    ("main", 0x010E): "ImageDescription",
    ("main", 0x010F): "Make",
    ("main", 0x0110): "Model",
    ("main", 0x0131): "Software",
    ("main", 0x013B): "Artist",
    ("exif", 0x9003): "DateTimeOriginal",
    ("exif", 0x9286): "UserComment",
    ("exif", 0xA434): "LensModel",
}
_POSITION, _PREVIEW = {("gps", 2), ("gps", 4)}, ("preview", 0x0201)
_WANTED = {*_POINTERS, *_TEXT_TAGS, *_POSITION, _PREVIEW, ("main", _XMP_TAG), ("main", _C2PA_TAG)}
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


def _text(value: bytes | None) -> str | None:
    """An EXIF or IPTC text: up to the first zero, UTF-8 or else Latin-1. None where nothing is left."""
    head = (value or b"")[:MAX_BLOCK].split(b"\0")[0]
    try:
        return head.decode().strip() or None
    except UnicodeDecodeError:
        return head.decode("latin-1").strip() or None


def _user_comment(value: bytes) -> str | None:
    """EXIF's UserComment, whose first eight bytes name the encoding. Writers disagree on UTF-16's byte order: the side
    on which more bytes are zero is the high one."""
    kind, body = value[:8], value[8:]
    if kind != b"UNICODE\0":
        return _text(body if kind in (b"ASCII\0\0\0", b"\0" * 8) else value)
    order = "utf-16-be" if body[::2].count(0) >= body[1::2].count(0) else "utf-16-le"
    return body.decode(order, "replace").strip("\0 \ufeff") or None


def _clean(text: object) -> str:
    """On one line, without control, format or private characters, at most ``MAX_TEXT`` long."""
    cut = str(text)[: 4 * MAX_TEXT]
    return " ".join("".join(" " if unicodedata.category(c)[0] == "C" else c for c in cut).split())[:MAX_TEXT]


# --- what it means --------------------------------------------------------------------------------

#: IPTC's digital source types: what each means in plain words, and what it claims the picture to be.
SOURCE_TYPES: dict[str, tuple[str, str | None]] = {
    "trainedAlgorithmicMedia": ("made by a generative model", "generated"),
    "compositeWithTrainedAlgorithmicMedia": ("a picture parts of which a generative model made", "edited"),
    "algorithmicMedia": ("made by a program without a trained model", "generated"),
    "algorithmicallyEnhanced": ("a picture that a program improved", "edited"),
    "dataDrivenMedia": ("drawn from data", "generated"),
    "digitalCapture": ("captured by a digital camera", "camera"),
    "computationalCapture": ("captured by a camera that merges several exposures", "camera"),
    "negativeFilm": ("scanned from a film negative", "camera"),
    "positiveFilm": ("scanned from film", "camera"),
    "print": ("scanned from a print", None),
    "composite": ("put together from several pictures", "edited"),
    "compositeCapture": ("put together from several photographs", "edited"),
    "compositeSynthetic": ("put together from parts some of which are synthetic", "edited"),
    "humanEdits": ("edited by a person", "edited"),
    "minorHumanEdits": ("slightly edited by a person", "edited"),
    "digitalCreation": ("drawn by a person with a program", None),
    "digitalArt": ("drawn by a person with a program", None),
    "softwareImage": ("made by software", None),
    "screenCapture": ("a picture of a screen", None),
    "virtualRecording": ("a recording of a virtual scene", None),
}

_WEB_UI = (r"\bSteps\b\W{1,3}\d", r"\b(Sampler|CFG scale)\b", r"\bSeed\b")
# A generator by the field its settings stand in and by what must all occur there.
_PARAMETERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("SwarmUI", "parameters|UserComment", ("sui_image_params",)),
    ("Fooocus", "fooocus_scheme", ()),
    ("InvokeAI", "invokeai_metadata|invokeai_graph|sd-metadata|[Dd]ream", ()),
    ("NovelAI", "Comment", ('"sampler"', '"seed"')),
    ("ComfyUI", "prompt|Make|Model|ImageDescription|UserComment|XMP .*", ('"class_type"',)),
    ("ComfyUI", "workflow|Make|Model|ImageDescription|UserComment", ('"(last_node_id|nodes)"',)),
    # The text that the AUTOMATIC1111 web UI writes, and many programs after it.
    ("a Stable Diffusion program", "parameters|[Cc]omment|(XMP )?UserComment|ImageDescription", _WEB_UI),
    ("Midjourney", ".*[Dd]escription", ("Job ID: [0-9a-f-]{36}|--v(ersion)? [0-9]",)),
)
_GENERATORS = re.compile(
    r"NovelAI|Midjourney|DALL[-·. ]?E|Stable ?Diffusion|Firefly|Made with Google AI|Edited with Google AI|ComfyUI|"
    r"InvokeAI|Fooocus|Leonardo\.? ?AI|Ideogram|Bing Image Creator|Microsoft Designer|FLUX\.\d|Draw Things|ChatGPT|"
    r"OpenAI|GPT-4o|Imagen \d|Gemini|SwarmUI|DreamStudio|Recraft|Playground ?AI|Black Forest Labs|"
    r"Made with AI|AI[- ]generated",
    re.IGNORECASE,
)
_EDITORS = re.compile(
    r"Photoshop|Lightroom|Capture One|GIMP|Affinity Photo|Pixelmator|Snapseed|PicsArt|FaceApp|Facetune|Canva|Luminar|"
    r"paint\.net|darktable|RawTherapee|PhotoScape|Pixlr|Fotor|Meitu|Remini|YouCam|BeautyPlus|ACDSee|PaintShop",
    re.IGNORECASE,
)
# Fields in which a program, or a service, gives its own name.
_SIGNATURES = ("Software", "Source", "Title", "CreatorTool", "Credit", "AISystemUsed", "Artist", "Author", "generator")
_SHOWN = 160  # characters of a text quoted in a sentence


def _describe(path: Path, info: FileInfo, raw: _Raw) -> Provenance:
    exif = {name: _text(raw.exif.get(key)) for key, name in _TEXT_TAGS.items() if key in raw.exif}
    if ("exif", 0x9286) in raw.exif:
        exif["UserComment"] = _user_comment(raw.exif["exif", 0x9286])
    texts = {**raw.texts, **raw.xmp, **{name: text for name, text in exif.items() if text}}
    texts = {name: text for name, text in texts.items() if text.strip()}
    generator, parameters = _generator(texts)
    make, model = (_clean(exif.get(name) or "") if name not in parameters else "" for name in ("Make", "Model"))
    # Many cameras repeat the maker in the model's name.
    camera = model if make and model.lower().startswith(make.split()[0].lower()) else f"{make} {model}".strip()
    source_type = raw.xmp.get("DigitalSourceType", "")
    provenance = Provenance(
        format=info.format,
        camera=camera or None,
        lens=_clean(exif.get("LensModel") or "") or None,
        software=_clean(texts.get("Software", "")) or None,
        taken=_clean(exif.get("DateTimeOriginal") or "") or None,
        gps=raw.exif.keys() >= _POSITION,
        thumbnail=_PREVIEW in raw.exif,
        generator=generator,
        parameters={_clean(name)[:_SHOWN]: _clean(text) for name, text in parameters.items()},
        creator_tool=_clean(raw.xmp.get("CreatorTool", "")) or None,
        credit=_clean(raw.xmp.get("Credit") or raw.credit or "") or None,
        source_types=(_clean(source_type.rstrip("/").rsplit("/", 1)[-1]),) if source_type else (),
        c2pa=_manifest(path, raw.manifest),
        jpeg_quality=info.jpeg_quality,
        jpeg_tables=raw.jpeg_tables,
    )
    findings = tuple(_findings(provenance, texts))
    if all(finding.kind == "note" for finding in findings):
        nothing = (
            "Nothing in the file says how the picture was made; most platforms strip such data, so this proves nothing."
        )
        findings = (Finding("note", nothing), *findings)
    return Provenance(**{**vars(provenance), "findings": findings})


def _generator(texts: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """The generator that wrote its settings into the file, and the fields they stand in."""
    found: dict[str, str] = {}
    maker = None
    for name, field_name, content in _PARAMETERS:
        for key, text in texts.items():
            if re.fullmatch(field_name, key) and all(re.search(part, text) for part in content):
                maker = maker or name
                found.setdefault(key, text)
    return maker, found


def _findings(p: Provenance, texts: dict[str, str]) -> Iterator[Finding]:
    if p.c2pa:
        yield from _c2pa_findings(p.c2pa)
    elif "provenance" in texts:
        yield Finding("c2pa", "The file points to a C2PA manifest kept elsewhere, which was not fetched.")
    for name in p.source_types:
        meaning, says = SOURCE_TYPES.get(name, (f"of the type {_quote(name)}", None))
        yield Finding("declaration", f"The file declares its picture to be {meaning} (IPTC digital source type).", says)
    if p.generator:
        fields = ", ".join(p.parameters)
        yield Finding("generator", f"The file carries the settings of {p.generator} (in {fields}).", "generated")
    signed = {key: _clean(texts[key]) for key in _SIGNATURES if key in texts and key not in p.parameters}
    signed |= {"Credit": p.credit} if p.credit else {}
    for key, text in signed.items():
        if match := _GENERATORS.search(text):
            says = "edited" if match[0].lower().startswith("edited") else "generated"
            yield Finding("generator", f"The field {key} names a generator: {_quote(text)}.", says)
    for key in ("Software", "CreatorTool"):
        text = signed.get(key, "")
        if text and not _GENERATORS.search(text):
            if _EDITORS.search(text):
                ending = ", a program for editing; what was changed, if anything, it does not say."
                yield Finding("software", f"The file was saved by {_quote(text)}{ending}", "edited")
            else:
                yield Finding("software", f"The field {key} names {_quote(text)}.")
    if p.camera:
        lens = f" with the lens {_quote(p.lens)}" if p.lens else ""
        taken = f", taken {_quote(p.taken)}" if p.taken else ""
        text = f"The file names a camera, {_quote(p.camera)}{lens}{taken}; anybody could have written this."
        yield Finding("camera", text, "camera")
    yield from _notes(p)


def _notes(p: Provenance) -> Iterator[Finding]:
    if p.jpeg_quality:
        tables = {
            "standard": "the standard tables, as most programs do",
            "Photoshop": "the tables of Adobe Photoshop",
            "other": "tables of its own, as cameras and some programs do",
        }.get(p.jpeg_tables or "", "tables that cannot be read")
        yield Finding("note", f"It was last saved as a JPEG of quality {p.jpeg_quality} or so, with {tables}.")
    if p.thumbnail:
        yield Finding("note", "It holds a preview picture, as files from cameras do.")
    if p.gps:
        yield Finding("note", "It holds the position at which it says it was taken.")


def _quote(text: str) -> str:
    return f'"{text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"}"'


# --- C2PA -----------------------------------------------------------------------------------------


def _manifest(path: Path, content: bytes | None) -> Manifest | None:
    """What the manifest says, by the package c2pa-python where it is installed."""
    if content is None:
        return None
    names = re.findall(rb"digitalsourcetype/([A-Za-z]{4,64})", content)
    named = tuple(dict.fromkeys(n for name in names if (n := name.decode()) in SOURCE_TYPES))
    try:
        import c2pa
    except ImportError:
        return Manifest(checked=False, source_types=named)
    try:
        quiet = c2pa.Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}})
        with c2pa.Context(quiet) as context, c2pa.Reader(str(path), context=context) as reader:
            return _validated(json.loads(reader.json()))
    except Exception:  # of another library's native code, on files that may be hostile
        return Manifest(checked=False, source_types=named)


def _validated(store: dict[str, Any]) -> Manifest:
    """The active manifest of a store in c2pa-python's JSON, and the actions of its line of parents."""
    manifests = store["manifests"]
    active = manifests[store["active_manifest"]]
    line, label = [], store["active_manifest"]
    while label in manifests and manifests[label] not in line:
        line.append(manifests[label])
        parents = (i for i in line[-1].get("ingredients", ()) if i.get("relationship") == "parentOf")
        label = next((i.get("active_manifest") for i in parents), None)
    actions = [
        action
        for manifest in line
        for assertion in manifest.get("assertions", ())
        if str(assertion.get("label", "")).startswith("c2pa.actions")
        for action in assertion["data"].get("actions", ())
    ]
    makers = [_named(maker) for maker in active.get("claim_generator_info", ())] or [active.get("claim_generator", "")]
    signature = active.get("signature_info", {})
    types = (str(action.get("digitalSourceType", "")).rstrip("/").rsplit("/", 1)[-1] for action in actions)
    return Manifest(
        checked=True,
        state=_clean(store.get("validation_state", "Invalid")),
        generator=_clean(", ".join(map(str, makers))) or None,
        signer=_clean(signature.get("issuer") or signature.get("common_name") or "") or None,
        actions=tuple(_clean(_action(action)) for action in actions[:MAX_TEXTS]),
        source_types=tuple(dict.fromkeys(_clean(name) for name in types if name)),
    )


def _named(maker: object) -> str:
    """A program's name and version, given as text or as an object with both."""
    if isinstance(maker, dict):
        return f"{maker.get('name', '')} {maker.get('version', '')}".strip()
    return str(maker)


def _action(action: dict[str, Any]) -> str:
    name = str(action.get("action", "")).removeprefix("c2pa.")
    agent = _named(action.get("softwareAgent") or "")
    return f"{name} by {agent}" if agent else name


def _c2pa_findings(m: Manifest) -> Iterator[Finding]:
    if not m.checked:
        known = " or ".join(SOURCE_TYPES[name][0] for name in m.source_types)
        text = "The file holds a C2PA manifest, which was not checked (this needs the package c2pa-python)"
        claims = {SOURCE_TYPES[name][1] for name in m.source_types}
        says = claims.pop() if len(claims) == 1 else None
        yield Finding("c2pa", f"{text}; it names a picture {known}." if known else f"{text}.", says)
        return
    whose = f"by {_quote(m.signer)}" if m.signer else "by somebody it does not name"
    if m.state not in ("Valid", "Trusted"):
        text = (
            f"The file holds a C2PA manifest signed {whose} that does not fit it: one of them was changed afterwards."
        )
        yield Finding("c2pa", text)
        return
    trust = "who is on a list of trusted signers" if m.state == "Trusted" else "whose identity is not vouched for"
    made = f", made with {_quote(m.generator)}" if m.generator else ""
    yield Finding("c2pa", f"The file holds an intact C2PA manifest{made} and signed {whose}, {trust}.")
    if m.actions:
        edits = any(not action.startswith(("created", "opened", "converted", "published")) for action in m.actions)
        text = f"The manifest lists what was done: {_quote('; '.join(m.actions))}."
        yield Finding("c2pa", text, "edited" if edits else None)
    for name in m.source_types:
        meaning, says = SOURCE_TYPES.get(name, (f"of the type {_quote(name)}", None))
        yield Finding("c2pa", f"The manifest declares the picture to be {meaning}.", says)
