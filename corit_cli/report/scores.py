"""Pictures of scored images: ROC curves, probabilities by class, reliability. The same for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from corit_cli import metrics
from corit_cli.detection.scores import Scored
from corit_cli.metrics.intervals import Estimate
from corit_cli.report.figure import FAKE, GREY, REAL, draw, save
from corit_cli.report.words import posterior


def validation_picture(scored: Scored, probe: NDArray | None, path: Path) -> None:
    """ROC curves (of a linear probe's logits too), probabilities and reliability, side by side in one PNG."""
    with draw((13, 4), columns=3) as (figure, (roc, probabilities, reliability)):
        draw_roc(roc, scored, probe)
        draw_probabilities(probabilities, scored)
        draw_reliability(reliability, scored)
    save(figure, path, dpi=150)


def draw_roc(axes: Axes, scored: Scored, probe: NDArray | None = None) -> None:
    """ROC curves of the detector and of a probe's logits (n,), and the point that the detector's threshold picks."""
    labels, curves = scored.labels, [("this detector", scored.logits[0], FAKE, "-")]
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    if probe is not None:
        curves.insert(0, ("linear probe, last layer", probe, GREY, "--"))
    for name, scores, colour, line in curves:
        roc = metrics.Roc.of(labels, scores)
        few = np.unique(np.linspace(0, roc.fpr.shape[1] - 1, 2000).astype(int))  # a page need not hold a million points
        axes.plot(roc.fpr[0, few], roc.tpr[0, few], color=colour, ls=line, lw=1.8, label=f"{name}: {roc.auc[0]:.3f}")
    called = scored.verdicts[0] == "fake"
    point = [called[labels == label].mean() for label in (0, 1)]
    axes.plot(*point, "o", color=FAKE, ms=6, label="at its threshold for fake")
    axes.set(xlabel="real images called fake", ylabel="fakes called fake", title="ROC (area under the curve)")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def draw_probabilities(axes: Axes, scored: Scored) -> None:
    """Histograms of the probabilities of either class, and the band between the thresholds."""
    labels, p, t = scored.labels, scored.probabilities[0], scored.thresholds
    bins = np.linspace(0, 1, 26)
    axes.axvspan(t.real, t.fake, color=GREY, alpha=0.2, lw=0, label="uncertain")
    # Hatched and filled, they are told apart without colours, too, and seen where one lies behind the other.
    axes.hist(p[labels == 1], bins, fc=(FAKE, 0.5), ec=FAKE, label="fake")
    axes.hist(p[labels == 0], bins, fc="none", ec=REAL, hatch="/////", label="real")
    axes.set(xlabel="probability of being fake", ylabel="images", title="Probabilities", xlim=(0, 1))
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8)


@dataclass(frozen=True)
class Bin:
    """Images whose probabilities lie from ``low`` to ``high``: how many, the mean of these, and the share of fakes."""

    low: float
    high: float
    images: int
    stated: float
    fake: Estimate


def reliability(scored: Scored) -> list[Bin]:
    """Ten bins of the stated probability, without empty ones, the classes weighing the same."""
    labels, p = scored.labels, scored.probabilities[0]
    reals = float(np.mean(labels == 0)) if len(np.unique(labels)) == 2 else 0.5
    weights = np.where(labels == 1, reals, 1 - reals)  # (n,)
    index, found = np.minimum((p * 10).astype(int), 9), []
    for b in np.unique(index).tolist():
        chosen = index == b
        share = metrics.proportion(int(labels[chosen].sum()), int(chosen.sum()))
        stated = float(np.average(p[chosen], weights=weights[chosen]))
        fake = Estimate(*(posterior(value, reals) for value in (share.value, share.low, share.high)))
        found.append(Bin(b / 10, (b + 1) / 10, int(chosen.sum()), stated, fake))
    return found


def draw_reliability(axes: Axes, scored: Scored) -> None:
    """The share of fakes, with its interval, in bins of the stated probability: :func:`reliability`."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    for b in reliability(scored):
        axes.plot([b.stated] * 2, [b.fake.low, b.fake.high], color=FAKE, lw=1.2)
        axes.plot(b.stated, b.fake.value, "o", color=FAKE, ms=5, clip_on=False)
    ece = metrics.expected_calibration_error(scored.labels, scored.probabilities[0])
    axes.set(
        xlabel="stated probability",
        ylabel="share that is fake, classes weighing the same",
        title=f"Reliability (ECE {ece:.3f})",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
