"""What ``corit train`` prints: shortcuts in the data before, and what the detector is worth after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from corit_cli.cli.console import err, escape, out, print_grid, working
from corit_cli.training.settings import Recipe

if TYPE_CHECKING:
    from corit_cli.data.images import FileInfo
    from corit_cli.data.manifest import Sample
    from corit_cli.training.run import Trained


def print_shortcuts(samples: Sequence[Sample], recipe: Recipe) -> None:
    """Say before training what besides the pixels tells the classes apart."""
    from corit_cli.data.audit import audit
    from corit_cli.data.images import inspect
    from corit_cli.data.opening import ImageError

    def look(sample: Sample) -> FileInfo | None:
        try:
            return inspect(sample.path)
        except ImageError:
            return None

    with working("looking for shortcuts"):
        severe = [s for s in audit(samples, [look(s) for s in samples]) if s.severe]
    if not severe:
        return
    table = Table("attribute", "AUC by itself", "what differs", title="Shortcuts: what tells the classes apart unseen")
    for shortcut in severe:
        table.add_row(shortcut.attribute, f"{shortcut.auc:.2f}", escape(shortcut.detail))
    err.print(table)
    if recipe.match_codec is None:
        err.print("A detector may learn these instead of forgeries; --match-codec 70-95 evens out the codec.")


def print_outcome(trained: Trained, folder: Path) -> None:
    """What the validation images say, as ``corit evaluate`` puts it, then error rates and where things are."""
    from corit_cli.detection.calibration import STRICT, fewest
    from corit_cli.evaluation.peers import Scores, compare
    from corit_cli.evaluation.summary import summarise
    from corit_cli.report.evaluation import grids
    from corit_cli.report.rates import independent

    found = summarise(trained.checkpoint, trained.validation, by=())
    if trained.probe is not None:
        name = "linear probe, last layer"
        probe = Scores(name, trained.validation.samples, scores=trained.probe, verdicts=None, unknown=0)
        found.peers = [compare(trained.validation, probe)]
    out.print("[bold]On the validation images[/]")
    for grid in grids(found):
        print_grid(grid)
    leaked = trained.checkpoint.data.get("leaked")
    if leaked:
        err.print(f"[yellow]warning:[/] {leaked} of these images were trained on: the figures above are too good")
    held_out = trained.checkpoint.metrics["held_out_sources"]
    thresholds = trained.checkpoint.thresholds
    images = f"{held_out['real']} real and {held_out['fake']} fake images"
    where = f"On training sources held out in turn ({images}), each judged by thresholds from the others"
    if trained.checkpoint.training.get("refit"):
        out.print("Then trained again on all images, these included; that detector is what is saved.")
    tuning = trained.checkpoint.training.get("tune")
    if tuning:
        before, kept = (tuning["epochs"][k]["held_out"] for k in (0, tuning["epoch"]))
        out.print(
            f"Tuned {tuning['scope']}: the loss on training images set aside was {before:.3f} before and "
            f"{kept:.3f} after epoch {tuning['epoch']}, whose weights are kept."
        )
        where = f"On these ({images}), judged by thresholds from each other, but which chose the epoch"
    out.print(
        f"Verdicts: fake from {thresholds.fake:.3f}, real up to {thresholds.real:.3f}. {where}, "
        f"{held_out['real_called_fake']:.1%} of real images were called fake and {held_out['fake_called_fake']:.1%} "
        f"of fakes; {held_out['real_called_uncertain']:.1%} and {held_out['fake_called_uncertain']:.1%} were left "
        "uncertain."
    )
    settings = trained.checkpoint.training["settings"]
    promises = (
        ("real", settings["target_fpr"], "false alarms"),
        ("real", min(STRICT, settings["target_fpr"]), "false alarms, as --strict is to,"),
        ("fake", settings["target_fnr"], "fakes called real"),
    )
    for kind, target, what in promises:
        count = int(independent(held_out, kind))
        if target > 0 and count < fewest(target):
            apart = " that are no frames of one video" if count < held_out[kind] else ""
            err.print(
                f"[yellow]note:[/] with {count} {kind} images{apart} no threshold keeps {what} at {target:.1%}: that "
                f"takes {fewest(target)}"
            )
    places = trained.checkpoint.metrics.get("localizer")
    if places:
        found = ", ".join(f"{k} {v['forged']:.3f} ({v['original']:.3f})" for k, v in places["pixel_auc"].items())
        out.print(
            f"Pixel AUC of the heatmap inside forged regions of {places['tried_on']} validation photographs (and in "
            f"the same places of the originals): {found}"
        )
    out.print(f"Saved with validation.png; use it with: corit detect -c {escape(str(folder))}", soft_wrap=True)
