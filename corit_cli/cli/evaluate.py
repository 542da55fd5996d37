"""``corit evaluate``: what a detector is worth on labelled images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from corit_cli.cli import options
from corit_cli.cli.console import err, escape, out, print_json, progress_bar, warn
from corit_cli.data.robustness import FAMILIES, parse_chains
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.data.manifest import Sample
    from corit_cli.engine.evaluate import Evaluation

TESTS = "What is measured"
OUTPUT = "Output"


def evaluate(
    data: Annotated[
        Path, typer.Argument(help="A folder with real/ and fake/ (or 0_real/, 1_fake/) in it, or a manifest.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "-c", metavar="FOLDER", help="A detector that corit train made."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the images of this split, such as val.")
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="source,generator", help="Tables by these; none for no table.", rich_help_panel=TESTS)
    ] = "source,generator",
    robustness: Annotated[
        str | None,
        typer.Option(
            metavar="all|NAMES",
            help=f"Also with every image degraded: {', '.join(FAMILIES)}, or one strength such as jpeg-75.",
            rich_help_panel=TESTS,
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="leave-source-out|leave-generator-out",
            help="Train the head anew without each source, or generator, in turn, and test it there. Repeat for both.",
            rich_help_panel=TESTS,
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CSV",
            help="Another detector's scores, in columns path and score (high: fake), to compare with. Repeatable.",
            rich_help_panel=TESTS,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.", rich_help_panel=OUTPUT)] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="One row an image, besides.", rich_help_panel=OUTPUT)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="A page to hand on, besides.", rich_help_panel=OUTPUT)
    ] = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    cache_size: options.CacheSize = 4.0,
    device: options.Device = "auto",
) -> None:
    """Measure a detector on labelled images: AUC and error rates with intervals, by source and generator, degraded,
    beside other detectors, or trained anew without each source.

    \b
    corit evaluate photos/
    corit evaluate manifest.csv --split val --robustness jpeg --html report.html
    corit evaluate manifest.csv --protocol leave-source-out --json
    corit evaluate manifest.csv --scores other.csv

    Rates are at the thresholds the detector came with; none is chosen on the images under test.
    """
    groups = _by(by)
    protocols = list(dict.fromkeys(protocol or ()))
    peers = list(scores or ())
    try:
        chains = parse_chains(robustness) if robustness is not None else ()
    except ValueError as error:
        raise CoritError(str(error)) from None
    for file in (csv_file, html):
        if file is not None and not file.parent.is_dir():
            raise CoritError(f"{file}: there is no folder {file.parent}")
        if file is not None and file.is_dir():
            raise CoritError(f"{file} is a folder: name the file to write")
    if len({file.stem for file in peers}) < len(peers):
        raise CoritError("two --scores files have the same name: a detector goes by its file's name, rename one")

    from corit_cli.data.manifest import load_samples

    samples = _of_split(load_samples(data), split, data)

    from corit_cli.engine.evaluate import evaluate as measure
    from corit_cli.engine.features import FeatureCache, default_cache_path
    from corit_cli.engine.peers import compare, read_peer
    from corit_cli.engine.predict import Detector
    from corit_cli.engine.protocols import check, run
    from corit_cli.engine.scores import score
    from corit_cli.report.evaluation import write_page

    with err.status("loading the detector"):
        detector = Detector.load(checkpoint, device)
    # Mistakes show before the work.
    check(detector.checkpoint, samples, protocols)
    others = [read_peer(file, samples, data) for file in peers]
    store = None if no_cache else FeatureCache(cache or default_cache_path(), int(cache_size * 2**30), warn)
    try:
        with progress_bar() as bar:
            scored = score(detector, samples, chains, store, _Bars(bar))
            held_out = run(detector, scored.samples, protocols, store, _Bars(bar)) if protocols else []
    finally:
        if store is not None:
            store.close()
    for sample, message in scored.errors[:20]:
        warn(f"left out {sample.path}: {message}")
    if len(scored.errors) > 20:
        warn(f"and {len(scored.errors) - 20} more files")
    with err.status("intervals"):
        found = measure(detector.checkpoint, scored, groups)
        found.peers = [compare(scored, other) for other in others]
        found.protocols = held_out
    if csv_file is not None:
        _write_csv(found, csv_file)
    if html is not None:
        write_page(found, html, f"Detector on {data.name or data}")
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)


def _by(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ["none"]:
        return []
    if not set(names) <= {"source", "generator"}:
        raise CoritError(f"--by takes source, generator, both with a comma between, or none, not {text!r}")
    return names


def _of_split(samples: list[Sample], split: str | None, data: Path) -> list[Sample]:
    if split is None:
        return samples
    chosen = [s for s in samples if s.split == split]
    if not chosen:
        there = ", ".join(sorted({s.split for s in samples} - {""})) or "none"
        raise CoritError(f"{data} has no image of the split {split!r} (there: {there})")
    return chosen


class _Bars:
    """Shows on a progress bar what :class:`corit_cli.engine.train.Progress` is told."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar

    def features(self, title: str, total: int) -> Callable[[int], None]:
        task = self.bar.add_task(title, total=total)
        return lambda count: self.bar.advance(task, count)


def _show(found: Evaluation) -> None:
    """Notes, then every table. A pipe has no width of its own, so tables keep theirs there."""
    from corit_cli.report.evaluation import grids, thresholds_text

    wide = out if out.is_terminal else Console(width=160, highlight=False)
    out.print(f"Verdicts: {thresholds_text(found.about)}.", soft_wrap=True)
    for note in found.notes:
        out.print(f"Note: {escape(note)}.", soft_wrap=True)
    for grid in grids(found):
        table = Table(title=escape(grid.title), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for i, column in enumerate(grid.columns):
            table.add_column(escape(column), justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        out.print()
        wide.print(table)
        for note in grid.notes:
            out.print(escape(note), soft_wrap=True)


def _write_csv(found: Evaluation, path: Path) -> None:
    from corit_cli.engine.checkpoint import write_atomically

    scored = found.scored
    head = ("path", "label", "source", "generator", "video_id", "probability", "verdict", *scored.chains)
    verdicts, probabilities = scored.verdicts[0], scored.probabilities

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for i, s in enumerate(scored.samples):
                known = (s.path, "fake" if s.label else "real", s.source, s.generator, s.video_id)
                first, *others = ("" if p != p else f"{p:.6f}" for p in probabilities[:, i])
                writer.writerow((*known, first, verdicts[i], *others))

    write_atomically(path, write)
