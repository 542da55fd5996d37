"""``corit detect``: verdicts on files."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corit_cli import __version__
from corit_cli.cli import options
from corit_cli.cli.console import VERDICT_STYLE, err, escape, out, printable, progress_bar
from corit_cli.data.images import IMAGE_SUFFIXES
from corit_cli.errors import CoritError

if TYPE_CHECKING:
    from corit_cli.engine.predict import Detector, Prediction

OUTPUT = "Output"
GLOB_CHARACTERS = frozenset("*?[")


class FailOn(str, Enum):
    """Which verdicts make ``--fail-on`` exit with 3."""

    fake = "fake"
    uncertain = "uncertain"


def detect(
    paths: Annotated[
        list[str], typer.Argument(help="Files, folders, globs; - reads file names from standard input, one a line.")
    ],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders at any depth.")] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", "-c", metavar="FOLDER", help="A detector that corit train made."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="A second detector, which reads one window an image instead of two.")
    ] = False,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with 3 if any file is fake (uncertain: fake or uncertain).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.", rich_help_panel=OUTPUT)] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object a line, each as it is ready.", rich_help_panel=OUTPUT)
    ] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="A CSV file, besides.", rich_help_panel=OUTPUT)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images.", rich_help_panel=options.RUN)
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Say of each image whether it is real, fake or uncertain, with the probability that it is fake.

    \b
    corit detect photo.jpg
    corit detect -r evidence/ --csv verdicts.csv
    find . -name '*.png' | corit detect - --jsonl

    Exit codes: 0 done; 1 some file could not be scored; 2 wrong usage; 3 see --fail-on.
    """
    if as_json and as_jsonl:
        raise CoritError("give --json or --jsonl, not both")
    files: Iterable[str] = collect(paths, recursive)
    total = None
    if "-" not in paths:
        files = list(files)
        total = len(files)
        if not files:
            hint = "" if recursive else " (--recursive looks into the folders below)"
            raise CoritError(f"no images in {', '.join(paths)}{hint}")

    from corit_cli.engine.predict import Detector

    with err.status("loading the detector"):
        detector = Detector.load(checkpoint, device, fast)
    seen: Counter[str] = Counter()
    with ExitStack() as stack:
        write = [_writer(detector, stack, as_json, as_jsonl)]
        if csv_file is not None:
            write.append(_csv_writer(csv_file, stack))
        bar = stack.enter_context(progress_bar())
        task = bar.add_task("detecting", total=total)
        for prediction in detector.predict(files, workers):
            for one in write:
                one(prediction)
            seen[prediction.verdict or "error"] += 1
            bar.advance(task)
    if not (as_json or as_jsonl) and seen.total() > 1:
        err.print(", ".join(f"{seen[kind]} {kind}" for kind in ("fake", "uncertain", "real", "error") if seen[kind]))
    if fail_on and (seen["fake"] or (fail_on is FailOn.uncertain and seen["uncertain"])):
        raise typer.Exit(3)
    if seen["error"]:
        raise typer.Exit(1)


def collect(paths: Iterable[str], recursive: bool) -> Iterator[str]:
    """The files that arguments stand for, each once, folders and globs sorted. A file that is named is taken whatever
    its suffix; in folders only image suffixes count, and hidden files do not."""
    seen: set[str] = set()
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
                seen.add(file)
                yield file


def _folder(folder: str, recursive: bool) -> Iterator[str]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        for file in sorted(files):
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield os.path.join(here, file)


# --- one writer an output format ------------------------------------------------------------------


def _row(p: Prediction) -> dict[str, object]:
    """What JSON says of a file. Seconds are left out: the same command gives the same bytes."""
    return {"path": p.path, "probability": p.probability, "verdict": p.verdict, "error": p.error}


def _writer(detector: Detector, stack: ExitStack, as_json: bool, as_jsonl: bool):
    if as_jsonl:
        return lambda p: print(json.dumps(_row(p)), flush=True)
    if as_json:
        return _json_writer(detector, stack)
    if not out.is_terminal:
        return _plain_row
    out.print(f"[bold]{'verdict':<9}  p(fake)   seconds  file[/]")
    return _table_row


def _json_writer(detector: Detector, stack: ExitStack):
    checkpoint = detector.checkpoint
    head = {
        "corit": __version__,
        "backbone": checkpoint.backbone,
        "detector_sha256": checkpoint.sha256,
        "thresholds": {"real": checkpoint.thresholds.real, "fake": checkpoint.thresholds.fake},
    }
    print(json.dumps(head)[:-1] + ', "results": [', end="")
    stack.callback(lambda: print("\n]}"))
    separator = iter(["\n"])

    def write(p: Prediction) -> None:
        print(next(separator, ",\n") + json.dumps(_row(p)), end="")

    return write


def _plain_row(p: Prediction) -> None:
    probability = "" if p.probability is None else f"{p.probability:.4f}"
    print(p.verdict or "error", probability, f"{p.seconds:.2f}", printable(p.path), p.error or "", sep="\t")


def _table_row(p: Prediction) -> None:
    style = VERDICT_STYLE.get(p.verdict or "", "magenta")
    probability = "" if p.probability is None else f"{p.probability:7.1%}"
    cells = f"[{style}]{p.verdict or 'error':<9}[/] {probability:>8} {p.seconds:9.2f}  {escape(p.path)}"
    out.print(cells + (f"  [magenta]{escape(p.error)}[/]" if p.error else ""), soft_wrap=True)


def _csv_writer(path: Path, stack: ExitStack):
    # Line by line, so that an interrupted run leaves what it has found.
    file = stack.enter_context(path.open("w", buffering=1, newline="", encoding="utf-8", errors="surrogateescape"))
    writer = csv.DictWriter(file, ("path", "probability", "verdict", "seconds", "error"))
    writer.writeheader()
    return lambda p: writer.writerow({**_row(p), "seconds": f"{p.seconds:.3f}"})
