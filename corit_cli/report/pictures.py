"""Pictures that stand in a page itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

THUMBNAIL = 160  # longer side of a small picture in pixels
QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, longest: int) -> Picture:
    """``image`` shrunk until its longer side is ``longest`` or less, without anything that its file carried along."""
    scale = min(1.0, longest / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    drawn = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGB")
    drawn.info.clear()
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Picture("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), *drawn.size)


def cut_out(image: Image.Image, box: tuple[int, int, int, int]) -> Picture | None:
    """The face in ``box`` with a little around it; None where the box lies outside."""
    left, top, right, bottom = box
    margin = round(0.15 * max(right - left, bottom - top))
    left, top = max(0, left - margin), max(0, top - margin)
    right, bottom = min(image.width, right + margin), min(image.height, bottom + margin)
    return picture(image.crop((left, top, right, bottom)), THUMBNAIL) if left < right and top < bottom else None


def outline(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width and height of ``box`` as shares of a picture of ``size`` (width, height), cut at its edges."""
    left, right = (min(max(x / size[0], 0.0), 1.0) for x in box[::2])
    top, bottom = (min(max(y / size[1], 0.0), 1.0) for y in box[1::2])
    return left, top, right - left, bottom - top
