from __future__ import annotations

import csv
from pathlib import Path

import pytest

from corit_cli.data.manifest import Sample
from corit_cli.detection.detector import Detector
from corit_cli.evaluation.foresee import foresee
from tests.evaluation.test_protocols import BOTH, data, detector  # noqa: F401, fixtures


def test_a_protocols_heads_are_counted_and_timed(
    detector: Detector,  # noqa: F811
    data: list[Sample],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Detector, "load", lambda *_: detector)
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["path", "label", "source", "generator"])
        csv.writer(file).writerows([s.path, s.label, s.source, s.generator] for s in data)
    for names, groups in ((BOTH[:1], 2), (BOTH, 4)):
        cost, samples, heads = foresee(tmp_path / "m.csv", None, None, None, names, None, "cpu", "fp32")
        fitted = len(detector.head.names) + (detector.head.degradation is not None)
        assert len(samples) == len(data) and heads == groups * fitted * (1 if fitted == 1 else 6)
        assert cost.fitting > 0
