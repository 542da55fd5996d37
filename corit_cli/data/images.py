"""Reading images: files, their bytes, and what other programs hold in memory.

Every way in which a file can be bad becomes one :class:`ImageError`, so that a folder of ten thousand files gives one
error row instead of a traceback.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from corit_cli.data import jpeg, mend
from corit_cli.data.colours import to_rgb
from corit_cli.data.opening import MAX_PIXELS, ImageError, Source, excess, open_image
from corit_cli.data.stored import Buffer, Stored

T = TypeVar("T")

MAX_SCAN_PIXELS = 16 * MAX_PIXELS  # of all passes over a JPEG together; a progressive one takes about ten
MIN_SIDE = 32  # an image whose shorter side is less holds next to no evidence

# Those that hold several pictures; what an MPO holds besides its main one mostly are previews.
_LEAFED = frozenset(("GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"))
NO_END = "the file has no end marker"

# Large images are decoded one at a time: at the limit one takes up to 2.5 GB, and several threads read at once.
_LARGE = 48_000_000  # pixels
_one_large = threading.RLock()

#: Further pictures of an MPO that are looked at: the header of each may be as long as the file.
_MOST_BESIDE = 16
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


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image as 8-bit RGB; ``notes`` on faults that were looked past; whether its file has ``several`` pages or
    frames."""

    image: Image.Image
    notes: tuple[str, ...] = ()
    several: bool = False


def read_image(source: Source) -> Image.Image:
    """The image in a file, in a file's bytes, or in memory as 8-bit RGB: see :func:`decode`."""
    return decode(source).image


def decode(source: Source) -> Decoded:
    """The image in a file, in a file's bytes, or in memory as 8-bit RGB, turned upright by its EXIF orientation.

    Colours are those that a colour-managed viewer shows, in sRGB (an ICC profile that cannot be used is passed over).
    Transparency is laid over white, 16-bit, integer and float greyscale is brought to 8 bits, and of an animated or
    multi-page file the first frame is taken. Faults that viewers look past are looked past, with a note: metadata that
    cannot be read, and a JPEG that lacks its end. Raises ImageError when the file is missing, damaged, truncated,
    not an image, larger than ``MAX_PIXELS``, or with a side shorter than ``MIN_SIDE``; an array is not (H, W, 3) of
    uint8."""
    decoded, notes = _forgiving(_decoded, source)
    return Decoded(decoded.image, decoded.notes + notes, decoded.several)


def _decoded(source: Source) -> Decoded:
    with open_image(source) as image:
        if min(image.size) < MIN_SIDE:
            size = f"{image.width} x {image.height} px"
            raise ImageError(f"{size} is too small to judge: give at least {MIN_SIDE} px a side")
        notes = ()
        if image.format in ("JPEG", "MPO") and not isinstance(source, Image.Image):
            notes = (*_checked(image, source), *_beside(image, source))
        rgb = upright(image, copy=isinstance(source, Image.Image | np.ndarray))
        many = image.format in _LEAFED and not isinstance(source, Image.Image)
    return Decoded(rgb, notes, many and _several(source))


def held(image: Image.Image) -> Image.Image:
    """A copy of an image, decoded, which no later change to that reaches; the image itself where it cannot be decoded
    or has too many pixels, as is told when it is read."""
    if excess(image):
        return image
    with _one_large, suppress(Exception):  # other threads may be decoding the same image
        image.load()
        copy, turn = image.copy(), _orientation(image)
        if turn != _orientation(copy):  # it was set or taken away since the image was opened
            copy.getexif()[_EXIF_ORIENTATION] = turn or 1
        return copy
    return image


def upright(image: Image.Image, copy: bool = False) -> Image.Image:
    """The frame of an opened file that it stands at, decoded, as RGB and upright; with ``copy`` the image, which may be
    in use by another thread, is left as it is."""
    with _one_large if copy or image.width * image.height > _LARGE else nullcontext():
        image.load()
        turn = _TURNS.get(_orientation(image))  # after load(): a PNG's EXIF may follow its pixels
        rgb = to_rgb(image)
        if turn is None:
            return image.copy() if copy and rgb is image else rgb
        turned = rgb.transpose(turn)
        turned.info = {}  # what it says of its orientation no longer holds
        return turned


def resampled(
    image: Image.Image, size: tuple[int, int], filter: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """An image at another size, antialiased. Sides that shrink sixfold or more are first averaged over whole blocks, to
    no less than three times ``size``, which is much faster: a photograph's values move by a level or two, those of
    fine patterns by more."""
    return image.resize(size, filter, reducing_gap=3)


def _beside(image: Image.Image, source: Stored) -> tuple[str, ...]:
    """A note on further pictures in an opened MPO, where one is no preview: as large as the first."""
    if image.format != "MPO":
        return ()
    count, as_large = 1, 0
    with suppress(Exception), open_image(source) as again:  # opened anew: Pillow may walk away from the first one
        count = again.n_frames
        for number in range(1, min(count, _MOST_BESIDE + 1)):
            again.seek(number)
            as_large += again.width * again.height >= image.width * image.height
    least = "at least " if count > _MOST_BESIDE + 1 else ""
    return (f"1 of {count} pictures in it judged; {least}{as_large} of the others as large",) if as_large else ()


def _several(source: Stored) -> bool:
    """Whether a file has several pages or frames. It is opened anew: Pillow may walk away from the first one."""
    try:
        with open_image(source) as image:
            return bool(getattr(image, "is_animated", False))
    except ImageError:  # damaged after the first frame
        return False


@dataclass(frozen=True)
class FileInfo:
    """What a file's header says: its size in pixels (as stored, before EXIF turns it) and in bytes, its format as
    Pillow names it, and for a JPEG the quality setting it was probably saved with (1 to 100)."""

    format: str
    width: int
    height: int
    bytes: int
    jpeg_quality: int | None


def inspect(file: Stored) -> FileInfo:
    """Read a file's header and no pixels, of an image of any size up to ``MAX_PIXELS``. Raises ImageError as
    :func:`decode` does."""
    info, _ = _forgiving(_inspected, file)
    return info if isinstance(file, Buffer) else FileInfo(**{**vars(info), "bytes": Path(file).stat().st_size})


def _inspected(file: Stored) -> FileInfo:
    with open_image(file) as image:
        # A JPEG with previews appended (MPO) is, for its main picture, a JPEG.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        tables = getattr(image, "quantization", None) if kind == "JPEG" else None
        quality = jpeg.quality(tables[min(tables)]) if tables else None
        return FileInfo(kind, image.width, image.height, len(file) if isinstance(file, Buffer) else 0, quality)


# --- faults -----------------------------------------------------------------------------------------


def _forgiving(read: Callable[[Source], T], source: Source) -> tuple[T, tuple[str, ...]]:
    """What ``read`` makes of a source or, where that fails, of what is left of it without a fault that viewers look
    past; and notes on that."""
    try:
        return read(source), ()
    except ImageError as error:
        if error.__cause__ is None or isinstance(source, Image.Image | np.ndarray):  # it is sound, and refused
            raise
        for failed in (error, error.__cause__):
            traceback.clear_frames(failed.__traceback__)  # which hold the pixels as far as they came
        with _one_large:
            for data, note in _mended(source):
                with suppress(ImageError):
                    return read(data), (note,)
        raise


def _mended(source: Stored) -> Iterator[tuple[bytes, str]]:
    try:
        if isinstance(source, Buffer):
            yield from mend.mended(bytes(source))
        elif os.path.getsize(source) <= mend.LARGEST:
            yield from mend.mended(Path(source).read_bytes())
    except (OSError, ValueError):
        return


def _checked(image: Image.Image, source: Stored) -> tuple[str, ...]:
    """Refuse a JPEG that takes too long: every scan is a pass over all pixels, and one costs no more than sixty bytes.
    A note where the end of the image is not marked."""
    data = bytes(source) if isinstance(source, Buffer) else Path(source).read_bytes()
    pixels = image.width * image.height
    suspicious = data.count(b"\xff\xda") * pixels > MAX_SCAN_PIXELS  # there are no more scans than these
    if not suspicious and data.rstrip(b"\0").endswith(jpeg.END):
        return ()
    most = MAX_SCAN_PIXELS // pixels
    found = jpeg.scans(data, most)
    if found.count > most:
        raise ImageError(f"damaged (more than {most} passes over {image.width} x {image.height} pixels)")
    return () if found.end else (NO_END,)


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation tag, or None where there is none; broken EXIF does not spoil a good picture."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        return None
