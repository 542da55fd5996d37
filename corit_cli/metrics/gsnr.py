"""Gradient signal-to-noise ratio (GSNR) from per-sample gradients: an estimate, its interval, a comparison.

For a group of parameters the ratio is R = ||E g||^2 / tr Cov(g) (Liu et al. 2020, arXiv 2001.07384, there for single
parameters). Two choices differ from common practice. The squared norm of a mean of N gradients exceeds ||E g||^2 by
tr Cov / N on average, so a model without any signal would show R = 1/N; that share is taken off. And no estimate comes
without an interval, because at the usual few hundred samples R is often not distinguishable from zero.

Where samples depend on each other, as a photograph and its forgery do, whose gradients nearly cancel, that share is
another: then only the products of gradients of different groups say what ||E g||^2 is (``clustered``).

The samples are dealt into J groups. Everything here follows from the inner products <S_j, S_k> of the groups' gradient
sums and from the samples' squared norms, whatever the number of parameters.

The interval comes from a delete-a-group jackknife, with Student's t of J - 1 degrees of freedom. ||mean||^2 is a
square, skewed where the signal is weak, so the interval is laid around the square root of the plain ratio and squared
back. Where R is below 1/N the jackknife counts the pairwise part of the variance twice (Efron and Stein 1981, The
Annals of Statistics 9), so that there the interval is wider than it need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from corit_cli.metrics.intervals import jackknife

#: Jackknife groups to use unless there are fewer samples.
GROUPS = 16
INDISTINCT = "not distinguishable from zero"


@dataclass(frozen=True)
class Moments:
    """What GSNR needs of N gradients in J groups. Moments of disjoint sets of parameters add up.

    Attributes:
        counts: samples in each group, (J,).
        squares: sum of the samples' squared gradient norms in each group, (J,).
        total: squared norm of the sum of all gradients, ||S||^2.
        gram: inner products of the groups' gradient sums, (J, J). Only the interval reads it.
    """

    counts: np.ndarray
    squares: np.ndarray
    total: float
    gram: np.ndarray

    @classmethod
    def of(cls, counts: Sequence[int], squares: Sequence[float], sums: np.ndarray) -> Moments:
        """From the groups' gradient sums themselves, (J, d)."""
        sums = np.asarray(sums, dtype=np.float64)
        gram = sums @ sums.T
        return cls(np.asarray(counts), np.asarray(squares, dtype=np.float64), float(gram.sum()), gram)

    def __add__(self, other: Moments) -> Moments:
        if not np.array_equal(self.counts, other.counts):
            raise ValueError("moments over different samples do not add up")
        return Moments(self.counts, self.squares + other.squares, self.total + other.total, self.gram + other.gram)

    @property
    def n(self) -> int:
        """N, the number of samples."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class GSNREstimate:
    """A debiased GSNR with its 95% interval.

    ``value`` is ``signal / noise``, where ``signal`` estimates ||E g||^2 without bias and ``noise`` is the trace of the
    unbiased sample covariance; it may fall below zero. ``plugin`` is the plain ||mean||^2 / noise, too large by 1/N
    where samples are independent.
    """

    value: float
    plugin: float
    low: float
    high: float
    standard_error: float
    n: int
    signal: float
    noise: float

    @property
    def significant(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0

    @property
    def verdict(self) -> str:
        """The finding in words."""
        return "above zero" if self.significant else INDISTINCT


@dataclass(frozen=True)
class GSNRDifference:
    """GSNR of one model minus that of another on the same samples, with a paired 95% interval."""

    value: float
    low: float
    high: float
    standard_error: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """The finding in words."""
        if not self.significant:
            return INDISTINCT
        return "higher" if self.value > 0 else "lower"


def signal_and_noise(moments: Moments, clustered: bool = False) -> tuple[float, float]:
    """Unbiased estimates of ||E g||^2 and tr Cov(g), whose ratio is GSNR; ``clustered`` as in :func:`estimate`.

    Raises ValueError on gradients that do not vary.
    """
    within, pairs = _dependent(moments, clustered)
    signal, noise = _signal_and_noise(moments.total, moments.squares.sum(), moments.n, within.sum(), pairs.sum())
    return float(signal), float(noise)


def estimate(moments: Moments, clustered: bool = False) -> GSNREstimate:
    """GSNR with its interval; ``clustered`` when samples of one group may depend on each other.

    Raises ValueError on fewer than three groups, or gradients that do not vary.
    """
    signal, noise = signal_and_noise(moments, clustered)
    value, plugin = signal / noise, moments.total / moments.n**2 / noise
    error, reach = jackknife(value, _leave_one_out(moments, clustered), moments.counts)
    # The root of the plain ratio moves by dR / (2 root).
    root = plugin**0.5
    low = max(root - reach / (2 * root), 0.0) ** 2 - (plugin - value)
    high = (root + reach / (2 * root)) ** 2 - (plugin - value)
    return GSNREstimate(value, plugin, low, high, error, moments.n, signal, noise)


def compare(first: Moments, second: Moments, clustered: bool = False) -> GSNRDifference:
    """GSNR of ``first`` minus that of ``second``. Raises ValueError unless their groups are of the same sizes; that
    they hold the same samples is the caller's to see to."""
    if not np.array_equal(first.counts, second.counts):
        raise ValueError("a paired comparison needs the same samples in the same groups")
    value = estimate(first, clustered).value - estimate(second, clustered).value
    without = _leave_one_out(first, clustered) - _leave_one_out(second, clustered)
    error, reach = jackknife(value, without, first.counts)
    return GSNRDifference(value, value - reach, value + reach, error)


def _dependent(m: Moments, clustered: bool) -> tuple[np.ndarray, np.ndarray]:
    """What dependent pairs of samples, each with itself at least, contribute to ||S||^2 and how many they are, by group
    (J,). All other pairs' products have the mean ||E g||^2."""
    return (np.diag(m.gram), m.counts**2) if clustered else (m.squares, m.counts)


def _signal_and_noise(
    total: float | np.ndarray,
    squares: float | np.ndarray,
    n: int | np.ndarray,
    within: float | np.ndarray,
    pairs: int | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased ||E g||^2 and tr Cov from ||S||^2, the sum of squared norms, the number of samples, and
    :func:`_dependent`."""
    signal = (total - within) / (n**2 - pairs)
    noise = squares / n - signal
    if not np.all(noise > 1e-12 * squares):
        raise ValueError("the gradients do not vary between samples, so there is no noise to compare with")
    return signal, noise


def _leave_one_out(m: Moments, clustered: bool) -> np.ndarray:
    """R without each group in turn, (J,)."""
    totals = m.total - 2 * m.gram.sum(1) + np.diag(m.gram)  # ||S - S_j||^2
    within, pairs = _dependent(m, clustered)
    signal, noise = _signal_and_noise(
        totals, m.squares.sum() - m.squares, m.n - m.counts, within.sum() - within, pairs.sum() - pairs
    )
    return signal / noise
