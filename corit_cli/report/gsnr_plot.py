"""GSNR against depth, drawn without a display."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from corit_cli.gsnr.settings import stage
from corit_cli.gsnr.study import Row, Study
from corit_cli.metrics.gsnr import INDISTINCT
from corit_cli.report.figure import GREY, LOOKS, check_suffix, draw, save

MODELS = {"baseline": "baseline (last layer's class token)", "corit": "CoRIT"}
HEADS = {"baseline": "class token", "corit": "class token's contrast"}
PARTS = {"params": "", "head": "", "cls": ", class token", "patches": ", patches"}
#: How wide the line of a part is, and how large its marks are.
SIZES = {"params": (1.5, 4.5), "head": (1.5, 4.5), "cls": (1.5, 4.5), "patches": (0.7, 3)}
#: Where the largest estimate is this many times the median size, a linear axis would flatten the rest.
WIDE = 20
#: How many times the largest estimate a linear axis reaches.
REACH = 3


def gsnr_plot(study: Study, path: Path) -> None:
    """One panel for each head state (across) and subset (down): estimates with 95% intervals against layer.

    A point whose interval reaches zero is hollow. The head, where it was measured, stands apart on the right.
    """
    check_suffix(path)
    states = list(dict.fromkeys(row.head for row in study.rows))
    subsets = list(dict.fromkeys(row.subset for row in study.rows))
    depth = max((int(row.layer) for row in study.rows if row.layer.isdigit()), default=0)
    size = 1.2 + 4.2 * len(states), 0.4 + 2.9 * len(subsets)
    with draw(size, len(subsets), len(states), squeeze=False, sharex=True) as (figure, panels):
        for line, subset in zip(panels, subsets, strict=True):
            for axes, state in zip(line, states, strict=True):
                _panel(axes, [row for row in study.rows if (row.head, row.subset) == (state, subset)], depth)
                axes.set_title(stage(state) if subset == "all" else f"{stage(state)}, {subset}")
            line[0].set_ylabel("GSNR (debiased)")
        for axes in panels[-1]:
            axes.set_xlabel("layer")
        hollow = Line2D([], [], ls="", marker="o", ms=4.5, mec=GREY, mfc="white", mew=1.2, label=INDISTINCT)
        handles, _ = panels[0, 0].get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": len(states), "handlelength": 4}
        figure.legend(handles=[*handles, hollow], frameon=False, fontsize=8, **place)
    save(figure, path)


def _panel(axes: Axes, rows: list[Row], depth: int) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    ticks = {row.layer: depth + 1.5 if row.layer == "head" else int(row.layer) for row in rows}
    _scale(axes, rows)
    axes.axhline(0, color=GREY, lw=0.8)
    for model, look in zip(models, LOOKS, strict=False):
        for part in dict.fromkeys(row.part for row in rows):
            width, size = SIZES[part]
            line = [row for row in rows if (row.model, row.part) == (model, part)]
            # Side by side, so that the intervals of two models do not hide each other.
            shift = 0.12 * (2 * models.index(model) - len(models) + 1)
            depths = [(ticks[row.layer] + shift, row.estimate) for row in line if row.layer != "head"]
            style = {"color": look.colour, "ls": look.line, "lw": width}
            axes.plot([x for x, _ in depths], [e.value for _, e in depths], **style)
            name = f"{(HEADS if part == 'head' else MODELS).get(model, model)}{PARTS[part]}"
            axes.plot([], [], marker=look.mark, ms=size, label=name, **style)
            for row in line:
                x, e = ticks[row.layer] + shift, row.estimate
                axes.plot([x, x], [e.low, e.high], color=look.colour, lw=1, alpha=0.7)
                face = look.colour if e.significant else "white"
                axes.plot(x, e.value, look.mark, ms=size, mec=look.colour, mfc=face, mew=1.2, zorder=3)
    axes.set_xticks(sorted(ticks.values()), [str(k) for k in sorted(ticks, key=lambda k: ticks[k])])


def _scale(axes: Axes, rows: list[Row]) -> None:
    """Linear, or symmetric logarithmic where a few large estimates would press the others onto the zero line.

    On a linear axis an interval of many times the largest estimate runs off the panel.
    """
    values = [abs(row.estimate.value) for row in rows]
    sizes = sorted(max(v, row.estimate.standard_error) for v, row in zip(values, rows, strict=True))
    middle = sizes[len(sizes) // 2]
    if max(values) > WIDE * middle:
        axes.set_yscale("symlog", linthresh=2 * middle)
        return
    reach = REACH * max(*values, middle)
    bottom = max(min(0.0, *(row.estimate.low for row in rows)), -reach)
    top = min(max(0.0, *(row.estimate.high for row in rows)), reach)
    axes.set_ylim(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom))
