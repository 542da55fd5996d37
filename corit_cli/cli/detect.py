"""``corit detect``: verdicts on images and videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corit_cli.cli import bulk, config_file, forecast, options, with_ray
from corit_cli.cli.console import Bars, err, escape, importing, out, working
from corit_cli.cli.inputs import STDIN, Left, collect, image_on_stdin
from corit_cli.cli.options import opt
from corit_cli.cli.outputs import BESIDE, check_apart, on_stdout
from corit_cli.cli.rows import csv_writer, kind_of, print_footer, writer
from corit_cli.data.declared import AI_EDITED, AI_GENERATED
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.detection.verdicts import Prediction

LOOK = "What is looked at"


class FailOn(str, Enum):
    """Which verdicts make ``--fail-on`` exit with 3."""

    fake = "fake"
    uncertain = "uncertain"


def detect(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs; - for an image, or file names one a line, on standard input."),
    ],
    recursive: Annotated[bool, opt("--recursive -r", "Search folders at any depth.")] = False,
    null: Annotated[bool, opt("--null -0", "Names on standard input have zero bytes between.")] = False,
    list_skipped: Annotated[bool, opt("--list-skipped", "A row for each file of a folder that is left out.")] = False,
    checkpoint: options.Checkpoint = None,
    fail_on: Annotated[
        FailOn | None,
        opt(
            "--fail-on",
            "Exit with 3 if any file is fake or declares a generator (uncertain: or is, or declares edits by AI).",
        ),
    ] = None,
    strict: Annotated[
        bool, opt("--strict", "Say fake only from where one real image in a hundred is reached, not one in twenty.")
    ] = False,
    faces: Annotated[
        str | None,
        opt(
            "--faces",
            "Score the faces too (the default, if the detector can), or only them.",
            LOOK,
            **options.words("off", "auto", "only"),
        ),
    ] = None,
    stability: Annotated[
        bool, opt("--stability", "Score mildly degraded copies of images too: uncertain if the verdict flips.", LOOK)
    ] = False,
    provenance: Annotated[
        bool, opt("--provenance/--no-provenance", "What the file says of itself: EXIF, XMP, C2PA.", LOOK)
    ] = True,
    frames: Annotated[int, opt("--frames", "Frames of a video to score, evenly spread.", LOOK, min=1)] = 32,
    rate: Annotated[float | None, opt("--rate", "Or so many frames a second.", LOOK, min=0.001, metavar="HZ")] = None,
    heatmap: Annotated[
        Path | None,
        opt("--heatmap", "Where a picture may have been changed: a PNG an image.", options.OUTPUT, metavar="FOLDER"),
    ] = None,
    html: options.Html = None,
    explain: Annotated[
        bool, opt("--explain", "Below each file, what its verdict means and what to do next.", options.OUTPUT)
    ] = False,
    quiet: Annotated[bool, opt("--quiet -q", "No line on what verdicts mean.", options.OUTPUT)] = False,
    as_json: options.Json = False,
    as_jsonl: Annotated[bool, opt("--jsonl", "One JSON object a line, each as it is ready.", options.OUTPUT)] = False,
    csv_file: options.CsvFile = None,
    table: bulk.Out = None,
    resume: bulk.Resume = False,
    retry_errors: bulk.RetryErrors = False,
    checksum: bulk.Checksum = False,
    shard: bulk.ShardOption = None,
    ray: with_ray.Ray = None,
    num_cpus: with_ray.NumCpus = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    config: options.Config = None,
    dry_run: options.DryRun = False,
) -> None:
    """Say of each image whether it is real, fake or uncertain, with the probability that it is fake.

    \b
    corit detect photo.jpg
    corit detect -r evidence/ --csv verdicts.csv
    corit detect --faces auto --stability portrait.jpg --html report.html
    find . -name '*.png' | corit detect - --jsonl
    corit detect -r archive/ --out verdicts.parquet --resume

    Exit codes: 0 done; 1 some file could not be scored; 2 wrong usage, output not written; 3 see --fail-on.
    """
    forms = {name: ctx.params[name] for name in ("as_json", "as_jsonl", "explain")}
    said = {name: ctx.get_parameter_source(name).name == "COMMANDLINE" for name in (*forms, "frames", "rate")}
    if any(asked and said[name] for name, asked in forms.items()):  # the command line wins over a file
        forms = {name: asked and said[name] for name, asked in forms.items()}
        ctx.params.update(forms)
        as_json, as_jsonl, explain = forms.values()
    if as_json and as_jsonl:
        raise CoritError("give --json or --jsonl, not both")
    if explain and (as_json or as_jsonl):
        raise CoritError("--explain is for people to read: leave it out with --json and --jsonl")
    if rate is not None and said["frames"]:
        if said["rate"]:
            raise CoritError("give --frames or --rate, not both")
        rate = ctx.params["rate"] = None
    if heatmap is not None and faces == "only":
        raise CoritError("a heatmap shows the whole picture: it does not go with --faces only")
    if heatmap is not None and str(heatmap) == "-":
        raise CoritError("--heatmap takes a folder: - is none")
    many = bulk.Many(table, resume, retry_errors, checksum, shard, ray, num_cpus, device)
    ways = {"json": as_json, "jsonl": as_jsonl, "csv": csv_file is not None, "html": html is not None}
    many.check(**ways, heatmap=heatmap is not None, explain=explain, list_skipped=list_skipped)
    image = image_on_stdin(null) if STDIN in paths else None
    if image is not None and (len(paths) > 1 or heatmap is not None or html is not None or table is not None):
        raise CoritError("an image on standard input stands alone, without --html, --heatmap and --out: save it first")
    left = Left(list_skipped)
    files: Iterable[str] = collect(paths, recursive, left, null)
    total = 1 if image is not None else None
    listed = STDIN not in paths or (heatmap is not None and image is None)  # no heatmap may take a later one's name
    if table is None and listed:
        files = list(files)
        total = len(files)
        if not files and not left.files:
            raise CoritError("; ".join((f"no images or videos in {', '.join(paths)}", *left.lines())))
    elif table is None and image is None:
        names = iter(files)
        first = next(names, None)
        if first is None and not left.files:
            raise CoritError("standard input names no file")
        files = names if first is None else chain([first], names)
    outputs = {"--csv": csv_file, "--html": html, "--out": table and Path(table)}
    alone = on_stdout(outputs, {"--json": as_json, "--jsonl": as_jsonl, "--explain": explain})
    beside = config_file.beside(html)
    check_apart({**outputs, BESIDE: beside}, files if isinstance(files, list) else paths)
    check_apart(outputs, [config] if config else [])

    with importing():
        from corit_cli.detection.verdicts import Prediction

    looked_at = {"faces": faces, "stability": stability, "provenance": provenance, "frames": frames, "rate": rate}
    if dry_run:
        if image is not None:
            raise CoritError("--dry-run is for files: there is nothing to foresee of one image on standard input")
        with forecast.foreseeing():
            detector = many.load(checkpoint, device, precision)
            written = forecast.outputs(csv=csv_file, heatmaps=heatmap, report=html, configuration=beside, table=table)
            found = forecast.of_detect(detector, files, looked_at, written)
        return found.show()
    with working("loading the detector"):
        detector = many.load(checkpoint, "cpu" if ray else device, precision)
        detector = detector.strictly() if strict else detector
    if table is not None:
        found = bulk.Found(tuple(paths), recursive, null)
        counts = bulk.into_table(many, detector, found, left, workers, looked_at)
        return _end(counts, left.lines(("--recursive",)), fail_on, summary=True)
    predictions = detector.predict(files if image is None else image, workers, **looked_at)
    if image is not None:
        predictions = (replace(prediction, path=STDIN) for prediction in predictions)
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        rows = [] if alone else [writer(detector, stack, as_json, as_jsonl, explain)]
        if csv_file is not None:
            rows.append(csv_writer(detector.checkpoint, csv_file, stack))
        write, illustrator = list(rows), None
        if heatmap is not None or html is not None:
            from corit_cli.cli.illustrate import Illustrator
            from corit_cli.report.drawn import FEW

            few = total is not None and total <= FEW and faces != "only"
            illustrator = Illustrator(
                detector, heatmap, html, few=few, frames=frames, rate=rate, inputs=files if heatmap else ()
            )
            write.append(stack.enter_context(illustrator).add)
        advance = stack.enter_context(Bars())("detecting", total)
        for prediction in predictions:
            for one in write:
                one(prediction)
            seen.update(_counted(prediction))
            advance()
        for path, reason in left.files:
            for one in rows:
                one(Prediction(path, None, None, 0.0, notes=(reason,)))
        if illustrator is not None:
            illustrator.leave_out(left.lines(()))
    if beside is not None:
        config_file.save(beside, "detect", config_file.complete(ctx), detector.checkpoint.origin)
    if out.is_terminal and not (quiet or explain or as_json or as_jsonl or alone):
        print_footer(detector.checkpoint)
    _end(seen, left.lines(), fail_on, summary=not (as_json or as_jsonl))


def _counted(prediction: Prediction) -> Iterator[str]:
    """What a file counts as: by its pixels, and by what it declares."""
    yield kind_of(prediction)
    if prediction.declared is not None:
        yield prediction.declared.kind


def _end(seen: Counter[str], left_out: Iterable[str], fail_on: FailOn | None, summary: bool) -> None:
    """Sum up how many files got which verdict and what was left out, and exit as it is documented."""
    kinds = {kind: seen[kind] for kind in ("fake", "uncertain", "real", "error") if seen[kind]}
    if summary and sum(kinds.values()) > 1:
        declare = [f"{seen[kind]} declared {kind}" for kind in (AI_GENERATED, AI_EDITED) if seen[kind]]
        err.print(", ".join([f"{count} {kind}" for kind, count in kinds.items()] + declare), soft_wrap=True)
    for line in left_out:
        err.print(escape(line), soft_wrap=True)
    fake = seen["fake"] or seen[AI_GENERATED]
    if fail_on and (fake or (fail_on is FailOn.uncertain and (seen["uncertain"] or seen[AI_EDITED]))):
        raise typer.Exit(3)
    if seen["error"]:
        raise typer.Exit(1)
