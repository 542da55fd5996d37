"""Numbers and texts as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from corit_cli.data.declared import CAMERA

if TYPE_CHECKING:
    from corit_cli.detection.verdicts import Moment, Prediction, VideoVerdict


def percent(probability: float) -> str:
    """A probability with one decimal; never quite 0% or 100%."""
    if probability < 0.0005:
        return "<0.1%"
    return ">99.9%" if probability >= 0.9995 else f"{probability:.1%}"


def share(rate: float) -> str:
    """A measured rate with two digits."""
    return f"{rate:.1%}" if rate < 0.0995 else f"{rate:.0%}"


def at(fraction: float) -> str:
    """A place along an axis as CSS and SVG write it, kept inside."""
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def clock(seconds: float) -> str:
    """A time stamp: 0:07.4, 12:30.0, 1:02:03.5."""
    tenths = round(10 * max(seconds, 0.0))
    minutes, tenths = divmod(tenths, 600)
    rest = f"{minutes % 60:02d}:{tenths / 10:04.1f}"
    return f"{minutes // 60}:{rest}" if minutes >= 60 else rest.removeprefix("0")


def looked_at(film: VideoVerdict) -> str:
    """How much of a film, an animated picture or a file with several pages was scored."""
    seen, unit = len(film.moments), "page" if film.kind == "pages" else "frame"
    if film.kind == "video":
        return f"{seen} frames of {clock(film.duration)}"
    of = f"{seen} of {film.frames} {unit}s" if film.frames > 1 else f"1 {unit}"
    return f"{of}, {clock(film.duration)}" if film.duration else of


def has_times(film: VideoVerdict) -> bool:
    """Whether its moments have times: pages have none, nor have frames that last no time."""
    return film.kind == "video" or bool(film.duration)


def place(film: VideoVerdict, moment: Moment) -> str:
    """Where a moment of a film is found: its time, or its page."""
    if not has_times(film):
        return f"{'page' if film.kind == 'pages' else 'frame'} {moment.frame + 1}"
    return f"at {clock(moment.seconds)}"


def together(p: Prediction) -> str | None:
    """What the file declares and what its pixels say, where the one bears on the other: a photograph that names its
    camera and looks real says nothing new."""
    if p.declared is None or (p.declared.kind == CAMERA and p.verdict != "fake"):
        return None
    return f"file declares: {p.declared.words}; pixels: {p.verdict or 'not scored'}"


def file_size(count: int) -> str:
    """Bytes exactly, and rounded beside where that is easier to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count:,} bytes ({count / unit:.1f} {name})"
    return f"{count:,} bytes"


def posterior(probability: float, prior: float) -> float:
    """The probability of a fake where a share ``prior`` of comparable files is fake, by Bayes' rule, from one that
    assumes a half."""
    fake, real = probability * prior, (1 - probability) * (1 - prior)
    return fake / (fake + real)
