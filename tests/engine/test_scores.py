from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corit_cli.config import Recipe, TrainSettings
from corit_cli.data.images import CropConfig
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.robustness import CHAINS
from corit_cli.engine import scores
from corit_cli.engine.features import Extractor, FeatureCache
from corit_cli.engine.fit import Calibration, Thresholds
from corit_cli.engine.predict import Detector
from corit_cli.engine.scores import Scored, comparable, groups_by, score, units_of
from corit_cli.engine.train import train
from corit_cli.engine.weights import Backbone
from corit_cli.errors import CoritError
from corit_cli.model.settings import CoRITSettings
from tests.conftest import random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(), integrate=(2, 3))


@pytest.fixture
def detector(dataset: Path) -> Detector:
    extractor = Extractor(Backbone(random_tower(), "tiny", "0" * 64), SETTINGS, CropConfig("both", 32))
    trained = train(load_samples(dataset), extractor, TrainSettings(epochs=5, folds=3), Recipe(), probe=False)
    return Detector(trained.checkpoint, extractor)


def test_scores_are_those_of_detect(detector: Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = load_samples(dataset)
    found = score(detector, samples)
    said = list(detector.predict(s.path for s in samples))
    np.testing.assert_allclose(found.probabilities[0], [p.probability for p in said], atol=2e-6)
    assert found.verdicts[0].tolist() == [p.verdict for p in said]
    monkeypatch.setattr(scores, "BLOCK", 7)
    np.testing.assert_allclose(score(detector, samples).logits, found.logits, atol=1e-5)


def test_a_chain_scores_the_degraded_file(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    from corit_cli.data.images import read_image
    from corit_cli.data.variants import Variant

    samples = load_samples(dataset)[:6]
    names = ("jpeg-50", "resize-0.75")
    found = score(detector, samples, names)
    assert found.logits.shape == (3, 6)
    for row, name in zip(found.probabilities[1:], names, strict=True):
        files = []
        for i, s in enumerate(samples):
            files.append(tmp_path / f"{name}-{i}.png")
            Variant(chain=CHAINS[name]).apply(read_image(s.path)).save(files[-1])
        np.testing.assert_allclose(row, [p.probability for p in detector.predict(files)], atol=2e-6)


def test_bad_files_are_left_out_with_their_reason(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    samples = load_samples(dataset)[:6]
    samples[2].path.write_text("not a picture")
    cache = FeatureCache(tmp_path / "cache.sqlite")
    found = score(detector, samples, ("jpeg-50",), cache)
    cache.close()
    assert [(s, m) for s, m in found.errors] == [(samples[2], "not an image that can be read")]
    assert found.samples == samples[:2] + samples[3:] and not np.isnan(found.logits).any()
    with pytest.raises(CoritError, match="none of the 1 images can be read"):
        score(detector, samples[2:3])


def test_a_chain_that_an_image_cannot_take_is_nan(
    detector: Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHAINS, "huge", ("resize:10",))
    monkeypatch.setattr("corit_cli.data.degrade.MAX_PIXELS", 64 * 48)
    found = score(detector, load_samples(dataset)[:3], ("huge",))
    assert np.isnan(found.logits[1]).all() and not np.isnan(found.logits[0]).any() and not found.errors
    assert found.verdicts[1].tolist() == [""] * 3


# --- groups ---------------------------------------------------------------------------------------


def samples(*rows: tuple) -> list[Sample]:
    """(how many, label, source, generator) each."""
    return [Sample(Path(f"{k}-{i}.png"), *known) for k, (n, *known) in enumerate(rows) for i in range(n)]


def test_a_generator_meets_the_real_images_of_its_sources() -> None:
    data = samples(
        (3, 0, "a"), (2, 1, "a", "gan"), (4, 0, "b"), (1, 1, "b", "gan"), (5, 0, "c"), (2, 1, "d", "diffusion"),
        (9, 1, "a", ""),
    )  # fmt: skip
    groups = groups_by(data, "generator")
    at = {name: sorted({(data[i].label, data[i].source) for i in np.flatnonzero(g.mask)}) for name, g in groups.items()}
    assert at == {
        "diffusion": [(0, "a"), (0, "b"), (0, "c"), (1, "d")],
        "gan": [(0, "a"), (0, "b"), (1, "a"), (1, "b")],
    }
    assert groups["gan"].against == "its sources" and groups["diffusion"].against == "all real images"
    assert groups["gan"].mask.sum() == 3 + 2 + 4 + 1
    assert {name: int(g.mask.sum()) for name, g in groups_by(data, "source").items()} == {
        "a": 14,
        "b": 5,
        "c": 5,
        "d": 2,
    }


def test_means_are_over_groups_of_eight_and_eight() -> None:
    data = samples((8, 0, "a"), (8, 1, "a", "gan"), (9, 0, "b"), (7, 1, "b", "gan"))
    by, groups = comparable(data)
    assert by == "source" and list(groups) == ["a"]
    data = samples((4, 0, "a"), (7, 1, "a", "gan"), (9, 0, "b"), (1, 1, "b", "gan"))
    by, groups = comparable(data)
    assert by == "generator" and list(groups) == ["gan"]
    by, groups = comparable(samples((4, 0), (4, 1)))
    assert by == "" and groups["all images"].all()


def test_a_video_is_one_unit_within_its_source() -> None:
    data = [
        Sample(Path("0.png"), 0, "a", video_id="1"),
        Sample(Path("1.png"), 1, "a", video_id="1"),
        Sample(Path("2.png"), 0, "b", video_id="1"),
        Sample(Path("3.png"), 0, "a"),
        Sample(Path("4.png"), 0, "a"),
    ]
    units = units_of(data)
    assert units[0] == units[1] and len(set(units)) == 4


def test_verdicts_are_at_the_given_thresholds() -> None:
    logits = np.array([[-3.0, 0.0, 3.0]])
    found = Scored.of(samples((3, 0)), (), logits, Calibration(), Thresholds(0.2, 0.8))
    assert found.verdicts[0].tolist() == ["real", "uncertain", "fake"]
    assert found.probabilities[0].tolist() == [0.047426, 0.5, 0.952574]
