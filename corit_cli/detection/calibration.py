"""From logits to probabilities and verdicts: Platt scaling and thresholds, and how both are fitted. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from torch import Tensor

#: Thresholds lie just above or below a probability that was seen, with six decimals, so perhaps outside of [0, 1].
STEP = 1e-6
#: Share of real images that may reach the strict threshold.
STRICT = 0.01


@dataclass(frozen=True)
class Calibration:
    """Platt scaling: p = sigmoid(slope * logit + bias). Raises CoritError where these are no numbers."""

    slope: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not np.isfinite([self.slope, self.bias]).all():
            raise CoritError(f"calibration must be of finite numbers, not {self.slope} and {self.bias}")

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (n,) to probabilities of being fake (n,)."""
        return (self.slope * logits + self.bias).sigmoid()


def fit_calibration(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Calibration:
    """Platt scaling on held-out logits (n,), both classes given the same weight, or each image its own of ``weights``
    (n,).

    The targets are Platt's (1999), (n_c + 1) / (n_c + 2) for a class of n_c images instead of 1, so that few images
    never give certainty. A slope that comes out negative (worse than chance on held-out data) means that nothing is
    known: it becomes 0, and every probability one half.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = logits.double().numpy(), labels.numpy()
    counts = np.bincount(y, minlength=2)[y]  # (n,), the size of each image's class
    sure = (counts + 1) / (counts + 2)
    own = len(y) / counts if weights is None else weights.double().numpy()
    # Soft targets as weights: each image once with its label and, weighing little, once with the other.
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(
        np.tile(x, 2)[:, None], np.concatenate([y, 1 - y]), np.concatenate([sure, 1 - sure]) * np.tile(own, 2)
    )
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration(slope, bias) if slope > 0 else Calibration(0.0, 0.0)


@dataclass(frozen=True)
class Thresholds:
    """Probabilities from which on a file is called fake, up to which real; between them the verdict is uncertain.

    ``strict`` is one that fewer real images reach, for :meth:`strictly`. Raises CoritError unless real <= fake <=
    strict and all are probabilities.
    """

    real: float
    fake: float
    strict: float = 1.0

    def __post_init__(self) -> None:
        if not -STEP <= self.real <= self.fake <= 1 + STEP:
            raise CoritError(f"thresholds must satisfy 0 <= real <= fake <= 1, not {self.real} and {self.fake}")
        if not self.fake - STEP <= self.strict <= 1 + STEP:
            raise CoritError(f"the strict threshold must lie between {self.fake} and 1, not at {self.strict}")

    def strictly(self) -> Thresholds:
        """The same for whom a false accusation costs more: a file is fake from ``strict`` on."""
        return Thresholds(self.real, self.strict, self.strict)

    def verdict(self, probability: float) -> str:
        """``real``, ``fake`` or ``uncertain``."""
        if probability >= self.fake:
            return "fake"
        return "real" if probability <= self.real else "uncertain"


@dataclass(frozen=True)
class Verdicts:
    """How a logit is judged: calibrated, then held against thresholds."""

    calibration: Calibration
    thresholds: Thresholds

    def strictly(self) -> Verdicts:
        """The same with the strict threshold."""
        return Verdicts(self.calibration, self.thresholds.strictly())


def fit_thresholds(
    probabilities: np.ndarray,
    labels: np.ndarray,
    sources: Sequence[str],
    target_fpr: float,
    target_fnr: float,
    touched: np.ndarray | None = None,
) -> Thresholds:
    """Thresholds that keep both error rates at their targets on held-out ``probabilities`` (n,), as images are and,
    where some were ``touched`` (n,), on these alike.

    Each keeps its target also where every source is judged by a threshold that it had no part in
    (:func:`strict_threshold`). Where the classes separate so well that the two cross, both become their middle and
    nothing is uncertain.
    """
    probabilities, sources = probabilities.round(6), np.asarray(sources)  # as they are reported
    touched = np.zeros(len(labels), bool) if touched is None else touched
    lows, highs, stricts = [], [], []
    for state in (~touched, touched):
        real, fake = state & (labels == 0), state & (labels == 1)
        if real.any() and fake.any():
            highs.append(strict_threshold(probabilities[real], sources[real], target_fpr))
            stricts.append(strict_threshold(probabilities[real], sources[real], min(STRICT, target_fpr)))
            lows.append(-strict_threshold(-probabilities[fake], sources[fake], target_fnr))
    low, high = min(lows), max(highs)
    if low > high:
        low = high = (low + high) / 2
    return Thresholds(round(low, 6), round(high, 6), round(max(high, *stricts), 6))


def strict_threshold(scores: np.ndarray, sources: np.ndarray, target: float) -> float:
    """The lowest threshold that a new one like the ``scores`` (n,) reaches with a chance of at most ``target``.

    A new score is as likely to rank anywhere among n others, so that it lies above the k + 1st largest of them with a
    chance of (k + 1) / (n + 1): k of them may reach the threshold (conformal prediction; Vovk et al. 2005), none where
    they are fewer than :func:`fewest`, which cannot keep the promise.

    A quantile of the pooled scores keeps it on those sources alone: a source of its own kind exceeds it more often. So
    fewer are allowed until a share of ``target`` also holds when every source is judged by the quantile of the others,
    over all images together, not in each source. Where even the highest of the others' scores is exceeded too often, no
    threshold keeps the promise, and the highest of all is returned. With one source only the pooled quantile is left.
    """
    order, names = np.sort(scores), np.unique(sources)
    judged = [(np.sort(scores[own]), np.sort(scores[~own])) for own in (sources == name for name in names)]
    if len(names) == 1:
        judged = []

    def kept(allowed: int) -> bool:
        share = allowed / len(order)
        over = sum(len(own) - np.searchsorted(own, _above(others, share)) for own, others in judged)
        return over <= target * len(order)

    low, high = 0, max(0, int(target * (len(order) + 1) + 1e-9) - 1)  # what others exceed it by only grows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept(middle) else (low, middle - 1)
    return _above(order, low / len(order))


def fewest(target: float) -> int:
    """How many scores it takes for a threshold that new ones reach with a chance of at most ``target``, above 0."""
    return math.ceil(1 / target - 1e-9) - 1


def _above(order: np.ndarray, share: float) -> float:
    """Just above the value that all but ``share`` of the sorted ``order`` (n,) stay below or at."""
    return float(order[len(order) - 1 - int(share * len(order) + 1e-9)]) + STEP
