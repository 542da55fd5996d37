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
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image

from corit_cli import __version__
from corit_cli.data.images import ImageError, inspect
from corit_cli.engine.checkpoint import write_atomically
from corit_cli.errors import CoritError
from corit_cli.report.pictures import THUMBNAIL, Picture, cut_out, outline, picture
from corit_cli.report.timeline import MARKS, levels, timeline
from corit_cli.report.words import at, clock, file_size, percent, posterior, printable, share

if TYPE_CHECKING:
    from jinja2 import Environment

    from corit_cli.engine.checkpoint import Checkpoint
    from corit_cli.engine.fit import Thresholds
    from corit_cli.engine.verdicts import FaceVerdict, Prediction, Stability

LARGE_SECTIONS = 50  # files whose pictures are shown large
LARGE, SMALL = 1280, 400  # longer sides of pictures in pixels: of the first files, and of all others
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
        "timeline": timeline(p.video, t, frames) if p.video else None,
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
    return _Face(number, face, cut_out(image, face.box), outline(face.box, image.size))


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


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _split(path: str) -> tuple[str, str]:
    """(folder with its slash, name)."""
    name = os.path.basename(path) or path
    return path[: len(path) - len(name)], name
