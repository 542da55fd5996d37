"""When a training run has collapsed to random guessing, and the radius (COR) at which that begins, with its interval.

COR is defined by measurement (docs/theory.md): over seeds, a run trained with SAM's radius rho collapses with a
probability P(rho); COR is the radius at which P crosses one half. Where no radius of the sweep reaches that, all that
is known is a bound, and a bound is all that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from corit_cli.errors import CoritError

RESAMPLES = 2000
#: What guessing reaches once in so many times is above the band of guesses.
ONE_IN = 40


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
class Criteria:
    """The tests that decide whether a run has collapsed.

    Attributes:
        chance: entropy of the training labels' class prior, nats: the loss of a constant guess.
        margin: how far below ``chance`` the final training loss must lie for a run to have learned.
        null_auc: upper end of the 95% band of validation AUC under random guessing.
        floor: spread of logits below which the output is as good as constant.
        reals, fakes: independent images to validate on, as the band counts them.
    """

    chance: float
    null_auc: float
    margin: float = 0.05
    floor: float = 0.1
    reals: int = 0
    fakes: int = 0

    @classmethod
    def of(
        cls, train_labels: Sequence[int], val_labels: Sequence[int], val_units: Sequence[Hashable] | None = None
    ) -> Criteria:
        """The tests for these images.

        The band is that of the Mann-Whitney statistic under the null, 0.5 + 1.96 sqrt((n + m + 1) / 12nm). Images of
        one class in the same of ``val_units``, as frames of a video are, count once; where a unit holds both classes,
        as a photograph and its forgery, each counts. Raises ValueError unless both parts have both classes.
        """
        if len(set(train_labels)) < 2 or len(set(val_labels)) < 2:
            raise ValueError("training and validation need both classes")
        p = float(np.mean(train_labels))
        rows = list(zip(val_units or range(len(val_labels)), val_labels, strict=True))
        mixed = {unit for unit, label in rows if label} & {unit for unit, label in rows if not label}
        counted = [(unit, label) for unit, label in rows if unit in mixed]
        counted += {(unit, label) for unit, label in rows if unit not in mixed}
        fakes = sum(label for _, label in counted)
        reals = len(counted) - fakes
        chance = -p * math.log(p) - (1 - p) * math.log(1 - p)
        band = 1.96 * math.sqrt((fakes + reals + 1) / (12 * fakes * reals))
        return cls(chance, 0.5 + band, reals=reals, fakes=fakes)

    def check(self) -> None:
        """Raise CoritError where so few images count that guessing ranks them without a fault once in ``ONE_IN`` times
        or more often: no run could then be told from a guess."""
        if math.comb(self.reals + self.fakes, self.fakes) < ONE_IN:
            raise CoritError(
                f"too few independent images to validate on, {self.reals} real and {self.fakes} fake, where those of "
                "one source or video may count as one: give ten independent ones of each class, or more --samples"
            )

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
    """The critical radius with its interval, as far as the radii that were tried tell.

    That is 95% of a bootstrap over seeds, which of fewer than ten of them holds the truth less often, the more
    gradually runs come to collapse.

    Where the crossing was not seen, ``value`` is None and ``side`` says where it must be: ``above`` the largest radius
    or ``below`` the smallest. An end of the interval that lies outside the radii is infinite or zero. ``bracket`` are
    the neighbouring radii between which the crossing lies.
    """

    value: float | None
    low: float
    high: float
    shares: tuple[Share, ...]
    side: str | None = None
    bracket: tuple[float, float] | None = None

    def __str__(self) -> str:
        radii = [s.rho for s in self.shares if s.runs]
        if not radii:
            return "unknown: every run diverged"
        if self.value is not None:
            high = f"{self.high:.3g}" if math.isfinite(self.high) else f"> {radii[-1]:g}"
            low = f"{self.low:.3g}" if self.low else f"< {radii[0]:g}"
            return f"{self.value:.3g} [{low}, {high}]"
        collapsed, runs = sum(s.collapsed for s in self.shares), sum(s.runs for s in self.shares)
        if self.side == "above":
            seen = "no collapse up to there" if not collapsed else f"only {collapsed} of {runs} runs collapsed"
            return f"above {radii[-1]:g}: {seen}"
        seen = "collapsed there already" if collapsed == runs else f"{collapsed} of {runs} runs collapsed"
        return f"below {radii[0]:g}: {seen}"

    def as_dict(self) -> dict:
        """Plain values for JSON: an infinite end is None."""
        high = self.high if math.isfinite(self.high) else None
        shares = [asdict(s) for s in self.shares]
        return {"value": self.value, "low": self.low, "high": high, "side": self.side, "shares": shares}


def critical_radius(runs: Iterable[Run], tests: Criteria, seed: int = 0) -> COR:
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
    tried = np.array([s.rho for s in shares if s.runs])
    if not len(tried):
        return COR(None, 0.0, math.inf, tuple(shares))
    table = table[:, [s.runs > 0 for s in shares]]
    value, place = _crossing(tried, table)
    rng = np.random.default_rng(seed)
    # A draw of seeds is the same draw in any order; few seeds have few of them.
    draws = np.sort(rng.integers(len(seeds), size=(RESAMPLES, len(seeds))), axis=1)
    different, counts = np.unique(draws, axis=0, return_counts=True)
    values = np.repeat([_crossing(tried, table[rows])[0] for rows in different], counts)
    low, high = (float(q) for q in np.quantile(values, [0.025, 0.975], method="nearest"))
    if value == 0:
        return COR(None, 0.0, max(high, float(tried[0])), tuple(shares), "below")
    if value == math.inf:
        return COR(None, min(low, float(tried[-1])), math.inf, tuple(shares), "above")
    ends = float(tried[place - 1]), float(tried[place])
    return COR(value, min(low, ends[0]), max(high, ends[1]), tuple(shares), None, ends)


def _crossing(radii: np.ndarray, table: np.ndarray) -> tuple[float, int]:
    """Where the share of ones crosses one half, and the first radius's place at or above it; 0 below all radii,
    infinity above them. ``table`` (seeds, radii) holds NaN where nothing counts."""
    from sklearn.isotonic import isotonic_regression

    counted = ~np.isnan(table)
    places = np.flatnonzero(counted.any(0))
    if not len(places):
        return math.inf, -1
    weights = counted[:, places].sum(0)
    shares = np.where(counted, table, 0)[:, places].sum(0) / weights
    p = isotonic_regression(shares, sample_weight=weights)
    if p[0] >= 0.5:
        return 0.0, 0
    if p[-1] < 0.5:
        return math.inf, -1
    k = int(np.argmax(p >= 0.5))
    t = (0.5 - p[k - 1]) / (p[k] - p[k - 1])
    value = radii[places[k]] if t == 1 else radii[places[k - 1]] ** (1 - t) * radii[places[k]] ** t
    return float(value), int(places[k])


def radii_of(text: str) -> tuple[float, ...]:
    """``LO:HI``, ``LO:HI:N`` (N radii evenly spaced in the logarithm) or a list with commas, to ascending radii.

    Raises CoritError on anything else.
    """
    try:
        if ":" in text:
            low, high, *count = text.split(":")
            number = int(count[0]) if count else COARSE
            if len(count) > 1 or float(low) >= float(high) or number < 2:
                raise ValueError
            ends = float(low), float(high)
            found = tuple(rounded(float(r)) for r in np.geomspace(*ends, number)) if ends[0] > 0 else ends
        else:
            found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise CoritError(f"--rho takes LO:HI, LO:HI:N or a list such as 0.05,0.1, not {text!r}") from None
    if not found or not all(math.isfinite(r) and r > 0 for r in found) or len(set(found)) < len(found):
        raise CoritError("radii must be above zero, finite and different (the radius 0 is always run, as a control)")
    return found


def rounded(radius: float) -> float:
    """To three significant digits: a radius is to be read and typed again."""
    return float(f"{radius:.3g}")


#: Radii of a range that names no number of them; the cliff is then refined.
COARSE = 5
