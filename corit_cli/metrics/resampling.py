"""95% intervals of rankings and calibration by a bootstrap.

The AUC of one group has Newcombe's interval. Means over groups, differences and other figures of a ranking have a
percentile bootstrap that resamples real and fake images separately, so each resample keeps both classes at their sizes.
Frames of one video are resampled together where ``units`` says which they are. Resamples are told as weights: how often
each image was drawn. Sums of such whole numbers are exact in float32 below 2^24, which no number of images comes near.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from corit_cli.metrics.intervals import Estimate, class_counts, furthest, newcombe, under
from corit_cli.metrics.ranking import Array, Ranks, auc, calibration_gaps

#: One group's name an image, or the images (numbers or a mask) of each group, which may then share some.
Groups = Sequence[str] | Mapping[str, NDArray]
Key = TypeVar("Key", bound=Hashable)
RESAMPLES = 2000
#: Weights in memory at a time: all resamples of five hundred images, one of a million. No figure depends on it.
BLOCK = 1_000_000


@dataclass(frozen=True)
class Sampled:
    """A figure with its bootstrap distribution ``draws`` (RESAMPLES,). Figures that share their resamples pair up.

    ``alone`` is the figure with a better interval than percentiles of the draws, where there is one.
    """

    value: float
    draws: Array
    alone: Estimate | None = None

    def __sub__(self, other: Sampled) -> Sampled:
        """The paired difference: of figures that vary, and always alike, it is certain."""
        alike = np.array_equal(self.draws, other.draws) and np.ptp(self.draws) > 0
        return Sampled(self.value - other.value, self.draws - other.draws, Estimate(0.0, 0.0, 0.0) if alike else None)

    @classmethod
    def mean(cls, parts: Sequence[Sampled]) -> Sampled:
        """The mean of figures that share their resamples; NaN of none."""
        if not parts:
            return cls(float("nan"), np.full(RESAMPLES, np.nan))
        if len(parts) == 1:
            return parts[0]
        return cls(float(np.mean([p.value for p in parts])), np.mean([p.draws for p in parts], axis=0))

    @property
    def estimate(self) -> Estimate:
        """The figure with its 95% interval."""
        return self.alone or interval(self.value, self.draws)


def _masks(groups: Groups | None, count: int) -> dict[str, NDArray[np.bool_]]:
    """Each group's images as a mask (n,); all images are one group where none are given."""
    if groups is None:
        return {"": np.ones(count, bool)}
    if isinstance(groups, Mapping):
        masks = {}
        for name, chosen in groups.items():
            masks[name] = np.zeros(count, bool)
            masks[name][chosen] = True
        return masks
    names = np.asarray(groups)
    return {str(name): names == name for name in np.unique(names)}


def _strata(
    labels: Array, groups: Groups | None, units: Sequence[Hashable] | None
) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
    """The number of each image's unit, (n,), and the units that are drawn among themselves: those whose images are of
    the same classes in the same groups."""
    count = len(labels)
    belongs = np.stack([*_masks(groups, count).values(), np.asarray(labels) == 1], axis=1)  # (n, groups + 1)
    # Codes sort by group, fakes first; strata by the codes that their units hold.
    kinds, codes = np.unique(~belongs, axis=0, return_inverse=True)
    numbers: dict[Hashable, int] = {}
    owner = np.arange(count) if units is None else np.array([numbers.setdefault(u, len(numbers)) for u in units])
    absent = np.ones((owner.max() + 1, len(kinds)), bool)  # (U, codes)
    absent[owner, codes.ravel()] = False
    _, stratum = np.unique(absent, axis=0, return_inverse=True)
    return owner, [np.flatnonzero(stratum.ravel() == k) for k in range(stratum.max() + 1)]


def resample(
    labels: Array, groups: Groups | None = None, units: Sequence[Hashable] | None = None, seed: int = 0
) -> Iterator[NDArray[np.float32]]:
    """How often each image is drawn in each resample: blocks (r, n), RESAMPLES rows in all.

    Whole ``units`` (one name an image, such as its video) are drawn. Units whose images are of the same classes in the
    same ``groups`` are drawn among themselves, so that a group keeps its classes at their numbers of units.
    """
    owner, strata = _strata(labels, groups, units)
    # Each stratum has random numbers of its own, so that the size of a block changes nothing.
    streams = [np.random.default_rng([seed, k]) for k in range(len(strata))]
    rows = max(1, min(RESAMPLES, BLOCK // len(labels)))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = np.empty((size, owner.max() + 1), np.float32)
        for rng, chosen in zip(streams, strata, strict=True):
            shape = size, len(chosen)
            picks = rng.integers(len(chosen), size=shape) + np.arange(0, size * len(chosen), len(chosen))[:, None]
            drawn[:, chosen] = np.bincount(picks.ravel(), minlength=size * len(chosen)).reshape(shape)
        yield drawn.take(owner, axis=1)


def bootstrap(
    figures: Callable[[Array], Mapping[Key, Array]],
    labels: Array,
    groups: Groups | None = None,
    units: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[Key, Sampled]:
    """Distributions of ``figures``, a function of image weights (R, n) that returns an array (R,) for each name.

    The figures' values are those at weight one. Without groups, where most images of a class belong to a unit that has
    no other to be drawn instead, such as where a class is a single video, the draws are NaN. See :func:`resample` for
    the rest.
    """
    values = figures(np.ones((1, len(labels)), np.float32))
    if groups is None and _fixed(np.asarray(labels), _varying(labels, groups, units)):
        return {key: Sampled(float(value[0]), np.full(RESAMPLES, np.nan)) for key, value in values.items()}
    blocks = [figures(weights) for weights in resample(labels, groups, units, seed)]
    return {key: Sampled(float(value[0]), np.concatenate([b[key] for b in blocks])) for key, value in values.items()}


def bootstrap_groups(
    labels: Array,
    scores: Mapping[str, Array | Mapping[str, Array]],
    groups: Groups | None = None,
    units: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[tuple[str, str], Sampled]:
    """AUC of each detector in each group, all on the same resamples: {(detector, group): ...}.

    A detector's scores are (n,), or such an array for each group where its scores depend on that. By itself each AUC
    has the interval of :func:`newcombe`. Where most images of a class of a group belong to a unit that has no other
    to be drawn instead, the group's draws are NaN. A group of one class is NaN altogether.
    """
    labels, masks = np.asarray(labels), _masks(groups, len(labels))
    varies = _varying(labels, masks, units)
    fixed = {group for group, mask in masks.items() if _fixed(labels[mask], varies[mask])}
    ranks = {
        (name, group): Ranks.of(labels, np.asarray(s[group] if isinstance(s, Mapping) else s), np.flatnonzero(mask))
        for group, mask in masks.items()
        for name, s in scores.items()
    }
    ranked = {key: r for key, r in ranks.items() if len(r.reals) and len(r.fakes)}
    found = bootstrap(lambda weights: {key: r.auc(weights) for key, r in ranked.items()}, labels, masks, units, seed)
    nothing = Sampled(float("nan"), np.full(RESAMPLES, np.nan))
    counts = {group: class_counts(labels[mask], under(units, mask)) for group, mask in masks.items()}
    result = {}
    for name, group in ranks:
        one = found.get((name, group), nothing)
        draws = nothing.draws if group in fixed else one.draws
        result[name, group] = Sampled(one.value, draws, newcombe(one.value, *counts[group]))
    return result


def _varying(labels: Array, groups: Groups | None, units: Sequence[Hashable] | None) -> NDArray[np.bool_]:
    """Which images (n,) are drawn now more often and now less: not those whose unit is all of its stratum."""
    owner, strata = _strata(labels, groups, units)
    varies = np.zeros(owner.max() + 1, bool)
    for chosen in strata:
        varies[chosen] = len(chosen) > 1
    return varies[owner]


def _fixed(labels: Array, varies: NDArray[np.bool_]) -> bool:
    """Whether there is a class of which more than half of the images do not vary, by ``varies`` (n,): resamples would
    say little of it."""
    return any(varies[labels == label].mean() < 0.5 for label in np.unique(labels))


def bootstrap_auc(
    labels: Array,
    scores: Mapping[str, Array],
    groups: Groups | None = None,
    seed: int = 0,
    units: Sequence[Hashable] | None = None,
) -> tuple[dict[str, Array], dict[str, float]]:
    """Bootstrap distributions of AUC for several detectors on the same images, paired resample by resample.

    With ``groups`` the figure is the mean of the groups' AUCs, each group resampled by itself. Returns
    ({name: (RESAMPLES,)}, {name: value}).
    """
    found = bootstrap_groups(labels, scores, groups, units, seed)
    means = {name: Sampled.mean([s for (of, _), s in found.items() if of == name]) for name in scores}
    return {name: s.draws for name, s in means.items()}, {name: s.value for name, s in means.items()}


def interval(value: float, distribution: Array) -> Estimate:
    """The 95% percentile interval of a bootstrap distribution; NaN ends where that is a single value, such as where the
    classes do not overlap: a bootstrap says nothing there."""
    if np.min(distribution) == np.max(distribution):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(distribution, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def auc_interval(
    labels: Array, scores: Array, groups: Groups | None = None, units: Sequence[Hashable] | None = None
) -> Estimate:
    """AUC with the interval of :func:`newcombe`, or the mean of the groups' AUCs with that of the bootstrap, which
    resamples whole ``units``, such as videos."""
    if groups is None:
        return newcombe(auc(labels, scores), *class_counts(labels, units))
    return Sampled.mean(list(bootstrap_groups(labels, {"": scores}, groups, units).values())).estimate


def calibration_interval(
    labels: Array, probabilities: Array, units: Sequence[Hashable] | None = None, bins: int = 10, seed: int = 0
) -> Estimate:
    """:func:`expected_calibration_error` with its interval, by inverting a bootstrap test (Carpenter 1999).

    Noise in a bin moves its gap either way and its absolute value mostly up. The calibration error of few images is
    therefore too high, and that of their resamples higher still (Roelofs et al. 2022): percentiles of these miss the
    truth from above. Here the gaps of the resamples say only how noisy gaps are. The interval holds every calibration
    error for which the one observed would not be surprising, that is, lie outside the middle 95% of what the measured
    gaps, scaled to that error, come to with this noise. It reaches down to 0 where noise alone explains the value, and
    always holds the value itself; where no gap varies its ends are NaN. In simulations of well and badly calibrated
    probabilities it covers the truth about as often as it should, where percentiles do so far too seldom and, for well
    calibrated ones, hardly ever.
    """

    def figures(weights: Array) -> dict[int, Array]:
        return dict(enumerate(calibration_gaps(labels, probabilities, weights, bins).T))

    found = bootstrap(figures, labels, units=units, seed=seed).values()
    gaps = np.array([s.value for s in found])  # (bins,)
    noise = np.stack([s.draws for s in found], axis=1) - gaps  # (RESAMPLES, bins)
    value = float(abs(gaps).sum())
    if np.isnan(noise).any() or not noise.any():  # nothing varies: nothing is known of how much it might
        return Estimate(value, float("nan"), float("nan"))
    shape = gaps / value if value else np.full(bins, 1 / bins)

    def draws(error: float) -> Array:
        """What gaps of that error come to with this noise, (RESAMPLES,)."""
        return abs(error * shape + noise).sum(1)

    low = furthest(value, 0.0, lambda error: np.percentile(draws(error), 97.5) >= value)
    return Estimate(value, low, furthest(value, 1.0, lambda error: np.percentile(draws(error), 2.5) <= value))
