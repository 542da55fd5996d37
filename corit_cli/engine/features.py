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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

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

T = TypeVar("T")
R = TypeVar("R")


class Extractor:
    """Windows of images to features."""

    def __init__(self, backbone: Backbone, settings: CoRITSettings, crops: CropConfig, device: str = "cpu") -> None:
        if crops.size != backbone.tower.config.image_size:
            raise CoritError(
                f"windows of {crops.size} px do not fit a backbone that reads {backbone.tower.config.image_size} px"
            )
        self.backbone, self.settings, self.crops, self.device = backbone, settings, crops, torch.device(device)
        try:
            self.corit = CoRIT(backbone.tower, settings).to(self.device).eval()
        except ValueError as error:
            raise CoritError(str(error)) from None
        self.batch = BATCH[self.device.type]

    @property
    def width(self) -> int:
        """F, the length of a feature vector."""
        return self.corit.features

    def select(self, z: Tensor, settings: CoRITSettings) -> Tensor:
        """The features (n, F') that ``settings`` would have read, out of ``z`` (n, F) that this extractor read.

        Both must describe the same streams. Raises ValueError when a part was not read.
        """
        wanted = CoRIT(self.backbone.tower, settings).parts
        columns = [self.corit.parts.index(part) for part in wanted]
        return z.unflatten(1, (len(self.corit.parts), -1))[:, columns].flatten(1)

    @torch.inference_mode()
    def __call__(self, windows: np.ndarray) -> Tensor:
        """Windows (n, S, S, 3) uint8 to features (n, F), float32 on the CPU."""
        images = torch.from_numpy(windows).to(self.device).permute(0, 3, 1, 2).float() / 255  # (n, 3, S, S)
        return self.corit(images).z.float().cpu()

    def fingerprints(self) -> list[str]:
        """For each window and part of the features, everything it depends on besides the image.

        A plain stream's class tokens depend on no contrast view, so runs that read them differently share them.
        """
        s = self.settings
        stream = [s.views, s.inject_at, s.mask, s.alpha] if s.inject_at else []
        return [
            json.dumps([FEATURES_VERSION, self.backbone.sha256, self.crops.size, window, kind, layer, reads, stream])
            for window in self.crops.windows
            for kind, layer in self.corit.parts
            for reads in [None if kind == "cls" else s.views]
        ]


@dataclass(frozen=True)
class Job:
    """One feature vector to be had: a file and what is done to its image first."""

    path: Path
    variant: Variant = ORIGINAL


@dataclass
class Extracted:
    """The outcome of a job: features ``z`` (windows, F), or an ``error``."""

    job: Job
    z: Tensor | None = None
    error: str | None = None
    seconds: float = 0.0
    windows: np.ndarray | None = field(default=None, repr=False)


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


def stream(extractor: Extractor, jobs: Iterable[Job], workers: int | None = None) -> Iterator[Extracted]:
    """Features of ``jobs`` in order. Threads decode ahead while the model works on full batches of crops.

    A file that cannot be read comes out with its ``error``; nothing stops the run.
    """

    def load(job: Job) -> Extracted:
        start = time.perf_counter()
        out = Extracted(job)
        try:
            out.windows = crop(job.variant.apply(read_image(job.path)), extractor.crops)
        except CoritError as error:
            out.error = str(error)
        out.seconds = time.perf_counter() - start
        return out

    workers = workers or min(4, os.cpu_count() or 1)
    waiting: list[Extracted] = []
    for item in ahead(load, jobs, workers, window=2 * extractor.batch):
        waiting.append(item)
        if sum(len(w.windows) for w in waiting if w.windows is not None) >= extractor.batch:
            yield from _forward(extractor, waiting)
            waiting = []
    yield from _forward(extractor, waiting)


def _forward(extractor: Extractor, items: list[Extracted]) -> Iterator[Extracted]:
    """Run the model on all windows of ``items`` at once; equal windows (of a small image) only once."""
    start = time.perf_counter()
    places: dict[bytes, int] = {}
    index = [[places.setdefault(w.tobytes(), len(places)) for w in i.windows] for i in items if i.windows is not None]
    if places:
        size = extractor.crops.size
        z = extractor(np.stack([np.frombuffer(w, np.uint8).reshape(size, size, 3) for w in places]))  # (unique, F)
        share = (time.perf_counter() - start) / len(z)
        for item, rows in zip((i for i in items if i.windows is not None), index, strict=True):
            item.z = z[rows]  # (windows, F)
            item.seconds += share * len(set(rows))
            item.windows = None
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
        select = "SELECT z FROM features WHERE key = ?"
        found = self._attempt(lambda db: [db.execute(select, (key,)).fetchone() for key in keys])
        if found is None or None in found:
            return None
        now = time.time()
        update = "UPDATE features SET used = ? WHERE key = ?"
        self._write(update, [(now, key) for key in keys])
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

    Returns them with the errors by position; a failed job's row is NaN. ``progress`` is told how many more are done.
    """
    paths = list(dict.fromkeys(job.path for job in jobs))
    digests = dict(zip(paths, ahead(content_sha256, paths, workers=4, window=64), strict=True))
    prints = extractor.fingerprints()
    windows = len(extractor.crops.windows)

    def keys(job: Job) -> list[str]:
        image = f"{digests[job.path]}|{job.variant.fingerprint}"
        return [hashlib.sha256(f"{image}|{print_}".encode()).hexdigest() for print_ in prints]

    z = torch.full((len(jobs), extractor.width), float("nan"))
    missing = []
    for i, job in enumerate(jobs):
        found = cache.get(keys(job)) if cache and digests[job.path] else None
        if found is None or found.numel() != windows * extractor.width:
            missing.append(i)
        else:
            z[i] = found.view(windows, -1).mean(0)
    progress(len(jobs) - len(missing))
    errors: dict[int, str] = {}
    for i, item in zip(missing, stream(extractor, (jobs[i] for i in missing)), strict=True):
        if item.z is None:
            errors[i] = item.error or "no features"
        else:
            z[i] = item.z.mean(0)
            if cache:
                cache.put(keys(jobs[i]), item.z.flatten())
        progress(1)
    return z, errors
