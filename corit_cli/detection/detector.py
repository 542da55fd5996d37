"""The detector as its users meet it: files in, calibrated verdicts out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corit_cli.data.faces import finder
from corit_cli.data.images import read_image
from corit_cli.data.opening import Source
from corit_cli.data.urls import is_url, local_copy
from corit_cli.data.video import inspect as inspect_video
from corit_cli.data.video import sample_frames
from corit_cli.detection.asked import Asked
from corit_cli.detection.calibration import Verdicts
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.eye import NOTHING, Eye, Seen, provenance_of
from corit_cli.detection.film import Reel, Shown, judge_face, judge_film, reported
from corit_cli.detection.heatmap import Heatmap, heatmap
from corit_cli.detection.sources import Named, named
from corit_cli.detection.verdicts import Prediction, Stability, flips, settle
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor, pool
from corit_cli.features.stream import Extracted, forwarded, stream
from corit_cli.files import weights_dir
from corit_cli.model.loading import load_backbone
from corit_cli.model.precision import pick_precision
from corit_cli.model.scope import tuned_backbone
from corit_cli.model.settings import FACE
from corit_cli.progress import Stop, never
from corit_cli.seeds import undisturbed

DEFAULT_DETECTOR = "detector"
#: Pixels of a video's frames that are held at once, while their windows are cut; a single frame may have more.
MOST_AHEAD = 64_000_000


class Detector:
    """A checkpoint together with its backbone. It may be used from several threads at once, and pickled.

    >>> detector = Detector.load()
    >>> for p in detector.predict(["photo.jpg", "other.png"]):
    ...     print(p.path, p.verdict, p.probability)
    """

    def __init__(self, checkpoint: Checkpoint, extractor: Extractor) -> None:
        if (checkpoint.settings, checkpoint.crops) != (extractor.settings, extractor.crops):
            raise CoritError("the detector was trained on what another extractor reads")
        self.checkpoint, self.extractor = checkpoint, extractor
        self.head = checkpoint.head
        places = checkpoint.localizer
        #: What heatmaps are drawn from, if the detector was taught to.
        self.contrasts = places and Extractor(extractor.backbone, places.settings, places.crops, extractor.device.type)

    @classmethod
    @undisturbed()
    def load(
        cls, checkpoint: str | Path | Checkpoint | None = None, device: str = "auto", precision: str = "auto"
    ) -> Detector:
        """The shipped detector, that in a ``checkpoint`` folder, one on the Hub (``hf-hub:USER/NAME[@REVISION]``), or
        of a checkpoint in memory, such as ``train`` gives, on ``cpu``, ``cuda`` or whichever is there.

        ``precision`` is that of the tower's products: fp32, bf16, int8, or ``auto``, whichever this machine is clearly
        faster with (:mod:`~corit_cli.model.precision`).

        Raises CoritError when the checkpoint is missing, damaged or cannot be fetched, or its backbone is not the one
        it was trained on.
        """
        folder = weights_dir() / DEFAULT_DETECTOR if checkpoint is None else checkpoint
        if isinstance(folder, Checkpoint):
            found, folder = folder, "the detector"
        else:
            found = Checkpoint.find(folder)
        device = pick_device(device)
        name = found.backbone["name"]
        backbone = load_backbone(name, found.backbone.get("activation"), device, found.origin)
        if backbone.sha256 != found.backbone["sha256"]:
            raise CoritError(
                f"{folder} was trained on other weights than those now called {name} "
                f"(SHA-256 {found.backbone['sha256'][:12]} against {backbone.sha256[:12]})"
            )
        backbone = tuned_backbone(backbone, found.tuned)
        precision = pick_precision(precision, device, backbone)
        extractor = Extractor(backbone, found.settings, found.crops, device, precision)
        if extractor.width != found.head.features:
            raise CoritError(f"{folder}: its head reads {found.head.features} features, not {extractor.width}")
        if found.localizer is not None:
            reads = found.localizer.head.features
            if reads != len(found.localizer.settings.cgp) * backbone.tower.config.width:
                raise CoritError(
                    f"{folder}: its localizer reads {reads} features a patch, which its settings do not give"
                )
        return cls(found, extractor)

    def on(self, device: str) -> Detector:
        """The same detector on another device; its weights are moved there. Products of 8-bit integers, which are a
        processor's, are in float32 elsewhere, and say the same."""
        e, device = self.extractor, pick_device(device)
        precision = "fp32" if e.precision == "int8" and device != "cpu" else e.precision
        return Detector(self.checkpoint, Extractor(e.backbone, e.settings, e.crops, device, precision))

    def strictly(self) -> Detector:
        """The same detector, which says fake only from the strict threshold on."""
        return Detector(self.checkpoint.strictly(), self.extractor)

    def without_faces(self) -> Detector:
        """The same detector without its reading of faces, if it has one: what it says of pictures as a whole."""
        if not self.extractor.settings.face:
            return self
        extractor = self.extractor.with_settings(replace(self.extractor.settings, face=()))
        kept = {"head": self.head.without(FACE), "settings": extractor.settings, "crops": extractor.crops}
        return Detector(replace(self.checkpoint, **kept, faces=None), extractor)

    def heatmap(self, source: Source) -> Heatmap:
        """Where a picture, any that :meth:`predict` takes, may have been changed. Raises CoritError when the detector
        was not taught to tell, or the picture cannot be read or is smaller than a window."""
        if self.contrasts is None:
            raise CoritError("this detector was not taught to show where a picture was changed: train it with --local")
        return heatmap(self.contrasts, self.checkpoint.localizer, read_image(source))

    def predict(
        self,
        sources: Source | Iterable[Source],
        workers: int | None = None,
        *,
        faces: str | None = None,
        stability: bool = False,
        provenance: bool = True,
        frames: int = 32,
        rate: float | None = None,
        stop: Stop = never,
    ) -> Iterator[Prediction]:
        """Predictions for images and videos in order, as they are ready; one that cannot be read gives its error.

        A source is a path, the bytes of an image file, a Pillow image, or an RGB array (H, W, 3) of uint8; ``sources``
        is one of them or any number, which may come from a generator: memory does not grow with it. What has no path
        is called ``<image N>`` by its place among the sources, from 1; pictures are decoded, and they and bytes copied,
        when they are taken. What is a video is told by its first bytes. Of an animated picture and of a file with
        several pages frames are scored, as of a video; of a Pillow image the frame that it stands at.

        ``faces``: ``auto`` scores the faces beside the whole picture, ``only`` nothing but them (the probability is
        then the highest), ``off`` looks for none; by default ``auto`` where the detector has a reading of faces and
        OpenCV can be loaded, else ``off``. ``stability`` scores mildly degraded copies of images too. ``provenance``
        adds what a file says of itself. Of a video ``frames`` frames are scored, or ``rate`` a second; it is
        left, with an error, where ``stop`` says so. ``workers`` threads decode.

        Raises CoritError for options that contradict each other, and for what is no source.
        """
        if faces is None:
            faces = self.faces_by_default()
        asked = Asked(faces, stability, provenance, frames, rate, workers)
        asked.check()
        return self._predict(named(sources), asked, stop)

    def faces_by_default(self) -> str:
        """What is done about faces where nobody says."""
        try:
            return "auto" if self.extractor.settings.face and finder() else "off"
        except CoritError:  # a picture can be judged without
            return "off"

    def _predict(self, sources: Iterable[Named], asked: Asked, stop: Stop) -> Iterator[Prediction]:
        for video, group in groupby(sources, lambda source: source.is_video):
            if video:
                for source in group:
                    yield self._told(self._video(source.name, asked, stop), source, asked)
            else:
                yield from self._images(group, asked)

    def _images(self, sources: Iterable[Named], asked: Asked) -> Iterator[Prediction]:
        eye = self.eye(asked)
        for item in stream(self.extractor, sources, lambda source: eye.look(source.source), asked.workers):
            yield self._told(self._judge(item.item.name, item, asked), item.item, asked)

    def predict_seen(self, items: Sequence[Extracted[str]], asked: Asked) -> Iterator[Prediction]:
        """Predictions, in order, on images by their paths whose windows an :meth:`eye` cut, and on videos, which are
        read here. In pieces, on other machines perhaps, a list comes out as :meth:`predict` has it."""
        for path, item in zip((item.item for item in items), forwarded(self.extractor, items), strict=True):
            source = Named(path, path)
            prediction = self._video(path, asked) if source.is_video else self._judge(path, item, asked)
            yield self._told(prediction, source, asked)

    def eye(self, asked: Asked) -> Eye:
        """What cuts pictures to the windows that the model is to read."""
        # Whether a picture was degraded is heard of all that is read of it.
        alone = self.checkpoint.face_readings == (FACE,) and self.head.degradation is None
        return Eye(
            self.extractor.crops, asked.faces, asked.stability, asked.provenance, asked.frames, asked.rate, alone
        )

    def _judge(self, name: str, item: Extracted[Any], asked: Asked) -> Prediction:
        """The prediction on the image ``name`` from the readings of what an :meth:`eye` saw of it."""
        if item.error is not None:
            return Prediction(name, None, None, item.seconds, item.error)
        seen: Seen = item.about
        each = self._each(item.readings)  # (pictures, R)
        try:
            logits = iter(self._fuse(each).tolist())
        except CoritError as error:
            return Prediction(name, None, None, item.seconds, str(error))
        if seen.pages is not None:
            return self._leafed(name, seen, logits, item.seconds, asked)
        whole = None if asked.faces == "only" else reported(next(logits), self.of_pictures)
        faces = tuple(judge_face(face, next(logits), self.of_faces) for face in seen.faces)
        again = {name: reported(logit, self.of_pictures) for name, logit in zip(seen.copies, logits, strict=True)}
        stable = self._stability(whole, again) if asked.stability else None
        if whole is None:
            probability = max(face.probability for face in faces)
            verdict = self.of_faces.thresholds.verdict(probability)
        else:
            probability = whole
            verdict = settle(self._verdict(whole), [face.verdict for face in faces], stable)
        shown = None if asked.faces == "off" else faces
        parts = degraded = None
        if asked.faces != "only":
            parts, degraded = self._parts(each[0]), self._degraded(each[0])
        return Prediction(
            name,
            probability,
            verdict,
            item.seconds,
            notes=seen.notes,
            parts=parts,
            degraded=degraded,
            faces=shown,
            stability=stable,
            provenance=seen.provenance,
        )

    def _leafed(self, name: str, seen: Seen, logits: Iterator[float], seconds: float, asked: Asked) -> Prediction:
        """The prediction on an animated picture, or on several pages."""
        own = asked.faces != "only"
        shown = [Shown(frame, faces, list(islice(logits, own + len(faces)))) for frame, faces in seen.each]
        pages = seen.pages
        fps = pages.count / pages.seconds if pages.seconds else 0.0
        reel = Reel(pages.kind, pages.count, pages.seconds, round(fps, 3), pages.warning)
        judged = f"{len(shown)} of {pages.all} judged"
        found = self._filmed(name, shown, reel, seconds, asked, (*seen.notes, judged))
        return replace(found, provenance=seen.provenance)

    def _video(self, path: str, asked: Asked, stop: Stop = never) -> Prediction:
        start, eye = time.perf_counter(), self.eye(asked)
        shown: list[Shown] = []
        try:
            with local_copy(path) as file:
                info = inspect_video(file, stop)
                # Each in a list, out of which it is taken: no pixels are held once the windows are cut.
                sampled = ([frame] for frame in sample_frames(file, asked.frames, asked.rate, info, stop))
                window = max(1, min(2 * self.extractor.batch, MOST_AHEAD // max(1, info.width * info.height)))
                for item in stream(self.extractor, sampled, lambda one: eye.glance(one.pop()), asked.workers, window):
                    if item.error is not None:
                        raise CoritError(item.error)
                    if item.about is not None:
                        logits = self._fuse(self._each(item.readings)).tolist()
                        shown.append(Shown(*item.about, logits))
        except CoritError as error:
            return Prediction(path, None, None, time.perf_counter() - start, str(error))
        reel = Reel("video", info.frames, info.duration, info.fps, info.warning)
        return self._filmed(path, shown, reel, time.perf_counter() - start, asked)

    def _filmed(
        self, name: str, shown: list[Shown], reel: Reel, seconds: float, asked: Asked, notes: tuple[str, ...] = ()
    ) -> Prediction:
        try:
            if not shown:
                raise CoritError(NOTHING)
            probability, verdict, film = judge_film(shown, reel, asked.faces, self.of_pictures, self.of_faces)
        except CoritError as error:
            return Prediction(name, None, None, seconds, str(error), notes=notes)
        return Prediction(name, probability, verdict, seconds, notes=notes, video=film)

    def _told(self, prediction: Prediction, named: Named, asked: Asked) -> Prediction:
        """With the state of its file, and with what that says of itself where no :meth:`eye` has read it: of videos,
        and of images whose pixels cannot be judged."""
        source, provenance = named.source, prediction.provenance
        if asked.provenance and provenance is None and not (isinstance(source, str) and is_url(source)):
            provenance = provenance_of(source)
        return replace(prediction, provenance=provenance, state=named.state)

    @torch.inference_mode()
    def _each(self, readings: Sequence[list[Tensor]]) -> Tensor:
        """What the head's ``each`` says of each picture."""
        z = [pool(reading) for reading in readings]
        return self.head.each(torch.stack(z) if z else torch.empty(0, self.head.features))

    def _fuse(self, each: Tensor) -> Tensor:
        """Logits (pictures,) from what the head's ``each`` says of them: of a picture as a whole, or of the face in it
        where its window was cut. Raises CoritError where weights are so large that the model's numbers end."""
        if FACE in self.head.names:
            of_face = each[:, self.head.names.index(FACE)].isfinite()
            heard = self.head.hearing(each, self.checkpoint.face_readings)  # as each
            each = torch.where(of_face[:, None], heard, each)
        logits = self.head.fuse(each)
        if not logits.isfinite().all():
            raise CoritError("what the detector finds is no number")
        return logits

    def _parts(self, logits: Tensor) -> dict[str, float]:
        """What each reading that there is adds to the log odds of one picture, of which the heads say ``logits``."""
        shares = self.checkpoint.calibration.slope * self.head.shares(logits)  # (R,)
        there = zip(self.head.names, shares.tolist(), logits[: len(shares)].isfinite().tolist(), strict=True)
        return {name: round(share, 4) for name, share, has in there if has}

    def _degraded(self, logits: Tensor) -> float | None:
        """How likely one picture, of which the heads say ``logits``, was degraded."""
        return None if self.head.degradation is None else round(self.head.degraded(logits).item(), 4)

    @property
    def of_faces(self) -> Verdicts:
        """How faces are judged: as pictures are, where the detector has no reading of faces."""
        return self.checkpoint.faces or self.of_pictures

    @property
    def of_pictures(self) -> Verdicts:
        """How pictures as a whole are judged."""
        return Verdicts(self.checkpoint.calibration, self.checkpoint.thresholds)

    def _verdict(self, probability: float) -> str:
        return self.checkpoint.thresholds.verdict(probability)

    def _stability(self, original: float, copies: dict[str, float]) -> Stability:
        values = [original, *copies.values()]
        flipped = flips(self._verdict(original), [self._verdict(p) for p in copies.values()])
        return Stability(copies, round(max(values) - min(values), 6), flipped)


def pick_device(name: str) -> str:
    """``auto`` to ``cuda`` where there is one, else ``cpu``. Raises CoritError for a device this machine lacks."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise CoritError(f"unknown device {name!r}: give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CoritError("there is no CUDA device that torch can use: give --device cpu")
    return name
