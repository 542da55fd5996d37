"""What happens to images on their way to us: compression, blur, rescaling, noise, trimming, and people's edits.

Used to harden training and to measure robustness. Every function takes and returns an RGB image and depends on nothing
but its arguments.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from corit_cli.data import edits
from corit_cli.data.opening import MAX_PIXELS, ImageError
from corit_cli.errors import CoritError


def jpeg(image: Image.Image, quality: float) -> Image.Image:
    """Through JPEG and back at libjpeg's ``quality`` (1 to 100, rounded), chroma halved along both sides (4:2:0)."""
    return _round_trip(image, "JPEG", quality=round(quality), subsampling="4:2:0")


def webp(image: Image.Image, quality: float) -> Image.Image:
    """Through lossy WebP and back at ``quality`` (0 to 100, rounded); the format ends at 16383 pixels a side."""
    return _round_trip(image, "WEBP", quality=round(quality))


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur, ``sigma`` in pixels."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Both sides times ``factor``, at least one pixel, by antialiased bicubic; the image stays at its new size.

    Raises ImageError where that would be more than ``MAX_PIXELS``.
    """
    width, height = (max(1, round(side * factor)) for side in image.size)
    if width * height > max(MAX_PIXELS, image.width * image.height):
        raise ImageError(f"{factor:g} times {image.width} x {image.height} pixels are too many")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def fit(image: Image.Image, side: float) -> Image.Image:
    """The longer side brought down to ``side`` pixels (rounded), as messengers do; a smaller image stays as it is."""
    limit = round(side)
    return image if max(image.size) <= limit else resize(image, limit / max(image.size))


def noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise on every channel, ``sigma`` in 8-bit levels."""
    pixels = np.asarray(image, np.float32)
    noisy = pixels + sigma * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8))


def crop(image: Image.Image, fraction: float) -> Image.Image:
    """The middle of the image, ``fraction`` of each side, at least one pixel."""
    width, height = (max(1, round(side * fraction)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _round_trip(image: Image.Image, format: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **options)
    except (OSError, ValueError):
        raise ImageError(f"{image.width} x {image.height} pixels are too many for a {format} file") from None
    return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class Kind:
    """A kind of degradation: what applies it, the range its strength is drawn from by default, and what it may be.

    ``function`` takes an image and a strength and, where ``random``, a generator of random numbers.
    """

    function: Callable[..., Image.Image]
    low: float
    high: float
    least: float
    most: float
    random: bool = False


DEGRADATIONS: dict[str, Kind] = {
    "jpeg": Kind(jpeg, 60, 98, 1, 100),
    "webp": Kind(webp, 60, 98, 0, 100),
    "blur": Kind(blur, 0.3, 1.5, 0, 100),
    "resize": Kind(resize, 0.5, 1.5, 0.01, 10),
    "fit": Kind(fit, 640, 2048, 1, 65535),
    "noise": Kind(noise, 1, 8, 0, 255, random=True),
    "crop": Kind(crop, 0.6, 0.95, 0.01, 1),
    "tonemap": Kind(edits.tonemap, 1, 4, 0.1, 40),
    "grade": Kind(edits.grade, 0.2, 0.6, 0, 1, random=True),
    "grey": Kind(edits.grey, 1, 1, 0, 1),
    "portrait": Kind(edits.portrait, 0.5, 2, 0, 20),
    "paint": Kind(edits.paint, 10, 60, 1, 200),
    "collage": Kind(edits.collage, 2, 3, 1, 8),
    "screenshot": Kind(edits.screenshot, 0.6, 1.25, 0.01, 4, random=True),
    "rescan": Kind(edits.rescan, 0.5, 1.5, 0, 4, random=True),
}


@dataclass(frozen=True)
class Degradation:
    """One kind of degradation with the range its strength is drawn from, ``low`` to ``high``.

    Raises CoritError for an unknown name or a range that is empty or makes no sense for it.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.name not in DEGRADATIONS:
            raise CoritError(f"unknown degradation {self.name!r}: give one of {', '.join(DEGRADATIONS)}")
        kind = DEGRADATIONS[self.name]
        if not kind.least <= self.low <= self.high <= kind.most:
            given = f"{self.name} from {self.low:g} to {self.high:g}"
            raise CoritError(f"{given}: give a low and a high end within {kind.least:g} to {kind.most:g}")

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The RGB ``image``, degraded by a strength drawn uniformly from the range."""
        kind = DEGRADATIONS[self.name]
        strength = rng.uniform(self.low, self.high)
        return kind.function(image, strength, rng) if kind.random else kind.function(image, strength)


def parse_degradation(text: str) -> Degradation:
    """Read ``jpeg`` (the default range), ``jpeg:80`` (one strength) or ``jpeg:70-95``. Raises CoritError."""
    name, colon, strength = text.strip().partition(":")
    if not colon:
        kind = DEGRADATIONS.get(name)
        return Degradation(name, kind.low, kind.high) if kind else Degradation(name, 0, 0)
    match = re.fullmatch(r"(\d*\.?\d+)(?:-(\d*\.?\d+))?", strength)
    if match is None:
        raise CoritError(f"cannot read {text!r}: write it as jpeg, jpeg:80 or jpeg:70-95")
    return Degradation(name, float(match[1]), float(match[2] or match[1]))
