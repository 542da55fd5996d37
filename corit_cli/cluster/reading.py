"""Reading images into features as tasks on a Ray cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from corit_cli.cluster.session import room
from corit_cli.features.cache import Job, read_jobs
from corit_cli.features.extractor import Extractor
from corit_cli.features.stream import Extracted

#: Images of a task. An image and its copies follow each other: they are mostly in one.
SHARD = 64


@dataclass(frozen=True)
class FarReading:
    """Reads jobs as :func:`~corit_cli.features.cache.read_jobs` does, by workers of ``threads`` CPUs, who find the
    files where they lie here."""

    ray: ModuleType
    threads: int

    def __call__(self, extractor: Extractor, jobs: Sequence[Job]) -> Iterator[Extracted[Job]]:
        """Readings in order, with no more tasks ahead than keep all workers busy."""
        ahead = 2 * room(self.ray, self.threads)
        sent, task = self.ray.put(extractor), self.ray.remote(num_cpus=self.threads)(_read)
        waiting: deque[Any] = deque()
        for start in range(0, len(jobs), SHARD):
            shard = [replace(job, path=job.path.absolute()) for job in jobs[start : start + SHARD]]
            waiting.append(task.remote(sent, shard, self.threads))
            if len(waiting) >= ahead:
                yield from self.ray.get(waiting.popleft())
        while waiting:
            yield from self.ray.get(waiting.popleft())


def _read(extractor: Extractor, jobs: Sequence[Job], threads: int) -> list[Extracted[Job]]:
    import torch

    torch.set_num_threads(threads)
    return list(read_jobs(extractor, jobs))
