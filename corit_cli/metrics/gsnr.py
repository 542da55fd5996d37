"""Gradient signal-to-noise ratio (GSNR) from per-sample gradients: an estimate, its interval, a comparison.

For a group of parameters the ratio is R = ||E g||^2 / tr Cov(g) (Liu et al. 2020, arXiv 2001.07384, there for single
parameters). Two choices differ from common practice. The squared norm of a mean of N gradients exceeds ||E g||^2 by
tr Cov / N on average, so a model without any signal would show R = 1/N; that share is taken off. And no estimate comes
without an interval, because at the usual few hundred samples R is often not distinguishable from zero.

**Strata.** A sample that holds as many real images as fake ones by design is no independent draw. With class means
mu_r and mu_f, mu = (mu_r + mu_f) / 2 and delta = (mu_f - mu_r) / 2, the mean product of different samples' gradients
is ||mu||^2 - ||delta||^2 / (N - 1). Near an unfitted head, where a gradient's sign is that of its label, ||delta||^2 is
most of tr Cov: taken for ||mu||^2, that mean is too low by as much as is to be measured. So samples come in strata (the
classes) that weigh alike, and everything follows from A_ab, the mean product of different samples of strata a and b,
which has the mean <mu_a, mu_b>:

    ||mu||^2 = sum_ab w_a w_b A_ab,    T = sum_a w_a (mean ||g||^2 in a - A_aa),    D = sum_a w_a A_aa - ||mu||^2,

w_a = 1 / C, T the noise within strata, and D (||delta||^2 for two classes) what the strata's means add to it. R is
``||mu||^2 / T`` under batches that are balanced as the sample is, and ``||mu||^2 / (T + D)`` under independent draws.

Where samples depend on each other, as a photograph and its forgery do, whose gradients nearly cancel, only the products
of gradients of different groups say what <mu_a, mu_b> is, also between strata (``clustered``).

The samples are dealt into J groups that hold all strata. Everything here follows from the inner products of the
gradient sums of groups and strata and from the samples' squared norms, whatever the number of parameters.

The interval comes from a delete-a-group jackknife, with Student's t of J - 1 degrees of freedom. ||mean||^2 is a
square, skewed where the signal is weak, so the interval is laid around the square root of the plain ratio and squared
back. Where R is below 1/N the jackknife counts the pairwise part of the variance twice (Efron and Stein 1981, The
Annals of Statistics 9), so that there the interval is wider than it need be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from corit_cli.metrics.intervals import jackknife

INDISTINCT = "not distinguishable from zero"


@dataclass(frozen=True)
class Moments:
    """What GSNR needs of N gradients in J groups and C strata. Moments of disjoint sets of parameters add up.

    Attributes:
        counts: samples in each group and stratum, (J, C).
        squares: sum of these samples' squared gradient norms, (J, C).
        totals: inner products of the strata's gradient sums over all groups, (C, C).
        gram: inner products of the gradient sums of groups and strata, (J, C, J, C). Only the interval reads it, and
            clustered samples.
    """

    counts: np.ndarray
    squares: np.ndarray
    totals: np.ndarray
    gram: np.ndarray

    @classmethod
    def of(cls, counts: ArrayLike, squares: ArrayLike, sums: np.ndarray) -> Moments:
        """From the gradient sums themselves, (J, C, d), or (J, d) with counts and squares (J,) for one stratum."""
        sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts)
        if sums.ndim == 2:
            sums, counts = sums[:, None], counts[:, None]
        squares = np.asarray(squares, dtype=np.float64).reshape(counts.shape)
        gram = np.einsum("jad,kbd->jakb", sums, sums)
        return cls(counts, squares, gram.sum((0, 2)), gram)

    @classmethod
    def of_samples(cls, g: np.ndarray, strata: ArrayLike, groups: Sequence[Sequence[int]]) -> Moments:
        """From the samples' gradients (N, d), what stratum each belongs to (N,), and the groups' positions."""
        names, number = np.unique(strata, return_inverse=True)
        counts, squares = np.zeros((len(groups), len(names)), int), np.zeros((len(groups), len(names)))
        sums = np.zeros((*counts.shape, g.shape[1]))
        for j, group in enumerate(groups):
            np.add.at(counts[j], number[group], 1)
            np.add.at(squares[j], number[group], np.square(g[group]).sum(1))
            np.add.at(sums[j], number[group], g[group])
        return cls.of(counts, squares, sums)

    def __add__(self, other: Moments) -> Moments:
        if not np.array_equal(self.counts, other.counts):
            raise ValueError("moments over different samples do not add up")
        return Moments(self.counts, self.squares + other.squares, self.totals + other.totals, self.gram + other.gram)

    @property
    def n(self) -> int:
        """N, the number of samples."""
        return int(self.counts.sum())

    def without(self, group: int) -> Moments:
        """The moments of all other groups. ``totals`` stays as exact as it was but for what the group took part in."""
        rows = np.arange(len(self.counts)) != group
        own = self.gram[group].sum(1)  # (C, C), of the group's sums with all sums
        totals = self.totals - own - own.T + self.gram[group, :, group]
        return Moments(self.counts[rows], self.squares[rows], totals, self.gram[rows][:, :, rows])


@dataclass(frozen=True)
class GSNREstimate:
    """A debiased GSNR with its 95% interval.

    ``value`` is ``signal / noise``, where ``signal`` estimates ||E g||^2 without bias and ``noise`` is that of balanced
    batches or of independent draws; it may fall below zero. ``plugin`` is the plain ||mean||^2 / noise, too large by
    about 1/N where samples are independent.
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


@dataclass(frozen=True)
class Variances:
    """Unbiased estimates of ||E g||^2, of tr Cov within strata (T), and of what the strata's means add to it (D)."""

    signal: float
    within: float
    between: float

    def noise(self, draws: str) -> float:
        """tr Cov under ``balanced`` batches or ``independent`` draws."""
        return self.within if draws == "balanced" else self.within + self.between


def variances(moments: Moments, clustered: bool = False) -> Variances:
    """What GSNR is the ratio of; ``clustered`` as in :func:`estimate`.

    Raises ValueError on gradients that do not vary, and where a stratum has no two samples (clustered: groups).
    """
    counts, squares = moments.counts.sum(0), moments.squares.sum(0)  # (C,) each
    if clustered:  # a group's samples, with themselves and with each other, in all strata
        own = np.einsum("jajb->ab", moments.gram)
        pairs = moments.counts.T @ moments.counts
    else:
        own, pairs = np.diag(squares), np.diag(counts)
    different = np.outer(counts, counts) - pairs  # (C, C), pairs of samples that do not depend on each other
    if (different <= 0).any():
        raise ValueError("every stratum needs at least two independent samples")
    A = (moments.totals - own) / different
    w = np.full(len(counts), 1 / len(counts))
    signal, diagonal = float(w @ A @ w), float(w @ np.diag(A))
    mean = float(w @ (squares / counts))
    if not mean - diagonal > 1e-12 * mean:
        raise ValueError("the gradients do not vary between samples, so there is no noise to compare with")
    return Variances(signal, mean - diagonal, diagonal - signal)


def estimate(moments: Moments, clustered: bool = False, draws: str = "balanced") -> GSNREstimate:
    """GSNR with its interval; ``clustered`` when samples of one group may depend on each other.

    ``draws`` says what the noise is: ``balanced`` batches of all strata, or ``independent`` draws.
    Raises ValueError on fewer than three groups, or gradients that do not vary.
    """
    found = variances(moments, clustered)
    noise = found.noise(draws)
    value = found.signal / noise
    means = np.outer(*[1 / moments.counts.sum(0)] * 2) / moments.counts.shape[1] ** 2
    plugin = float((moments.totals * means).sum()) / noise  # ||mean of the strata's means||^2 / noise
    error, reach = jackknife(value, _leave_one_out(moments, clustered, draws), moments.counts.sum(1))
    # The root of the plain ratio moves by dR / (2 root).
    root = plugin**0.5
    low = max(root - reach / (2 * root), 0.0) ** 2 - (plugin - value)
    high = (root + reach / (2 * root)) ** 2 - (plugin - value)
    return GSNREstimate(
        value=value,
        plugin=plugin,
        low=low,
        high=high,
        standard_error=error,
        n=moments.n,
        signal=found.signal,
        noise=noise,
    )


def compare(first: Moments, second: Moments, clustered: bool = False) -> GSNRDifference:
    """GSNR of ``first`` minus that of ``second``. Raises ValueError unless their groups are of the same sizes; that
    they hold the same samples is the caller's to see to."""
    if not np.array_equal(first.counts, second.counts):
        raise ValueError("a paired comparison needs the same samples in the same groups")
    value = estimate(first, clustered).value - estimate(second, clustered).value
    without = _leave_one_out(first, clustered) - _leave_one_out(second, clustered)
    error, reach = jackknife(value, without, first.counts.sum(1))
    return GSNRDifference(value, value - reach, value + reach, error)


def _leave_one_out(m: Moments, clustered: bool, draws: str = "balanced") -> np.ndarray:
    """R without each group in turn, (J,)."""
    rest = (variances(m.without(j), clustered) for j in range(len(m.counts)))
    return np.array([found.signal / found.noise(draws) for found in rest])
