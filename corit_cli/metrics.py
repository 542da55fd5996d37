"""Scores of a detector, with bootstrap intervals. Labels are 1 for fake and 0 for real; higher scores mean fake.

Every interval is a percentile bootstrap that resamples real and fake images separately, so each resample keeps both
classes at their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _wins(labels: Array, scores: Array) -> Array:
    """(fakes, reals) matrix: 1 where the fake scores higher, one half on a tie. Its mean is the AUC."""
    fake, real = scores[labels == 1][:, None], scores[labels == 0][None, :]
    return (fake > real) + 0.5 * (fake == real)


def auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve from ranks, ties counting half; NaN unless both classes are present."""
    labels = np.asarray(labels)
    fakes, reals = int((labels == 1).sum()), int((labels == 0).sum())
    if not fakes or not reals:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # (n,), from 1, ties sharing their mean
    return float((ranks[labels == 1].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


def average_precision(labels: Array, scores: Array) -> float:
    """Area under the precision-recall curve as a step function (scikit-learn's definition)."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if 0 < np.mean(labels) < 1 else float("nan")


def expected_calibration_error(labels: Array, probabilities: Array, bins: int = 10) -> float:
    """Mean |share of fakes - mean probability| over equal-width bins, weighted by their counts (Naeini et al. 2015)."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    index = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(labels[index == b].mean() - probabilities[index == b].mean()) * (index == b).sum() for b in np.unique(index)
    ]
    return float(sum(gaps) / len(labels))


def _draws(count: int, rng: np.random.Generator) -> Array:
    """Bootstrap multiplicities, (RESAMPLES, count), each row summing to ``count``."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float32)


def bootstrap_auc(
    labels: Array, scores: Mapping[str, Array], groups: Sequence[str] | None = None, seed: int = 0
) -> tuple[dict[str, Array], dict[str, float]]:
    """Bootstrap distributions of AUC for several detectors on the same images, paired resample by resample.

    With ``groups`` (one name an image) the figure is the mean of the groups' AUCs, each group resampled by itself.
    Returns ({name: (RESAMPLES,)}, {name: value}).
    """
    labels = np.asarray(labels)
    names = np.asarray(groups if groups is not None else [""] * len(labels))
    rng = np.random.default_rng(seed)
    distributions: dict[str, list[Array]] = {name: [] for name in scores}
    values: dict[str, list[float]] = {name: [] for name in scores}
    for group in np.unique(names):
        chosen = names == group
        wins = {name: _wins(labels[chosen], np.asarray(s)[chosen]).astype(np.float32) for name, s in scores.items()}
        fakes, reals = next(iter(wins.values())).shape
        of_fakes, of_reals = _draws(fakes, rng), _draws(reals, rng)
        for name, matrix in wins.items():
            values[name].append(float(matrix.mean()))
            distributions[name].append(((of_fakes @ matrix) * of_reals).sum(1) / (fakes * reals))
    return (
        {name: np.mean(parts, axis=0) for name, parts in distributions.items()},
        {name: float(np.mean(parts)) for name, parts in values.items()},
    )


def interval(value: float, distribution: Array) -> Estimate:
    """The 95% percentile interval of a bootstrap distribution."""
    low, high = np.percentile(distribution, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def auc_interval(labels: Array, scores: Array, groups: Sequence[str] | None = None) -> Estimate:
    """AUC (or mean of the groups' AUCs) with its interval."""
    distributions, values = bootstrap_auc(labels, {"": scores}, groups)
    return interval(values[""], distributions[""])


def auc_difference(labels: Array, a: Array, b: Array, groups: Sequence[str] | None = None) -> Estimate:
    """AUC of ``a`` minus AUC of ``b`` on the same images, with the interval of the paired difference."""
    distributions, values = bootstrap_auc(labels, {"a": a, "b": b}, groups)
    return interval(values["a"] - values["b"], distributions["a"] - distributions["b"])


def proportion(successes: int, total: int) -> Estimate:
    """A share with its 95% Wilson interval; all NaN when there is nothing to count."""
    if not total:
        return Estimate(float("nan"), float("nan"), float("nan"))
    z2 = 1.959964**2
    p = successes / total
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(z2 * (p * (1 - p) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return Estimate(p, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def plain(value: Any) -> Any:
    """A document of dicts, lists and figures as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
