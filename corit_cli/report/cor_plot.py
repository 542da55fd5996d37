"""AUC and loss against SAM's radius, every run a dot, the cliff and its interval shaded; drawn without a display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from corit_cli.cor.sweep import Found, Sweep
from corit_cli.report.figure import GREY, LOOKS, QUIET, Look, check_suffix, draw, save
from corit_cli.report.gsnr_plot import MODELS

if TYPE_CHECKING:
    from corit_cli.cor.theory import Theory

#: Runs of one radius are spread over so much of the axis (a factor), model by model, lest they hide each other.
SPREAD = 1.04


def cor_plot(found: Sweep, path: Path, title: str = "") -> None:
    """Validation AUC above, final training loss below. Hollow marks are runs that collapsed, crossed ones diverged.

    The radius 0 stands apart on the left. Raises CoritError unless ``path`` ends in .png or .svg.
    """
    check_suffix(path)
    with draw((6.4, 5.2), rows=2, sharex=True) as (figure, (upper, lower)):
        arms = list(found.found.values())
        radii = sorted({r.rho for arm in arms for r in arm.runs if r.rho > 0})
        zero = radii[0] / 2.2 if radii else 1.0  # where radius 0 is drawn
        for number, arm in enumerate(arms):
            _arm(upper, lower, arm, found, LOOKS[number % len(LOOKS)], SPREAD ** (number - len(arms) / 2), zero)
        upper.axhspan(1 - found.tests.null_auc, found.tests.null_auc, color=GREY, alpha=0.12, lw=0)
        upper.text(zero, 0.5, " random guessing", va="center", color=QUIET, fontsize=8)
        lower.axhline(found.tests.chance, color=GREY, lw=0.8)
        lower.text(zero, found.tests.chance, " a constant guess", va="top", color=QUIET, fontsize=8)
        upper.set(ylabel="validation AUC", ylim=(min(0.4, upper.get_ylim()[0]), 1.02))
        lower.set(ylabel="final training loss", xlabel="SAM radius \N{GREEK SMALL LETTER RHO}", xscale="log")
        lower.set_ylim(bottom=0)
        ticks = _ticks(radii, zero)
        lower.set_xticks([zero, *ticks], ["0", *(f"{t:g}" for t in ticks)])
        lower.minorticks_off()
        handles, labels = upper.get_legend_handles_labels()
        if handles:
            figure.legend(
                handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=8, handlelength=4
            )
        if title:
            upper.set_title(title, fontsize=9)
    save(figure, path)


def _arm(upper: Axes, lower: Axes, arm: Found, found: Sweep, look: Look, shift: float, zero: float) -> None:
    """One model's marks, the means through them, and its cliff."""
    runs = [r for r in arm.runs if not r.shuffled]
    line = {"color": look.colour, "ls": look.line, "lw": 1}
    upper.plot([], [], marker=look.mark, ms=4, label=f"{MODELS.get(arm.name, arm.name)}: COR {arm.cor}", **line)
    for axes, value in ((upper, "auc"), (lower, "loss")):
        for outcome, style in (("trained", {"mfc": look.colour}), ("collapsed", {"mfc": "white"})):
            chosen = [r for r in runs if found.tests.outcome(r) == outcome]
            x = [(r.rho or zero) * shift for r in chosen]
            y = [getattr(r, value) for r in chosen]
            axes.plot(x, y, ls="", marker=look.mark, ms=4, mec=look.colour, alpha=0.75, **style)
        radii = sorted({r.rho for r in runs if r.rho > 0})
        at = [[getattr(r, value) for r in runs if r.rho == rho] for rho in radii]
        means = [np.mean([y for y in ys if math.isfinite(y)] or [math.nan]) for ys in at]
        axes.plot(radii, means, **line)
        broken = [r for r in runs if found.tests.outcome(r) == "diverged"]
        edge = 0.5 if axes is upper else found.tests.chance
        for mark, size in ((look.mark, 6), ("x", 3.5)):
            x = [(r.rho or zero) * shift for r in broken]
            axes.plot(x, [edge] * len(broken), ls="", marker=mark, ms=size, mec=look.colour, mfc="white")
        if arm.cor.value is not None:
            high = arm.cor.high if math.isfinite(arm.cor.high) else max(radii)
            axes.axvspan(max(arm.cor.low, radii[0]), high, color=look.colour, alpha=0.13, lw=0)
            axes.axvline(arm.cor.value, **line)


def _ticks(radii: list[float], zero: float) -> list[float]:
    """Round radii from the smallest to the largest of the sweep."""
    if not radii:
        return []
    decades = range(math.floor(math.log10(radii[0])), math.ceil(math.log10(radii[-1])) + 1)
    return [m * 10.0**k for k in decades for m in (1, 2, 5) if radii[0] * 0.99 <= m * 10.0**k <= radii[-1] * 1.01]


def theory_plot(found: Theory, path: Path) -> None:
    """COR against GSNR, one mark a condition with both intervals; radii known only as bounds have an arrow."""
    check_suffix(path)
    with draw((5.6, 4.0)) as (figure, axes):
        for look, kind in zip(LOOKS, found.by_kind, strict=False):
            line = {"color": look.colour, "ls": look.line, "lw": 0.8, "alpha": 0.5}
            for c in (c for c in found.conditions if c.kind == kind and (c.cor.value or c.cor.side)):
                radii = [s.rho for s in c.cor.shares]
                y = c.cor.value or (max(radii) if c.cor.side == "above" else min(radii))
                axes.plot([c.gsnr.low, c.gsnr.high], [y, y], **line)
                if c.cor.value:
                    ends = [max(c.cor.low, min(radii)), min(c.cor.high, max(radii))]
                    axes.plot([c.gsnr.value] * 2, ends, **line)
                else:
                    to = 0, 12 if c.cor.side == "above" else -12
                    arrow = {"arrowstyle": "<-", "color": look.colour, "shrinkA": 0, "shrinkB": 0}
                    axes.annotate("", (c.gsnr.value, y), to, textcoords="offset points", arrowprops=arrow)
                axes.plot(c.gsnr.value, y, marker=look.mark, ms=4.5, color=look.colour, ls="")
            label = f"{kind}: {found.by_kind[kind]}"
            axes.plot([], [], marker=look.mark, color=look.colour, ls=look.line, lw=0.8, label=label)
        axes.axvline(0, color=GREY, lw=0.8)
        axes.margins(y=0.12)  # arrows stay inside
        axes.set(xlabel="GSNR of the head's parameters (debiased)", ylabel="COR", yscale="log")
        axes.set_title(f"Spearman's correlation {found.correlation}", fontsize=9)
        axes.legend(frameon=False, fontsize=8, handlelength=4)
    save(figure, path)
