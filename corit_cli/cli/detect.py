"""``corit detect``: verdicts on images and videos."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from corit_cli.cli import bulk, options, with_ray
from corit_cli.cli.console import Bars, err, working
from corit_cli.cli.illustrate import FEW, Illustrator
from corit_cli.cli.options import opt
from corit_cli.cli.rows import csv_writer, writer
from corit_cli.data.images import IMAGE_SUFFIXES
from corit_cli.data.video import VIDEO_SUFFIXES
from corit_cli.errors import CoritError

LOOK = "What is looked at"
GLOB_CHARACTERS = frozenset("*?[")
SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


class FailOn(str, Enum):
    """Which verdicts make ``--fail-on`` exit with 3."""

    fake = "fake"
    uncertain = "uncertain"


def detect(
    ctx: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders, globs; - reads file names from standard input, one a line.")
    ],
    recursive: Annotated[bool, opt("--recursive -r", "Search folders at any depth.")] = False,
    checkpoint: options.Checkpoint = None,
    fail_on: Annotated[
        FailOn | None, opt("--fail-on", "Exit with 3 if any file is fake (uncertain: fake or uncertain).")
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
    provenance: Annotated[bool, opt("--provenance", "What the file says of itself: EXIF, XMP, C2PA.", LOOK)] = False,
    frames: Annotated[int, opt("--frames", "Frames of a video to score, evenly spread.", LOOK, min=1)] = 32,
    rate: Annotated[float | None, opt("--rate", "Or so many frames a second.", LOOK, min=0.001, metavar="HZ")] = None,
    heatmap: Annotated[
        Path | None,
        opt("--heatmap", "Where a picture may have been changed: a PNG an image.", options.OUTPUT, metavar="FOLDER"),
    ] = None,
    html: options.Html = None,
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
    workers: Annotated[int | None, opt("--workers", "Threads that decode images.", options.RUN, min=1)] = None,
    device: options.Device = "auto",
) -> None:
    """Say of each image whether it is real, fake or uncertain, with the probability that it is fake.

    \b
    corit detect photo.jpg
    corit detect -r evidence/ --csv verdicts.csv
    corit detect --faces auto --stability portrait.jpg --html report.html
    find . -name '*.png' | corit detect - --jsonl
    corit detect -r archive/ --out verdicts.parquet --resume

    Exit codes: 0 done; 1 some file could not be scored; 2 wrong usage; 3 see --fail-on.
    """
    if as_json and as_jsonl:
        raise CoritError("give --json or --jsonl, not both")
    if rate is not None and ctx.get_parameter_source("frames").name == "COMMANDLINE":
        raise CoritError("give --frames or --rate, not both")
    if heatmap is not None and faces == "only":
        raise CoritError("a heatmap shows the whole picture: it does not go with --faces only")
    many = bulk.Many(table, resume, retry_errors, checksum, shard, ray, num_cpus, device)
    many.check(json=as_json, jsonl=as_jsonl, csv=csv_file is not None, html=html is not None, heatmap=bool(heatmap))
    files: Iterable[str] = collect(paths, recursive)
    total = None
    if table is None and (
        "-" not in paths or heatmap is not None
    ):  # no heatmap may take the name of a file that is still to come
        files = list(files)
        total = len(files)
        if not files:
            hint = "" if recursive or "-" in paths else " (--recursive looks into the folders below)"
            raise CoritError(f"no images or videos in {', '.join(paths)}{hint}")

    from corit_cli.detection.detector import Detector

    with working("loading the detector"):
        detector = Detector.load(checkpoint, "cpu" if ray else device)
        detector = detector.strictly() if strict else detector
    told = provenance or html is not None
    looked_at = {"faces": faces, "stability": stability, "provenance": told, "frames": frames, "rate": rate}
    if table is not None:
        return _end(bulk.into_table(many, detector, paths, recursive, collect, workers, looked_at), fail_on)
    predictions = detector.predict(files, workers, **looked_at)
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        write = [writer(detector.checkpoint, stack, as_json, as_jsonl)]
        if csv_file is not None:
            write.append(csv_writer(csv_file, stack))
        if heatmap is not None or html is not None:
            few = total is not None and total <= FEW and faces != "only"
            illustrator = Illustrator(
                detector, heatmap, html, few=few, frames=frames, rate=rate, inputs=files if heatmap else ()
            )
            write.append(stack.enter_context(illustrator).add)
        advance = stack.enter_context(Bars())("detecting", total)
        for prediction in predictions:
            for one in write:
                one(prediction)
            seen[prediction.verdict or "error"] += 1
            advance()
    _end(seen, fail_on, summary=not (as_json or as_jsonl) and seen.total() > 1)


def _end(seen: Counter[str], fail_on: FailOn | None, summary: bool = True) -> None:
    """Sum up how many files got which verdict, and exit as it is documented."""
    if summary:
        err.print(", ".join(f"{seen[kind]} {kind}" for kind in ("fake", "uncertain", "real", "error") if seen[kind]))
    if fail_on and (seen["fake"] or (fail_on is FailOn.uncertain and seen["uncertain"])):
        raise typer.Exit(3)
    if seen["error"]:
        raise typer.Exit(1)


def collect(paths: Sequence[str], recursive: bool) -> Iterator[str]:
    """The files that arguments stand for, each once, folders and globs sorted. A file that is named is taken whatever
    its suffix; in folders only the suffixes of images and videos count, and hidden files do not."""
    seen: set[str] = set()
    several = len(paths) > 1 or "-" in paths  # else no file comes twice, and none need be remembered
    for path in paths:
        if path == "-":
            sys.stdin.reconfigure(errors="surrogateescape")  # file names are bytes, whatever the locale
            found: Iterable[str] = (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        elif os.path.isdir(path):
            found = _folder(path, recursive)
        elif not os.path.lexists(path) and GLOB_CHARACTERS & set(path):
            found = sorted(f for f in glob.iglob(path, recursive=True) if not os.path.isdir(f)) or [path]
        else:
            found = [path]
        for file in found:
            if file not in seen:
                if several:
                    seen.add(file)
                yield file


def _folder(folder: str, recursive: bool) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        for file in sorted(files):
            if not file.startswith(".") and Path(file).suffix.lower() in SUFFIXES:
                yield os.path.join(here, file)
