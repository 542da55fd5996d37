"""One verdict on many frames: of videos, animated pictures and pages of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from corit_cli.data.faces import Face
from corit_cli.data.tracks import follow
from corit_cli.data.video import Frame
from corit_cli.detection.calibration import Verdicts
from corit_cli.detection.verdicts import FaceVerdict, Moment, VideoVerdict, settle, trimmed_mean
from corit_cli.errors import CoritError


@dataclass
class Shown:
    """A frame that was scored: the faces in it, and the logits of the whole, unless faces alone are scored, and of
    every face."""

    frame: Frame
    faces: list[Face]
    logits: list[float]


@dataclass(frozen=True)
class Reel:
    """What is known of a film beside its frames, as :class:`~corit_cli.detection.verdicts.VideoVerdict` has it."""

    kind: str
    frames: int
    duration: float
    fps: float
    incomplete: str | None = None


def judge_film(
    seen: Sequence[Shown], reel: Reel, faces: str, of_pictures: Verdicts, of_faces: Verdicts
) -> tuple[float, str, VideoVerdict]:
    """Probability and verdict on a film, and what stands behind them.

    The probability is that of the trimmed mean of the frames' logits, in an animated picture by the time they are
    shown; with ``faces`` only that of the most suspicious person. A file called real of which a part stands out, or a
    person in it, is left uncertain. Raises CoritError where nothing was scored.
    """
    tracks = follow([[face.box for face in one.faces] for one in seen]) if faces != "off" else []
    owner = {place: track.id for track in tracks for place in track.positions}
    heard: dict[int, list[float]] = {track.id: [] for track in tracks}
    moments, whole = [], []
    for place, one in enumerate(seen):
        rest = iter(one.logits)
        if faces != "only":
            whole.append(next(rest))
        verdicts = []
        for k, (face, logit) in enumerate(zip(one.faces, rest, strict=True)):
            heard[owner[place, k]].append(logit)
            verdicts.append(judge_face(face, logit, of_faces, owner[place, k]))
        probability = None if faces == "only" else reported(whole[-1], of_pictures)
        moments.append(Moment(one.frame.number, round(one.frame.seconds, 3), probability, tuple(verdicts)))
    by_track = {track: reported(trimmed_mean(logits), of_faces) for track, logits in heard.items()}
    film = VideoVerdict(reel.duration, reel.fps, tuple(moments), by_track, reel.incomplete, reel.kind, reel.frames)
    if faces == "only":
        if not by_track:
            raise CoritError("no face found")
        probability = max(by_track.values())
        return probability, of_faces.thresholds.verdict(probability), film
    shown = [one.frame.shown for one in seen]
    probability = reported(trimmed_mean(whole, shown if any(shown) else None), of_pictures)
    others = list(map(of_faces.thresholds.verdict, by_track.values()))
    others += ["fake"] * film.stands_out(of_pictures.thresholds)
    return probability, settle(of_pictures.thresholds.verdict(probability), others), film


def reported(logit: float, judged: Verdicts) -> float:
    """The probability that a logit is calibrated to, as it is reported."""
    return round(float(judged.calibration(torch.tensor([logit]))), 6)


def judge_face(face: Face, logit: float, judged: Verdicts, track: int | None = None) -> FaceVerdict:
    """The detector's opinion of a face, of which its head says ``logit``."""
    box, probability = tuple(round(side) for side in face.box), reported(logit, judged)
    return FaceVerdict(box, round(face.score, 3), probability, judged.thresholds.verdict(probability), track)
