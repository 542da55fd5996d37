"""The runs of a sweep as tasks on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from corit_cli.cluster.session import room

if TYPE_CHECKING:
    from corit_cli.cor.arms import HeadArm, TunedArm
    from corit_cli.cor.collapse import Run
    from corit_cli.cor.sweep import MakeArm, Wanted


@dataclass
class FarArm:
    """An arm whose runs are trained by workers of ``threads`` CPUs; they come out as the arm itself would have them
    with so many threads.

    Where blocks are tuned as many runs are a task as the arm trains at a time. Heads of all radii and seeds train as
    one program, here as there.
    """

    arm: HeadArm | TunedArm
    ray: ModuleType
    threads: int

    def __post_init__(self) -> None:
        self.name = self.arm.name
        self._sent = self.ray.put(self.arm)
        self._train = self.ray.remote(num_cpus=self.threads)(_train)

    def run(self, wanted: Sequence[Wanted]) -> Iterator[Run]:
        """Train every wanted run; yield each as it is finished."""
        together = [[w for w in wanted if w[2] == shuffled] for shuffled in (False, True)]
        if self.arm.one_by_one:
            each = self.arm.at_once(self.threads)
            together = [wanted[start : start + each] for start in range(0, len(wanted), each)]
        pieces = [piece for piece in together if piece]
        waiting = [self._train.remote(self._sent, piece, self.threads) for piece in pieces]
        try:
            while waiting:
                done, waiting = self.ray.wait(waiting)
                yield from self.ray.get(done[0])
        finally:
            for task in waiting:
                self.ray.cancel(task, force=True)


def far(make: MakeArm, ray: ModuleType, threads: int) -> MakeArm:
    """What makes an arm here and has it trained there. Raises CoritError where no node has so many CPUs."""
    room(ray, threads)
    return lambda progress: FarArm(make(progress), ray, threads)


def _train(arm: Any, wanted: Sequence[Wanted], threads: int) -> list[Run]:
    import torch

    torch.set_num_threads(threads)
    return list(arm.run(wanted))
