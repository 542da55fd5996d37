"""Features on disk, and taking those that are not there yet."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.forge import NoFaceError
from corit_cli.data.images import read_image
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.data.windows import check_faces, crop_with_face
from corit_cli.features.extractor import Extractor
from corit_cli.features.stream import Extracted, R, ahead, stream
from corit_cli.files import cache_dir, content_sha256
from corit_cli.model.settings import FACE
from corit_cli.progress import Advance, hush

#: Seconds after which another use of a cached feature is noted. Noting each would cost more than reading it.
USED_EVERY = 3600
#: What a row is that was not damaged, in SQL.
_SOUND = "typeof(features.z) = 'blob' AND length(features.z) >= 4 AND length(features.z) % 4 = 0"
_SOUND += " AND typeof(features.used) = 'real'"


@dataclass(frozen=True)
class Job:
    """One feature vector to be had: a file and what is done to its image first."""

    path: Path
    variant: Variant = ORIGINAL


class FeatureCache:
    """Features on disk, keyed by the image's content and everything done to it; bounded, least recently used out.

    One SQLite file: an interrupted run loses at most the last few seconds, and two runs, and threads, may share it. One
    that cannot be written (full disk, read-only home) is reported once through ``warn`` and then does without.
    """

    def __init__(self, path: Path, max_bytes: int = 4 << 30, warn: Callable[[str], None] = lambda _: None) -> None:
        self.path, self.max_bytes, self.warn = Path(path), max_bytes, warn
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._puts = 0
        try:
            self._db = self._opened()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _opened(self) -> sqlite3.Connection | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, used REAL, z BLOB)")
        return db

    def close(self) -> None:
        """Write what is pending and let the file go."""
        with self._lock:
            self._attempt(self._trim)
            if self._db is not None:
                self._db.close()
                self._db = None

    def get(self, keys: Sequence[str]) -> Tensor | None:
        """What stands under ``keys``, float32 end to end, or None unless all are there."""
        select = f"SELECT z, used FROM features WHERE key = ? AND {_SOUND}"
        found = self._attempt(lambda db: [db.execute(select, (key,)).fetchone() for key in keys])
        if found is None or None in found:
            return None
        now = time.time()
        if now - min(row[1] for row in found) > USED_EVERY:
            self._write("UPDATE features SET used = ? WHERE key = ?", [(now, key) for key in keys])
        return torch.frombuffer(bytearray(b"".join(row[0] for row in found)), dtype=torch.float32)

    def put(self, keys: Sequence[str], z: Tensor) -> None:
        """Keep ``z`` (n,), cut into equal parts, under those ``keys`` that have nothing sound of this size yet.

        What is there stays, for something was trained on it: of the deepest layer that is read class tokens alone are
        computed, which rounds otherwise than on the way to a deeper one.
        """
        now = time.time()
        rows = [(k, now, part.numpy().tobytes()) for k, part in zip(keys, z.chunk(len(keys)), strict=True)]
        insert = "INSERT INTO features VALUES (?, ?, ?)"
        repair = "ON CONFLICT (key) DO UPDATE SET z = excluded.z, used = excluded.used"
        repair += f" WHERE length(z) != length(excluded.z) OR NOT ({_SOUND})"
        self._write(f"{insert} {repair}", rows)
        with self._lock:
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
        with self._lock:
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
    return cache_dir() / "features.sqlite"


#: Reads jobs with an extractor, in order, as :func:`read_jobs` does.
Read = Callable[[Extractor, Sequence[Job]], Iterator[Extracted[Job]]]


def extract(
    extractor: Extractor,
    jobs: Sequence[Job],
    cache: FeatureCache | None = None,
    advance: Advance = hush,
    read: Read | None = None,
) -> tuple[Tensor, dict[int, str]]:
    """Features of all ``jobs``, (n, F), averaged over each image's windows, from the cache where it has them.

    Only the readers that the cache lacks are run, so that another view costs no second reading of the class tokens, and
    a job that is there twice is done once. Returns the features with the errors by position; a failed job's row is NaN.
    ``advance`` is told how many more jobs are done. ``read`` reads what the cache lacks, here and now by default.
    """
    read = read or read_jobs
    distinct = {job: k for k, job in enumerate(dict.fromkeys(jobs))}
    if len(distinct) < len(jobs):
        advance(len(jobs) - len(distinct))
        z, failed = extract(extractor, list(distinct), cache, advance, read)
        where = [distinct[job] for job in jobs]
        return z[where], {i: failed[k] for i, k in enumerate(where) if k in failed}
    paths = list(dict.fromkeys(job.path for job in jobs))
    digests = dict(zip(paths, ahead(content_sha256, paths, workers=4, window=64), strict=True))
    prints = extractor.fingerprints()

    def keys(job: Job, reader: int) -> list[str]:
        image = f"{digests[job.path]}|{job.variant.fingerprint}"
        return [hashlib.sha256(f"{image}|{print_}".encode()).hexdigest() for print_ in prints[reader]]

    def kept(job: Job, r: int) -> Tensor | None:
        reader = extractor.readers[r]
        found = cache.get(keys(job, r)) if cache and digests[job.path] else None
        whole = found is not None and found.numel() == len(reader.windows) * reader.corit.width
        return found.view(len(reader.windows), -1) if whole else None

    z = torch.full((len(jobs), extractor.width), float("nan"))
    places = z.split([reader.corit.width for reader in extractor.readers], dim=1)  # views into z, one a reader
    missing: dict[tuple[int, ...], list[int]] = {}  # jobs by the readers that have to read them
    for i, job in enumerate(jobs):
        lacking = []
        for r in range(len(extractor.readers)):
            found = kept(job, r)
            if found is None:
                lacking.append(r)
            else:
                places[r][i] = found.mean(0)
        if lacking:
            missing.setdefault(tuple(lacking), []).append(i)
    advance(len(jobs) - sum(len(chosen) for chosen in missing.values()))
    errors: dict[int, str] = {}

    for lacking, chosen in missing.items():
        part = extractor.only(lacking)
        check_faces(part.crops)  # once, not image by image
        for i, item in zip(chosen, read(part, [jobs[i] for i in chosen]), strict=True):
            if item.error is not None:
                errors[i] = item.error
                z[i] = float("nan")
            else:
                if cache:
                    names = [key for r in lacking for key in keys(jobs[i], r)]
                    cache.put(names, torch.cat([reading.flatten() for reading in item.readings[0]]))
                for r, reading in zip(lacking, item.readings[0], strict=True):
                    found = kept(jobs[i], r)  # who comes again is given the same
                    places[r][i] = (reading if found is None else found).mean(0)
            advance()
    return z, dict(sorted(errors.items()))


def read_jobs(extractor: Extractor, jobs: Sequence[Job]) -> Iterator[Extracted[Job]]:
    """The readings of one picture a job, in order, or its error. Where faces alone are read, one that shows none to be
    forged is a picture without a face, which the cache keeps."""
    picture = lru_cache(maxsize=2)(read_image)  # an image and its copies follow each other
    faces_alone = all(reader.cls == FACE for reader in extractor.readers)

    def load(job: Job) -> tuple[list[list[np.ndarray | None]], None]:
        image = picture(job.path)
        if job.variant != ORIGINAL:  # saving a Pillow image, as JPEG degradation does, keeps the settings in the image
            try:
                image = job.variant.apply(image.copy())
            except NoFaceError:
                if not faces_alone:
                    raise
                return [[None] * len(extractor.crops.windows)], None
        return [crop_with_face(image, extractor.crops)], None

    return stream(extractor, jobs, load)
