"""A heatmap laid over its photograph, with a colour bar and the verdict beneath. Pillow alone draws it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from corit_cli.files import content_sha256, write_atomically
from corit_cli.texts import printable, without_secrets
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.heatmap import Heatmap

OWN_SIZE = 4096  # an image up to this side is drawn at its own size
SHRUNK = 2048  # the longer side at which a larger one is drawn
NARROWEST = 360  # pixels that the text beneath needs

#: Under which keyword a heatmap has the SHA-256 of the file it is of.
DIGEST = "Source SHA-256"
#: What a reader of the picture must know.
APART = "The map has no part in the verdict"

# From hardly any evidence to the strongest; equally dark steps, told apart by the colour-blind too.
_COLOURS = np.array([(255, 214, 120), (244, 128, 40), (190, 20, 30)], np.float32)
_STRONGEST = 0.72  # how much of the photograph the strongest evidence hides
_INK, _PAPER = (34, 34, 34), (255, 255, 255)


def paint(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """``heatmap`` over the RGB ``image`` that it was found in.

    The photograph is drawn in grey, at its own size up to ``OWN_SIZE`` a side. Colours begin at what
    one patch in ten of untouched photographs exceeds and are strongest at what one in a hundred does: the scale is the
    same for all images. What no window covered stays dark.
    """
    shrink = SHRUNK / max(image.size) if max(image.size) > OWN_SIZE else 1.0
    size = tuple(max(1, round(side * shrink)) for side in image.size)
    values, covered = heatmap.resized(size)
    grey = np.asarray(image.resize(size).convert("L"), np.float32)[..., None]  # (h, w, 1)
    picture = np.where(covered[..., None], _washed(grey), 0.35 * grey).repeat(3, axis=2)
    colours, weight = colourise((values - heatmap.common) / (heatmap.rare - heatmap.common))
    picture += (weight * covered)[..., None] * (colours - picture)
    return Image.fromarray(np.rint(picture).astype(np.uint8))


def overlay(image: Image.Image, heatmap: Heatmap, probability: float, verdict: str) -> Image.Image:
    """As :func:`paint`, with a legend beneath: verdict, colours, and what they mean."""
    gaps = bool((~heatmap.covered).mean() > 0.02)
    title = f"{verdict}, p(fake) {probability:.1%}"
    return _with_legend(paint(image, heatmap), title, gaps)


def save_overlay(
    image: Image.Image, heatmap: Heatmap, probability: float, verdict: str, path: Path, source: str
) -> None:
    """Write :func:`overlay` to ``path`` as a PNG that says what its ``source`` is called and what is in it. Raises
    CoritError when that cannot be written."""
    drawn, about = overlay(image, heatmap, probability, verdict), PngInfo()
    about.add_itxt("Source", printable(os.path.basename(without_secrets(source))))
    about.add_text(DIGEST, content_sha256(Path(source)) or "")
    about.add_text("Software", f"corit {__version__}")
    write_atomically(path, lambda temporary: drawn.save(temporary, format="PNG", pnginfo=about))


def is_overlay_of(path: Path, source: str) -> bool:
    """Whether a heatmap of what is in the file ``source`` is at ``path``."""
    kept = _digest(path)
    return bool(kept) and kept == content_sha256(Path(source))


def is_overlay(path: Path) -> bool:
    """Whether a heatmap that :func:`save_overlay` wrote is at ``path``."""
    return _digest(path) is not None


def _digest(path: Path) -> str | None:
    """What a heatmap at ``path`` says of what it was drawn of; None where none is."""
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=("PNG",)) as there:
            return there.info.get(DIGEST)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def colourise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (h, w), clipped to 0..1, to colours (h, w, 3) and how much they cover (h, w)."""
    strength = values.clip(0, 1)
    colours = np.stack([np.interp(strength, (0, 0.5, 1), stops) for stops in _COLOURS.T], -1)
    return colours.astype(np.float32), _STRONGEST * strength


def _washed(grey: Any) -> Any:
    """A little paler, so that colours stay legible over shadows."""
    return 40 + 0.8 * grey


# --- legend ---------------------------------------------------------------------------------------


def _with_legend(picture: Image.Image, title: str, gaps: bool) -> Image.Image:
    width = max(picture.width, NARROWEST)
    text = max(13, min(width // 36, 40))  # height of the letters, in pixels
    large, small = ImageFont.load_default(text * 1.3), ImageFont.load_default(text)
    edge, bar = text, int(1.1 * text)
    lines = 3 if gaps else 2
    height = int(edge + 1.3 * text + 0.8 * text + bar + 0.5 * text + lines * 1.35 * text + edge)
    # The legend is in plain words; the scale behind them is that of :func:`paint`.
    canvas = Image.new("RGB", (width, picture.height + height), _PAPER)
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    y = picture.height + edge
    draw.text((width // 2, y), title, _INK, large, anchor="ma")
    y += int(2.1 * text)
    span = min(width - 2 * edge, 24 * text)
    left = (width - span) // 2
    canvas.paste(_bar(span, bar), (left, y))
    draw.rectangle((left, y, left + span - 1, y + bar - 1), outline=_INK)
    y += bar + int(0.5 * text)
    draw.text((left, y), "a little unusual", _INK, small, anchor="la")
    draw.text((left + span, y), "very unusual texture", _INK, small, anchor="ra")
    y += int(1.35 * text)
    draw.text((width // 2, y), APART, _INK, small, anchor="ma")
    if gaps:
        draw.text((width // 2, y + int(1.35 * text)), "dark: not looked at", _INK, small, anchor="ma")
    return canvas


def _bar(width: int, height: int) -> Image.Image:
    """The colours as they look over middle grey, from 0 to 1."""
    colours, weight = colourise(np.linspace(0, 1, width, dtype=np.float32)[None].repeat(height, 0))
    grey = np.full_like(colours, _washed(128))
    return Image.fromarray(np.rint(grey + weight[..., None] * (colours - grey)).astype(np.uint8))
