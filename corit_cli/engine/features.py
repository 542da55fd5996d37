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
from dataclasses import asdict, dataclass, field
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
    """Crops to features. ``fingerprint`` names everything the features depend on besides the image."""

    def __init__(self, backbone: Backbone, settings: CoRITSettings, crops: CropConfig, device: str = "cpu") -> None:
        if crops.size != backbone.tower.config.image_size:
            raise CoritError(
                f"crops of {crops.size} px do not fit a backbone that reads {backbone.tower.config.image_size} px"
            )
        self.backbone, self.settings, self.crops, self.device = backbone, settings, crops, torch.device(device)
        try:
            self.corit = CoRIT(backbone.tower, settings).to(self.device).eval()
        except ValueError as error:
            raise CoritError(str(error)) from None
        self.batch = BATCH[self.device.type]
        self.fingerprint = json.dumps(
            {
                "version": FEATURES_VERSION,
                "backbone": backbone.sha256,
                "settings": asdict(settings),
                "crops": asdict(crops),
            },
            sort_keys=True,
        )

    @property
    def width(self) -> int:
        """F, the length of a feature vector."""
        return self.corit.features

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> Tensor:
        """Crops (n, S, S, 3) uint8 to features (n, F), float32 on the CPU."""
        images = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255  # (n, 3, S, S)
        return self.corit(images).z.float().cpu()


@dataclass(frozen=True)
class Job:
    """One feature vector to be had: a file and what is done to its image first."""

    path: Path
    variant: Variant = ORIGINAL


@dataclass
class Extracted:
    """The outcome of a job: features ``z`` (F,) averaged over the image's crops, or an ``error``."""

    job: Job
    z: Tensor | None = None
    error: str | None = None
    seconds: float = 0.0
    crops: np.ndarray | None = field(default=None, repr=False)


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
            out.crops = crop(job.variant.apply(read_image(job.path)), extractor.crops)
        except CoritError as error:
            out.error = str(error)
        out.seconds = time.perf_counter() - start
        return out

    workers = workers or min(4, os.cpu_count() or 1)
    waiting: list[Extracted] = []
    for item in ahead(load, jobs, workers, window=2 * extractor.batch):
        waiting.append(item)
        if sum(len(w.crops) for w in waiting if w.crops is not None) >= extractor.batch:
            yield from _forward(extractor, waiting)
            waiting = []
    yield from _forward(extractor, waiting)


def _forward(extractor: Extractor, items: list[Extracted]) -> Iterator[Extracted]:
    good = [item for item in items if item.crops is not None]
    if good:
        start = time.perf_counter()
        z = extractor(np.concatenate([item.crops for item in good]))  # (sum of crops, F)
        share = (time.perf_counter() - start) / len(z)
        for item, part in zip(good, z.split([len(item.crops) for item in good]), strict=True):
            item.z = part.mean(0)  # (F,)
            item.seconds += share * len(part)
            item.crops = None
    yield from items


class FeatureCache:
    """Features on disk, keyed by the image's content and everything done to it; bounded, least recently used out.

    One SQLite file: an interrupted run loses at most the last few seconds, and two runs may share it. A cache that
    cannot be written (full disk, read-only home) is reported once through ``warn`` and then does without.
    """

    def __init__(self, path: Path, max_bytes: int = 4 << 30, warn: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.max_bytes, self.warn = path, max_bytes, warn
        self._db: sqlite3.Connection | None = None
        self._pending = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, used REAL, z BLOB)")
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is pending and let the file go."""
        if self._db is not None:
            self._attempt(self._trim)
            self._db.close()

    def get(self, key: str, width: int) -> Tensor | None:
        """The features under ``key``, (width,) float32, or None."""
        found = self._attempt(lambda db: db.execute("SELECT z FROM features WHERE key = ?", (key,)).fetchone())
        if found is None or len(found[0]) != 4 * width:
            return None
        self._attempt(lambda db: db.execute("UPDATE features SET used = ? WHERE key = ?", (time.time(), key)))
        return torch.frombuffer(bytearray(found[0]), dtype=torch.float32)

    def put(self, key: str, z: Tensor) -> None:
        """Keep ``z`` (F,) under ``key``."""
        row = (key, time.time(), z.numpy().tobytes())
        self._attempt(lambda db: db.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", row))
        self._pending += 1
        if self._pending >= 32:
            self._pending = 0
            self._attempt(self._trim)

    def _trim(self, db: sqlite3.Connection) -> None:
        db.commit()
        (pages,), (free,), (size,) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self.max_bytes:
            (rows,) = db.execute("SELECT count(*) FROM features").fetchone()
            db.execute(
                "DELETE FROM features WHERE key IN (SELECT key FROM features ORDER BY used LIMIT ?)",
                (max(1, rows // 4),),
            )
            db.commit()

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
    """Features of all ``jobs``, (n, F), from the cache where it has them.

    Returns them with the errors by position; a failed job's row is NaN. ``progress`` is told how many more are done.
    """
    paths = list(dict.fromkeys(job.path for job in jobs))
    digests = dict(zip(paths, ahead(content_sha256, paths, workers=4, window=64), strict=True))
    keys = [
        hashlib.sha256(f"{digests[job.path]}|{extractor.fingerprint}|{job.variant.fingerprint}".encode()).hexdigest()
        for job in jobs
    ]
    z = torch.full((len(jobs), extractor.width), float("nan"))
    missing = []
    for i, key in enumerate(keys):
        found = cache.get(key, extractor.width) if cache and digests[jobs[i].path] else None
        if found is None:
            missing.append(i)
        else:
            z[i] = found
    progress(len(jobs) - len(missing))
    errors: dict[int, str] = {}
    for i, item in zip(missing, stream(extractor, (jobs[i] for i in missing)), strict=True):
        if item.z is None:
            errors[i] = item.error or "no features"
        else:
            z[i] = item.z
            if cache:
                cache.put(keys[i], item.z)
        progress(1)
    return z, errors
