"""The report of ``corit detect``: one self-contained HTML page on one file or on many.

Files come one at a time. What is said of each is written to an unnamed temporary file at once, so that memory stays
flat, and the page is put together at the end, all or nothing. Its pictures, styles and script stand in the page; a
content security policy forbids it to fetch anything or to run any script but its own, whatever a file's name or
metadata may hold. The same input gives the same bytes.

A page takes up to 1 MB for each of the first ``LARGE_SECTIONS`` files, about 100 kB for every further one.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from corit_cli import __version__
from corit_cli.data.images import ImageError, inspect
from corit_cli.engine.checkpoint import write_atomically
from corit_cli.engine.verdicts import peak
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from jinja2 import Environment

    from corit_cli.engine.checkpoint import Checkpoint
    from corit_cli.engine.fit import Thresholds
    from corit_cli.engine.verdicts import FaceVerdict, Moment, Prediction, Stability, VideoVerdict

LARGE_SECTIONS = 50  # files whose pictures are shown large
LARGE, SMALL = 1280, 400  # longer sides of pictures in pixels: of the first files, and of all others
MOMENT, THUMBNAIL = 480, 160
QUALITY = 85
MARKS = 6  # shapes that tell faces in a video apart
MOST_POINTS = 300  # of one line of a timeline
#: Shares of fakes among comparable files, for which a probability is worked out.
PRIORS = (0.01, 0.1, 0.5, 0.9)
#: In the order in which an index lists them.
VERDICTS = ("fake", "uncertain", "error", "real")
METHOD = (
    "The detector compares what an image model sees in a picture with what it sees in an altered copy of it, at "
    "several depths of the network. A small head, trained on real and generated pictures, weighs the differences; its "
    "output is calibrated to a probability on pictures from sources that it had not seen."
)
# By the first part of a copy's name in ``MILD``; the rest is the setting.
_COPIES = {
    "jpeg": "saved as JPEG, quality {:.0f}",
    "webp": "saved as WebP, quality {:.0f}",
    "resize": "shrunk to {:.0%}",
    "blur": "blurred by {:g} px",
}
_SAYS = {"generated": "says it was generated", "edited": "says it was edited", "camera": "names a camera"}


@dataclass(frozen=True)
class About:
    """What was run: versions and fingerprints, the thresholds, the ``held_out`` rates (see ``corit train``; empty where
    they are not known), when (in UTC), and with what command line. ``method`` is a sentence or two for the reader."""

    backbone: str
    backbone_sha256: str
    detector_sha256: str
    thresholds: Thresholds
    held_out: Mapping[str, float]
    made: datetime
    command: str
    method: str = METHOD
    corit: str = __version__

    @classmethod
    def of(cls, checkpoint: Checkpoint, made: datetime, command: str) -> About:
        """As ``checkpoint`` has it."""
        return cls(
            backbone=checkpoint.backbone["name"],
            backbone_sha256=checkpoint.backbone["sha256"],
            detector_sha256=checkpoint.sha256,
            thresholds=checkpoint.thresholds,
            held_out=checkpoint.metrics.get("held_out_sources", {}),
            made=made.astimezone(timezone.utc),
            command=command,
        )


class Casebook:
    """A report under way; the page appears at ``path`` when the block is left, and not if it is left by an exception.

    >>> with Casebook(Path("report.html"), About.of(checkpoint, datetime.now(timezone.utc), "--html")) as casebook:
    ...     for prediction in detector.predict(files):
    ...         casebook.add(prediction, image)

    Raises CoritError when ``path`` cannot be written, if possible before any file has been looked at.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self.about = path, about
        self._environment = _environment()
        self._counts: Counter[str] = Counter()
        self._first = ""
        self._sections: list[_Span] = []
        self._rows: list[tuple[tuple[int, float, int], _Span]] = []

    def __enter__(self) -> Casebook:
        if self.path.is_dir():
            raise CoritError(f"cannot write {self.path}: it is a folder")
        try:
            self._kept: IO[bytes] = tempfile.TemporaryFile(dir=self.path.parent)
        except OSError as error:
            raise CoritError(f"cannot write {self.path}: {error.strerror or error}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._kept:
            if kind is None:
                write_atomically(self.path, self._write)

    def add(
        self,
        prediction: Prediction,
        image: Image.Image | None = None,
        heatmap: Image.Image | None = None,
        frames: Mapping[int, Image.Image] | None = None,
    ) -> None:
        """Write down what is said of one file, whose bytes are read once more for their checksums.

        ``image`` is the RGB picture at full size, upright, or any frame of a video. ``heatmap`` shows the evidence over
        the whole of it, without a margin, at any size. ``frames`` holds the pictures of some of a video's moments by
        their number, best those of ``VideoVerdict.suspicious()``. None of the pictures is kept.
        """
        number = len(self._sections) + 1
        kind = prediction.verdict or "error"
        folder, name = _split(prediction.path)
        self._first = self._first or name
        shared = {"p": prediction, "number": number, "kind": kind, "name": name, "folder": folder}
        section = self._environment.get_template("casebook-file.html.j2").render(
            **shared, **_details(prediction, self.about, image, heatmap, frames or {}, number <= LARGE_SECTIONS)
        )
        row = self._environment.get_template("casebook-row.html.j2").render(
            **shared, thumbnail=None if image is None else picture(image, THUMBNAIL), notes=_notes(prediction)
        )
        self._sections.append(self._keep(section))
        key = VERDICTS.index(kind), -(prediction.probability or 0.0), number
        self._rows.append((key, self._keep(row)))
        self._counts[kind] += 1

    def _keep(self, text: str) -> _Span:
        data = text.encode()
        try:
            start = self._kept.tell()
            self._kept.write(data)
        except OSError as error:
            raise CoritError(f"cannot write {self.path}: {error.strerror or error}") from None
        return _Span(start, len(data))

    def _recall(self, spans: Iterable[_Span]) -> Iterator[str]:
        for span in spans:
            self._kept.seek(span.start)
            yield self._kept.read(span.length).decode()

    def _write(self, path: Path) -> None:
        script = _source(self._environment, "casebook.js")
        stream = self._environment.get_template("casebook.html.j2").stream(
            about=self.about,
            counts=[(kind, self._counts[kind]) for kind in VERDICTS],
            total=len(self._sections),
            name=self._first,
            rows=self._recall(span for _, span in sorted(self._rows)),
            sections=self._recall(self._sections),
            styles=_source(self._environment, "casebook.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            marks=MARKS,
        )
        stream.dump(str(path), encoding="utf-8")


@dataclass(frozen=True)
class _Span:
    start: int
    length: int


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corit_cli", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Everything that a file brings along passes through here; markup of our own does not.
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, share=share, clock=clock, at=at)
    return environment


def _source(environment: Environment, name: str) -> str:
    return environment.loader.get_source(environment, name)[0]  # type: ignore[union-attr]


# --- numbers and texts for people -----------------------------------------------------------------


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


def file_size(count: int) -> str:
    """Bytes exactly, and rounded beside where that is easier to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count:,} bytes ({count / unit:.1f} {name})"
    return f"{count:,} bytes"


def printable(text: str) -> str:
    """``text`` with control characters, bidirectional overrides and undecodable bytes spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def posterior(probability: float, prior: float) -> float:
    """The probability of a fake where a share ``prior`` of comparable files is fake, by Bayes' rule, from one that
    assumes a half."""
    fake, real = probability * prior, (1 - probability) * (1 - prior)
    return fake / (fake + real)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _split(path: str) -> tuple[str, str]:
    """(folder with its slash, name)."""
    name = os.path.basename(path) or path
    return path[: len(path) - len(name)], name


# --- what is said of one file ---------------------------------------------------------------------


def _details(
    p: Prediction,
    about: About,
    image: Image.Image | None,
    heatmap: Image.Image | None,
    frames: Mapping[int, Image.Image],
    large: bool,
) -> dict[str, Any]:
    longest = LARGE if large else SMALL
    photograph = None if image is None else picture(image, longest)
    overlay = None
    if photograph is not None and heatmap is not None:
        overlay = picture(heatmap.resize((photograph.width, photograph.height)), longest)
    faces = [_face(i, face, image) for i, face in enumerate(p.faces or (), 1)]
    t = about.thresholds
    return {
        "thresholds": t,
        "levels": levels(t.real, t.fake),
        "meaning": _meaning(p, about),
        "priors": [] if p.probability is None else [(prior, posterior(p.probability, prior)) for prior in PRIORS],
        "photograph": photograph,
        "overlay": overlay,
        "faces": faces,
        "copies": [] if p.stability is None or p.probability is None else _copies(p.probability, p.stability, t),
        "survival": "" if p.stability is None else _survival(p.stability, t),
        "timeline": _timeline(p.video, t, frames) if p.video else None,
        "facts": _facts(p, image, t),
    }


def _meaning(p: Prediction, about: About) -> list[str]:
    """Sentences on what the verdict is worth."""
    if p.probability is None or p.verdict is None:
        return []
    by_score = about.thresholds.verdict(p.probability)
    reasons = []
    if p.stability is not None and p.stability.flips:
        reasons.append("the verdict does not survive mild changes of the picture")
    faces = [face.verdict for face in p.faces or ()]
    if p.video is not None:
        faces += map(about.thresholds.verdict, p.video.tracks.values())
    if p.verdict == "uncertain" and by_score == "real" and "fake" in faces:
        reasons.append("a face in it is called fake")
    sentences = []
    if p.verdict != by_score:
        because = f", because {' and '.join(reasons)}" if reasons else ""
        sentences.append(
            f"By its probability alone the file would be called {by_score}. It is left {p.verdict}{because}."
        )
    elif p.verdict == "uncertain":
        sentences.append("The detector does not decide. This says neither that the file is real nor that it is fake.")
    rates = about.held_out
    real, fake = rates.get(f"real_called_{by_score}"), rates.get(f"fake_called_{by_score}")
    if real is None or fake is None:
        return [*sentences, "How often this detector errs on files from unknown sources is not on record."]
    seen = f"{rates['images']:,.0f} images" if "images" in rates else "images"
    call = "left" if by_score == "uncertain" else "called"
    sentences.append(
        f"At these thresholds the detector {call} {share(real)} of real images and {share(fake)} of fakes {by_score}, "
        f"on {seen} from sources it had never seen."
    )
    if p.verdict == by_score != "uncertain" and real > 0 and fake > 0:
        often, seldom = (fake, real) if by_score == "fake" else (real, fake)
        if often > seldom:
            whose, others = ("fakes", "real images") if by_score == "fake" else ("real images", "fakes")
            sentences.append(
                f"To be called {by_score} was {often / seldom:.1f} times as common among {whose} as among {others}: "
                "evidence to be weighed with all else that is known of the file."
            )
    if p.video is not None:
        whole = any(moment.probability is not None for moment in p.video.moments)
        parts = "its frames" if whole else "the frames of the face most like a fake"
        sentences.append(
            f"These rates were measured on single images; a video's probability comes from a mean over {parts}, "
            "without the most extreme ones."
        )
    return sentences


def _notes(p: Prediction) -> list[str]:
    """What an index says of a file besides its verdict."""
    notes = []
    if p.video is not None:
        notes.append(f"video, {clock(p.video.duration)}")
        if p.video.incomplete:
            notes.append("read in part")
    if p.stability is not None and p.stability.flips:
        notes.append("verdict flips")
    if p.faces:
        called = sum(face.verdict == "fake" for face in p.faces)
        notes.append(_counted(len(p.faces), "face") + (f", {called} called fake" if called else ""))
    if p.provenance is not None:
        notes += [text for says, text in _SAYS.items() if any(f.says == says for f in p.provenance.findings)]
    return notes


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
    return _Face(number, face, _cut_out(image, face.box), _outline(face.box, image.size))


def _facts(p: Prediction, image: Image.Image | None, thresholds: Thresholds) -> list[tuple[str, str]]:
    """What identifies the file, by name."""
    facts = [("File", p.path)]
    path = Path(p.path)
    if path.is_file():  # never a pipe, which would be waited on
        try:
            size, sha256, md5 = _checksums(path)
            facts += [("Size", file_size(size)), ("SHA-256", sha256), ("MD5", md5)]
        except OSError as error:
            facts.append(("Checksums", f"none: the file cannot be read ({error.strerror or error})"))
    dimensions = None if image is None else image.size
    kind = p.provenance.format if p.provenance is not None else None
    try:
        info = inspect(path)
        kind = f"{info.format}, saved with quality {info.jpeg_quality} or so" if info.jpeg_quality else info.format
        dimensions = dimensions or (info.width, info.height)
    except ImageError:
        pass  # a video, or a file whose error is told anyway
    if kind:
        facts.append(("Format", kind))
    if dimensions:
        facts.append(("Dimensions", f"{dimensions[0]:,} × {dimensions[1]:,} pixels"))
    if p.video is not None:
        frames = _counted(len(p.video.moments), "frame")
        facts.append(("Length", f"{clock(p.video.duration)} at {p.video.fps:.4g} frames a second; {frames} looked at"))
    if p.probability is not None:
        bounds = f"fake from {thresholds.fake:.6f}, real up to {thresholds.real:.6f}"
        facts.append(("Probability", f"{p.probability:.6f} ({bounds})"))
    return facts


def _checksums(path: Path) -> tuple[int, str, str]:
    """Size in bytes, SHA-256 and MD5."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
            size += len(block)
    return size, sha256.hexdigest(), md5.hexdigest()


# --- videos ---------------------------------------------------------------------------------------


@dataclass
class _Track:
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


def _timeline(video: VideoVerdict, thresholds: Thresholds, frames: Mapping[int, Image.Image]) -> dict[str, Any]:
    end = max([video.duration, *(m.seconds for m in video.moments)], default=0.0) or 1.0
    whole = [(m.seconds / end, m.probability) for m in video.moments if m.probability is not None]
    tracks: dict[int, _Track] = {}
    for number, probability in sorted(video.tracks.items()):
        tracks[number] = _Track(number + 1, probability, thresholds.verdict(probability))
    for moment in video.moments:
        for face in moment.faces:
            if face.track is None:
                continue
            track = tracks.setdefault(face.track, _Track(face.track + 1, None, None))
            track.seen += 1
            track.points.append((moment.seconds / end, face.probability))
            if track.thumbnail is None and moment.frame in frames:
                track.thumbnail = _cut_out(frames[moment.frame], face.box)
    for track in tracks.values():
        track.points = thin(track.points)
    points = thin(whole)
    return {
        "points": points,
        "segments": list(pairwise(points)),
        "tracks": sorted(tracks.values(), key=lambda track: track.number),
        "ticks": [(second / end, clock(second).removesuffix(".0")) for second in ticks(end)],
        "levels": levels(thresholds.real, thresholds.fake),
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
        "outlines": [] if size is None else [(f.verdict, _outline(f.box, size)) for f in moment.faces],
    }


def thin(points: list[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` of the (time, probability) points, in order: of neighbours the most probable."""
    if len(points) <= most:
        return points
    cuts = [i * len(points) // most for i in range(most + 1)]
    return [max(points[a:b], key=lambda point: point[1]) for a, b in pairwise(cuts)]


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


# --- pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A JPEG as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def picture(image: Image.Image, longest: int) -> Picture:
    """``image`` shrunk until its longer side is ``longest`` or less, without anything that its file carried along."""
    scale = min(1.0, longest / max(image.size))
    size = tuple(max(1, round(side * scale)) for side in image.size)
    drawn = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGB")
    drawn.info.clear()
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Picture("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), *drawn.size)


def _cut_out(image: Image.Image, box: tuple[int, int, int, int]) -> Picture | None:
    """The face in ``box`` with a little around it; None where the box lies outside."""
    left, top, right, bottom = box
    margin = round(0.15 * max(right - left, bottom - top))
    left, top = max(0, left - margin), max(0, top - margin)
    right, bottom = min(image.width, right + margin), min(image.height, bottom + margin)
    return picture(image.crop((left, top, right, bottom)), THUMBNAIL) if left < right and top < bottom else None


def _outline(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width and height of ``box`` as shares of a picture of ``size`` (width, height), cut at its edges."""
    left, right = (min(max(x / size[0], 0.0), 1.0) for x in box[::2])
    top, bottom = (min(max(y / size[1], 0.0), 1.0) for y in box[1::2])
    return left, top, right - left, bottom - top
