"""Rank correlation, and how often chance alone would give as strong a one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

#: Up to so many pairs all orders are tried, of more so many random ones.
FEW, ORDERS = 7, 9999


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of ``count`` pairs, NaN where one side is constant.

    ``p`` is the share of orders of one side that correlate as strongly, either way; NaN where pairs are no independent
    draws and it would mean nothing.
    """

    value: float
    p: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({'' if math.isnan(self.p) else f'p = {self.p:.2g}, '}n = {self.count})"


def spearman(first: Sequence[float], second: Sequence[float], independent: bool = True) -> Correlation:
    """Spearman's correlation with its two-sided permutation test, exact for few pairs (else as Phipson and Smyth 2010
    count).

    There is no interval: of a handful of pairs a bootstrap's excludes zero far too often. ``p`` is told of
    ``independent`` pairs alone.
    """
    from scipy.stats import rankdata

    count = len(first)
    if count < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return Correlation(float("nan"), float("nan"), count)
    x, y = (_standardised(rankdata(values)) for values in (first, second))
    value = float(x @ y)
    if not independent:
        return Correlation(value, float("nan"), count)
    if count <= FEW:
        orders = np.array(list(permutations(range(count))))  # (n!, n)
    else:
        orders = np.random.default_rng(0).permuted(np.tile(np.arange(count), (ORDERS, 1)), axis=1)
    as_strong = int((abs(x[orders] @ y) >= abs(value) - 1e-9).sum())  # equal ones may differ by rounding
    p = as_strong / len(orders) if count <= FEW else (as_strong + 1) / (ORDERS + 1)
    return Correlation(value, p, count)


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """``ranks`` (n,), not all the same, less their mean, of unit norm."""
    centred = ranks - ranks.mean()
    return centred / np.linalg.norm(centred)
