"""Following faces from one sampled frame of a video to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Track:
    """What is taken for one face through a video: ``positions`` are (index of the sampled frame, index of the face in
    that frame), the frames rising."""

    id: int
    positions: list[tuple[int, int]] = field(default_factory=list)


def follow(frames: Iterable[Sequence[Box]], *, reach: float = 1.0, patience: int = 2) -> list[Track]:
    """Link the boxes found in each of the sampled ``frames`` into tracks. Every box is in exactly one.

    Between a track's last box and a new one lies a distance: that of their centres, in units of their mean side (the
    square root of the geometric mean of their areas), plus the absolute logarithm of the ratio of their sides. Pairs
    are linked from the least distance up, as long as it is below ``reach``; each track takes one box a frame, each box
    goes to one track, and a box left over starts a track. A track that has missed more than ``patience`` frames in a
    row is closed. Only boxes are compared, so a cut to another face in the same place is not noticed.
    """
    tracks: list[Track] = []
    live: dict[int, tuple[int, Box]] = {}  # track -> its last frame and box
    for index, boxes in enumerate(frames):
        live = {id: last for id, last in live.items() if index - last[0] <= patience + 1}
        pairs = sorted((distance(last[1], box), id, i) for id, last in live.items() for i, box in enumerate(boxes))
        owner: dict[int, int] = {}  # box -> track
        for far, id, i in pairs:
            if far < reach and i not in owner and id not in owner.values():
                owner[i] = id
        for i, box in enumerate(boxes):
            if i not in owner:
                owner[i] = len(tracks)
                tracks.append(Track(len(tracks)))
            tracks[owner[i]].positions.append((index, i))
            live[owner[i]] = (index, box)
    return tracks


def distance(a: Box, b: Box) -> float:
    """How unlike two boxes are in place and size, 0 for the same box: see :func:`follow`. Symmetric, and the same for
    boxes that are both scaled or shifted."""
    side_a, side_b = _side(a), _side(b)
    apart = math.dist(_centre(a), _centre(b)) / math.sqrt(side_a * side_b)
    return apart + abs(math.log(side_a / side_b))


def _side(box: Box) -> float:
    return math.sqrt((box[2] - box[0]) * (box[3] - box[1]))


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
