"""The images that GSNR is measured on: by class or source, in jackknife groups, and in subsets by themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import FEWEST_UNITS, jackknife_groups, source_strata
from corit_cli.data.windows import crop
from corit_cli.features.extractor import BATCH, pixels
from corit_cli.features.stream import ahead
from corit_cli.gsnr.gradients import Cell
from corit_cli.metrics.gsnr import balanced_weights


@dataclass(frozen=True)
class Strata:
    """What stratum each of some samples belongs to (N,), from 0, and the strata's names and weights (C,)."""

    numbers: list[int]
    names: list[str]
    weights: list[float]

    @classmethod
    def of(cls, labels: Sequence[int], sources: Sequence[str], units: Sequence[Hashable], by: str) -> Strata:
        """The classes (``by`` of ``class``) or the sources within them (``source``)."""
        # Classes are sources within classes where all images are of one source.
        numbers, names = source_strata(labels, sources if by == "source" else ["all"] * len(labels), units)
        return cls(numbers, names, balanced_weights(numbers, labels).tolist())


@dataclass(frozen=True)
class Measured:
    """The measured part: windows (n, w, S, S, 3) uint8, samples, the units they belong to, and whether strata are by
    class or by source."""

    windows: Tensor
    samples: list[Sample]
    units: list[Hashable]
    device: str
    seed: int
    by: str = "class"

    @classmethod
    def read(
        cls, samples: list[Sample], units: list[Hashable], crops: CropConfig, device: str, seed: int, by: str = "class"
    ) -> Measured:
        """Decode the samples' windows."""
        windows = ahead(lambda s: crop(read_image(s.path), crops), samples, workers=4, window=16)
        return cls(torch.from_numpy(np.stack(list(windows))), samples, units, device, seed, by)

    def clustered(self, positions: Sequence[int]) -> bool:
        """Whether any of the samples belong together."""
        return len({self.units[i] for i in positions}) < len(positions)

    def strata(self, positions: Sequence[int]) -> Strata:
        """The strata of some of the samples."""
        chosen = [self.samples[i] for i in positions]
        return Strata.of(
            [s.label for s in chosen], [s.source for s in chosen], [self.units[i] for i in positions], self.by
        )

    def groups(self, positions: Sequence[int]) -> list[list[int]]:
        """Jackknife groups of some of the samples, as positions; each holds the strata in much the same mix."""
        units, strata = [self.units[i] for i in positions], self.strata(positions)
        return [[positions[k] for k in group] for group in jackknife_groups(units, strata.numbers, seed=self.seed)]

    def cells(self, positions: Sequence[int]) -> Iterator[tuple[Cell, list[int]]]:
        """Some of the samples by stratum and jackknife group, stratum by stratum."""
        groups, stratum = self.groups(positions), dict(zip(positions, self.strata(positions).numbers, strict=True))
        for own in sorted(set(stratum.values())):
            for number, group in enumerate(groups):
                members = [i for i in group if stratum[i] == own]
                if members:
                    yield (own, number), members

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Cell]]:
        """Images with their windows (b, w, 3, S, S) in [0, 1], labels (b,) and their cell, cell by cell."""
        size = max(1, BATCH[torch.device(self.device).type] // self.windows.shape[1])
        for cell, members in self.cells(positions):
            for start in range(0, len(members), size):
                part = members[start : start + size]
                images = pixels(self.windows[part], self.device)  # (b, w, 3, S, S)
                yield images, torch.tensor([self.samples[i].label for i in part], device=self.device), cell

    def places(self) -> list[list[int]]:
        """The jackknife groups of all samples as places in the order of :meth:`batches`."""
        groups: dict[int, list[int]] = defaultdict(list)
        start = 0
        for (_, number), members in self.cells(range(len(self.samples))):
            groups[number] += range(start, start + len(members))
            start += len(members)
        return [groups[number] for number in sorted(groups)]


def subsets(data: Measured, by: str | None, notes: list[str]) -> dict[str, list[int]]:
    """Positions by class or source; those with too few units for an interval are left out, with a note."""
    if by is None:
        return {}
    names = [("real", "fake")[s.label] if by == "class" else s.source or "unnamed" for s in data.samples]
    strata = {name: [i for i, n in enumerate(names) if n == name] for name in sorted(set(names))}
    if by == "class":
        strata = dict(sorted(strata.items(), reverse=True))  # real, then fake
    small = []
    for name, positions in strata.items():
        units = {(data.samples[i].label, data.units[i]) for i in positions}  # of each class, as it is a stratum
        if min(Counter(label for label, _ in units).values()) < FEWEST_UNITS:
            small.append(name)
    if small:
        notes.append(f"not measured by themselves, for want of independent images: {', '.join(small)}")
    return {name: positions for name, positions in strata.items() if name not in small}
