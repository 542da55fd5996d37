"""Where verdicts begin, and how often they err, by what heads say of images that they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corit_cli.detection.calibration import Thresholds, Verdicts, fit_calibration, fit_thresholds


@dataclass(frozen=True)
class OperatingPoint:
    """How held-out images are judged, and by which thresholds without each fold.

    ``verdicts`` come from all images. Of each fold's, ``probabilities`` (n,), ``labels`` (n,) and ``folds`` (n,),
    ``without`` holds thresholds that were fitted to the other folds alone: error rates by thresholds that were
    fitted to the same scores are what was aimed at, and too good, the more so the fewer images there are.
    """

    verdicts: Verdicts
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    without: dict[int, Thresholds]

    @classmethod
    def fit(
        cls,
        logits: Tensor,
        labels: Tensor,
        sources: Sequence[str],
        folds: Tensor,
        touched: Tensor,
        targets: tuple[float, float],
    ) -> OperatingPoint:
        """From held-out ``logits`` (n,) of images with ``labels``, ``sources`` and ``folds`` (n,), of which some were
        ``touched`` (n,), for shares of ``targets`` of real images called fake and of fakes called real.

        Where a class would be missing without a fold, this is judged by thresholds that were fitted to all.
        """
        calibration = fit_calibration(logits, labels)
        p, y, names = calibration(logits).double().numpy(), labels.numpy(), np.asarray(sources)

        def thresholds(kept: NDArray[np.bool_]) -> Thresholds:
            return fit_thresholds(p[kept], y[kept], names[kept], *targets, touched.numpy()[kept])

        everything = thresholds(np.ones(len(y), bool))
        rest = {fold: folds.numpy() != fold for fold in folds.unique().tolist()}
        both = {fold: len(np.unique(y[kept & ~touched.numpy()])) == 2 for fold, kept in rest.items()}
        without = {fold: thresholds(kept) if both[fold] else everything for fold, kept in rest.items()}
        return cls(Verdicts(calibration, everything), p, y, folds.numpy(), without)

    def called(self, strict: bool = False) -> NDArray[np.str_]:
        """Each image's verdict (n,) by the thresholds of the other folds."""
        said = np.empty(len(self.labels), dtype="<U9")
        for fold, thresholds in self.without.items():
            at = thresholds.strictly() if strict else thresholds
            own = self.folds == fold
            said[own] = [at.verdict(p) for p in self.probabilities[own].round(6)]
        return said

    def rates(self, chosen: Tensor, strict: bool = False) -> dict[str, float]:
        """How many ``real`` and ``fake`` images are among the ``chosen`` (n,), and the share of either class that was
        :meth:`called` each way."""
        said = self.called(strict)
        kinds = {kind: said[chosen.numpy() & (self.labels == label)] for label, kind in enumerate(("real", "fake"))}
        return {kind: len(own) for kind, own in kinds.items()} | {
            f"{kind}_called_{verdict}": float((own == verdict).mean())
            for kind, own in kinds.items()
            for verdict in ("real", "uncertain", "fake")
        }


def has_both(labels: Tensor, chosen: Tensor) -> bool:
    """Whether both classes are among the ``chosen`` (n,) of ``labels`` (n,)."""
    return len(torch.unique(labels[chosen])) == 2
