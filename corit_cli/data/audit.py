"""Shortcuts in a data set: how well the files' outer form alone tells the fakes from the real images.

When every fake is a PNG and every photograph a JPEG, a detector learns file formats and fails on the next data set.
The audit reads headers only and is meant to run before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corit_cli import metrics
from corit_cli.data.images import FileInfo
from corit_cli.data.manifest import Sample

SEVERE_AUC = 0.65
COMMON_SIZE = 0.02  # an exact size that fewer of the files have counts among "other sizes"

# attribute: (its value, how the report writes it)
_NUMERIC = {
    "pixels": (lambda f: f.width * f.height / 1e6, "{:.3g} megapixels"),
    "aspect ratio": (lambda f: f.width / f.height, "{:.3g} to 1"),
    "JPEG quality": (lambda f: f.jpeg_quality, "quality {:.3g}"),
    "bytes per pixel": (lambda f: f.bytes / (f.width * f.height), "{:.3g} bytes per pixel"),
}


@dataclass(frozen=True)
class Shortcut:
    """How well one attribute alone separates the classes.

    ``auc`` is 0.5 for not at all and 1 for completely; ``severe`` says that it is at least 0.65 and not by chance.
    """

    attribute: str
    auc: float
    detail: str
    severe: bool


def audit(samples: Sequence[Sample], infos: Sequence[FileInfo | None]) -> list[Shortcut]:
    """One :class:`Shortcut` an attribute, the worst first; ``infos[i]`` is what :func:`inspect` says of ``samples[i]``.

    Files without info are left out, and so is an attribute that fewer than two files of either class have. Format and
    exact size are scored by the share of fakes in each category, on the same files, the numbers by their order.
    """
    pairs = [(sample.label, info) for sample, info in zip(samples, infos, strict=True) if info is not None]
    formats = [(label, info.format) for label, info in pairs]
    sizes = [(label, f"{info.width} x {info.height}") for label, info in pairs]
    found = [_categorical("format", formats), _categorical("size", sizes)]
    for attribute, (value, template) in _NUMERIC.items():
        values = [(label, value(info)) for label, info in pairs]
        found.append(_numeric(attribute, [(label, v) for label, v in values if v is not None], template))
    return sorted((s for s in found if s is not None), key=lambda s: -s.auc)


def _numeric(attribute: str, values: list[tuple[int, float]], template: str) -> Shortcut | None:
    labels, scores = np.array([v[0] for v in values], int), np.array([v[1] for v in values], float)
    if not _enough(labels):
        return None
    auc = metrics.auc(labels, scores)
    fake, real = (template.format(np.median(scores[labels == label])) for label in (1, 0))
    detail = f"the median is {fake} for the fakes and {real} for the real images"
    return _shortcut(attribute, max(auc, 1 - auc), detail, scores, labels, freedom=1)


def _categorical(attribute: str, values: list[tuple[int, str]]) -> Shortcut | None:
    labels, names = np.array([v[0] for v in values], int), np.array([v[1] for v in values], str)
    if not _enough(labels):
        return None
    kinds, which, counts = np.unique(names, return_inverse=True, return_counts=True)
    common = np.flatnonzero(counts >= max(2, COMMON_SIZE * len(labels)))
    which = np.where(np.isin(which, common), which, len(kinds))  # the rare ones together form one more category
    fakes = np.bincount(which, labels, len(kinds) + 1)
    total = np.bincount(which, minlength=len(kinds) + 1)
    scores = (fakes / total.clip(1))[which]
    of_fakes, of_real = fakes / fakes.sum(), (total - fakes) / (total - fakes).sum()
    detail = f"no {attribute} is common"
    if len(common):
        excess = (of_fakes - of_real)[common]
        top = common[(np.abs(excess) + 1e-9 * excess).argmax()]  # of two that tell as much, the one that marks fakes
        detail = f"{kinds[top]} holds {of_fakes[top]:.0%} of the fakes and {of_real[top]:.0%} of the real images"
    freedom = int((total > 0).sum()) - 1
    return _shortcut(attribute, metrics.auc(labels, scores), detail, scores, labels, freedom)


def _enough(labels: np.ndarray) -> bool:
    return min(labels.sum(), len(labels) - labels.sum()) >= 2


def _shortcut(
    attribute: str, auc: float, detail: str, scores: np.ndarray, labels: np.ndarray, freedom: int
) -> Shortcut:
    """Severe takes a squared z-score of the rank sum (its variance corrected for ties) six standard deviations above
    its mean by chance. By chance it is chi-squared with one degree of freedom, mean k and variance 2k for k = 1; for
    k + 1 categories in their best order it is at most Pearson's statistic, chi-squared with k."""
    n, fakes = len(labels), int(labels.sum())
    ties = np.unique(scores, return_counts=True)[1].astype(float)
    variance = ((n + 1) - (ties**3 - ties).sum() / (n * (n - 1))) / (12 * fakes * (n - fakes))
    z2 = (auc - 0.5) ** 2 / variance if variance > 0 else 0.0
    beyond_chance = z2 > freedom + 6 * (2 * freedom) ** 0.5
    return Shortcut(attribute, auc, detail, bool(auc >= SEVERE_AUC and beyond_chance))
