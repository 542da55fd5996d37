"""When a training run has collapsed to random guessing, and the radius (COR) at which that begins, with its interval.

COR is defined by measurement (docs/theory.md): over seeds, a run trained with SAM's radius rho collapses with a
probability P(rho); COR is the radius at which P crosses one half. Where no radius of the sweep reaches that, all that
is known is a bound, and a bound is all that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Run:
    """One finished training run.

    Attributes:
        model: what was trained, as it is called in the sweep.
        rho: SAM's radius; 0 is the plain optimizer.
        seed: of initialisation and batches.
        shuffled: whether the training labels were shuffled, as a control.
        loss: final loss on the training images, nats.
        auc: on the validation images.
        spread: standard deviation of the validation images' logits.
        cosine: mean cosine between ascent and descent gradients over the last epoch.
    """

    model: str
    rho: float
    seed: int
    shuffled: bool
    loss: float
    auc: float
    spread: float
    cosine: float

    @property
    def key(self) -> tuple[str, float, int, bool]:
        """What tells it from the other runs of a sweep."""
        return self.model, self.rho, self.seed, self.shuffled


@dataclass(frozen=True)
class Tests:
    """The tests that decide whether a run has collapsed.

    Attributes:
        chance: entropy of the training labels' class prior, nats: the loss of a constant guess.
        margin: how far below ``chance`` the final training loss must lie for a run to have learned.
        null_auc: upper end of the 95% band of validation AUC under random guessing.
        floor: spread of logits below which the output is as good as constant.
    """

    chance: float
    null_auc: float
    margin: float = 0.05
    floor: float = 0.1

    @classmethod
    def of(cls, train_labels: Sequence[int], val_labels: Sequence[int]) -> Tests:
        """The tests for these images.

        The band is that of the Mann-Whitney statistic under the null, 0.5 + 1.96 sqrt((n + m + 1) / 12nm).
        """
        p = float(np.mean(train_labels))
        fakes = int(np.sum(val_labels))
        reals = len(val_labels) - fakes
        chance = -p * math.log(p) - (1 - p) * math.log(1 - p)
        return cls(chance, 0.5 + 1.96 * math.sqrt((fakes + reals + 1) / (12 * fakes * reals)))

    def loss_at_chance(self, run: Run) -> bool:
        """Whether training did not get below the loss of a constant guess."""
        return run.loss >= self.chance - self.margin

    def guesses(self, run: Run) -> bool:
        """Whether unseen images are ranked no better than by guessing."""
        return run.auc <= self.null_auc

    def flat(self, run: Run) -> bool:
        """Whether the output hardly depends on the image."""
        return run.spread < self.floor

    def outcome(self, run: Run) -> str:
        """``trained``, ``collapsed`` or ``diverged``.

        A run has collapsed when it guesses on unseen images, or when its loss is at chance and its output flat: a
        constant answer with a trace of the right order in its last digits is a guess as well.
        """
        if not all(map(math.isfinite, (run.loss, run.auc, run.spread))):
            return "diverged"
        return "collapsed" if self.guesses(run) or (self.loss_at_chance(run) and self.flat(run)) else "trained"


@dataclass(frozen=True)
class Share:
    """How many of the runs at one radius collapsed; ``runs`` leaves out the diverged ones."""

    rho: float
    collapsed: int
    runs: int
    diverged: int


@dataclass(frozen=True)
class COR:
    """The critical radius with its 95% interval; where it is only a bound, ``value`` is None and one end is infinite
    (above every radius tried) or zero (below every radius tried)."""

    value: float | None
    low: float
    high: float
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        radii = [s.rho for s in self.shares]
        if self.value is not None:
            high = f"{self.high:.3g}" if math.isfinite(self.high) else f"> {max(radii):g}"
            low = f"{self.low:.3g}" if self.low else f"< {min(radii):g}"
            return f"{self.value:.3g} [{low}, {high}]"
        if math.isinf(self.high):
            return f"above {max(radii):g}: no collapse up to there"
        return f"below {min(radii):g}: collapsed there already"

    def as_dict(self) -> dict:
        """Plain values for JSON: an infinite end is None."""
        high = self.high if math.isfinite(self.high) else None
        return {"value": self.value, "low": self.low, "high": high, "shares": [asdict(s) for s in self.shares]}


def critical_radius(runs: Iterable[Run], tests: Tests, seed: int = 0) -> COR:
    """COR of one model's runs, with a bootstrap over seeds.

    P(rho) is made monotone by isotonic regression and crosses one half by interpolation in log rho. The interval holds
    the bootstrap's and the two neighbouring radii of the crossing, between which nothing was measured. Radius 0 and
    shuffled controls are left out. Raises ValueError when no run is left.
    """
    kept = [r for r in runs if r.rho > 0 and not r.shuffled]
    if not kept:
        raise ValueError("no run with a radius above zero")
    radii, seeds = sorted({r.rho for r in kept}), sorted({r.seed for r in kept})
    table = np.full((len(seeds), len(radii)), np.nan)  # 1 collapsed, 0 trained, NaN diverged or not run
    outcomes: dict[tuple[float, str], int] = {}
    for r in kept:
        outcome = tests.outcome(r)
        outcomes[r.rho, outcome] = outcomes.get((r.rho, outcome), 0) + 1
        if outcome != "diverged":
            table[seeds.index(r.seed), radii.index(r.rho)] = outcome == "collapsed"
    shares = []
    for rho in radii:
        counts = {name: outcomes.get((rho, name), 0) for name in ("collapsed", "trained", "diverged")}
        shares.append(Share(rho, counts["collapsed"], counts["collapsed"] + counts["trained"], counts["diverged"]))
    value = _crossing(np.array(radii), table)
    rng = np.random.default_rng(seed)
    draws = [_crossing(np.array(radii), table[rng.integers(len(seeds), size=len(seeds))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975], method="nearest")
    if value == 0:
        return COR(None, 0.0, float(max(high, radii[0])), tuple(shares))
    if value == math.inf:
        return COR(None, float(min(low, radii[-1])), math.inf, tuple(shares))
    below = max((rho for rho in radii if rho < value), default=0.0)
    above = min((rho for rho in radii if rho >= value), default=math.inf)
    return COR(value, float(min(low, below)), float(max(high, above)), tuple(shares))


def _crossing(radii: np.ndarray, table: np.ndarray) -> float:
    """Where the share of ones crosses one half; 0 below all radii, infinity above them. ``table`` (seeds, radii)."""
    counted = ~np.isnan(table)
    weights = counted.sum(0)  # (radii,)
    radii, table, counted, weights = (a[..., weights > 0] for a in (radii, table, counted, weights))
    if not len(radii):
        return math.inf
    p = isotonic(np.where(counted, table, 0).sum(0) / weights, weights)
    if p[0] >= 0.5:
        return 0.0
    if p[-1] < 0.5:
        return math.inf
    k = int(np.argmax(p >= 0.5))
    t = (0.5 - p[k - 1]) / (p[k] - p[k - 1])
    return float(np.exp((1 - t) * np.log(radii[k - 1]) + t * np.log(radii[k])))


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest non-decreasing sequence to ``values`` (n,) in weighted squares."""
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)


def bracket(cor: COR) -> tuple[float, float] | None:
    """The neighbouring radii between which the collapse probability crosses one half, or None where it does not."""
    if cor.value is None:
        return None
    radii = [s.rho for s in cor.shares]
    return max(r for r in radii if r < cor.value), min(r for r in radii if r >= cor.value)


def radii_of(text: str) -> tuple[float, ...]:
    """``LO:HI``, ``LO:HI:N`` (N radii evenly spaced in the logarithm) or a list with commas, to ascending radii.

    Raises ValueError on anything else.
    """
    try:
        if ":" in text:
            low, high, *count = text.split(":")
            radii = np.geomspace(float(low), float(high), int(count[0]) if count else COARSE)
            if len(count) > 1 or float(low) >= float(high):
                raise ValueError
            found = tuple(round(float(r), 6) for r in radii)
        else:
            found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise ValueError(f"--rho takes LO:HI, LO:HI:N or a list such as 0.05,0.1, not {text!r}") from None
    if not found or not all(math.isfinite(r) and r > 0 for r in found) or len(set(found)) < len(found):
        raise ValueError("radii must be above zero, finite and different (the radius 0 is always run, as a control)")
    return found


#: Radii of a range that names no number of them; the cliff is then refined.
COARSE = 6
