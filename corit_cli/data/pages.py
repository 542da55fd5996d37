"""Frames of animated pictures and pages of documents: a few of them, as :mod:`corit_cli.data.video` takes them of
films.

What a file says of the number of its frames is not believed, and of those that are taken one is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from corit_cli.data.images import MIN_SIDE, upright
from corit_cli.data.opening import MAX_PIXELS, ImageError, Source, open_image, too_large
from corit_cli.data.video import Frame

#: Pixels of all frames together that are decoded, and frames that are walked over; of a longer animation the beginning
#: is looked at.
MOST_PIXELS = 1_000_000_000
MOST_FRAMES = 10_000
#: Frames that are taken at the most.
MOST_TAKEN = 512
#: Times that a file is gone through, where it holds fewer frames than it says, or pages that cannot be read.
_WALKS = 8


@dataclass
class Pages:
    """An animated picture or the pages of a file, ``count`` of them as it says; of pages no more than one over
    ``MOST_FRAMES`` may have been counted. ``seconds`` it lasts, as far as it was read; 0 for pages, which have no time.
    ``kind`` is animation or pages. ``warning`` says what was not looked at."""

    kind: str = "animation"
    count: int = 0
    seconds: float = 0.0
    warning: str | None = None

    @property
    def all(self) -> str:
        """How many there are, in words."""
        if self.kind == "pages":
            return f"{self.count} pages" if self.count <= MOST_FRAMES else f"more than {MOST_FRAMES} pages"
        return f"{self.count} frames"


def sample_pages(
    source: Source, frames: int = 32, rate: float | None = None, about: Pages | None = None
) -> Iterator[Frame]:
    """Frames spread evenly over an animated picture or the pages of a document and, with a ``rate``, those shown every
    1 / ``rate`` seconds as well: short ones and pages, which have no time, would else be judged by their first.

    A frame counts as shown from the time on that the ones before it take. Pages smaller than ``MIN_SIDE`` are passed
    over. Where the file ends early, or pages cannot be read, frames are spread anew over those that are there, so that
    they may come out of order. ``about`` is filled in on the way. Raises ImageError when not one can be read.
    """
    about = about or Pages()
    with open_image(source) as image:
        about.kind = "pages" if image.format in ("TIFF", "HEIF") else "animation"
        about.count = _count(image)
        frame = 1 if about.kind == "pages" else image.width * image.height  # pages need not be decoded to be passed
        reach = max(1, min(about.count, MOST_FRAMES, MOST_PIXELS // max(frame, 1)))
    cut = f"only the first {reach} of {about.all} were looked at" if reach < about.count else None
    walk = _Walk(about, reach, min(frames, MOST_TAKEN), rate)
    for _ in range(_WALKS):
        yield from walk.frames(source)
        if not walk.again:
            break
    about.warning = "; ".join(filter(None, (cut if walk.reach == reach else None, walk.stopped, walk.lacking))) or None
    if not walk.taken:
        raise ImageError(about.warning or "no page of it is large enough to judge")


def _count(image: Image.Image) -> int:
    """How many frames a file has. The pages of a TIFF are found one after another, each in more time than the one
    before it: no more than one over ``MOST_FRAMES`` is looked for."""
    if image.format != "TIFF":
        return image.n_frames
    for number in range(1, MOST_FRAMES + 1):
        try:
            image.seek(number)
        except EOFError:
            return number
    return MOST_FRAMES + 1


@dataclass
class _Walk:
    """The ways through the first ``reach`` frames of a file, of which as many as ``most`` are ``taken``. Small ones are
    ``passed`` over, pages ``missed`` that cannot be read; ``stopped`` says why nothing behind was looked at. ``again``
    is whether another way is wanted, since frames are fewer than was said or others can take the places of these."""

    about: Pages
    reach: int
    most: int
    rate: float | None
    taken: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
    missed: dict[int, Exception] = field(default_factory=dict)
    stopped: str | None = None
    again: bool = False

    def frames(self, source: Source) -> Iterator[Frame]:
        wanted, before, ended = self._wanted(), len(self.passed) + len(self.missed), 0
        pixels, seconds, due = 0, 0.0, 0.0
        with open_image(source) as image:
            for number in range(self.reach):
                take = False
                try:
                    image.seek(number)
                    size = image.width * image.height
                    take = number in wanted
                    if self.rate is not None and seconds >= due - 1e-6 and len(self.taken) < MOST_TAKEN:
                        take, due = number not in self.taken, due + 1 / self.rate
                    if take and (min(image.size) < MIN_SIDE or _is_preview(image)):
                        self.passed.add(number)
                        take = False
                    if take or self.about.kind == "animation":  # the next frame may be drawn on this one
                        if size > MAX_PIXELS:
                            raise ImageError(too_large(size))
                        pixels += size
                        if pixels > MOST_PIXELS:
                            raise ImageError("together they are too large")
                        image.load()
                    shown = upright(image, copy=True) if take else None
                except Exception as error:  # of a decoder
                    if number == 0:
                        raise
                    if not take or self.about.kind != "pages" or pixels > MOST_PIXELS:
                        self.stopped = f"only {number} of {self.about.all} can be read ({error})"
                        break
                    self.missed[number] = error  # the next one stands by itself
                    shown = None
                if shown is not None:
                    self.taken.add(number)
                    yield Frame(number, round(seconds, 3), shown, _duration(image))
                    del shown
                seconds += _duration(image)
                ended = number + 1
        self.about.seconds = round(seconds, 3)
        fewer, left_out = 0 < ended < self.reach, len(self.passed) + len(self.missed) > before
        self.reach = ended
        self.again = (fewer or left_out) and bool(self._wanted())

    def _wanted(self) -> set[int]:
        """Frames spread evenly over those that there are, or over those that were not tried where some were left out,
        with the first of them while nothing could be taken."""
        left, most = list(range(self.reach)), self.most
        if tried := self.passed | self.missed.keys():
            left, most = [number for number in left if number not in self.taken | tried], most - len(self.taken)
        first = left[:1] if tried and not self.taken else []
        most -= len(first)
        return {left[(2 * i + 1) * len(left) // (2 * most)] for i in range(most) if left}.union(first) - self.taken

    @property
    def lacking(self) -> str | None:
        """Which pages cannot be read, in words."""
        if len(self.missed) == 1:
            ((number, error),) = self.missed.items()
            return f"page {number + 1} of {self.about.count} cannot be read ({error})"
        first = [str(number + 1) for number in sorted(self.missed)[:5]]
        others = " and others" if len(self.missed) > len(first) else ""
        return f"pages {', '.join(first)}{others} of {self.about.count} cannot be read" if first else None


def _duration(image: Image.Image) -> float:
    """How long the current frame is shown, in seconds; 0 for a page."""
    duration = image.info.get("duration", 0)
    return duration / 1000 if isinstance(duration, int | float) and 0 <= duration < 1e7 else 0.0


def _is_preview(image: Image.Image) -> bool:
    """Whether a page of a TIFF is a smaller copy of another."""
    return bool(int(getattr(image, "tag_v2", {}).get(254, 0)) & 1)
