"""An evaluation as tables, for the terminal and for a page, and as one self-contained HTML page."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corit_cli import __version__, metrics
from corit_cli.engine.checkpoint import write_atomically
from corit_cli.engine.evaluate import FIGURES, RANKING, RATES, Evaluation, Part
from corit_cli.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from corit_cli.engine.evaluate import Robustness, Table
    from corit_cli.engine.peers import Peer
    from corit_cli.engine.protocols import HeldOut, Protocol

REAL, FAKE, GREY = "#2a7f62", "#c0392b", "#888888"
#: Figures that are shares of images rather than points on a scale of their own.
PERCENT = {*RATES, "accuracy", "balanced_accuracy", "accuracy_decided"}


@dataclass(frozen=True)
class Grid:
    """A table of text: the first column is a name, the others are figures; ``notes`` stand below it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def number(e: Estimate, signed: bool = False) -> str:
    """A figure with its interval; a dash where there is none, [–] where one class of a group is a single video."""
    if not math.isfinite(e.value):
        return "–"
    f = "+.3f" if signed else ".3f"
    bounds = f" [{e.low:{f}}, {e.high:{f}}]" if math.isfinite(e.low) else " [–]"
    return f"{e.value:{f}}{bounds}"


def percent(e: Estimate) -> str:
    """A share with its interval, in per cent."""
    if not math.isfinite(e.value):
        return "–"
    bounds = f" [{100 * e.low:.0f}, {100 * e.high:.0f}]" if math.isfinite(e.low) else " [–]"
    return f"{e.value:.1%}{bounds}"


def cell(name: str, e: Estimate) -> str:
    """A figure called ``name`` in ``FIGURES``."""
    return percent(e) if name in PERCENT else number(e)


def grids(evaluation: Evaluation) -> list[Grid]:
    """All tables, in reading order."""
    e = evaluation
    rows = [[FIGURES[name], cell(name, value)] for name, value in e.overall.figures.items()]
    found = [Grid(f"All images: {_counts(e.overall)}", ["figure", "value [95% interval]"], rows)]
    if e.videos is not None:
        rows = [[RANKING[name], number(value)] for name, value in e.videos.figures.items()]
        note = "A video's score is the trimmed mean of its frames' logits."
        found.append(Grid(f"Whole videos: {_counts(e.videos)}", ["figure", "value [95% interval]"], rows, [note]))
    found += [_group_grid(table) for table in e.tables if table.parts]
    if e.robustness is not None:
        found.append(_robustness_grid(e.robustness))
    found += [_peer_grid(peer) for peer in e.peers]
    found += [_protocol_grid(protocol) for protocol in e.protocols]
    return found


def _counts(part: Part) -> str:
    return f"{part.real} real, {part.fake} fake"


def _group_grid(table: Table) -> Grid:
    rows, borrowed = [], []
    for part in table.parts:
        figures = [cell(name, part.figures[name]) for name in ("auc", "fpr", "recall", "uncertain")]
        rows.append([part.name, str(part.real), str(part.fake), *figures])
        if part.against == "all real images":
            borrowed.append(part.name)
    notes = []
    if table.by == "generator":
        notes.append("A generator's fakes are set against the real images of the sources they come from.")
    if borrowed:
        notes.append(f"Against all real images, since their sources have none: {', '.join(borrowed)}.")
    if table.counted:
        notes.append(
            f"Mean AUC of the {len(table.counted)} groups with enough images of both classes: "
            f"{number(table.mean_auc)}; the worst is {table.worst}."
        )
    columns = [table.by, "real", "fake", "AUC", "FPR", "recall", "uncertain"]
    return Grid(f"By {table.by}", columns, rows, notes)


def _robustness_grid(found: Robustness) -> Grid:
    rows = [["as they are", number(found.clean_auc), "", "", "", "", ""]]
    for c in found.chains:
        rates = [percent(e) for e in (c.fpr, c.recall, c.flipped, c.changed)]
        rows.append([c.name, number(c.auc), number(c.change, signed=True), *rates])
    over = f"mean over {len(found.groups)} {found.by}s" if len(found.groups) > 1 else f"of {found.groups[0]}"
    notes = [
        f"{found.images} images, each degraded every time. AUC {over}; its change is paired with the same images as "
        "they are. Flipped: real became fake or fake real; changed: any other verdict than before."
    ]
    return Grid("Robustness", ["degraded by", "AUC", "change", "FPR", "recall", "flipped", "changed"], rows, notes)


def _peer_grid(peer: Peer) -> Grid:
    names = {k: v for k, v in {**RANKING, **RATES}.items() if k in peer.ours or k in peer.theirs}
    rows = [[v, *(cell(k, of[k]) if k in of else "–" for of in (peer.ours, peer.theirs))] for k, v in names.items()]
    many = len(peer.groups) > 1
    if many:
        rows.append([f"mean AUC of {len(peer.groups)} groups", number(peer.ours_mean), number(peer.theirs_mean)])
    notes = [f"AUC, this detector minus {peer.name}: {number(peer.difference, signed=True)}, on the same images."]
    if many:
        notes.append(f"Mean AUC of the groups, the same: {number(peer.mean_difference, signed=True)}.")
    if peer.threshold:
        kind = "its own verdicts" if peer.threshold != "0.5" else "a threshold of 0.5, since its scores lie in [0, 1]"
        notes.append(f"Rates of {peer.name} are by {kind}.")
    if peer.missing or peer.unknown:
        notes.append(
            f"{peer.missing} images have no score in {peer.name} and are left out here; {peer.unknown} of its rows "
            "belong to none of the images."
        )
    return Grid(f"Beside {peer.name}: {peer.images} images", ["figure", "this detector", peer.name], rows, notes)


def _protocol_grid(protocol: Protocol) -> Grid:
    def line(of: HeldOut | Protocol) -> list[str]:
        return cells(of.ours, of.probe, of.difference)

    def cells(ours: Estimate, probe: Estimate, difference: Estimate) -> list[str]:
        return [number(ours), number(probe), number(difference, signed=True)]

    rows = [[g.name, str(g.real), str(g.fake), *line(g)] for g in protocol.groups]
    notes = ["Each group is scored by a head trained as this detector's was, on all the others."]
    rows.append([f"mean of {len(protocol.groups)}", "", "", *line(protocol)])
    if len(protocol.groups) > 1:
        rows.append(["the same, as groups vary", "", "", *cells(**protocol.as_groups_vary)])
        notes.append(
            "The mean's first interval is for other images of these groups, the second, Student's, for other groups."
        )
    borrowed = [g.name for g in protocol.groups if g.against == "a third of all real images"]
    if borrowed:
        notes.append(f"Against a third of all real images, held out as well: {', '.join(borrowed)}.")
    notes += [f"Not held out: {name} ({why})." for name, why in protocol.passed_over.items()]
    columns = ["held out", "real", "fake", "AUC", "linear probe", "difference"]
    return Grid(protocol.name.replace("-", " ").capitalize(), columns, rows, notes)


# --- the page -------------------------------------------------------------------------------------


def write_page(evaluation: Evaluation, path: Path, title: str) -> None:
    """Write :func:`page` to ``path``, all or nothing."""
    text = page(evaluation, title)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def page(evaluation: Evaluation, title: str) -> str:
    """One HTML page with pictures and styles inside, no network, no scripts. The same evaluation, the same page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corit_cli", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
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
    found = []
    if e.overall.real and e.overall.fake:
        found.append(("ROC curves", _svg("roc", (4.6, 4.4), lambda axes: _roc(axes, e))))
        found.append(("Reliability", _svg("reliability", (4.6, 4.4), lambda axes: _reliability(axes, e))))
    found.append(("Distribution of probabilities", _svg("scores", (4.6, 4.4), lambda axes: _histogram(axes, e))))
    if e.robustness is not None:
        size = 4.6, 1.1 + 0.24 * len(e.robustness.chains)
        found.append(("Robustness", _svg("robustness", size, lambda axes: _bars(axes, e.robustness))))
    return found


def _svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """An SVG element without the XML header; ids are the same each time and differ between pictures."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _roc(axes: Axes, e: Evaluation) -> None:
    labels = e.scored.labels
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    roc = metrics.Roc.of(labels, e.scored.logits[0])
    few = np.unique(np.linspace(0, roc.fpr.shape[1] - 1, 2000).astype(int))  # a page need not hold a million points
    axes.plot(roc.fpr[0, few], roc.tpr[0, few], color=FAKE, lw=1.8, label=f"this detector: {roc.auc[0]:.3f}")
    fpr, recall = (e.overall.figures[k].value for k in ("fpr", "recall"))
    axes.plot(fpr, recall, "o", color=FAKE, ms=6, label="at its threshold for fake")
    axes.set(xlabel="real images called fake", ylabel="fakes called fake", title="ROC (area under the curve)")
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8)


def _reliability(axes: Axes, e: Evaluation) -> None:
    labels, p = e.scored.labels, e.scored.probabilities[0]
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
    index = np.minimum((p * 10).astype(int), 9)
    for b in np.unique(index):
        chosen = index == b
        share = metrics.proportion(int(labels[chosen].sum()), int(chosen.sum()))
        x = p[chosen].mean()
        axes.plot([x, x], [share.low, share.high], color=FAKE, lw=1.2)
        axes.plot(x, share.value, "o", color=FAKE, ms=5, clip_on=False)
    ece = e.overall.figures["ece"].value
    axes.set(xlabel="stated probability", ylabel="share that is fake", title=f"Reliability (ECE {ece:.3f})")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")


def _histogram(axes: Axes, e: Evaluation) -> None:
    labels, p, t = e.scored.labels, e.scored.probabilities[0], e.scored.thresholds
    bins = np.linspace(0, 1, 26)
    axes.axvspan(t.real, t.fake, color=GREY, alpha=0.2, lw=0, label="uncertain")
    for name, label, colour in (("real", 0, REAL), ("fake", 1, FAKE)):
        axes.hist(p[labels == label], bins, color=colour, alpha=0.6, label=name)
    axes.set(xlabel="probability of being fake", ylabel="images", title="Probabilities", xlim=(0, 1))
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Axes, found: Robustness) -> None:
    for y, c in enumerate(found.chains):
        axes.plot([c.auc.low, c.auc.high], [y, y], color=FAKE, lw=1.4)
        axes.plot(c.auc.value, y, "o", color=FAKE, ms=4.5)
    axes.axvline(found.clean_auc.value, color=GREY, lw=1, ls="--")
    axes.set_yticks(range(len(found.chains)), [c.name for c in found.chains])
    axes.set_ylim(len(found.chains) - 0.5, -0.5)
    axes.set(xlabel="AUC (dashed: images as they are)", title="Robustness")


def thresholds_text(about: dict) -> str:
    """The thresholds in words."""
    t = about["thresholds"]
    return f"fake from a probability of {t['fake']:.3f}, real up to {t['real']:.3f}, uncertain between"
