"""Pixels of any kind as 8-bit RGB, in the colours that a colour-managed viewer shows."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageStat

#: The largest standard deviation, over all pixels of a colour, of a picture that shows nothing.
FLAT = 2.0
_PROFILED = ("RGB", "CMYK", "L", "LAB")  # modes that ICC profiles are applied to as they are


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB in sRGB; transparency is laid over white, deeper greyscale brought to 8 bits.
    A colour profile that cannot be used is passed over."""
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


def is_flat(image: Image.Image) -> bool:
    """Whether an RGB image shows nothing: no colour varies by more than ``FLAT`` levels. Only where a few pixels say so
    are all of them looked at."""
    thinned = image.resize([min(side, 128) for side in image.size], Image.Resampling.NEAREST)
    return all(max(ImageStat.Stat(one).stddev) < FLAT for one in (thinned, image))


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
    of 1 (floats only), 255 and 65535 that no value exceeds, of floats by more than a hundredth; other values, or
    negative ones, are stretched to 0..255.
    """
    whites = {"u": (65535,), "i": (255, 65535), "f": (1, 255, 65535)}[values.dtype.kind]
    spare = 1.01 if values.dtype.kind == "f" else 1.0  # filters overshoot

    def finite(rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)

    # Band by band: as float64 the largest image would take gigabytes.
    bands = np.array_split(values, min(len(values), -(-values.size // 4_000_000)))
    low, high = min(float(finite(b).min()) for b in bands), max(float(finite(b).max()) for b in bands)
    black, white = 0.0, next((w for w in whites if low >= 0 and high <= spare * w), None)
    if white is None:
        black, white = low, (high - low) or 1
    return np.concatenate([np.rint((finite(b) - black) * (255 / white)).clip(0, 255).astype(np.uint8) for b in bands])
