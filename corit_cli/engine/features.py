"""From image files to CoRIT features: decoding ahead of the model, batching across files, and a cache on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.images import CropConfig, crop, read_image
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.engine.weights import Backbone
from corit_cli.errors import CoritError
from corit_cli.model.corit import CoRIT
from corit_cli.model.settings import CoRITSettings

#: Part of every cache key; raised whenever the same settings come to mean different features.
FEATURES_VERSION = 1
#: Crops in one forward pass. More gain nothing on a CPU; a GPU takes more.
BATCH = {"cpu": 8, "cuda": 64}

#: Seconds after which another use of a cached feature is noted. Noting each would cost more than reading it.
USED_EVERY = 3600

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Reader:
    """A CoRIT and the positions, among an image's windows, of those it reads."""

    windows: list[int]
    corit: CoRIT


class Extractor:
    """Windows of images to features.

    With windows of both kinds the work is divided: class tokens (HRI) are read from the resized image, which shows the
    whole, and contrasts (CGP) from native windows, whose pixels still hold the traces. Otherwise every window is read
    for everything. Features are averaged over the windows that one reader reads.
    """

    def __init__(self, backbone: Backbone, settings: CoRITSettings, crops: CropConfig, device: str = "cpu") -> None:
        if crops.size != backbone.tower.config.image_size:
            raise CoritError(
                f"windows of {crops.size} px do not fit a backbone that reads {backbone.tower.config.image_size} px"
            )
        self.backbone, self.settings, self.crops, self.device = backbone, settings, crops, torch.device(device)
        everything = list(range(len(crops.windows)))
        division = [(everything, settings)]
        if crops.mode == "both" and settings.integrate and (settings.cgp or settings.pool):
            whole, native = replace(settings, cgp=(), pool=()), replace(settings, integrate=())
            division = [(everything[:1], whole), (everything[1:], native)]
        elif crops.mode == "both":
            division = [(everything[:1] if settings.integrate else everything[1:], settings)]
        try:
            self.readers = [Reader(w, CoRIT(backbone.tower, s).to(self.device).eval()) for w, s in division]
        except ValueError as error:
            raise CoritError(str(error)) from None
        self.batch = BATCH[self.device.type]

    @property
    def parts(self) -> list[tuple[str, int]]:
        """(kind, layer) of each part of a feature vector, in order; a part is as wide as the tower."""
        return [part for reader in self.readers for part in reader.corit.parts]

    @property
    def width(self) -> int:
        """F, the length of a feature vector."""
        return sum(reader.corit.features for reader in self.readers)

    def select(self, z: Tensor, settings: CoRITSettings) -> Tensor:
        """The features (n, F') that ``settings`` would have read, out of ``z`` (n, F) that this extractor read.

        Both must describe the same streams. Raises ValueError when a part was not read.
        """
        wanted = Extractor(self.backbone, settings, self.crops, self.device.type).parts
        columns = [self.parts.index(part) for part in wanted]
        return z.unflatten(1, (len(self.parts), -1))[:, columns].flatten(1)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Tensor]]:
        """Each image's windows, (windows, S, S, 3) uint8, to its readings, one (windows read, F_r) a reader.

        Windows that occur more than once, as those of a small image do, are run once.
        """
        readings: list[list[Tensor]] = [[] for _ in images]
        for reader in self.readers:
            places: dict[bytes, int] = {}
            rows = [[places.setdefault(image[w].tobytes(), len(places)) for w in reader.windows] for image in images]
            pixels = np.stack([np.frombuffer(window, np.uint8).reshape(images[0].shape[1:]) for window in places])
            batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255  # (n, 3, S, S)
            z = reader.corit(batch).z.float().cpu()  # (n, F_r)
            for reading, row in zip(readings, rows, strict=True):
                reading.append(z[row])
        return readings

    def only(self, numbers: Sequence[int]) -> Extractor:
        """The same extractor with some of its readers, by their ``numbers``."""
        part = copy(self)
        part.readers = [self.readers[r] for r in numbers]
        return part

    def fingerprints(self) -> list[list[str]]:
        """For each reader, everything that each window's parts depend on besides the image, in the readings' order.

        A plain stream's class tokens depend on no contrast view, so runs that read them differently share them.
        """
        s = self.settings
        stream = [s.views, s.inject_at, s.mask, s.alpha] if s.inject_at else []
        common = [FEATURES_VERSION, self.backbone.sha256, self.crops.size]
        return [
            [
                json.dumps([*common, self.crops.windows[w], kind, layer, None if kind == "cls" else s.views, stream])
                for w in reader.windows
                for kind, layer in reader.corit.parts
            ]
            for reader in self.readers
        ]


def pool(readings: Sequence[Tensor]) -> Tensor:
    """One image's readings to its feature vector (F,): each reader's mean over windows, side by side."""
    return torch.cat([reading.mean(0) for reading in readings])


@dataclass(frozen=True)
class Job:
    """One feature vector to be had: a file and what is done to its image first."""

    path: Path
    variant: Variant = ORIGINAL


@dataclass
class Extracted(Generic[T]):
    """What became of one item: the readings of each of its pictures, as :class:`Extractor` gives them, what ``load``
    said ``about`` it, or an ``error``."""

    item: T
    readings: list[list[Tensor]] = field(default_factory=list)
    about: Any = None
    error: str | None = None
    seconds: float = 0.0
    pictures: list[np.ndarray] = field(default_factory=list, repr=False)


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int, window: int) -> Iterator[R]:
    """``map`` in threads, in order, with at most ``window`` results waiting, so that memory stays flat."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= window:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def stream(
    extractor: Extractor,
    items: Iterable[T],
    load: Callable[[T], tuple[list[np.ndarray], Any]],
    workers: int | None = None,
) -> Iterator[Extracted[T]]:
    """Readings of ``items`` in order. Threads load ahead while the model works on full batches of windows.

    ``load`` gives an item's pictures, each as its windows (w, S, S, 3) uint8, and anything worth keeping about it. An
    item that it raises CoritError for comes out with its ``error``; nothing stops the run.
    """

    def attempt(item: T) -> Extracted[T]:
        start = time.perf_counter()
        out = Extracted(item)
        try:
            out.pictures, out.about = load(item)
        except CoritError as error:
            out.error = str(error)
        out.seconds = time.perf_counter() - start
        return out

    workers = workers or min(4, os.cpu_count() or 1)
    waiting: list[Extracted[T]] = []
    for item in ahead(attempt, items, workers, window=2 * extractor.batch):
        waiting.append(item)
        if sum(len(windows) for one in waiting for windows in one.pictures) >= extractor.batch:
            yield from _forward(extractor, waiting)
            waiting = []
    yield from _forward(extractor, waiting)


def _forward(extractor: Extractor, items: list[Extracted[T]]) -> Iterator[Extracted[T]]:
    """Run the model on the windows of all ``items``, batch by batch."""
    pictures = [(item, windows) for item in items for windows in item.pictures]
    size = max(1, extractor.batch // len(extractor.crops.windows))
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        begun = time.perf_counter()
        readings = extractor([windows for _, windows in batch])
        share = (time.perf_counter() - begun) / len(batch)
        for (item, _), reading in zip(batch, readings, strict=True):
            item.readings.append(reading)
            item.seconds += share
    for item in items:
        item.pictures = []
    yield from items


class FeatureCache:
    """Features on disk, keyed by the image's content and everything done to it; bounded, least recently used out.

    One SQLite file: an interrupted run loses at most the last few seconds, and two runs may share it. A cache that
    cannot be written (full disk, read-only home) is reported once through ``warn`` and then does without.
    """

    def __init__(self, path: Path, max_bytes: int = 4 << 30, warn: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.max_bytes, self.warn = path, max_bytes, warn
        self._db: sqlite3.Connection | None = None
        self._puts = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, used REAL, z BLOB)")
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is pending and let the file go."""
        if self._db is not None:
            self._attempt(self._trim)
            self._db.close()

    def get(self, keys: Sequence[str]) -> Tensor | None:
        """What stands under ``keys``, float32 end to end, or None unless all are there."""
        select = "SELECT z, used FROM features WHERE key = ?"
        found = self._attempt(lambda db: [db.execute(select, (key,)).fetchone() for key in keys])
        if found is None or None in found:
            return None
        now = time.time()
        if now - min(row[1] for row in found) > USED_EVERY:
            self._write("UPDATE features SET used = ? WHERE key = ?", [(now, key) for key in keys])
        return torch.frombuffer(bytearray(b"".join(row[0] for row in found)), dtype=torch.float32)

    def put(self, keys: Sequence[str], z: Tensor) -> None:
        """Keep ``z`` (n,), cut into equal parts, under ``keys``."""
        now = time.time()
        rows = [(k, now, part.numpy().tobytes()) for k, part in zip(keys, z.chunk(len(keys)), strict=True)]
        self._write("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        self._puts += 1
        if self._puts % 64 == 0:
            self._attempt(self._trim)

    def _write(self, statement: str, rows: list[tuple]) -> None:
        """Run it and commit at once: another run that shares the file must not wait."""

        def action(db: sqlite3.Connection) -> None:
            with db:
                db.executemany(statement, rows)

        self._attempt(action)

    def _trim(self, db: sqlite3.Connection) -> None:
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self.max_bytes:
            (rows,) = db.execute("SELECT count(*) FROM features").fetchone()
            oldest = "SELECT key FROM features ORDER BY used LIMIT ?"
            with db:
                db.execute(f"DELETE FROM features WHERE key IN ({oldest})", (max(1, rows // 4),))

    def _attempt(self, action: Callable[[sqlite3.Connection], R]) -> R | None:
        if self._db is None:
            return None
        try:
            return action(self._db)
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        self._db = None
        self.warn(f"feature cache {self.path} is not usable ({error}); going on without it")


def default_cache_path() -> Path:
    """``$CORIT_CACHE``, or ``corit/features.sqlite`` in the user's cache folder."""
    if "CORIT_CACHE" in os.environ:
        return Path(os.environ["CORIT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "corit" / "features.sqlite"


def content_sha256(path: Path) -> str | None:
    """SHA-256 of a file's bytes, or None when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()


def extract(
    extractor: Extractor,
    jobs: Sequence[Job],
    cache: FeatureCache | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, dict[int, str]]:
    """Features of all ``jobs``, (n, F), averaged over each image's windows, from the cache where it has them.

    Only the readers that the cache lacks are run, so that another view costs no second reading of the class tokens.
    Returns the features with the errors by position; a failed job's row is NaN. ``progress`` is told how many more jobs
    are done.
    """
    paths = list(dict.fromkeys(job.path for job in jobs))
    digests = dict(zip(paths, ahead(content_sha256, paths, workers=4, window=64), strict=True))
    prints = extractor.fingerprints()

    def keys(job: Job, reader: int) -> list[str]:
        image = f"{digests[job.path]}|{job.variant.fingerprint}"
        return [hashlib.sha256(f"{image}|{print_}".encode()).hexdigest() for print_ in prints[reader]]

    z = torch.full((len(jobs), extractor.width), float("nan"))
    places = z.split([reader.corit.features for reader in extractor.readers], dim=1)  # views into z, one a reader
    missing: dict[tuple[int, ...], list[int]] = {}  # jobs by the readers that have to read them
    for i, job in enumerate(jobs):
        lacking = []
        for r, reader in enumerate(extractor.readers):
            found = cache.get(keys(job, r)) if cache and digests[job.path] else None
            if found is None or found.numel() != len(reader.windows) * reader.corit.features:
                lacking.append(r)
            else:
                places[r][i] = found.view(len(reader.windows), -1).mean(0)
        if lacking:
            missing.setdefault(tuple(lacking), []).append(i)
    progress(len(jobs) - sum(len(chosen) for chosen in missing.values()))
    errors: dict[int, str] = {}

    picture = lru_cache(maxsize=2)(read_image)  # an image and its copies follow each other

    def load(job: Job) -> tuple[list[np.ndarray], None]:
        image = picture(job.path)
        if job.variant != ORIGINAL:  # saving a Pillow image, as JPEG degradation does, keeps the settings in the image
            image = job.variant.apply(image.copy())
        return [crop(image, extractor.crops)], None

    for lacking, chosen in missing.items():
        items = stream(extractor.only(lacking), (jobs[i] for i in chosen), load)
        for i, item in zip(chosen, items, strict=True):
            if item.error is not None:
                errors[i] = item.error
                z[i] = float("nan")
            else:
                for r, reading in zip(lacking, item.readings[0], strict=True):
                    places[r][i] = reading.mean(0)
                if cache:
                    names = [key for r in lacking for key in keys(jobs[i], r)]
                    cache.put(names, torch.cat([reading.flatten() for reading in item.readings[0]]))
            progress(1)
    return z, dict(sorted(errors.items()))
