"""The groups that labelled images fall into: by source, by generator, or all as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corit_cli.data.manifest import Sample

Mask = NDArray[np.bool_]

#: Images of each class that a group needs before its AUC counts towards a mean over groups.
MINIMUM = 8


@dataclass(frozen=True)
class Group:
    """Images that are judged together; ``against`` says which real images a generator's fakes are set against, and
    ``withheld``, where that is more, all images that who judges them may not have seen."""

    mask: Mask
    against: str = ""
    withheld: Mask | None = None

    def two_class(self, labels: NDArray) -> bool:
        """Whether each class has at least ``MINIMUM`` images."""
        return bool(np.bincount(labels[self.mask], minlength=2).min() >= MINIMUM)


def groups_by(samples: Sequence[Sample], by: str) -> dict[str, Group]:
    """Named groups by ``source`` or by ``generator``, sorted by name; images without a name are in none.

    A generator's fakes are set against the real images of the sources they come from, or against all real images
    where those sources have none.
    """
    labels, sources = np.array([s.label for s in samples]), np.array([s.source for s in samples])
    if by == "source":
        return {str(name): Group(sources == name) for name in np.unique(sources) if name}
    generators = np.array([s.generator if s.label else "" for s in samples])
    groups = {}
    for name in np.unique(generators[generators != ""]):
        fakes = generators == name
        own = np.isin(sources, sources[fakes]) & (labels == 0)
        against = "its sources" if own.any() else "all real images"
        groups[str(name)] = Group(fakes | (own if own.any() else labels == 0), against)
    return groups


def comparable(samples: Sequence[Sample]) -> tuple[str, dict[str, Mask]]:
    """The groups that a mean AUC is taken over: sources with both classes, else generators, else all images as one.

    Returns what they are grouped by ("" for all images) and each group's mask.
    """
    labels = np.array([s.label for s in samples])
    for by in ("source", "generator"):
        found = {name: g.mask for name, g in groups_by(samples, by).items() if g.two_class(labels)}
        if found:
            return by, found
    return "", {"all images": np.ones(len(samples), bool)}
