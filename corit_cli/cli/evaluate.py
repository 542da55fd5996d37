"""``corit evaluate``: what a detector is worth on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corit_cli.cli import config_file, forecast, options
from corit_cli.cli.console import Bars, escape, out, print_grid, print_json, warn, warn_of_errors
from corit_cli.cli.options import opt
from corit_cli.cli.outputs import BESIDE, check_apart, on_stdout
from corit_cli.data.robustness import FAMILIES, parse_chains

if TYPE_CHECKING:
    from corit_cli.evaluation.summary import Evaluation

TESTS = "What is measured"


def evaluate(
    ctx: typer.Context,
    data: Annotated[
        Path, typer.Argument(help="A folder with real/ and fake/ (or 0_real/, 1_fake/) in it, or a manifest.")
    ],
    checkpoint: options.Checkpoint = None,
    split: Annotated[str | None, opt("--split", "Only the images of this split, such as val.", metavar="NAME")] = None,
    by: Annotated[
        str, opt("--by", "Tables by these; none for no table.", TESTS, metavar="source,generator")
    ] = "source,generator",
    robustness: Annotated[
        str | None,
        opt(
            "--robustness",
            f"Also with every image degraded: {', '.join(FAMILIES)}, or one strength such as jpeg-75.",
            TESTS,
            metavar="all|NAMES",
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        opt(
            "--protocol",
            "Train the head anew without each source, or generator, in turn, and test it there. Repeat for both.",
            TESTS,
            metavar="leave-source-out|leave-generator-out",
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        opt(
            "--scores",
            "Another detector's scores, in columns path and score (high: fake), to compare with. Repeatable.",
            TESTS,
            metavar="CSV",
        ),
    ] = None,
    as_json: options.Json = False,
    csv_file: options.CsvFile = None,
    html: options.Html = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    cache_size: options.CacheSize = 4.0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    config: options.Config = None,
    dry_run: options.DryRun = False,
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
    groups = [] if by == "none" else options.listed(by, ("source", "generator"), "--by")
    if robustness is not None:
        parse_chains(robustness)  # a mistake shows before anything is loaded
    outputs, beside = {"--csv": csv_file, "--html": html}, config_file.beside(html)
    alone = on_stdout(outputs, {"--json": as_json})
    check_apart({**outputs, BESIDE: beside}, [data, *(scores or ())])
    check_apart(outputs, [config] if config else [])

    from corit_cli.evaluation.evaluate import evaluate as measure

    if dry_run:
        from corit_cli.evaluation.foresee import foresee

        kept = forecast.cache_file(cache, no_cache)
        with forecast.foreseeing():
            cost, images, heads = foresee(data, checkpoint, split, robustness, protocol or (), kept, device, precision)
        written = forecast.outputs(csv=csv_file, report=html, configuration=beside, features=kept)
        return forecast.of_evaluate(images, cost, heads, written).show()

    with options.feature_cache(cache, no_cache, cache_size) as store, Bars() as bars:
        found = measure(
            data,
            checkpoint,
            split=split,
            by=groups,
            robustness=robustness,
            protocols=protocol or (),
            scores=scores or (),
            cache=store,
            device=device,
            precision=precision,
            progress=bars,
            warn=warn,
        )
    warn_of_errors(found.scored.errors)
    if csv_file is not None:
        _write_csv(found, csv_file)
    if html is not None:
        from corit_cli.report.evaluation_page import write_page

        write_page(found, html, f"Detector on {data.name or data}")
    if beside is not None:
        config_file.save(beside, "evaluate", config_file.complete(ctx), found.about["detector"])
    if as_json:
        print_json(found.as_dict())
    elif not alone:
        _show(found)


def _show(found: Evaluation) -> None:
    """Notes, then every table."""
    from corit_cli.report.evaluation import grids, thresholds_text

    out.print(f"Verdicts: {escape(thresholds_text(found.about))}.", soft_wrap=True)
    for note in found.notes:
        out.print(f"Note: {escape(note)}.", soft_wrap=True)
    for grid in grids(found):
        print_grid(grid)


def _write_csv(found: Evaluation, path: Path) -> None:
    from corit_cli.files import write_atomically
    from corit_cli.texts import Table

    scored = found.scored
    head = ("path", "label", "source", "generator", "video_id", "probability", "verdict", *scored.chains)
    verdicts, probabilities = scored.verdicts[0], scored.probabilities

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            table = Table(file, head)
            for i, s in enumerate(scored.samples):
                known = (s.path, "fake" if s.label else "real", s.source, s.generator, s.video_id)
                first, *others = ("" if p != p else f"{p:.6f}" for p in probabilities[:, i])
                table.write(dict(zip(head, (*known, first, verdicts[i], *others), strict=True)))

    write_atomically(path, write)
