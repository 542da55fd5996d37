"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from corit_cli.evaluation.figures import FIGURES, Evaluation
from corit_cli.files import write_atomically
from corit_cli.report.evaluation import cell, grids, thresholds_text
from corit_cli.report.figure import FAKE, GREY, as_svg, draw
from corit_cli.report.scores import draw_probabilities, draw_reliability, draw_roc
from corit_cli.texts import printable
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.evaluation.figures import Robustness


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
        grids=grids(e),
        about=e.about,
        corit=__version__,
        thresholds=thresholds_text(e.about),
    )


def _pictures(e: Evaluation) -> list[tuple[str, str]]:
    """(what it shows, SVG) of each picture that the images allow."""
    wanted: list[tuple[str, str, Callable[[Axes], None]]] = []
    if e.overall.real and e.overall.fake:
        wanted.append(("ROC curves", "roc", lambda axes: draw_roc(axes, e.scored)))
        wanted.append(("Reliability", "reliability", lambda axes: draw_reliability(axes, e.scored)))
    wanted.append(("Distribution of probabilities", "scores", lambda axes: draw_probabilities(axes, e.scored)))
    if e.robustness is not None:
        wanted.append(("Robustness", "robustness", lambda axes: _bars(axes, e.robustness)))
    found = []
    for what, salt, picture in wanted:
        height = 1.1 + 0.24 * len(e.robustness.chains) if salt == "robustness" else 4.4
        with draw((4.6, height)) as (figure, axes):
            picture(axes)
        found.append((what, as_svg(figure, salt)))
    return found


def _bars(axes: Axes, found: Robustness) -> None:
    for y, c in enumerate(found.chains):
        axes.plot([c.auc.low, c.auc.high], [y, y], color=FAKE, lw=1.4)
        axes.plot(c.auc.value, y, "o", color=FAKE, ms=4.5)
    axes.axvline(found.clean_auc.value, color=GREY, lw=1, ls="--")
    axes.set_yticks(range(len(found.chains)), [c.name for c in found.chains])
    axes.set_ylim(len(found.chains) - 0.5, -0.5)
    axes.set(xlabel="AUC (dashed: images as they are)", title="Robustness")
