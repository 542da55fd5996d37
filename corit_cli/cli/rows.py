"""How ``corit detect`` writes a prediction down: a row of a table, of CSV or of JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corit_cli.cli.console import VERDICT_STYLE, escape, out
from corit_cli.report.words import clock, printable
from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.calibration import Thresholds
    from corit_cli.detection.checkpoint import Checkpoint
    from corit_cli.detection.verdicts import Prediction

Write = Callable[["Prediction"], None]


def as_dict(p: Prediction) -> dict[str, Any]:
    """What JSON says of a file. Seconds are left out: the same command gives the same bytes."""
    row: dict[str, Any] = {"path": p.path, "probability": p.probability, "verdict": p.verdict, "error": p.error}
    if p.parts is not None:
        row["parts"] = p.parts
    for name in ("faces", "stability", "video", "provenance"):
        part = getattr(p, name)
        if part is not None:
            row[name] = [asdict(face) for face in part] if name == "faces" else asdict(part)
    return row


def writer(checkpoint: Checkpoint, stack: ExitStack, as_json: bool, as_jsonl: bool) -> Write:
    """What writes to standard output: JSON, JSON lines, tab-separated text in a pipe, or a table."""
    if as_jsonl:
        return lambda p: print(json.dumps(as_dict(p)), flush=True)
    if as_json:
        return _json_writer(checkpoint, stack)
    if not out.is_terminal:
        return _plain_row
    out.print(f"[bold]{'verdict':<9}  p(fake)   seconds  file[/]")
    return _table_row


def csv_writer(path: Path, stack: ExitStack) -> Write:
    """Writes to a CSV file line by line, so that an interrupted run leaves what it has found."""
    file = stack.enter_context(path.open("w", buffering=1, newline="", encoding="utf-8", errors="surrogateescape"))
    table = csv.DictWriter(file, ("path", "probability", "verdict", "seconds", "faces", "face_max", "flips", "error"))
    table.writeheader()

    def write(p: Prediction) -> None:
        faces = p.faces or ()
        table.writerow(
            {
                "path": p.path,
                "probability": p.probability,
                "verdict": p.verdict,
                "seconds": f"{p.seconds:.3f}",
                "faces": None if p.faces is None else len(faces),
                "face_max": max((face.probability for face in faces), default=None),
                "flips": None if p.stability is None else int(p.stability.flips),
                "error": p.error,
            }
        )

    return write


def _json_writer(checkpoint: Checkpoint, stack: ExitStack) -> Write:
    head = {
        "corit": __version__,
        "backbone": checkpoint.backbone,
        "detector_sha256": checkpoint.sha256,
        "thresholds": _thresholds(checkpoint.thresholds),
        "face_thresholds": checkpoint.faces and _thresholds(checkpoint.faces.thresholds),
    }
    print(json.dumps(head)[:-1] + ', "results": [', end="")
    stack.callback(lambda: print("\n]}"))
    separator = iter(["\n"])

    def write(p: Prediction) -> None:
        print(next(separator, ",\n") + json.dumps(as_dict(p)), end="")

    return write


def _thresholds(t: Thresholds) -> dict[str, float]:
    return {"real": t.real, "fake": t.fake}


def _plain_row(p: Prediction) -> None:
    probability = "" if p.probability is None else f"{p.probability:.4f}"
    print(p.verdict or "error", probability, f"{p.seconds:.2f}", printable(p.path), p.error or "", sep="\t")


def _table_row(p: Prediction) -> None:
    style = VERDICT_STYLE.get(p.verdict or "", "magenta")
    probability = "" if p.probability is None else f"{p.probability:7.1%}"
    cells = f"[{style}]{p.verdict or 'error':<9}[/] {probability:>8} {p.seconds:9.2f}  {escape(p.path)}"
    out.print(cells + (f"  [magenta]{escape(p.error)}[/]" if p.error else ""), soft_wrap=True)
    for line in details(p):
        out.print(f"{'':31}[dim]{escape(line)}[/]", soft_wrap=True)


def details(p: Prediction) -> list[str]:
    """What a person is told of a file below its verdict, a line each."""
    lines = []
    if p.faces is not None:
        lines += [f"face at {_box(face.box)}: {face.verdict}, {face.probability:.1%}" for face in p.faces]
    if p.stability is not None:
        values = [p.probability or 0.0, *p.stability.probabilities.values()]
        lines.append(f"mildly degraded, {min(values):.1%} to {max(values):.1%}: {_flips(p.stability.flips)}")
    if p.video is not None:
        v = p.video
        lines.append(f"{len(v.moments)} frames of {clock(v.duration)}")
        lines += [f"person {track}: {probability:.1%}" for track, probability in v.tracks.items()]
        lines += [f"most suspicious at {clock(m.seconds)}" for m in v.suspicious(1)]
        lines += [v.incomplete] if v.incomplete else []
    if p.provenance is not None:
        lines += [finding.text for finding in p.provenance.findings]
    return lines


def _box(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"{left},{top} to {right},{bottom}"


def _flips(flips: bool) -> str:
    return "the verdict flips" if flips else "the verdict stands"
