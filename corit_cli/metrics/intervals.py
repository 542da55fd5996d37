"""95% intervals that take no resampling: Newcombe, Wilson, Katz, Student and jackknife. Those that do are in
``metrics/resampling.py``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corit_cli.metrics.ranking import Array

#: Standard errors on either side of a normal figure's 95% interval.
REACH = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def widened(self, other: Estimate) -> Estimate:
        """The same figure with the narrowest interval that holds both; NaN ends where either has them."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Estimate(self.value, float(low), float(high))


def mean_interval(values: Array, shared: float = 0.0, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The mean of values (n,), such as sources' AUCs, with Student's 95% interval for the mean over all sources that
    these are a sample of. It does not say where one more of them may lie: see :func:`prediction_interval`.

    ``shared`` is the bootstrap's variance of the mean, where the values share images: their spread does not show what
    such images have in common. The part that each value has to itself is then counted twice, so that the interval is
    wider than it need be. It ends at ``bounds``. NaN ends for fewer than two values.
    """
    return _student(values, 0, shared, bounds)


def prediction_interval(
    values: Array, shared: float = 0.0, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """The mean of values (n,) with the interval in which one new value of their kind lies with a probability of 95%,
    if they are spread normally; the rest as in :func:`mean_interval`."""
    return _student(values, 1, shared, bounds)


def _student(values: Array, more: int, shared: float, bounds: tuple[float, float]) -> Estimate:
    """The mean of values (n,), and Student's interval for what differs from it by the variance of ``more`` of them."""
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, float("nan"), float("nan"))
    reach = stdtrit(n - 1, 0.975) * np.sqrt(values.var(ddof=1) * (1 / n + more) + shared)
    low, high = np.clip([mean - reach, mean + reach], *bounds)
    return Estimate(mean, float(low), float(high))


# --- AUC of one group -----------------------------------------------------------------------------


def effective_count(units: Sequence[Hashable]) -> float:
    """How many independent images those with ``units`` (n,) count as: (sum n)^2 / sum n^2, n being the images of each
    unit. That is one a unit where these are equally large, as if the images of a unit were all alike (Kish 1965, Survey
    Sampling)."""
    sizes = np.array(list(Counter(units).values()), float)
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if len(sizes) else 0.0


def under(units: Sequence[Hashable] | None, mask: NDArray[np.bool_]) -> list[Hashable] | None:
    """The units of the images under ``mask`` (n,)."""
    return None if units is None else [units[i] for i in np.flatnonzero(mask)]


def class_counts(labels: Array, units: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """The :func:`effective_count` of real images and of fakes; without ``units`` their numbers."""
    labels = np.asarray(labels)
    units = range(len(labels)) if units is None else units
    reals, fakes = (effective_count(under(units, labels == label)) for label in (0, 1))
    return reals, fakes


def newcombe(value: float, reals: float, fakes: float) -> Estimate:
    """The AUC of one group of images with its 95% interval (Newcombe 2006, Statistics in Medicine 25, part 2, method
    5): all areas that lie within 1.96 of their own standard errors from ``value``.

    The standard errors are Hanley's and McNeil's, symmetric in the classes, for numbers of independent images as
    :func:`class_counts` gives them. Percentiles of a bootstrap cover the truth of few images too seldom, and are one
    point where the classes do not overlap. NaN ends where a class is at most one image.
    """
    if math.isnan(value) or min(reals, fakes) <= 1:
        return Estimate(value, float("nan"), float("nan"))
    more = (reals + fakes) / 2 - 1

    def near(area: float) -> bool:
        variance = area * (1 - area) / (reals * fakes) * (1 + more * ((1 - area) / (2 - area) + area / (1 + area)))
        return abs(area - value) <= REACH * math.sqrt(variance)

    return Estimate(value, furthest(value, 0.0, near), furthest(value, 1.0, near))


def furthest(inside: float, bound: float, holds: Callable[[float], bool]) -> float:
    """The last figure on the way from ``inside`` to ``bound`` for which something ``holds``, by bisection."""
    for _ in range(40):
        middle = (inside + bound) / 2
        if holds(middle):
            inside = middle
        else:
            bound = middle
    return inside


# --- shares ---------------------------------------------------------------------------------------


def proportion(successes: float, total: float) -> Estimate:
    """A share with its 95% Wilson interval; all NaN when there is nothing to count."""
    if not total:
        return Estimate(float("nan"), float("nan"), float("nan"))
    z2 = REACH**2
    p = successes / total
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(z2 * (p * (1 - p) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    # Rounding must not move an end past the share itself, which is 0 or 1 where no, or every, one was a success.
    return Estimate(p, float(max(0.0, min(p, centre - half))), float(min(1.0, max(p, centre + half))))


def ratio(hits: float, total: float, others: float, of: float) -> Estimate:
    """How many times as large a share ``hits`` of ``total`` is as ``others`` of ``of``, with Katz's 95% interval in the
    logarithm (Katz et al. 1978, Biometrics 34); all NaN where either counts nothing."""
    if not (hits and others):
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = (hits / total) / (others / of)
    reach = REACH * math.sqrt(1 / hits - 1 / total + 1 / others - 1 / of)
    return Estimate(value, value * math.exp(-reach), value * math.exp(reach))


def plain(value: Any) -> Any:
    """A document of dicts, lists and figures as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- jackknife ----------------------------------------------------------------------------------


def jackknife(value: float, without: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Standard error and half the 95% interval's width from leave-one-out values (J,), for groups of unequal size
    (Busing, Meijer and van der Leeden 1999, Statistics and Computing 9).

    Raises ValueError on fewer than three groups.
    """
    from scipy.special import stdtrit

    J = len(without)
    if J < 3:
        raise ValueError(f"a jackknife interval needs at least 3 groups of samples, not {J}")
    h = counts.sum() / counts
    pseudo = h * value - (h - 1) * without
    centre = J * value - ((1 - 1 / h) * without).sum()
    error = float(np.sqrt(np.mean((pseudo - centre) ** 2 / (h - 1))))
    return error, float(stdtrit(J - 1, 0.975)) * error


def jackknife_interval(statistic: Callable[[np.ndarray], float], groups: Sequence[Sequence[int]]) -> Estimate:
    """A statistic of samples with its 95% interval. ``statistic`` is given the positions of those it is taken over."""
    value = statistic(np.concatenate(groups))
    without = [statistic(np.concatenate([*groups[:j], *groups[j + 1 :]])) for j in range(len(groups))]
    _, reach = jackknife(value, np.array(without), np.array([len(group) for group in groups]))
    return Estimate(value, value - reach, value + reach)
