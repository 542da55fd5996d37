"""Opening images: what is tried on a file, what is too large to be decoded, and why a file cannot be used."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import numpy as np
from PIL import Image

from corit_cli.data.kinds import IMAGE, VIDEO, Kind, sniff
from corit_cli.data.stored import Buffer, Stored
from corit_cli.errors import CoritError

MAX_PIXELS = 200_000_000  # a panorama of about 20,000 x 10,000; more is taken for a decompression bomb
MAX_RUN_PIXELS = 10_000_000  # of a BMP in run lengths, which Pillow decodes in Python: this many in about a second

# Only these decoders are tried: some of Pillow's others start programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "AVIF")

# Pillow's own limit is lower than ours. Raised, not removed: it also guards frames that outgrow their header.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged metadata of a sound picture

logging.getLogger("PIL").addHandler(logging.NullHandler())  # its errors are raised as well


def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error what Pillow raises as well."""
    with suppress(OSError, AttributeError):  # a Pillow built without it, or another way
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


_silence_libtiff()

#: Whatever an image may be read from: a file, a Pillow image, an RGB array (H, W, 3) of uint8.
Source = Stored | Image.Image | np.ndarray


class ImageError(CoritError):
    """One file cannot be used as an image; the message is a short reason and does not name the file."""


@contextmanager
def open_image(source: Source) -> Iterator[Image.Image]:
    """Pillow's image with its header read. Whatever is raised inside the block becomes an ImageError."""
    try:
        with _unchecked(source) as image:
            if too_large := excess(image):
                raise ImageError(too_large)
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
    if not isinstance(source, Buffer):
        check_file(source, ImageError)
    elif not source:
        raise ImageError("file is empty")
    kind = sniff(source)
    if kind is not None and kind.media == VIDEO and isinstance(source, Buffer):
        raise ImageError(f"{kind.name}, which cannot be read from memory: run corit detect on the file")
    if kind is not None and kind.media != IMAGE:
        raise ImageError(kind.refusal if kind.remedy else f"{kind.name}, not an image")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, Buffer) else source, formats=_formats(kind))
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"{kind.name} that cannot be read" if kind else "not an image that can be read") from error


def check_file(path: str | os.PathLike[str], error: type[CoritError]) -> None:
    """Raise ``error``, with the reason, for what is no file that could be read; OSError for what cannot be looked
    at."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise error("is a folder" if os.access(path, os.R_OK | os.X_OK) else "is a folder that cannot be read")
    if not stat.S_ISREG(status.st_mode):
        raise error("not a regular file")
    if status.st_size == 0:
        raise error("file is empty")


def _formats(kind: Kind | None) -> tuple[str, ...]:
    """The decoders that are tried on a file. Raises ImageError where there is none."""
    if kind is None or kind.format is None:
        return _FORMATS
    if kind.format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    if kind.format not in Image.OPEN:
        Image.init()
    if kind.format not in Image.OPEN:  # JPEG XL, in most builds of Pillow
        raise ImageError(kind.refusal)
    return (kind.format,)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return too_large(int(re.findall(r"\d+", str(error))[0]))
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return "truncated"
    return " ".join(f"damaged ({error or type(error).__name__})".split())


def excess(image: Image.Image) -> str | None:
    """Why an image is too large to be decoded; None where it is not."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        return too_large(pixels)
    if pixels > MAX_RUN_PIXELS and any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", ())):
        return f"{too_large(pixels, MAX_RUN_PIXELS)} for a run-length compressed BMP: save it as PNG first"
    return None


def too_large(pixels: int, most: int = MAX_PIXELS) -> str:
    """That so many pixels are more than ``most``."""
    return f"{-(-pixels // 1_000_000)} megapixels, more than the limit of {most // 1_000_000}"
