"""What a report says of one file, and of the detector that judged it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from PIL import Image

from corit_cli.data.images import inspect
from corit_cli.data.opening import ImageError
from corit_cli.data.stored import Buffer, Stored, opened
from corit_cli.model.settings import VIEW_WORDS
from corit_cli.report.drawn import CHANGED, changed
from corit_cli.report.meaning import meaning, next_steps, of_several_faces
from corit_cli.report.pictures import Picture, cut_out, outline, picture
from corit_cli.report.timeline import levels, timeline
from corit_cli.report.words import clock, file_size, has_times, looked_at, percent, place, posterior, together
from corit_cli.texts import without_secrets
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.data.settings import CropConfig
    from corit_cli.detection.calibration import Thresholds
    from corit_cli.detection.checkpoint import Checkpoint
    from corit_cli.detection.verdicts import FaceVerdict, Prediction, Stability
    from corit_cli.model.settings import CoRITSettings

LARGE, SMALL = 1280, 400  # longer sides of pictures in pixels: of the first files, and of all others
#: Shares of fakes among comparable files, for which a probability is worked out.
PRIORS = (0.01, 0.1, 0.5, 0.9)
# By the first part of a copy's name in ``MILD``; the rest is the setting.
_COPIES = {
    "jpeg": "saved as JPEG, quality {:.0f}",
    "webp": "saved as WebP, quality {:.0f}",
    "resize": "shrunk to {:.0%}",
    "blur": "blurred by {:g} px",
}
_SAYS = {"generated": "says it was generated", "edited": "says it was edited"}


@dataclass(frozen=True)
class About:
    """What was run: versions and fingerprints, the thresholds, those of ``faces``, the ``held_out`` rates, those of
    faces and of degraded copies (see ``corit train``; empty where they are not known), whether thresholds were fitted
    to others than the images these are of, when (in UTC), with what command line, in a few sentences how the detector
    works, and where on the Hub the ``detector`` came from, if it did."""

    backbone: str
    backbone_sha256: str
    detector_sha256: str
    thresholds: Thresholds
    faces: Thresholds
    held_out: Mapping[str, float]
    held_out_faces: Mapping[str, float]
    made: datetime
    command: str
    method: str
    held_out_degraded: Mapping[str, float] = field(default_factory=dict)
    judged_by_others: bool = True
    detector: str | None = None
    corit: str = __version__

    @classmethod
    def of(cls, checkpoint: Checkpoint, made: datetime, command: str) -> About:
        """As ``checkpoint`` has it."""
        return cls(
            backbone=checkpoint.backbone["name"],
            backbone_sha256=checkpoint.backbone["sha256"],
            detector_sha256=checkpoint.sha256,
            detector=checkpoint.origin,
            thresholds=checkpoint.thresholds,
            faces=checkpoint.faces.thresholds if checkpoint.faces else checkpoint.thresholds,
            held_out=checkpoint.metrics.get("held_out_sources", {}),
            held_out_faces=checkpoint.metrics.get("held_out_faces", {}),
            held_out_degraded=checkpoint.metrics.get("held_out_degraded", {}),
            judged_by_others=bool(checkpoint.training.get("judged_by")),
            made=made.astimezone(timezone.utc),
            command=command,
            method=method_of(
                checkpoint.settings,
                checkpoint.crops,
                len(checkpoint.head.of_pictures),
                bool(checkpoint.tuned),
                checkpoint.head.degradation is not None,
                len(checkpoint.face_readings) > 1,
            ),
        )


def method_of(
    settings: CoRITSettings,
    crops: CropConfig,
    heads: int = 1,
    tuned: bool = False,
    degradation: bool = False,
    pixels: bool = False,
) -> str:
    """How a detector that reads these layers from such windows by so many heads works, for a reader of reports; with
    ``degradation`` it tells degraded pictures, with ``pixels`` it judges faces by native windows, too."""
    native = "a part of the picture" if crops.crops == 1 else f"{crops.crops} parts of the picture"
    whole, native = "the whole picture, made small", f"{native} at its own size"
    model = "CLIP, an image model" + (" that was trained further for this" if tuned else "")
    reads = []
    if settings.integrate:
        place = native if crops.mode == "native" else whole
        reads.append(f"what {model}, sees in {place}, at {_depths(settings.integrate)}")
    if settings.native and crops.mode == "both":
        reads.append(f"what {'it' if reads else f'{model},'} sees in {native}, at {_depths(settings.native)}")
    if settings.spread and reads:
        within = "there" if len(reads) == 1 else "within either"
        reads.append(f"how much what it sees varies {within}, at {_depths(settings.spread)}")
    if settings.cgp:
        place = whole if crops.mode == "resize" else native
        sees = "it" if reads else f"{model},"
        changed = " and when ".join(dict.fromkeys(VIEW_WORDS[view.partition(":")[0]][1] for view in settings.views))
        reads.append(f"how what {sees} sees in {place} changes when {changed}, at {_depths(settings.cgp)}")
    injected = ", after such changes were added to what the model sees" if settings.inject_at else ""
    weighs = "A small head, trained on real and generated pictures, weighs what was read; its output is"
    if heads > 1:
        weighs = (
            f"{heads} small heads, trained on real and generated pictures, weigh one reading each; what they say is "
            "weighed in turn, added, and"
        )
    what = reads[0] if len(reads) < 3 else f"{', '.join(reads[:-1])}"
    what = what if len(reads) == 1 else f"{what} and {reads[-1]}"
    weighs_by = " How they are weighed depends on how degraded a picture looks to one more." if degradation else ""
    faces = ""
    if settings.face:
        faces = f" Another head weighs what the model sees in each face, at {_depths(settings.face)}, and by this"
        faces += f", weighed with what was read in {native}," if pixels else ""
        faces += " each face gets a verdict of its own."
    return (
        f"The detector reads {what}{injected}. {weighs} calibrated to a probability on pictures from sources that "
        f"{'it' if heads == 1 else 'they'} had not seen.{weighs_by}{faces}"
    )


def _depths(layers: Sequence[int]) -> str:
    names = ", ".join(map(str, layers[:-1])) + f" and {layers[-1]}" if len(layers) > 1 else str(layers[0])
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        names = f"{layers[0]} to {layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {names} of its network"


def details(
    p: Prediction,
    about: About,
    image: Image.Image | None,
    heatmap: Image.Image | None,
    frames: Mapping[int, Image.Image],
    large: bool,
    no_heatmap: str | None = None,
    file: Stored | None = None,
) -> dict[str, Any]:
    """All that a section says; ``no_heatmap`` is why there is none, where one was to be expected, ``file`` where the
    bytes are, if not at the prediction's path."""
    longest = LARGE if large else SMALL
    photograph = None if image is None else picture(image, longest)
    overlay = None
    if photograph is not None and heatmap is not None:
        overlay = picture(heatmap.resize((photograph.width, photograph.height)), longest)
    faces = [_face(i, face, image) for i, face in enumerate(p.faces or (), 1)]
    t = about.faces if p.of_faces else about.thresholds
    return {
        "thresholds": t,
        "levels": levels(t.real, t.fake),
        "meaning": meaning(p, about),
        "together": together(p),
        "next_steps": next_steps(p),
        "priors": _posteriors(p),
        "photograph": photograph,
        "overlay": overlay,
        "no_heatmap": no_heatmap,
        "faces": faces,
        "copies": [] if p.stability is None or p.probability is None else _copies(p.probability, p.stability, t),
        "survival": "" if p.stability is None else _survival(p.stability, t),
        "timeline": timeline(p.video, t, frames, about.faces) if p.video and has_times(p.video) else None,
        "facts": _facts(p, p.path if file is None else file, image, t),
    }


def _posteriors(p: Prediction) -> list[tuple[float, float]]:
    """Shares of fakes among comparable files, each with the probability that it makes of the file's."""
    if p.probability is None or of_several_faces(p):
        return []
    return [(prior, posterior(p.probability, prior)) for prior in PRIORS]


def notes(p: Prediction) -> list[str]:
    """What an index says of a file besides its verdict."""
    notes = []
    if p.video is not None:
        notes.append(f"video, {clock(p.video.duration)}" if p.video.kind == "video" else looked_at(p.video))
        if p.video.incomplete:
            notes.append("read in part")
    if p.stability is not None and p.stability.flips:
        notes.append("verdict flips")
    if p.faces:
        called = sum(face.verdict == "fake" for face in p.faces)
        notes.append(_counted(len(p.faces), "face") + (f", {called} called fake" if called else ""))
    if p.provenance is not None:
        notes += [text for says, text in _SAYS.items() if any(f.says == says for f in p.provenance.findings)]
    if p.declared is not None:
        notes.append(f"declared {p.declared.kind}")
    return [*notes, *p.notes]


def _copies(probability: float, stability: Stability, thresholds: Thresholds) -> list[tuple[str, float, str]]:
    """(what was done, probability, verdict) of the file as given and of each copy."""
    found = {"as given": probability, **{_done(name): value for name, value in stability.probabilities.items()}}
    return [(name, value, thresholds.verdict(value)) for name, value in found.items()]


def _done(copy: str) -> str:
    """What was done to make a copy, from its name in ``MILD``."""
    kind, _, setting = copy.partition("-")
    return _COPIES[kind].format(float(setting)) if kind in _COPIES else copy


def _survival(stability: Stability, thresholds: Thresholds) -> str:
    values = list(stability.probabilities.values())
    verdicts = Counter(map(thresholds.verdict, values))
    parts = ", ".join(f"{verdicts[kind]} as {kind}" for kind in ("fake", "uncertain", "real") if verdicts[kind])
    return (
        f"Of {len(values)} mildly changed copies the detector judges {parts}; their probabilities lie between "
        f"{percent(min(values))} and {percent(max(values))}. "
        + ("The verdict on the file does not survive them." if stability.flips else "The verdict survives them.")
    )


@dataclass(frozen=True)
class _Face:
    number: int
    said: FaceVerdict
    thumbnail: Picture | None
    outline: tuple[float, float, float, float] | None  # left, top, width, height as shares of the picture


def _face(number: int, face: FaceVerdict, image: Image.Image | None) -> _Face:
    if image is None:
        return _Face(number, face, None, None)
    return _Face(number, face, cut_out(image, face.box), outline(face.box, image.size))


def _facts(p: Prediction, file: Stored, image: Image.Image | None, thresholds: Thresholds) -> list[tuple[str, str]]:
    """What identifies the file, by name."""
    facts = [("File", p.path)]
    if isinstance(file, Buffer) or os.path.isfile(file):  # no pipe, which would be waited on, and no endless name
        try:
            size, sha256, md5 = _checksums(file)
            if changed(p, file):
                return [*facts, ("Checksums", f"none: {CHANGED}")]
            facts += [("Size", file_size(size)), ("SHA-256", sha256), ("MD5", md5)]
        except OSError as error:
            facts.append(("Checksums", f"none: the file cannot be read ({error.strerror or error})"))
    dimensions = None if image is None else image.size
    kind = p.provenance.format if p.provenance is not None else None
    try:
        info = inspect(file)
        kind = f"{info.format}, saved with quality {info.jpeg_quality} or so" if info.jpeg_quality else info.format
        dimensions = dimensions or (info.width, info.height)
    except ImageError:
        pass  # a video, or a file whose error is told anyway
    if kind:
        facts.append(("Format", kind))
    if dimensions:
        facts.append(("Dimensions", f"{dimensions[0]:,} × {dimensions[1]:,} pixels"))
    if p.video is not None:
        rate = f" at {p.video.fps:.4g} frames a second" if p.video.fps else ""
        facts.append(("Looked at", looked_at(p.video) + rate))
        facts += [("Most suspicious", place(p.video, moment)) for moment in p.video.suspicious(1)]
    if p.probability is not None:
        bounds = f"fake from {thresholds.fake:.6f}, real up to {thresholds.real:.6f}"
        facts.append(("Probability", f"{p.probability:.6f} ({bounds})"))
    return facts


def _checksums(source: Stored) -> tuple[int, str, str]:
    """Size in bytes, SHA-256 and MD5."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with opened(source) as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return size, sha256.hexdigest(), md5.hexdigest()


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def split_path(path: str) -> tuple[str, str]:
    """(folder with its slash, name), of a URL without what may be secret."""
    path = without_secrets(path)
    name = os.path.basename(path) or path
    return path[: len(path) - len(name)], name
