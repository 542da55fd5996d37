"""What a file is, told by its first bytes and not by its name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from corit_cli.data.stored import Buffer, Stored, called, opened

IMAGE, VIDEO, RAW, OTHER = "image", "video", "raw", "other"
HEAD = 1024  # bytes looked at
#: What images and videos are called, where nothing but the name is known.
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
) | {".jp2", ".ppm", ".pgm", ".tga"}
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".flv", ".wmv", ".3gp", ".ogv")
)
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


@dataclass(frozen=True)
class Kind:
    """``media`` is image, video, raw (a camera's unfinished picture) or other; ``name`` what one calls such a file;
    ``remedy`` says what to do with one that is not read. ``format`` is Pillow's name, where the name alone decides
    which decoder is tried."""

    media: str
    name: str
    remedy: str = ""
    format: str | None = None

    @property
    def refusal(self) -> str:
        """Why it is not read, and what to do."""
        return f"{self.name}: {self.remedy}"


_DEVELOP = "develop it first, for example with darktable-cli, or give the JPEG that the camera made"
_RAW = Kind(RAW, "a camera's raw file", _DEVELOP)
_PDF = Kind(OTHER, "a PDF document", "save its pages as images first, for example with pdftoppm -png")
_HEIF = Kind(IMAGE, "an HEIC image", format="HEIF")
_JXL = Kind(IMAGE, "a JPEG XL image", "convert it to PNG first, for example with djxl", format="JXL")
_TGA = Kind(IMAGE, "a Targa image", format="TGA")


def _named(media: str, *names: str) -> tuple[Kind, ...]:
    return tuple(Kind(media, name) for name in names)


_JPEG, _PNG, _GIF, _BMP, _TIFF, _JP2, _PNM, _WEBP = _named(
    IMAGE, *(f"a {n} image" for n in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "JPEG 2000", "PNM", "WebP"))
)
_AVIF = Kind(IMAGE, "an AVIF image")
_MP4, _AVI, _MPEG, _OGG = _named(VIDEO, *(f"an {n} video" for n in ("MP4", "AVI", "MPEG", "Ogg")))
_MATROSKA, _FLV, _WMV = _named(VIDEO, *(f"a {n} video" for n in ("Matroska", "Flash", "Windows Media")))
_VECTOR = Kind(OTHER, "a drawing, not a photograph", "save it as PNG first")
_SOUND = Kind(OTHER, "a sound recording", "nothing in it can be looked at")
#: How the first stream of an Ogg file begins where that is sound; films have another one beside it.
_SOUNDS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
#: Of a text that begins with P1 there are many; its width and height, or a comment, make it a picture.
_PNM_HEAD = re.compile(rb"P[1-6f]\s+(#|\d+\s+(#|\d+\s))")
#: First bytes, where they begin.
_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", _JPEG),
    (0, b"\x89PNG\r\n\x1a\n", _PNG),
    (0, b"GIF8", _GIF),
    (0, b"II*\0\x10\0\0\0CR", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"II*\0", _TIFF),
    (0, b"MM\0*", _TIFF),
    (0, b"II+\0", _TIFF),
    (0, b"MM\0+", _TIFF),
    (0, b"\0\0\0\x0cjP  \r\n", _JP2),
    (0, b"\xff\x4f\xff\x51", _JP2),
    (0, b"\0\0\0\x0cJXL \r\n", _JXL),
    (0, b"\xff\x0a", _JXL),
    (0, b"\x1aE\xdf\xa3", _MATROSKA),
    (0, b"FLV\x01", _FLV),
    (0, b"OggS", _OGG),
    (0, b"0&\xb2u\x8ef\xcf\x11", _WMV),
    (0, b"\0\0\x01\xba", _MPEG),
    (0, b"\0\0\x01\xb3", _MPEG),
    (0, b"%PDF", _PDF),
    (0, b"8BPS", Kind(OTHER, "a Photoshop document", "save it as PNG or TIFF first")),
    (0, b"%!PS", _VECTOR),
    (0, b"<svg", _VECTOR),
    (0, b"PK\x03\x04", Kind(OTHER, "a ZIP archive or an office document", "unpack it first")),
    (0, b"\x1f\x8b", Kind(OTHER, "a packed file", "unpack it first")),
    (0, b"ID3", _SOUND),
    (0, b"fLaC", _SOUND),
    (0, b"v/1\x01", Kind(OTHER, "an OpenEXR image", "save it as PNG or TIFF first")),
    *((3, size + name, _MP4) for size in (b"\x08", b"\0") for name in (b"wide", b"free", b"skip")),
    *((4, name, _MP4) for name in (b"moov", b"mdat")),
)
#: Raw files that begin as a TIFF does.
_RAW_SUFFIXES = frozenset(
    (".cr2", ".nef", ".nrw", ".dng", ".arw", ".srf", ".sr2", ".pef", ".srw", ".rw2", ".orf", ".erf")
)
_TGA_SUFFIXES = frozenset((".tga", ".icb", ".vda", ".vst"))


def kind_of(head: bytes, name: str = "", tail: bytes = b"") -> Kind | None:
    """What a file is that begins with ``head`` (best ``HEAD`` bytes), ends with ``tail`` and is called ``name``; None
    where that is not known. The name counts only where the bytes leave it open."""
    suffix = Path(name).suffix.lower()
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        if head[8:12] in (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "):
            return _SOUND
        return _of_brands({head[i : i + 4] for i in (8, *range(16, end, 4))})
    if head[:4] == b"OggS" and head[28:].startswith(_SOUNDS) and b"theora" not in head:
        return _SOUND
    if head[:4] == b"RIFF":
        return {b"WEBP": _WEBP, b"AVI ": _AVI}.get(head[8:12])
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return _RAW if kind is _TIFF and suffix in _RAW_SUFFIXES else kind
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return _BMP
    if _PNM_HEAD.match(head):
        return _PNM
    for start, size in ((0, 188), (4, 192)):  # packets of a transport stream, with a time stamp before each or without
        if head[start : start + 2 * size + 1 : size] == b"GGG":
            return _MPEG
    if tail.endswith(b"TRUEVISION-XFILE.\0") or (suffix in _TGA_SUFFIXES and head):
        return _TGA
    return None


def _of_brands(brands: set[bytes]) -> Kind:
    """Of the family of MP4, by the brands that its first box names."""
    if brands & {b"avif", b"avis"}:
        return _AVIF
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return _HEIF
    if b"crx " in brands:
        return _RAW
    return _MP4


def sniff(source: Stored) -> Kind | None:
    """What a regular file, or bytes, are; None where that is not known, and for what cannot be read."""
    if isinstance(source, Buffer):
        return kind_of(bytes(source[:HEAD]), tail=bytes(source[-32:]))
    try:
        if not os.path.isfile(source):
            return None
        with opened(source) as file:
            head = file.read(HEAD)
            file.seek(-min(32, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return kind_of(head, called(source), file.read())
    except (OSError, ValueError):
        return None
