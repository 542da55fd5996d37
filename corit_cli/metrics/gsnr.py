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

w_a the strata's weights, T the noise within strata, and D (||delta||^2 for two classes) what the strata's means add to
it. R is ``||mu||^2 / T`` under batches that are balanced as the sample is, and ``||mu||^2 / (T + D)`` under independent
draws.

Strata may also be the sources within the classes. Either class then weighs 1/2 (all of it where there is one), and a
stratum a of class c weighs n_a / n_c of that (``balanced_weights``), as in a batch that holds every source in the
sample's proportions, whose mean gradient has exactly the covariance T / B. The mix of sources is taken as fixed: what
the sources differ in is no noise, and nothing is said of sources that the sample does not hold.

Where samples depend on each other, as a photograph and its forgery do, whose gradients nearly cancel, only the products
of gradients of different groups say what <mu_a, mu_b> is, also between strata (``clustered``).

The samples are dealt into J groups that hold all strata in much the same mix. Everything here follows from the inner
products of the gradient sums of groups and strata and from the samples' squared norms, whatever the number of
parameters.

The interval comes from a delete-a-group jackknife, with Student's t of J - 1 degrees of freedom. ||mean||^2 is a
square, skewed where the signal is weak, so the interval is laid around the square root of the plain ratio and squared
back. The plain ratio lies above R by the noise's share of it, but may lie below R in clustered samples, where any
interval around it would exclude zero: R plus a standard error then takes its place. Where R is below 1/N the jackknife
counts the pairwise part of the variance twice (Efron and Stein 1981, The Annals of Statistics 9), so that there the
interval is wider than it need be. It is so too where a stratum has fewer samples, n_a, than there are groups: its share
of the variance is counted n_a / (n_a - 1) times.

**How many samples would do.** The variance of the estimated ||mu||^2 is 4 mu' C mu / N + 2 tr C^2 / N^2 to leading
order: the standard error falls as 1 / N where the products of noise with noise are most of it, as 1 / sqrt(N) where
those of signal and noise are. One sample does not tell how much is which, so :func:`more_samples` gives what both say,
if R is what was measured and further samples are like these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import ArrayLike

from corit_cli.metrics.intervals import jackknife

DRAWS = ("balanced", "independent")
INDISTINCT = "not distinguishable from zero"


@dataclass(frozen=True)
class Moments:
    """What GSNR needs of N gradients in J groups and C strata. Moments of disjoint sets of parameters add up.

    Attributes:
        counts: samples in each group and stratum, (J, C).
        squares: sum of these samples' squared gradient norms, (J, C).
        totals: inner products of the strata's gradient sums over all groups, (C, C).
        own: inner products of the strata's gradient sums within each group, (J, C, C). Only the interval reads it, and
            clustered samples.
        cross: those of the gradient sums within each group with those over all groups, (J, C, C). Only the interval
            reads it.
        weights: of the strata, sum 1, (C,).
    """

    counts: np.ndarray
    squares: np.ndarray
    totals: np.ndarray
    own: np.ndarray
    cross: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, counts: ArrayLike, squares: ArrayLike, sums: np.ndarray, weights: ArrayLike | None = None) -> Moments:
        """From the gradient sums themselves, (J, C, d), or (J, d) with counts and squares (J,) for one stratum. Strata
        weigh alike unless ``weights`` (C,) say otherwise."""
        sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts)
        if sums.ndim == 2:
            sums, counts = sums[:, None], counts[:, None]
        squares = np.asarray(squares, dtype=np.float64).reshape(counts.shape)
        whole = sums.sum(0)  # (C, d)
        return cls(
            counts, squares, whole @ whole.T, sums @ sums.swapaxes(1, 2), sums @ whole.T, _weights(weights, len(whole))
        )

    @classmethod
    def of_samples(
        cls, g: np.ndarray, strata: ArrayLike, groups: Sequence[Sequence[int]], weights: ArrayLike | None = None
    ) -> Moments:
        """From the samples' gradients (N, d), what stratum each belongs to (N,), the groups' positions, and the
        ``weights`` (C,) of the strata in sorted order; samples of no group are left out. Raises ValueError where a
        gradient is not finite, and where a sample is in two groups."""
        members = [k for group in groups for k in group]
        if len(set(members)) < len(members):
            raise ValueError("a sample belongs to one group only")
        names, number = np.unique(strata, return_inverse=True)
        counts, squares = np.zeros((len(groups), len(names)), int), np.zeros((len(groups), len(names)))
        sums = np.zeros((*counts.shape, g.shape[1]))
        for j, group in enumerate(groups):
            own = np.asarray(g[group], dtype=np.float64)  # (n, d)
            if not np.isfinite(own).all():
                raise ValueError("the gradients are not finite")
            np.add.at(counts[j], number[group], 1)
            np.add.at(squares[j], number[group], np.square(own).sum(1))
            np.add.at(sums[j], number[group], own)
        return cls.of(counts, squares, sums, weights)

    def __add__(self, other: Moments) -> Moments:
        if not (np.array_equal(self.counts, other.counts) and np.array_equal(self.weights, other.weights)):
            raise ValueError("moments over different samples do not add up")
        parts = ("squares", "totals", "own", "cross")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in parts})

    @property
    def n(self) -> int:
        """N, the number of samples."""
        return int(self.counts.sum())


def _weights(weights: ArrayLike | None, strata: int) -> np.ndarray:
    return np.full(strata, 1 / strata) if weights is None else np.asarray(weights, dtype=np.float64)


def balanced_weights(strata: ArrayLike, classes: ArrayLike) -> np.ndarray:
    """Weights (C,) of strata within classes, from the samples' strata (N,), in sorted order, and classes (N,): either
    class weighs the same, and in it a stratum what it holds of its samples."""
    _, first, counts = np.unique(strata, return_index=True, return_counts=True)
    _, owner = np.unique(np.asarray(classes)[first], return_inverse=True)  # the class of each stratum
    sizes = np.bincount(owner, counts)
    return counts / sizes[owner] / len(sizes)


@dataclass(frozen=True)
class GSNREstimate:
    """A debiased GSNR with its 95% interval.

    ``value`` is ``signal / noise``, where ``signal`` estimates ||E g||^2 without bias and ``noise`` is that of balanced
    batches or of independent draws; it may fall below zero. ``plugin`` is the plain ||mean||^2 / noise, too large by
    about 1/N where samples are independent. ``more_samples`` is :func:`more_samples`.
    """

    value: float
    plugin: float
    low: float
    high: float
    standard_error: float
    n: int
    signal: float
    noise: float
    more_samples: tuple[int, int] | None = None

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
    """GSNR of one model minus that of another on the same samples, with a paired 95% interval and
    :func:`more_samples`."""

    value: float
    low: float
    high: float
    standard_error: float
    more_samples: tuple[int, int] | None = None

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
    m = moments
    own, pairs = _dependent(m)  # (J, C, C) each
    found = _variances(m.weights, m.counts.sum(0), m.squares.sum(0), m.totals, clustered, own.sum(0), pairs.sum(0))
    return Variances(*map(float, found))


def _dependent(m: Moments) -> tuple[np.ndarray, np.ndarray]:
    """The products of each group's samples with themselves and each other, by strata, and their numbers: (J, C, C)."""
    return m.own, m.counts[:, :, None] * m.counts[:, None]


def _variances(
    w: np.ndarray,
    counts: np.ndarray,
    squares: np.ndarray,
    totals: np.ndarray,
    clustered: bool,
    own: np.ndarray,
    pairs: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, noise within and noise between, each (...), from weights (C,) and sums over samples (..., C[, C])."""
    if not clustered:  # only a sample's product with itself is left out
        eye = np.eye(len(w))
        own, pairs = squares[..., None] * eye, counts[..., None] * eye
    different = counts[..., :, None] * counts[..., None, :] - pairs  # (..., C, C), independent pairs of samples
    if (different <= 0).any():
        raise ValueError("every stratum needs at least two independent samples, also without any one group")
    A = (totals - own) / different  # (..., C, C)
    signal = np.einsum("a,...ab,b->...", w, A, w)
    diagonal = np.einsum("...aa,a->...", A, w)
    mean = (squares / counts) @ w
    if not (mean - diagonal > 1e-12 * mean).all():
        raise ValueError("the gradients do not vary between samples, so there is no noise to compare with")
    return signal, mean - diagonal, diagonal - signal


def more_samples(value: float, reach: float, n: int) -> tuple[int, int] | None:
    """How many more samples than ``n`` would bring half an interval's width, ``reach``, down to ``value``, from and to.

    The first number holds where the standard error falls as 1 / n, the second where it falls as 1 / sqrt(n); both take
    ``value`` for the truth, and are too large where the interval is wider than it need be. None for zero, which no
    number of samples sets apart.
    """
    if not value:
        return None
    ratio = max(reach / abs(value), 1.0)
    return tuple(ceil(n * (ratio**power - 1)) for power in (1, 2))


def estimate(moments: Moments, clustered: bool = False, draws: str = "balanced") -> GSNREstimate:
    """GSNR with its interval; ``clustered`` when samples of one group may depend on each other.

    ``draws`` says what the noise is: ``balanced`` batches of all strata, or ``independent`` draws.
    Raises ValueError on fewer than three groups, on gradients that do not vary, and for other draws.
    """
    if draws not in DRAWS:
        raise ValueError(f"draws must be {' or '.join(DRAWS)}, not {draws!r}")
    found = variances(moments, clustered)
    noise = found.noise(draws)
    value = found.signal / noise
    share = moments.weights / moments.counts.sum(0)  # (C,), of one sample
    plugin = float(share @ moments.totals @ share) / noise  # ||mean of the strata's means||^2 / noise
    error, reach = jackknife(value, _leave_one_out(moments, clustered, draws), moments.counts.sum(1))
    # The root moves by dR / (2 root).
    square = max(plugin, value + error)
    root = square**0.5
    low = max(root - reach / (2 * root), 0.0) ** 2 - (square - value)
    high = (root + reach / (2 * root)) ** 2 - (square - value)
    return GSNREstimate(
        value=value,
        plugin=plugin,
        low=low,
        high=high,
        standard_error=error,
        n=moments.n,
        signal=found.signal,
        noise=noise,
        # A reach of R is enough: the interval around the root ends above zero before that.
        more_samples=more_samples(value, reach, moments.n) if low <= 0 < value else None,
    )


def compare(first: Moments, second: Moments, clustered: bool = False) -> GSNRDifference:
    """GSNR of ``first`` minus that of ``second``. Raises ValueError unless their groups are of the same sizes; that
    they hold the same samples is the caller's to see to."""
    if not np.array_equal(first.counts, second.counts):
        raise ValueError("a paired comparison needs the same samples in the same groups")
    value = estimate(first, clustered).value - estimate(second, clustered).value
    without = _leave_one_out(first, clustered) - _leave_one_out(second, clustered)
    error, reach = jackknife(value, without, first.counts.sum(1))
    settled = abs(value) > reach
    return GSNRDifference(
        value, value - reach, value + reach, error, None if settled else more_samples(value, reach, first.n)
    )


def _leave_one_out(m: Moments, clustered: bool, draws: str = "balanced") -> np.ndarray:
    """R without each group in turn, (J,), the strata's weights staying as they are."""
    own, pairs = _dependent(m)
    signal, within, between = _variances(
        m.weights,
        m.counts.sum(0) - m.counts,
        m.squares.sum(0) - m.squares,
        m.totals - m.cross - m.cross.swapaxes(1, 2) + m.own,
        clustered,
        own.sum(0) - own,
        pairs.sum(0) - pairs,
    )
    return signal / (within if draws == "balanced" else within + between)
