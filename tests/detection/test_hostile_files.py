"""A folder of files made to break decoders, through the whole detector."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from corit_cli.data.settings import CropConfig
from corit_cli.detection import eye
from corit_cli.detection.calibration import Calibration, Thresholds
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings
from tests import hostile
from tests.conftest import random_head, random_tower

#: Kinds of which no file, or none but a few with a sound picture inside, can be read.
HOPELESS = ("truncated", "nonsense")


@pytest.fixture
def detector() -> Detector:
    settings = CoRITSettings(("blur:1.0",), cgp=(2,), integrate=(2, 3))
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("both", 32))
    head = random_head(extractor, std=0.1)
    checkpoint = Checkpoint(head, {"name": "tiny"}, settings, extractor.crops, Calibration(1.0), Thresholds(0.45, 0.55))
    return Detector(checkpoint, extractor)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # as images.py does
def test_a_folder_of_hostile_files(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = hostile.write(tmp_path, 100)
    assert min(Counter(path.name.split("-")[0] for path in paths).values()) >= 60
    took: dict[str, float] = {}

    def decode(path: str | Path, read=eye.decode):
        start = time.thread_time()  # what other programs do meanwhile does not count
        try:
            return read(path)
        finally:
            took[Path(path).name] = time.thread_time() - start

    monkeypatch.setattr(eye, "decode", decode)
    threads = threading.active_count()
    results = {Path(p.path).name: p for p in detector.predict(paths, provenance=True)}

    assert list(results) == [path.name for path in paths]  # in order, none lost
    assert threading.active_count() == threads
    assert capfd.readouterr().err == ""
    slowest = max(took, key=took.__getitem__)
    assert took[slowest] < 4, (slowest, took[slowest])
    verdicts = Counter()
    for name, result in results.items():
        kind = name.split("-")[0]
        if result.error is None:
            assert result.verdict in ("real", "fake", "uncertain") and 0 <= result.probability <= 1
            verdicts[kind] += 1
        else:
            assert result.verdict is result.probability is None and kind != "sound"
            assert result.error.isprintable() and 0 < len(result.error) < 200
    assert all(verdicts[kind] <= 5 for kind in HOPELESS)
    assert verdicts["misnamed"] == 50  # what is in a file counts, not what it is called

    sound = [path for path in paths if path.name.startswith("sound")]
    for path in sound[::3]:
        (alone,) = detector.predict([path])
        assert alone.probability == pytest.approx(results[path.name].probability, abs=2e-6)
