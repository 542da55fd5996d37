"""A video in a report: its scores against time, the faces followed through it, its most suspicious moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from corit_cli.detection.verdicts import peak
from corit_cli.report.pictures import Picture, cut_out, outline, picture
from corit_cli.report.words import clock

if TYPE_CHECKING:
    from corit_cli.detection.calibration import Thresholds
    from corit_cli.detection.verdicts import Moment, VideoVerdict

MOMENT = 480  # longer side of a moment's picture in pixels
MARKS = 6  # shapes that tell faces in a video apart
MOST_POINTS = 300  # of one line of a timeline, and rows of its table
T = TypeVar("T")


@dataclass
class Track:
    """A followed face: how often it was seen, and its marks (time, probability) as shares of the axes."""

    number: int  # from 1, as faces are numbered everywhere on the page
    probability: float | None
    verdict: str | None
    seen: int = 0
    points: list[tuple[float, float]] = field(default_factory=list)
    thumbnail: Picture | None = None

    @property
    def mark(self) -> int:
        return (self.number - 1) % MARKS + 1


def timeline(
    video: VideoVerdict, thresholds: Thresholds, frames: Mapping[int, Image.Image], faces: Thresholds
) -> dict[str, Any]:
    end = max([video.duration, *(m.seconds for m in video.moments)], default=0.0) or 1.0
    whole = [(m.seconds / end, m.probability) for m in video.moments if m.probability is not None]
    tracks: dict[int, Track] = {}
    for number, probability in sorted(video.tracks.items()):
        tracks[number] = Track(number + 1, probability, faces.verdict(probability))
    for moment in video.moments:
        for face in moment.faces:
            if face.track is None:
                continue
            track = tracks.setdefault(face.track, Track(face.track + 1, None, None))
            track.seen += 1
            track.points.append((moment.seconds / end, face.probability))
            if track.thumbnail is None and moment.frame in frames:
                track.thumbnail = cut_out(frames[moment.frame], face.box)
    for track in tracks.values():
        track.points = thin(track.points, _probability)
    points = thin(whole, _probability)
    scores = [p for _, p in whole] + [face.probability for moment in video.moments for face in moment.faces]
    return {
        "points": points,
        "segments": list(pairwise(points)),
        "tracks": sorted(tracks.values(), key=lambda track: track.number),
        "ticks": [(second / end, clock(second).removesuffix(".0")) for second in ticks(end)],
        "levels": levels(thresholds.real, thresholds.fake),
        "frames": len(video.moments),
        "span": [video.moments[k].seconds for k in (0, -1)] if video.moments else None,
        "rows": thin(video.moments, lambda moment: peak(moment) or 0.0),
        "lowest": min(scores, default=None),
        "highest": max(scores, default=None),
        "moments": [_moment(i, m, end, frames) for i, m in enumerate(video.suspicious(), 1)],
    }


def _moment(number: int, moment: Moment, end: float, frames: Mapping[int, Image.Image]) -> dict[str, Any]:
    image = frames.get(moment.frame)
    size = image.size if image is not None else None
    return {
        "number": number,
        "at": moment.seconds / end,
        "said": moment,
        "peak": peak(moment),
        "picture": None if image is None else picture(image, MOMENT),
        "outlines": [] if size is None else [(f.verdict, outline(f.box, size)) for f in moment.faces],
    }


def _probability(point: tuple[float, float]) -> float:
    return point[1]


def thin(points: Sequence[T], probability: Callable[[T], float], most: int = MOST_POINTS) -> Sequence[T]:
    """At most ``most`` of the points, in order: of neighbours the most probable."""
    if len(points) <= most:
        return points
    cuts = [i * len(points) // most for i in range(most + 1)]
    return [max(points[a:b], key=probability) for a, b in pairwise(cuts)]


def ticks(end: float) -> list[float]:
    """Round times from 0 to ``end`` in seconds, at most six."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)
    step = next((s for s in steps if end / s <= 5), 3600 * math.ceil(end / 5 / 3600))
    return [i * step for i in range(int(end / step + 1e-9) + 1)]


def levels(real: float, fake: float) -> list[float]:
    """Probabilities to write beside an axis: the thresholds, then 0 and 1, each only where there is room."""
    chosen: list[float] = []
    for level in (fake, real, 1.0, 0.0):
        if all(abs(level - other) >= 0.09 for other in chosen):
            chosen.append(level)
    return sorted(chosen)
