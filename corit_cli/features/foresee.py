"""What taking features would cost, without taking them: which are in the cache, and how long one takes here."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from corit_cli.features.cache import FeatureCache, Job, extract, read_jobs
from corit_cli.features.extractor import Extractor
from corit_cli.features.stream import Extracted

#: Images that are read to learn how long one takes, the first of which only warms up.
TRIED = 9
#: A pass backwards through a tower, in passes forwards.
BACKWARDS = 2


@dataclass(frozen=True)
class Cost:
    """Features to be taken and those that are cached, with the seconds of reading, of fitting heads, and of all other
    ``passes`` through the tower, to tune it or for its gradients."""

    to_read: int
    cached: int = 0
    reading: float = 0.0
    fitting: float = 0.0
    passes: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.reading + self.fitting + self.passes


class Peek(FeatureCache):
    """A feature cache that is looked into and left as it is; empty where there is none."""

    def _opened(self) -> sqlite3.Connection | None:
        if not self.path.is_file():
            return None
        # As it is on the disk: what another run has not finished writing does not count.
        return sqlite3.connect(f"{self.path.resolve().as_uri()}?immutable=1", uri=True, check_same_thread=False)

    def close(self) -> None:
        """Let the file go."""
        if self._db is not None:
            self._db.close()

    def _write(self, statement: str, rows: list[tuple]) -> None:
        """Nothing is written."""


def lacking(extractor: Extractor, jobs: Sequence[Job], cache: Path | None) -> list[Job]:
    """Those of ``jobs`` that the cache at this path, if any, lacks a reading of; each once. Their files are read, to
    know them by their contents, and nothing is decoded."""
    missing: list[Job] = []

    def read(_: Extractor, jobs: Sequence[Job]) -> Iterator[Extracted[Job]]:
        missing.extend(jobs)
        return (Extracted(job, error="not read") for job in jobs)

    if cache is None:
        return list(dict.fromkeys(jobs))
    peek = Peek(cache)
    try:
        extract(extractor, jobs, peek, read=read)
    finally:
        peek.close()
    return missing


def seconds_each(extractor: Extractor, jobs: Sequence[Job]) -> float:
    """How long one of ``jobs`` takes on this machine, from a few of them, evenly spread; 0 where there are none."""
    chosen = [jobs[k * len(jobs) // TRIED] for k in range(TRIED)] if len(jobs) > TRIED else list(jobs)
    if not chosen:
        return 0.0
    first, *rest = chosen
    list(read_jobs(extractor, [first]))
    begun = time.perf_counter()
    tried = rest or [first]
    list(read_jobs(extractor, tried))
    return (time.perf_counter() - begun) / len(tried)
