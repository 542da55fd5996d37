"""Figures of scores: AUC, ROC curves, calibration error. Labels are 1 for fake, 0 for real; higher scores mean fake.

All of them raise ValueError for scores that are NaN, which have no place among others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve from ranks, ties counting half; NaN unless both classes are present."""
    labels, scores = np.asarray(labels), _numbers(scores)
    fakes, reals = int((labels == 1).sum()), int((labels == 0).sum())
    if not fakes or not reals:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # (n,), from 1, ties sharing their mean
    return float((ranks[labels == 1].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


def average_precision(labels: Array, scores: Array) -> float:
    """Area under the precision-recall curve as a step function (scikit-learn's definition)."""
    from sklearn.metrics import average_precision_score

    scores = _numbers(scores)
    return float(average_precision_score(labels, scores)) if len(set(labels)) == 2 else float("nan")


def expected_calibration_error(labels: Array, probabilities: Array, bins: int = 10) -> float:
    """Mean |share of fakes - mean probability| over equal-width bins, weighted by their counts (Naeini et al. 2015),
    where either class counts one half, since probabilities are meant for even odds. NaN unless both are present: what
    the other would have got is half of it."""
    return float(abs(calibration_gaps(labels, probabilities, np.ones((1, len(labels))), bins)).sum())


def calibration_gaps(labels: Array, probabilities: Array, weights: Array, bins: int = 10) -> Array:
    """The share of fakes less the mean probability in each bin, times the bin's share of all weight.

    Returns (R, bins), a row for each row of ``weights`` (R, n), which say what an image counts within its class; either
    class weighs one half, and without one of them all is NaN. Absolute values add up to the calibration error.
    """
    labels, probabilities = np.asarray(labels), _numbers(probabilities).astype(float)
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = np.zeros((len(index), bins))
    gaps[np.arange(len(index)), index] = labels - probabilities
    both = (weights[:, labels == label] for label in (0, 1))
    with np.errstate(invalid="ignore"):
        real, fake = (w @ gaps[labels == label] / w.sum(1, keepdims=True) for label, w in enumerate(both))
    return (real + fake) / 2


def _numbers(scores: Array) -> Array:
    """``scores`` as an array. Raises ValueError where one is NaN."""
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    return scores


def _running(weights: Array, images: NDArray[np.intp]) -> Array:
    """The weight of the first 0, 1, ... m of ``images`` (m,) in each row of ``weights`` (R, n); returns (R, m + 1)."""
    sums = np.zeros((len(weights), len(images) + 1), np.float32)
    np.cumsum(weights.take(images, axis=1), axis=1, dtype=np.float32, out=sums[:, 1:])
    return sums


@dataclass(frozen=True)
class Ranks:
    """Images sorted once by a detector's scores, for its AUC under many weightings.

    A fake's rank among the real images is all that AUC needs (Mann and Whitney 1947), and which real images score below
    it does not depend on the weights: these only say what they count.

    Attributes:
        reals: the real images by rising score, (m,).
        fakes: the fakes by rising score, (k,).
        below, upto: how many of ``reals`` score less than each fake, and how many no more than it, (k,).
    """

    reals: NDArray[np.intp]
    fakes: NDArray[np.intp]
    below: NDArray[np.intp]
    upto: NDArray[np.intp]

    @classmethod
    def of(cls, labels: Array, scores: Array, chosen: NDArray) -> Ranks:
        """The ``chosen`` images (numbers) among those with ``labels`` and ``scores`` (n,)."""
        labels, scores = np.asarray(labels), np.asarray(scores)
        _numbers(scores[chosen])
        chosen = chosen[np.argsort(scores[chosen], kind="stable")]
        reals, fakes = (chosen[labels[chosen] == label] for label in (0, 1))
        below, upto = (np.searchsorted(scores[reals], scores[fakes], side) for side in ("left", "right"))
        return cls(reals, fakes, below, upto)

    def auc(self, weights: Array) -> Array:
        """AUC under each row of ``weights`` (R, n), ties counting half; (R,). A class without weight gives NaN."""
        reals, fakes = _running(weights, self.reals), weights.take(self.fakes, axis=1)  # (R, m + 1), (R, k)
        beaten = reals.take(self.below, axis=1) + reals.take(self.upto, axis=1)  # (R, k), twice what each fake beats
        pairs = reals[:, -1].astype(np.float64) * fakes.sum(1)
        with np.errstate(invalid="ignore"):
            return np.einsum("rk,rk->r", beaten, fakes, dtype=np.float64) / (2 * pairs)


@dataclass(frozen=True)
class Roc:
    """ROC curves of one detector, one for each of R weightings of the same images.

    Attributes:
        fpr: share of the real images at or above each distinct score, (R, K + 1), from 0 to 1.
        tpr: the same share of the fakes, (R, K + 1).
        odds: weight of the fakes over weight of the real images, (R,).
    """

    fpr: Array
    tpr: Array
    odds: Array

    @classmethod
    def of(cls, labels: Array, scores: Array, weights: Array | None = None) -> Roc:
        """Curves for ``labels`` and ``scores`` (n,), and ``weights`` (R, n). A class without weight gives NaN. Raises
        ValueError where there are no images."""
        labels, scores = np.asarray(labels), _numbers(scores)
        if not len(labels):
            raise ValueError("a ROC curve needs images")
        weights = np.ones((1, len(labels))) if weights is None else weights
        order = np.argsort(-scores, kind="stable")
        y, s = labels[order], scores[order]
        ends = np.append(np.flatnonzero(s[1:] != s[:-1]), len(s) - 1)  # (K,), the last image of each distinct score
        counts = [np.append(0, np.cumsum(y == label)[ends]) for label in (0, 1)]  # (K + 1,) images above each score
        reals, fakes = (
            _running(weights, order[y == label]).take(counts[label], axis=1).astype(np.float64) for label in (0, 1)
        )  # (R, K + 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(reals / reals[:, -1:], fakes / fakes[:, -1:], fakes[:, -1] / reals[:, -1])

    @property
    def auc(self) -> Array:
        """Area under each curve (R,); ties count half."""
        return (np.diff(self.fpr) * (self.tpr[:, 1:] + self.tpr[:, :-1]) / 2).sum(1)

    @property
    def average_precision(self) -> Array:
        """Area under each precision-recall curve as a step function (R,)."""
        with np.errstate(invalid="ignore"):
            fakes, reals = self.tpr[:, 1:] * self.odds[:, None], self.fpr[:, 1:]
            precision = np.where(fakes + reals == 0, 0.0, fakes / (fakes + reals))  # (R, K)
        return (np.diff(self.tpr) * precision).sum(1)

    @property
    def eer(self) -> Array:
        """Equal error rate (R,): where the curve, straight between its points, has 1 - TPR = FPR."""
        ahead = self.fpr + self.tpr - 1  # (R, K + 1), rising from -1 to 1
        k = np.maximum((ahead >= 0).argmax(1), 1)
        rows = np.arange(len(k))
        before, after = ahead[rows, k - 1], ahead[rows, k]
        step = -before / (after - before)
        return self.fpr[rows, k - 1] + step * (self.fpr[rows, k] - self.fpr[rows, k - 1])

    def tpr_at(self, target: float) -> Array:
        """The largest TPR among thresholds whose FPR is at most ``target`` (R,), without interpolation."""
        return np.where(self.fpr <= target, self.tpr, np.where(np.isnan(self.fpr), np.nan, 0.0)).max(1)
