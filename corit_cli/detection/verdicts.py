"""What a detector says of a file: plain records, free of torch, that every output is made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corit_cli.data.declared import Declared
    from corit_cli.data.provenance import Provenance
    from corit_cli.data.stored import State
    from corit_cli.detection.calibration import Thresholds

#: Mild degradations (``data/robustness.py``) that a verdict should survive: what befalls a picture that is passed on.
MILD = ("jpeg-90", "jpeg-75", "webp-75", "resize-0.75", "resize-0.5", "blur-0.5")
#: Share of a video's frames left out at either end before their scores are averaged.
TRIM = 0.1
#: Of ``AMONG`` frames of a video that were scored so many in a row, all called fake, that no verdict of "real" passes
#: over; of more as large a share, since their neighbours are more alike, and of few one in ``FEW``, two at least.
STRETCH, AMONG, FEW = 3, 32, 4


@dataclass(frozen=True)
class Stability:
    """Probabilities of mildly degraded copies, by the names in ``MILD``, their ``spread`` (largest minus smallest, the
    original's among them), and whether the verdict ``flips``: some copy's is the opposite, or most copies' another."""

    probabilities: dict[str, float]
    spread: float
    flips: bool


@dataclass(frozen=True)
class FaceVerdict:
    """A face: ``box`` (left, top, right, bottom) in pixels, the finder's ``score``, and the detector's opinion of it.
    In a video ``track`` numbers the person it was followed as."""

    box: tuple[int, int, int, int]
    score: float
    probability: float
    verdict: str
    track: int | None = None


@dataclass(frozen=True)
class Moment:
    """A frame of a video: its number, its time in seconds, and what was said of it and of the faces in it."""

    frame: int
    seconds: float
    probability: float | None
    faces: tuple[FaceVerdict, ...] = ()


@dataclass(frozen=True)
class VideoVerdict:
    """Everything behind the verdict on a video, or on an animated picture or a file with several pages (``kind`` is
    video, animation or pages). ``frames`` is how many there are, ``moments`` those that were scored: blank ones are
    not. ``duration`` and ``fps`` are 0 for pages. ``incomplete`` says what could not be read. ``tracks`` holds each
    followed face's probability, by track number."""

    duration: float
    fps: float
    moments: tuple[Moment, ...]
    tracks: dict[int, float]
    incomplete: str | None = None
    kind: str = "video"
    frames: int = 0

    def stands_out(self, thresholds: Thresholds) -> bool:
        """Whether too much of it is called fake for the whole to be called real: a stretch of a video, since a frame or
        two of many mean nothing, and a single frame or page of others, which are few and need not belong together."""
        scored, run, enough = len(self.moments), 0, 1
        if self.kind == "video":
            few = min(STRETCH, max(2, ceil(scored / FEW)))
            enough = max(few, ceil(scored * STRETCH / AMONG))
        for moment in self.moments:
            called = moment.probability is not None and thresholds.verdict(moment.probability) == "fake"
            run = run + 1 if called else 0
            if run == enough:
                return True
        return False

    def suspicious(self, most: int = 3) -> list[Moment]:
        """The moments with the highest probability, in order of time."""
        scored = [m for m in self.moments if peak(m) is not None]
        return sorted(sorted(scored, key=lambda m: -(peak(m) or 0.0))[:most], key=lambda m: m.frame)


@dataclass(frozen=True)
class Prediction:
    """The verdict on one file.

    ``probability`` is the calibrated probability of being fake, for a file that is as likely fake as real beforehand;
    ``verdict`` is real, fake or uncertain. Both are None when ``error`` says why the file could not be scored.
    ``seconds`` is what decoding and the model took. ``notes`` are on faults of the file that were looked past.
    ``state`` is that of the file before it was read, where it has a path (``data/stored.py``).
    ``parts`` says of an image what each reading (hri, native, cgp) added to the log odds of its being fake, and
    ``degraded`` how likely it is, from 0 to 1, that it was saved again, shrunk or otherwise degraded, if the detector
    tells. The rest is there when it was asked for.
    """

    path: str
    probability: float | None
    verdict: str | None
    seconds: float
    error: str | None = None
    notes: tuple[str, ...] = ()
    parts: dict[str, float] | None = None
    faces: tuple[FaceVerdict, ...] | None = None
    stability: Stability | None = None
    video: VideoVerdict | None = None
    provenance: Provenance | None = None
    degraded: float | None = None
    state: State | None = None

    @property
    def of_faces(self) -> bool:
        """Whether the probability is that of the most suspicious face: nothing else was scored."""
        if self.video is not None:
            return all(moment.probability is None for moment in self.video.moments)
        return self.parts is None and bool(self.faces)

    @property
    def declared(self) -> Declared | None:
        """What the file declares itself to be."""
        return self.provenance and self.provenance.declared


def peak(moment: Moment) -> float | None:
    """The highest probability of a frame and the faces in it; None where nothing was scored."""
    scores = [face.probability for face in moment.faces] + [p for p in (moment.probability,) if p is not None]
    return max(scores, default=None)


def trimmed_mean(values: Sequence[float], shares: Sequence[float] | None = None) -> float:
    """The mean without the ``TRIM`` largest and smallest: a few odd frames decide nothing. With ``shares`` (of the time
    that frames are shown) values count by these, the ends being cut by them too."""
    if shares is None:
        ordered = sorted(values)
        cut = int(TRIM * len(ordered))
        return fmean(ordered[cut : len(ordered) - cut])
    pairs = sorted(zip(values, shares, strict=True))
    total = sum(shares)
    ends = [end / total for end in accumulate(share for _, share in pairs)]
    kept = [max(0.0, min(end, 1 - TRIM) - max(begin, TRIM)) for begin, end in pairwise([0.0, *ends])]
    return fmean((value for value, _ in pairs), kept)


def flips(verdict: str, others: Sequence[str]) -> bool:
    """Whether ``verdict`` does not survive: another is its opposite, or most differ from it."""
    opposite = {"real": "fake", "fake": "real"}.get(verdict)
    return opposite in others or 2 * sum(other != verdict for other in others) > len(others)


def settle(verdict: str, faces: Iterable[str], stability: Stability | None = None) -> str:
    """The ``verdict`` on a whole picture in view of those on its ``faces``: never made surer by them, only less sure.

    A face called fake in a picture called real makes it uncertain, and so does a verdict that flips.
    """
    if stability is not None and stability.flips:
        return "uncertain"
    return "uncertain" if verdict == "real" and "fake" in faces else verdict
