"""Where verdicts begin, and how often they err, by what heads say of images that they never saw."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corit_cli.detection.calibration import Thresholds, Verdicts, fit_calibration, fit_thresholds
from corit_cli.metrics.intervals import effective_count


@dataclass(frozen=True)
class OperatingPoint:
    """How held-out images are judged, and by which thresholds without each fold.

    ``verdicts`` come from all images. For the images of each of ``folds`` (n,), ``without`` holds thresholds that were
    fitted to the other folds alone: error rates by thresholds that were fitted to the same scores are what was aimed
    at, and too good, the more so the fewer images there are. Images of one of ``units`` (n,) belong together.
    """

    verdicts: Verdicts
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    units: Sequence[Hashable]
    folds: NDArray[np.int64]
    without: dict[int, Thresholds]

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        labels: Tensor,
        sources: Sequence[str],
        units: Sequence[Hashable],
        folds: Tensor,
        touched: Tensor,
        targets: tuple[float, float],
    ) -> OperatingPoint:
        """From held-out ``logits`` (n,) of images with ``labels``, ``sources``, ``units`` and ``folds`` (n,), some of
        which were ``touched`` (n,), for shares of ``targets`` of real images called fake and of fakes called real.

        Where a class would be missing without a fold, this is judged by thresholds that were fitted to all. Within a
        single source thresholds hold for its units as for sources: frames of a video say little of another.
        """
        calibration = fit_calibration(logits, labels)
        p, y = calibration(logits).double().numpy(), labels.numpy()
        groups = sources if len(set(sources)) > 1 or len(set(units)) == len(units) else units
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        names = np.array([numbers[group] for group in groups])  # (n,)

        def thresholds(kept: NDArray[np.bool_]) -> Thresholds:
            return fit_thresholds(p[kept], y[kept], names[kept], *targets, touched.numpy()[kept])

        everything = thresholds(np.ones(len(y), bool))
        rest = {fold: folds.numpy() != fold for fold in folds.unique().tolist()}
        both = {fold: len(np.unique(y[kept & ~touched.numpy()])) == 2 for fold, kept in rest.items()}
        without = {fold: thresholds(kept) if both[fold] else everything for fold, kept in rest.items()}
        return cls(Verdicts(calibration, everything), p, y, units, folds.numpy(), without)

    @property
    def judged_by_others(self) -> bool:
        """Whether each fold is judged by thresholds that it had no part in."""
        return all(thresholds is not self.verdicts.thresholds for thresholds in self.without.values())

    def called(self, strict: bool = False) -> NDArray[np.str_]:
        """Each image's verdict (n,) by the thresholds of the other folds."""
        said = np.empty(len(self.labels), dtype="<U9")
        for fold, thresholds in self.without.items():
            at = thresholds.strictly() if strict else thresholds
            own = self.folds == fold
            said[own] = [at.verdict(p) for p in self.probabilities[own].round(6)]
        return said

    def rates(self, chosen: Tensor, strict: bool = False) -> dict[str, float]:
        """How many ``real`` and ``fake`` images are among the ``chosen`` (n,), as how many independent ones they count,
        and the share of either class that was :meth:`called` each way."""
        said, found = self.called(strict), {}
        for label, kind in enumerate(("real", "fake")):
            own = np.flatnonzero(chosen.numpy() & (self.labels == label))
            found[kind] = len(own)
            found[f"independent_{kind}"] = round(effective_count([self.units[i] for i in own]), 3)
            found |= {f"{kind}_called_{v}": float((said[own] == v).mean()) for v in ("real", "uncertain", "fake")}
        return found


def has_both(labels: Tensor, chosen: Tensor) -> bool:
    """Whether both classes are among the ``chosen`` (n,) of ``labels`` (n,)."""
    return len(torch.unique(labels[chosen])) == 2
