"""From windows of images to CoRIT features: which windows are read for what."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.model.corit import CoRIT, State, side_by_side
from corit_cli.model.loading import Backbone
from corit_cli.model.precision import lowered
from corit_cli.model.settings import FACE, CoRITSettings
from corit_cli.progress import Stop, never

#: Part of every cache key; raised whenever the same settings come to mean different features.
FEATURES_VERSION = 3
#: What a reading is called, by the kind of its parts: class tokens of several layers and the spread of patches, those
#: of native windows where others are read too, contrasts, of class tokens and of patches, and class tokens of the
#: largest face.
READINGS = {
    "cls": "hri",
    "spread": "hri",
    "native": "native",
    "native spread": "native",
    "cgp": "cgp",
    "patches": "cgp",
    "face": FACE,
}
#: The kinds of parts that depend on the contrast views, whatever the stream.
CONTRASTS = ("cgp", "patches")
#: Crops in one forward pass. More gain nothing on a CPU; a GPU takes more.
BATCH = {"cpu": 8, "cuda": 64}
#: Readers share a pass through a block where it has no more images than so many batches, contrast views among them.
MERGED = 2


@dataclass
class Reader:
    """A CoRIT and the positions, among an image's windows, of those it reads.

    ``cls`` is the kind that its class tokens are called by: native or face where another reader reads those of other
    windows. The spread of native patches is called so, too.
    """

    windows: list[int]
    corit: CoRIT
    cls: str = "cls"

    @property
    def parts(self) -> list[tuple[str, int]]:
        """(kind, layer) of each part that it reads, in order."""
        own = {"cls": self.cls, "spread": "native spread" if self.cls == "native" else "spread"}
        return [(own.get(kind, kind), layer) for kind, layer in self.corit.parts]

    @property
    def readings(self) -> set[str]:
        """What it reads is called: see ``READINGS``."""
        return {READINGS[kind] for kind, _ in self.parts}

    def without_contrasts(self) -> Reader:
        """The same without contrasts, where its class tokens do not depend on them."""
        settings = self.corit.settings
        if settings.inject_at or not settings.cgp:
            return self
        return replace(self, corit=CoRIT(self.corit.tower, replace(settings, cgp=())).eval())


class Extractor:
    """Windows of images to features.

    With windows of both kinds the work is divided: class tokens (HRI) are read from the resized image, which shows the
    whole, and contrasts (CGP) from native windows, whose pixels still hold the traces, with the class tokens of
    ``native`` layers; the spread of patches is read wherever class tokens are. Otherwise every window is read for
    everything, and ``native`` adds nothing. ``face`` layers are read from the window of a face, and missing (NaN) where
    there is none. Features are averaged over the windows that one reader reads. ``precision``, fp32, bf16 or int8, is
    that of the tower's products (:mod:`~corit_cli.model.precision`).
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: CoRITSettings,
        crops: CropConfig,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        config = backbone.tower.config
        if crops.size != config.image_size:
            raise CoritError(f"windows of {crops.size} px do not fit a backbone that reads {config.image_size} px")
        crops = replace(crops, interpolation=config.interpolation, face=bool(settings.face))
        self.backbone, self.settings, self.crops, self.device = backbone, settings, crops, torch.device(device)
        self.precision = precision
        everything = list(range(len(crops.windows) - crops.face))
        division = [(everything, settings, "cls")]
        if crops.mode == "both":
            division = []
            if settings.integrate:
                division.append((everything[:1], replace(settings, cgp=(), native=()), "cls"))
            if settings.cgp or settings.native:
                division.append((everything[1:], replace(settings, integrate=settings.native), "native"))
        if settings.face:
            division.append(
                ([len(everything)], replace(settings, cgp=(), inject_at=(), integrate=settings.face, spread=()), "face")
            )
        backbone.tower.to(self.device)
        tower = lowered(backbone, precision)
        self.readers = [Reader(w, CoRIT(tower, s).to(self.device).eval(), cls) for w, s, cls in division]
        if not any(reader.parts for reader in self.readers if reader.cls != "face"):
            raise CoritError("nothing is read of every image: native layers are read where windows of both kinds are")
        self.batch = BATCH[self.device.type]

    @property
    def parts(self) -> list[tuple[str, int]]:
        """(kind, layer) of each part of a feature vector, in order; a part is as wide as the tower."""
        return [part for reader in self.readers for part in reader.parts]

    @property
    def readings(self) -> dict[str, int]:
        """How many features each reading has, in the features' order: see ``READINGS``."""
        found: dict[str, int] = {}
        for kind, _ in self.parts:
            found[READINGS[kind]] = found.get(READINGS[kind], 0) + self.backbone.tower.config.width
        return found

    @property
    def width(self) -> int:
        """F, the length of a feature vector."""
        return sum(reader.corit.width for reader in self.readers)

    def select(self, z: Tensor, settings: CoRITSettings) -> Tensor:
        """The features (n, F') that ``settings`` would have read, out of ``z`` (n, F) that this extractor read.

        Both must describe the same streams. Raises ValueError when a part was not read.
        """
        other = Extractor(self.backbone, settings, self.crops, self.device.type)  # in float32, which copies no weight
        columns = [self.parts.index(part) for part in other.parts]
        return z.unflatten(1, (len(self.parts), -1))[:, columns].flatten(1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Sequence[np.ndarray | None]], stop: Stop = never) -> list[list[Tensor]]:
        """Each image's windows, (S, S, 3) uint8, to its readings, one (windows read, F_r) a reader; NaN where a window
        is None.

        Windows that occur more than once, as those of a small image do, are run once. Raises CancelledError where,
        between two blocks, ``stop`` says so.
        """
        readings: list[list[Tensor]] = [[] for _ in images]
        every: list[list[list[int]]] = []  # by reader, image and window its place among those that the reader reads
        begun: dict[int, State] = {}
        for number, reader in enumerate(self.readers):
            places: dict[bytes, int] = {}
            every.append(
                [
                    [-1 if im[w] is None else places.setdefault(im[w].tobytes(), len(places)) for w in reader.windows]
                    for im in images
                ]
            )
            if places:
                side = self.crops.size
                seen = np.stack([np.frombuffer(window, np.uint8).reshape(side, side, 3) for window in places])
                begun[number] = reader.corit.start(pixels(torch.from_numpy(seen), self.device))
        steps = [self.readers[n].corit.steps(state, self.readers[n].corit.end) for n, state in begun.items()]
        states = side_by_side(self.readers[0].corit.tower, steps, MERGED * self.batch, stop)
        ended = dict(zip(begun, states, strict=True))
        for number, reader in enumerate(self.readers):
            z = torch.full((1, reader.corit.width), float("nan"))  # what is missing
            if number in ended:
                z = torch.cat([reader.corit.read(ended[number]).z.float().cpu(), z])  # (n + 1, F_r)
            for reading, row in zip(readings, every[number], strict=True):
                reading.append(z[row])
        return readings

    def with_settings(self, settings: CoRITSettings) -> Extractor:
        """An extractor that reads something else from the same windows."""
        return Extractor(self.backbone, settings, self.crops, self.device.type, self.precision)

    def on(self, backbone: Backbone) -> Extractor:
        """An extractor that reads the same from another tower, in float32 where that is no longer stored in 8 bits."""
        precision = "fp32" if self.precision == "int8" and not backbone.digits else self.precision
        return Extractor(backbone, self.settings, self.crops, self.device.type, precision)

    def only(self, numbers: Sequence[int]) -> Extractor:
        """The same extractor with some of its readers, by their ``numbers``."""
        part = copy(self)
        part.readers = [self.readers[r] for r in numbers]
        part.crops = replace(self.crops, face=any(reader.cls == "face" for reader in part.readers))
        return part

    def of(self, readings: Sequence[str]) -> Extractor:
        """The same extractor with the readers of some readings only, and of what these read in the same pass; views are
        not run where no contrast is read."""
        part = self.only([n for n, reader in enumerate(self.readers) if reader.readings & set(readings)])
        if READINGS["cgp"] not in readings:
            part.readers = [reader.without_contrasts() for reader in part.readers]
        return part

    @property
    def native_readings(self) -> tuple[str, ...]:
        """The readings of native windows alone."""
        kinds = [{self.crops.windows[w].split()[0] for w in reader.windows} for reader in self.readers]
        found = set().union(*(r.readings for r, kind in zip(self.readers, kinds, strict=True) if kind == {"native"}))
        return tuple(name for name in self.readings if name in found)

    @property
    def native_tokens(self) -> tuple[str, ...]:
        """The readings of native windows alone, but contrasts."""
        return tuple(name for name in self.native_readings if name != READINGS["cgp"])

    @property
    def face_readings(self) -> tuple[str, ...]:
        """The readings that a face is judged by: its own, and those of its picture's native windows (docs/method.md);
        none where faces have no reading."""
        return (*self.native_readings, FACE) if self.settings.face else ()

    def fingerprints(self) -> list[list[str]]:
        """For each reader, everything that each window's parts depend on besides the image, in the readings' order.

        A plain stream's class tokens and spread depend on no contrast view, so runs that differ in views share them.
        """
        s = self.settings
        stream = [s.views, s.inject_at, s.mask, s.alpha] if s.inject_at else []
        views = dict.fromkeys(CONTRASTS, s.views)
        common = [FEATURES_VERSION, self.backbone.sha256, self.crops.size]
        if self.crops.interpolation != "bicubic":
            common.append(self.crops.interpolation)
        if self.precision != "fp32":
            common.append(self.precision)
        return [
            [
                json.dumps([*common, self.crops.windows[w], kind, layer, views.get(kind), stream])
                for w in reader.windows
                for kind, layer in reader.corit.parts
            ]
            for reader in self.readers
        ]


def pixels(windows: Tensor, device: torch.device | str) -> Tensor:
    """Windows (..., S, S, 3) uint8 to images (..., 3, S, S) in [0, 1] on ``device``."""
    return windows.to(device).movedim(-1, -3).float() / 255


def mean_over_windows(images: Tensor, windows: Sequence[int], read: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``read`` makes of some windows of images with all their windows (b, w, 3, S, S), averaged: (b, F).

    ``read`` takes windows (n, 3, S, S) to (n, F).
    """
    rows = images[:, windows].transpose(0, 1).flatten(0, 1)  # (w * b, 3, S, S), row r of image r mod b
    return read(rows).unflatten(0, (len(windows), -1)).mean(0)


def pool(readings: Sequence[Tensor]) -> Tensor:
    """One image's readings to its feature vector (F,): each reader's mean over windows, side by side."""
    return torch.cat([reading.mean(0) for reading in readings])
