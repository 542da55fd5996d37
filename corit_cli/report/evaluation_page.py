"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from corit_cli.evaluation.figures import FIGURES
from corit_cli.evaluation.summary import Evaluation
from corit_cli.files import write_atomically
from corit_cli.report.evaluation import Grid, cell, grids, thresholds_text
from corit_cli.report.figure import FAKE, GREY, as_svg, draw
from corit_cli.report.scores import draw_probabilities, draw_reliability, draw_roc, reliability
from corit_cli.texts import printable
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.evaluation.robustness import Robustness


def write_page(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write :func:`page` to ``path``, all or nothing."""
    text = page(evaluation, title)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page(evaluation: Evaluation, title: str) -> str:
    """One HTML page with pictures and styles inside, no network, no scripts. The same evaluation, the same page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corit_cli", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    e = evaluation
    cards = [(FIGURES[k], cell(k, e.overall.figures[k])) for k in ("auc", "fpr", "recall", "uncertain")]
    return environment.get_template("evaluation.html.j2").render(
        title=title,
        cards=cards,
        notes=e.notes,
        pictures=_pictures(e),
        grids=[*grids(e), *_reliability(e)],
        about=e.about,
        corit=__version__,
        thresholds=thresholds_text(e.about),
    )


def _reliability(e: Evaluation) -> list[Grid]:
    """What the picture of that name shows, as a table."""
    if not (e.overall.real and e.overall.fake):
        return []
    columns = ["probability", "images", "mean", "share that is fake [95%]"]
    rows = [
        [f"{b.low:.1f} to {b.high:.1f}", str(b.images), f"{b.stated:.3f}", str(b.fake)] for b in reliability(e.scored)
    ]
    return [Grid("Reliability", columns, rows, ["Means and shares weigh both classes alike."])]


def _pictures(e: Evaluation) -> list[tuple[str, str]]:
    """(what it shows, SVG) of each picture that the images allow."""
    wanted: list[tuple[str, str, Callable[[Axes], None]]] = []
    if e.overall.real and e.overall.fake:
        area, real, fake = (e.overall.figures[name].value for name in ("auc", "fpr", "recall"))
        what = f"ROC curve: AUC {area:.3f}, {real:.1%} of real images and {fake:.1%} of fakes called fake"
        wanted.append((what, "roc", lambda axes: draw_roc(axes, e.scored)))
        what = "Reliability: the last table has its figures"
        wanted.append((what, "reliability", lambda axes: draw_reliability(axes, e.scored)))
    wanted.append((_medians(e), "scores", lambda axes: draw_probabilities(axes, e.scored)))
    if e.robustness is not None:
        what = "Robustness: the table of that name has its figures"
        wanted.append((what, "robustness", lambda axes: _bars(axes, e.robustness)))
    found = []
    for what, salt, picture in wanted:
        height = 1.1 + 0.24 * len(e.robustness.chains) if salt == "robustness" else 4.4
        with draw((4.6, height)) as (figure, axes):
            picture(axes)
        found.append((what, as_svg(figure, salt)))
    return found


def _medians(e: Evaluation) -> str:
    labels, p = e.scored.labels, e.scored.probabilities[0]
    halves = [
        f"{kind} {np.median(p[labels == c]):.3f}" for c, kind in enumerate(("real", "fake")) if (labels == c).any()
    ]
    return f"Distribution of probabilities: medians {' and '.join(halves)}"


def _bars(axes: Axes, found: Robustness) -> None:
    for y, c in enumerate(found.chains):
        axes.plot([c.auc.low, c.auc.high], [y, y], color=FAKE, lw=1.4)
        axes.plot(c.auc.value, y, "o", color=FAKE, ms=4.5)
    axes.axvline(found.clean_auc.value, color=GREY, lw=1, ls="--")
    axes.set_yticks(range(len(found.chains)), [c.name for c in found.chains])
    axes.set_ylim(len(found.chains) - 0.5, -0.5)
    axes.set(xlabel="AUC (dashed: images as they are)", title="Robustness")
