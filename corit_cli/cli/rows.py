"""How ``corit detect`` writes a prediction down: a row of a table, of CSV or of JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from corit_cli.bulk.rows import flat
from corit_cli.cli.console import VERDICT_STYLE, escape, out
from corit_cli.detection.verdicts import peak
from corit_cli.files import is_stdout, model_card, opened_stdout, unwritable
from corit_cli.report.document import as_dict, heading
from corit_cli.report.meaning import footer, meaning, next_steps
from corit_cli.report.words import looked_at, place, together
from corit_cli.texts import Table, printable

if TYPE_CHECKING:
    from corit_cli.detection.checkpoint import Checkpoint
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction
    from corit_cli.report.case import About

Write = Callable[["Prediction"], None]


def writer(detector: Detector, stack: ExitStack, as_json: bool, as_jsonl: bool, explain: bool = False) -> Write:
    """What writes to standard output: JSON, JSON lines, tab-separated text in a pipe, or a table, which may ``explain``
    each verdict."""
    checkpoint = detector.checkpoint
    if as_jsonl:
        fetched = checkpoint.identity if checkpoint.origin else {}
        return lambda p: print(json.dumps(as_dict(p) | fetched), flush=True)
    if as_json:
        return _json_writer(detector, stack)
    row = _plain_row
    if out.is_terminal:
        out.print(f"[bold]{'verdict':<9}  p(fake)   seconds  {'declared':<12}  file[/]")
        row = _table_row
    if not explain:
        return row
    about = _about(checkpoint)

    def explained(p: Prediction) -> None:
        row(p)
        for line in explanation(p, about):
            out.print(escape(line), soft_wrap=not out.is_terminal)

    return explained


def _about(checkpoint: Checkpoint) -> About:
    from corit_cli.report.case import About

    return About.of(checkpoint, datetime.now(timezone.utc), "")


def print_footer(checkpoint: Checkpoint) -> None:
    """One dim line on what the verdicts above mean."""
    out.print(f"[dim]{escape(footer(_about(checkpoint), model_card()))}[/]", soft_wrap=True)


def explanation(p: Prediction, about: About) -> list[str]:
    """What a report says of a file, a line each: what the verdict means, what the file says of itself, what to do."""
    parts: list[tuple[str, list[str]]] = [("What this means", meaning(p, about))]
    if p.provenance is not None:
        parts.append(("What the file says of itself", [finding.text for finding in p.provenance.findings]))
    parts.append(("What to do next", next_steps(p)))
    lines = []
    for title, sentences in parts:
        if sentences:
            lines += [f"  {title}:", *(f"    - {sentence}" for sentence in sentences)]
    return [*lines, ""]


#: Columns of CSV.
COLUMNS = (
    "path",
    "probability",
    "verdict",
    "seconds",
    "faces",
    "face_max",
    "flips",
    "error",
    "declared",
    "ground",
    "notes",
    "detector",
    "detector_sha256",
)


def csv_writer(checkpoint: Checkpoint, path: Path, stack: ExitStack) -> Write:
    """Writes to a CSV file line by line, so that an interrupted run leaves what it has found. Raises CoritError,
    then and later, when it cannot be written."""
    try:
        how: dict[str, Any] = {"newline": "", "encoding": "utf-8", "line_buffering": True}
        file = io.TextIOWrapper(opened_stdout() if is_stdout(path) else path.open("wb"), **how)
        stack.callback(_close, file, path)
        table = Table(file, COLUMNS)
    except OSError as error:
        raise unwritable(path, error) from None

    named = checkpoint.identity

    def write(p: Prediction) -> None:
        cells = flat(as_dict(p)) | named | {"seconds": f"{p.seconds:.3f}"}
        try:
            table.write({name: cells.get(name) for name in COLUMNS})
        except OSError as error:
            raise unwritable(path, error) from None

    return write


def _close(file: IO[str], path: Path) -> None:
    try:
        file.close()
    except OSError as error:
        raise unwritable(path, error) from None


def _json_writer(detector: Detector, stack: ExitStack) -> Write:
    print(json.dumps(heading(detector))[:-1] + ', "results": [', end="")
    stack.callback(lambda: print("\n]}"))
    separator = iter(["\n"])

    def write(p: Prediction) -> None:
        print(next(separator, ",\n") + json.dumps(as_dict(p)), end="")

    return write


def _plain_row(p: Prediction) -> None:
    probability = "" if p.probability is None else f"{p.probability:.4f}"
    said, ground = (p.declared.kind, p.declared.ground) if p.declared else ("", "")
    cells = (kind_of(p), probability, f"{p.seconds:.2f}", p.path, p.error or "", said, ground, "; ".join(findings(p)))
    print(*map(printable, cells), sep="\t")


def _table_row(p: Prediction) -> None:
    style = VERDICT_STYLE.get(p.verdict or "", "magenta")
    probability = "" if p.probability is None else f"{p.probability:7.1%}"
    said = p.declared.kind if p.declared else ""
    cells = f"[{style}]{kind_of(p):<9}[/] {probability:>8} {p.seconds:9.2f}  {said:<12}  {escape(p.path)}"
    out.print(cells + (f"  [magenta]{escape(p.error)}[/]" if p.error else ""), soft_wrap=True)
    for line in details(p):
        out.print(f"{'':45}[dim]{escape(line)}[/]", soft_wrap=True)


def kind_of(p: Prediction) -> str:
    """What a row is counted as: its verdict, error or skipped."""
    return p.verdict or ("error" if p.error else "skipped")


def details(p: Prediction) -> list[str]:
    """What a person is told of a file below its verdict, a line each."""
    said = together(p)
    return [*([said] if said else []), *findings(p)]


def findings(p: Prediction) -> list[str]:
    """What was found in a file besides its verdict and what it declares."""
    lines = list(p.notes)
    if p.faces is not None:
        lines += [f"face at {_box(face.box)}: {face.verdict}, {face.probability:.1%}" for face in p.faces]
    if p.stability is not None:
        values = [p.probability or 0.0, *p.stability.probabilities.values()]
        lines.append(f"mildly degraded, {min(values):.1%} to {max(values):.1%}: {_flips(p.stability.flips)}")
    if p.video is not None:
        v = p.video
        lines += [looked_at(v)] if v.kind == "video" else []
        lines += [f"person {track + 1}: {probability:.1%}" for track, probability in v.tracks.items()]
        lines += [f"most suspicious: {place(v, m)}, {peak(m):.1%}" for m in v.suspicious(1)]
        lines += [v.incomplete] if v.incomplete else []
    return lines


def _box(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"{left},{top} to {right},{bottom}"


def _flips(flips: bool) -> str:
    return "the verdict flips" if flips else "the verdict stands"
