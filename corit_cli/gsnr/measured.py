"""The images that GSNR is measured on: by class, in jackknife groups, and in subsets measured by themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.splits import FEWEST_UNITS, jackknife_groups
from corit_cli.data.windows import CropConfig, crop
from corit_cli.features.extractor import BATCH, pixels
from corit_cli.features.stream import ahead
from corit_cli.gsnr.gradients import Cell


@dataclass(frozen=True)
class Measured:
    """The measured part: windows (n, w, S, S, 3) uint8, samples, and the units they belong to."""

    windows: Tensor
    samples: list[Sample]
    units: list[Hashable]
    device: str
    seed: int

    @classmethod
    def read(cls, samples: list[Sample], units: list[Hashable], crops: CropConfig, device: str, seed: int) -> Measured:
        """Decode the samples' windows."""
        windows = ahead(lambda s: crop(read_image(s.path), crops), samples, workers=4, window=16)
        return cls(torch.from_numpy(np.stack(list(windows))), samples, units, device, seed)

    def clustered(self, positions: Sequence[int]) -> bool:
        """Whether any of the samples belong together."""
        return len({self.units[i] for i in positions}) < len(positions)

    def groups(self, positions: Sequence[int]) -> list[list[int]]:
        """Jackknife groups of some of the samples, as positions; each holds the classes in much the same mix."""
        labels, units = [self.samples[i].label for i in positions], [self.units[i] for i in positions]
        return [[positions[k] for k in group] for group in jackknife_groups(units, labels, seed=self.seed)]

    def cells(self, positions: Sequence[int]) -> Iterator[tuple[Cell, list[int]]]:
        """Some of the samples by class and jackknife group, class by class."""
        groups = self.groups(positions)
        for label in sorted({self.samples[i].label for i in positions}):
            for number, group in enumerate(groups):
                own = [i for i in group if self.samples[i].label == label]
                if own:
                    yield (label, number), own

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Cell]]:
        """Images with their windows (b, w, 3, S, S) in [0, 1], labels (b,) and their cell, cell by cell."""
        size = max(1, BATCH[torch.device(self.device).type] // self.windows.shape[1])
        for cell, members in self.cells(positions):
            for start in range(0, len(members), size):
                part = members[start : start + size]
                images = pixels(self.windows[part], self.device)  # (b, w, 3, S, S)
                yield images, torch.full((len(part),), cell[0], device=self.device), cell

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
