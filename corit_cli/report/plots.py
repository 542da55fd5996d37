"""Plots, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from corit_cli import metrics
from corit_cli.engine.checkpoint import write_atomically
from corit_cli.engine.fit import Thresholds
from corit_cli.engine.train import Validation

REAL, FAKE, GREY = "#2a7f62", "#c0392b", "#888888"


def validation_plot(validation: Validation, thresholds: Thresholds, path: Path) -> None:
    """ROC curves, histograms of the probabilities, and the reliability curve, side by side in one PNG."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    roc, histogram, reliability = figure.subplots(1, 3)
    _roc(roc, validation)
    _histogram(histogram, validation, thresholds)
    _reliability(reliability, validation)
    for axes in (roc, histogram, reliability):
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def _roc(axes, v: Validation) -> None:
    from sklearn.metrics import roc_curve

    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    curves = [("CoRIT", v.logits, FAKE)]
    if v.probe is not None:
        curves.insert(0, ("linear probe, last layer", v.probe, GREY))
    for name, scores, colour in curves:
        fpr, tpr, _ = roc_curve(v.labels, scores)
        axes.plot(fpr, tpr, color=colour, lw=1.8, label=f"{name}: AUC {metrics.auc(v.labels, scores):.3f}")
    axes.set(xlabel="real images called fake", ylabel="fakes called fake", title="ROC on validation images")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def _histogram(axes, v: Validation, thresholds: Thresholds) -> None:
    bins = np.linspace(0, 1, 26)
    for name, label, colour in (("real", 0, REAL), ("fake", 1, FAKE)):
        axes.hist(v.probabilities[v.labels == label], bins, color=colour, alpha=0.6, label=name)
    axes.axvspan(thresholds.real, thresholds.fake, color=GREY, alpha=0.2, lw=0, label="uncertain")
    axes.set(xlabel="probability of being fake", ylabel="images", title="Scores", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=9)


def _reliability(axes, v: Validation) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    index = np.minimum((v.probabilities * 10).astype(int), 9)
    for b in np.unique(index):
        chosen = index == b
        share = metrics.proportion(int(v.labels[chosen].sum()), int(chosen.sum()))
        x = v.probabilities[chosen].mean()
        axes.plot([x, x], [share.low, share.high], color=FAKE, lw=1.2)
        axes.plot(x, share.value, "o", color=FAKE, ms=5)
    ece = metrics.expected_calibration_error(v.labels, v.probabilities)
    axes.set(xlabel="stated probability", ylabel="share that is fake", title=f"Reliability (ECE {ece:.3f})")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
