"""Cutting the square windows that a model looks at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from corit_cli.data.faces import SMALLEST, Face, align, finder
from corit_cli.data.images import resampled
from corit_cli.data.settings import CropConfig

MAX_STRETCH = 64  # a strip longer than this many times its width is cut before it is enlarged


def crop(image: Image.Image, config: CropConfig) -> np.ndarray:
    """Windows of an RGB image, uint8 (n, size, size, 3), one for each of ``config.windows`` but that of a face.

    ``resize``: the shorter side is brought to ``size`` and the centre cut out; n = 1. This is CLIP's own
    preprocessing, but that a side of six times ``size`` is averaged over blocks first (:func:`resampled`).

    ``native``: windows of untouched pixels, since resampling wipes out the traces a generator leaves. The longer side
    is divided into ``crops`` equal parts and a window centred on each; along the other side the windows stand at one
    third and two thirds in turn (a single window in the middle). Windows that would stick out are moved inside, so
    that a small image gives the same one several times. Only an image with a side shorter than ``size`` is enlarged,
    bicubic, until that side equals it. (Any size is cut, down to one pixel: it is :func:`read_image` that refuses files
    below ``MIN_SIDE``, so that degraded copies and faces may be smaller.)

    ``both``: the resized window first, then the native ones.
    """
    parts = []
    if config.mode != "native":
        parts.append(_resized(image, config.size, Image.Resampling[config.interpolation.upper()]))
    if config.mode != "resize":
        parts.append(_native(image, config.size, config.crops))
    return np.concatenate(parts)


def crop_with_face(
    image: Image.Image, config: CropConfig, faces: Sequence[Face] | None = None
) -> list[np.ndarray | None]:
    """All windows of an RGB image, (size, size, 3) uint8 each, one for each of ``config.windows``.

    That of a face is the largest one's, upright and resized; None where there is no face of ``SMALLEST`` pixels or
    more. ``faces`` are those of the image, the largest first; where they are None they are looked for if needed.
    """
    windows: list[np.ndarray | None] = list(crop(image, config))
    if config.face:
        found = finder()(image) if faces is None else faces
        windows.append(face_window(image, found[0], config.size) if found else None)
    return windows


def check_faces(config: CropConfig) -> None:
    """Raise CoritError where a window of a face is to be cut and faces cannot be looked for."""
    if config.face:
        finder()


def face_window(image: Image.Image, face: Face, size: int) -> np.ndarray | None:
    """A window (size, size, 3) uint8 of one face, None where that is smaller than ``SMALLEST`` pixels."""
    return None if face.side < SMALLEST else np.asarray(align(image, face, size))


def _resized(image: Image.Image, size: int, filter: Image.Resampling) -> np.ndarray:
    image = _resize_shorter_side(image, size, filter)
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))[None]


def _native(image: Image.Image, size: int, n: int) -> np.ndarray:
    if min(image.size) < size:
        image = _resize_shorter_side(image, size)
    windows = _windows(*image.size, size, n)
    return np.stack([np.asarray(image.crop((left, top, left + size, top + size))) for left, top in windows])


def _windows(width: int, height: int, size: int, n: int) -> list[tuple[int, int]]:
    """(left, top) corners by the rule in :func:`crop`."""

    def place(centre: float, side: int) -> int:
        return min(max(round(centre * side - size / 2), 0), side - size)

    corners = []
    for i in range(n):
        along = (i + 0.5) / n
        across = 0.5 if n == 1 else (1 + i % 2) / 3
        x, y = (along, across) if width >= height else (across, along)
        corners.append((place(x, width), place(y, height)))
    return corners


def _resize_shorter_side(
    image: Image.Image, size: int, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    image = _cut_strip(image)
    width, height = image.size
    long = int(size * max(image.size) / min(image.size))
    return resampled(image, (size, long) if width <= height else (long, size), filter)


def _cut_strip(image: Image.Image) -> Image.Image:
    """The middle of a very long strip: one pixel by a million, enlarged whole, would fill the memory."""
    limit = MAX_STRETCH * min(image.size)
    width, height = (min(side, limit) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
