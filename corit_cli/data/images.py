"""Reading images: files, their bytes, and what other programs hold in memory.

Every way in which a file can be bad becomes one :class:`ImageError`, so that a folder of ten thousand files gives one
error row instead of a traceback.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from corit_cli.errors import CoritError

MAX_PIXELS = 200_000_000  # a panorama of about 20,000 x 10,000; more is taken for a decompression bomb
MAX_SCAN_PIXELS = 16 * MAX_PIXELS  # of all passes over a JPEG together; a progressive one takes about ten
MIN_SIDE = 32  # an image whose shorter side is less holds next to no evidence

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm")
)
# Only these decoders are tried: some of Pillow's others start programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF")

# Pillow's own limit is lower than ours. Raised, not removed: it also guards frames that outgrow their header.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged metadata of a sound picture
#: A JPEG marker, but for stuffed bytes and restarts within a scan.
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")

logging.getLogger("PIL").addHandler(logging.NullHandler())  # its errors are raised as well


def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error what Pillow raises as well."""
    with suppress(OSError, AttributeError):  # a Pillow built without it, or another way
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


_silence_libtiff()

# Large images are decoded one at a time: at the limit one takes up to 2 GB, and several threads read at once.
_LARGE = 48_000_000  # pixels
_one_large = threading.Lock()

_PROFILED = ("RGB", "CMYK", "L", "LAB")  # modes that ICC profiles are applied to as they are
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


#: Whatever an image may be read from: a path, the bytes of a file, a Pillow image, an RGB array (H, W, 3) of uint8.
Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray


class ImageError(CoritError):
    """One file cannot be used as an image; the message is a short reason and does not name the file."""


def read_image(source: Source) -> Image.Image:
    """The image in a file, in a file's bytes, or in memory as 8-bit RGB, turned upright by its EXIF orientation.

    Colours are those that a colour-managed viewer shows, in sRGB (an ICC profile that cannot be used is passed over).
    Transparency is laid over white, 16-bit, integer and float greyscale is brought to 8 bits, and of an animated or
    multi-page file the first frame is taken. Raises ImageError when the file is missing, damaged, truncated, not an
    image, larger than ``MAX_PIXELS``, or with a side shorter than ``MIN_SIDE``; an array is not (H, W, 3) of uint8.
    """
    in_memory = isinstance(source, Image.Image | np.ndarray)
    with _opened(source) as image:
        if min(image.size) < MIN_SIDE:
            size = f"{image.width} x {image.height} px"
            raise ImageError(f"{size} is too small to judge: give at least {MIN_SIDE} px a side")
        if image.format in ("JPEG", "MPO") and not in_memory:
            _check_scans(image, source)
        # A caller's own image may be in use by another thread, too.
        with _one_large if in_memory or image.width * image.height > _LARGE else nullcontext():
            image.load()
            turn = _TURNS.get(_orientation(image))  # after load(): a PNG's EXIF may follow its pixels
            rgb = _to_rgb(image.copy() if in_memory else image)
            return rgb if turn is None else rgb.transpose(turn)


@dataclass(frozen=True)
class FileInfo:
    """What a file's header says: its size in pixels (as stored, before EXIF turns it) and in bytes, its format as
    Pillow names it, and for a JPEG the quality setting it was probably saved with (1 to 100)."""

    format: str
    width: int
    height: int
    bytes: int
    jpeg_quality: int | None


def inspect(path: str | Path) -> FileInfo:
    """Read a file's header and no pixels, of an image of any size up to ``MAX_PIXELS``. Raises ImageError as
    :func:`read_image` does."""
    with _opened(path) as image:
        # A JPEG with previews appended (MPO) is, for its main picture, a JPEG.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        tables = getattr(image, "quantization", None) if kind == "JPEG" else None
        quality = _jpeg_quality(tables[min(tables)]) if tables else None
        return FileInfo(kind, image.width, image.height, Path(path).stat().st_size, quality)


# --- opening and decoding -------------------------------------------------------------------------


@contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Pillow's image with its header read. Whatever is raised inside the block becomes an ImageError."""
    try:
        with _unchecked(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(_too_large(image.width * image.height))
            yield image
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _unchecked(source: Source) -> AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise ImageError(f"an array must be (H, W, 3) of uint8, not {source.shape} of {source.dtype}")
        return nullcontext(Image.fromarray(source))
    if isinstance(source, bytes | bytearray | memoryview):
        if not source:
            raise ImageError("file is empty")
        return Image.open(io.BytesIO(source), formats=_FORMATS)
    status = Path(source).stat()
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")
    if status.st_size == 0:
        raise ImageError("file is empty")
    return Image.open(source, formats=_FORMATS)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(int(re.findall(r"\d+", str(error))[0]))
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return "truncated"
    return " ".join(f"damaged ({error or type(error).__name__})".split())


def _too_large(pixels: int) -> str:
    return f"{pixels / 1e6:.0f} megapixels, more than the limit of {MAX_PIXELS / 1e6:.0f}"


def _check_scans(image: Image.Image, source: Source) -> None:
    """Every scan of a JPEG is a pass over all of its pixels, and one costs no more than sixty bytes."""
    data = Path(source).read_bytes() if isinstance(source, str | os.PathLike) else bytes(source)
    pixels = image.width * image.height
    if data.count(b"\xff\xda") * pixels <= MAX_SCAN_PIXELS:  # there are no more than these
        return
    scans = _scans(data)
    if scans * pixels > MAX_SCAN_PIXELS:
        raise ImageError(f"damaged ({scans} passes over {image.width} x {image.height} pixels)")


def _scans(data: bytes) -> int:
    """How many scans a JPEG has, up to the end of its image: what a camera appends is not looked at."""
    at, scans = 2, 0
    while found := _MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:  # the end of the image
            break
        if marker == 0xDA:  # a scan: its pixels end at the next marker
            scans += 1
        if marker not in (0x01, 0xD8):  # all others tell their length
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation tag, or None where there is none; broken EXIF does not spoil a good picture."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    elif image.mode not in _PROFILED:
        image = image.convert("RGB")
    transform = _to_srgb(profile, image.mode) if profile else None
    if transform is not None:
        return ImageCms.applyTransform(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns pixels of ``mode`` under an ICC profile into sRGB; None where that hardly changes them, or for a
    profile that is broken or of other colours."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.NOCACHE  # a cache is not for threads
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent, flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB":
        steps = np.linspace(0, 255, 17).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 17, 3)
        changed = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), transform))
        if np.abs(changed.astype(int) - cube).max() <= 1:  # one of the many profiles of sRGB itself
            return None
    return transform


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Greyscale (H, W) of any depth as uint8.

    Unsigned 16-bit is divided by 257. Wider integers and floats do not say what white is: it is taken to be the first
    of 1 (floats only), 255 and 65535 that no value exceeds; other values, or negative ones, are stretched to 0..255.
    """
    whites = {"u": (65535,), "i": (255, 65535), "f": (1, 255, 65535)}[values.dtype.kind]

    def finite(rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)

    # Band by band: as float64 the largest image would take gigabytes.
    bands = np.array_split(values, min(len(values), -(-values.size // 4_000_000)))
    low, high = min(float(finite(b).min()) for b in bands), max(float(finite(b).max()) for b in bands)
    black, white = 0.0, next((w for w in whites if low >= 0 and high <= w), None)
    if white is None:
        black, white = low, (high - low) or 1
    return np.concatenate([np.rint((finite(b) - black) * (255 / white)).astype(np.uint8) for b in bands])


# --- JPEG quality ---------------------------------------------------------------------------------

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


def _jpeg_quality(table: list[int]) -> int:
    """The quality whose scaled standard table is nearest, by sum of absolute differences, to a luma table (64,)."""
    return int(np.abs(LUMA_TABLES - np.asarray(table)).sum(1).argmin()) + 1
