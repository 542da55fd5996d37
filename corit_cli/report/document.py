"""The JSON that verdicts are given in: one form, whoever asks (docs/detect.schema.json)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from corit_cli.version import __version__

if TYPE_CHECKING:
    from corit_cli.detection.calibration import Thresholds
    from corit_cli.detection.detector import Detector
    from corit_cli.detection.verdicts import Prediction

#: Of the rows that JSON holds: raised whenever a key goes or comes to mean something else (docs/detect.schema.json).
SCHEMA = 2


def as_dict(p: Prediction) -> dict[str, Any]:
    """What JSON says of a file. Seconds are left out: the same command gives the same bytes."""
    row: dict[str, Any] = {
        "path": p.path,
        "probability": p.probability,
        "verdict": p.verdict,
        "error": p.error,
        "declared": p.declared and p.declared.kind,
        "ground": p.declared and p.declared.ground,
        "notes": list(p.notes),
        "faces": None if p.faces is None else [asdict(face) for face in p.faces],
    }
    if p.parts is not None:
        row["parts"] = p.parts
    if p.degraded is not None:
        row["degraded"] = p.degraded
    for name in ("stability", "video", "provenance"):
        part = getattr(p, name)
        if part is not None:
            row[name] = asdict(part)
    return row


def heading(detector: Detector) -> dict[str, Any]:
    """What a document says of the detector, before its ``results``."""
    checkpoint = detector.checkpoint
    return {
        "schema": SCHEMA,
        "corit": __version__,
        "backbone": checkpoint.backbone,
        **checkpoint.identity,
        "precision": detector.extractor.precision,
        "thresholds": _thresholds(checkpoint.thresholds),
        "face_thresholds": checkpoint.faces and _thresholds(checkpoint.faces.thresholds),
    }


def _thresholds(t: Thresholds) -> dict[str, float]:
    return {"real": t.real, "fake": t.fake}
