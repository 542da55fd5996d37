"""Frames of animated pictures and pages of documents: a few of them, as :mod:`corit_cli.data.video` takes them of
films."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from corit_cli.data.images import MIN_SIDE, ImageError, Source, open_image, upright
from corit_cli.data.video import Frame

#: Pixels of all frames together that are decoded; of a longer animation the beginning is looked at.
MOST_PIXELS = 1_000_000_000


@dataclass
class Pages:
    """The frames of an animated picture or the pages of a file, ``count`` of them. ``seconds`` it lasts, as far as
    it was read; 0 for pages, which have no time. ``kind`` is animation or pages. ``warning`` says what was not
    looked at."""

    kind: str
    count: int
    frames: list[Frame]
    seconds: float = 0.0
    warning: str | None = None


def sample_pages(source: Source, frames: int = 32, rate: float | None = None) -> Pages:
    """Frames spread evenly over an animated picture, or those shown every 1 / ``rate`` seconds; pages of a document.

    A frame counts as shown from the time on that the ones before it take. Pages smaller than ``MIN_SIDE`` are passed
    over. Raises ImageError when not one can be read.
    """
    with open_image(source) as image:
        count = image.n_frames
        within = max(1, min(count, MOST_PIXELS // max(image.width * image.height, 1)))
        wanted = {(2 * i + 1) * within // (2 * frames) for i in range(frames)}
        found, seconds, due, warning = [], 0.0, 0.0, None
        if within < count:
            warning = f"only the first {within} of {count} frames were looked at"
        for number in range(within):
            try:
                image.seek(number)
                take = number in wanted if rate is None else seconds >= due - 1e-6
                if take and min(image.size) >= MIN_SIDE and not _is_preview(image):
                    found.append(Frame(number, round(seconds, 3), upright(image, copy=True)))
                    due += 0 if rate is None else 1 / rate
                else:
                    image.load()  # the next frame may be drawn on this one
            except Exception as error:  # of a decoder
                if not found:
                    raise
                warning = f"only {number} of {count} frames can be read ({error})"
                break
            seconds += _duration(image)
        if not found:
            raise ImageError("no page of it is large enough to judge")
        kind = "pages" if image.format in ("TIFF", "HEIF") else "animation"
        return Pages(kind, count, found, round(seconds, 3), warning)


def _duration(image: Image.Image) -> float:
    """How long the current frame is shown, in seconds; 0 for a page."""
    duration = image.info.get("duration", 0)
    return duration / 1000 if isinstance(duration, int | float) and 0 <= duration < 1e7 else 0.0


def _is_preview(image: Image.Image) -> bool:
    """Whether a page of a TIFF is a smaller copy of another."""
    return bool(int(getattr(image, "tag_v2", {}).get(254, 0)) & 1)
