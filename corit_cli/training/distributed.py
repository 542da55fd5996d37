"""One run in several processes, as torchrun starts them. Without it there is one, and nothing happens here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache, Job, Read, extract
from corit_cli.features.extractor import Extractor
from corit_cli.progress import Advance, hush

S = TypeVar("S", bound=Sequence)

#: What torchrun tells each process.
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: Longer than any process may have to wait for another, whose features are not in its cache.
_TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """The processes of a run and this one's number among them. All call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    def share(self, items: S) -> S:
        """This process's items, every ``size``-th; shares differ by at most one item."""
        return items[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        values = values.detach().to("cpu", copy=True)
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def union(self, found: dict[int, Any]) -> dict[int, Any]:
        """The entries that all processes found."""
        every: list[Any] = [found] * self.size
        if self.size > 1:
            dist.all_gather_object(every, found)
        return {key: value for part in every for key, value in part.items()}

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What ``decide`` returns in the first process, in all of them."""
        decided = [decide() if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(decided)
        return decided[0]

    def wrap(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients that are averaged over the processes."""
        return DistributedDataParallel(module, broadcast_buffers=False) if self.size > 1 else module

    def extract(
        self,
        extractor: Extractor,
        jobs: Sequence[Job],
        cache: FeatureCache | None = None,
        advance: Advance = hush,
        read: Read | None = None,
    ) -> tuple[Tensor, dict[int, str]]:
        """As :func:`corit_cli.features.cache.extract`, each process with its share of the jobs.

        ``advance`` is told of this process's share.
        """
        own = self.share(range(len(jobs)))
        found, errors = extract(extractor, self.share(jobs), cache, advance, read)
        if self.size == 1:
            return found, errors
        z = torch.zeros(len(jobs), extractor.width)
        z[own] = found
        return self.total(z), self.union({own[k]: message for k, message in errors.items()})


ALONE = World()


def launched() -> World:
    """The processes that torchrun started this one among, which need not have joined yet."""
    if not all(name in os.environ for name in _ENVIRONMENT):
        return ALONE
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


@contextmanager
def world(device: str) -> Iterator[World]:
    """The processes that torchrun started, joined while the block runs: through gloo on a CPU, NCCL on GPUs.

    Every process on a machine takes a GPU of its own as ``cuda``. Raises CoritError when there are too few.
    """
    joined = launched()
    if joined.size == 1:
        yield joined
        return
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise CoritError(f"torchrun starts more processes than there are GPUs here ({torch.cuda.device_count()})")
        torch.cuda.set_device(local)
    # What lies on the CPU, such as errors and sums for the log, goes through gloo in either case.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield joined
    finally:
        dist.destroy_process_group()
