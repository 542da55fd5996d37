"""An evaluation as tables of text, for the terminal and for a page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corit_cli.evaluation.figures import FIGURES, RANKING, RATES, Overall, Subset
from corit_cli.evaluation.summary import Evaluation
from corit_cli.metrics.intervals import Estimate

if TYPE_CHECKING:
    from corit_cli.evaluation.figures import Table
    from corit_cli.evaluation.peers import Peer
    from corit_cli.evaluation.protocols import HeldOut, Protocol
    from corit_cli.evaluation.robustness import Robustness

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
    """A figure with its interval; a dash where there is none, [–] where nothing tells how it varies, such as where a
    class is a single video."""
    if not math.isfinite(e.value):
        return "–"
    f = _form(signed)
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


def ends(e: Estimate, signed: bool = False, name: str = "") -> str:
    """The interval alone, of a figure called ``name`` in ``FIGURES``; a dash where there is none."""
    if not math.isfinite(e.low):
        return "–"
    f = _form(signed)
    return f"{100 * e.low:.0f} to {100 * e.high:.0f}%" if name in PERCENT else f"{e.low:{f}} to {e.high:{f}}"


def _form(signed: bool) -> str:
    return "+.3f" if signed else ".3f"


def grids(evaluation: Evaluation) -> list[Grid]:
    """All tables, in reading order."""
    e = evaluation
    found = [_overall_grid(e.overall)]
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


def _counts(part: Subset) -> str:
    return f"{part.real} real, {part.fake} fake"


def _overall_grid(found: Overall) -> Grid:
    rows = [[FIGURES[name], cell(name, value)] for name, value in found.figures.items()]
    columns, notes = ["figure", "value [95% interval]"], []
    if found.as_sources_vary:
        columns.append("as sources vary")
        rows = [[*row, ends(found.as_sources_vary[name], name=name)] for row, name in zip(rows, FIGURES, strict=True)]
        notes.append(
            "Brackets are for other images of these sources; as sources vary, which is never narrower, for images of "
            "all sources that these are a sample of; of fewer than twenty it holds the truth less often than 95 times "
            "in a hundred, and where no source differs from the others nothing can be told of more (–)."
        )
    return Grid(f"All images: {_counts(found)}", columns, rows, notes)


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
    def line(name: str, real: str, fake: str, of: HeldOut | Protocol) -> list[str]:
        return [name, real, fake, number(of.ours), number(of.probe), number(of.difference, signed=True)]

    def vary(name: str, of: dict[str, Estimate]) -> list[str]:
        return [name, "", "", *(ends(e, signed=figure == "difference") for figure, e in of.items())]

    rows = [line(g.name, str(g.real), str(g.fake), g) for g in protocol.groups]
    notes = ["Each group is scored by a head trained as this detector's was, on the others, but on none of its videos."]
    rows.append(line(f"mean of {len(protocol.groups)}", "", "", protocol))
    if len(protocol.groups) > 1:
        kind = protocol.name.removeprefix("leave-").removesuffix("-out")
        rows.append(vary("the same, as groups vary", protocol.as_groups_vary))
        rows.append(vary(f"one new {kind}", protocol.one_new_group))
        notes.append(
            "The mean's interval in brackets is for other images of these groups; as groups vary, Student's, for the "
            f"mean over all groups that these are a sample of. One new {kind}, measured on as many images as one of "
            "these, lies within the last row with a probability of 95%, if groups are spread normally."
        )
        if protocol.share_images:
            notes.append(
                "Groups share real images, which both allow for by the variance that drawing images anew gives the "
                "mean: they are wider than need be."
            )
    for against, words in {
        "a third of all real images": "Against a third of all real images, held out as well",
        "a third of its videos": "By a third of its videos; its fakes of the others are not trained on either",
    }.items():
        if names := [g.name for g in protocol.groups if g.against == against]:
            notes.append(f"{words}: {', '.join(names)}.")
    notes += [f"Not held out: {name} ({why})." for name, why in protocol.passed_over.items()]
    notes += [
        f"This detector also learned from forgeries that cannot be made here: {name}." for name in protocol.untaught
    ]
    columns = ["held out", "real", "fake", "AUC", "linear probe", "difference"]
    return Grid(protocol.name.replace("-", " ").capitalize(), columns, rows, notes)


def thresholds_text(about: dict) -> str:
    """The thresholds in words."""
    t = about["thresholds"]
    return f"fake from a probability of {t['fake']:.3f}, real up to {t['real']:.3f}, uncertain between"
