"""Pictures of scored images: ROC curves, probabilities by class, reliability. The same for training and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from corit_cli import metrics
from corit_cli.detection.scores import Scored
from corit_cli.report.figure import FAKE, GREY, REAL, draw, save


def validation_picture(scored: Scored, probe: NDArray | None, path: Path) -> None:
    """ROC curves (of a linear probe's logits too), probabilities and reliability, side by side in one PNG."""
    with draw((13, 4), columns=3) as (figure, (roc, probabilities, reliability)):
        draw_roc(roc, scored, probe)
        draw_probabilities(probabilities, scored)
        draw_reliability(reliability, scored)
    save(figure, path, dpi=150)


def draw_roc(axes: Axes, scored: Scored, probe: NDArray | None = None) -> None:
    """ROC curves of the detector and of a probe's logits (n,), and the point that the detector's threshold picks."""
    labels, curves = scored.labels, [("this detector", scored.logits[0], FAKE)]
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    if probe is not None:
        curves.insert(0, ("linear probe, last layer", probe, GREY))
    for name, scores, colour in curves:
        roc = metrics.Roc.of(labels, scores)
        few = np.unique(np.linspace(0, roc.fpr.shape[1] - 1, 2000).astype(int))  # a page need not hold a million points
        axes.plot(roc.fpr[0, few], roc.tpr[0, few], color=colour, lw=1.8, label=f"{name}: {roc.auc[0]:.3f}")
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
    for name, label, colour in (("real", 0, REAL), ("fake", 1, FAKE)):
        axes.hist(p[labels == label], bins, color=colour, alpha=0.6, label=name)
    axes.set(xlabel="probability of being fake", ylabel="images", title="Probabilities", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=8)


def draw_reliability(axes: Axes, scored: Scored) -> None:
    """The share of fakes, with its interval, in ten bins of the stated probability."""
    labels, p = scored.labels, scored.probabilities[0]
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    index = np.minimum((p * 10).astype(int), 9)
    for b in np.unique(index):
        chosen = index == b
        share = metrics.proportion(int(labels[chosen].sum()), int(chosen.sum()))
        x = p[chosen].mean()
        axes.plot([x, x], [share.low, share.high], color=FAKE, lw=1.2)
        axes.plot(x, share.value, "o", color=FAKE, ms=5, clip_on=False)
    ece = metrics.expected_calibration_error(labels, p)
    axes.set(xlabel="stated probability", ylabel="share that is fake", title=f"Reliability (ECE {ece:.3f})")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
