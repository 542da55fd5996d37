from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from corit_cli.data.forge import Forged, blend, parse_forge, region
from corit_cli.data.images import CropConfig, read_image
from corit_cli.data.manifest import Sample
from corit_cli.engine.evidence import evidence, tile
from corit_cli.engine.features import Extractor
from corit_cli.engine.localize import FORGED, PENALTY, fit, localize, patch_mask
from corit_cli.engine.weights import Backbone
from corit_cli.errors import CoritError
from corit_cli.metrics import auc
from corit_cli.model.settings import CoRITSettings, baseline
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(1, 2), integrate=(2,))


def extractor(settings: CoRITSettings = SETTINGS) -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig("both", 32, 1))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Forty photographs of four sources, the last ten for validation, and a fake that nobody may touch."""
    folder = tmp_path_factory.mktemp("photographs")
    found = []
    for i in range(40):
        path = folder / f"{i:02}.png"
        photograph(i, (96, 96), grain=10).save(path)
        found.append(Sample(path, 0, f"source{i % 4}"))
    (folder / "fake.png").write_bytes(b"not an image")
    return [*found, Sample(folder / "fake.png", 1, "source0")]


TRAIN, VAL = [*range(30), 40], range(30, 40)


class Checkered:
    """A forgery that even random weights can see: a region with a generator's checkerboard."""

    name = "checkered"

    def check(self) -> None:
        pass

    def forge(self, image: Image.Image, rng: np.random.Generator) -> Forged:
        y, x = np.indices(image.size[::-1])
        pixels = np.asarray(image, np.int16) + (25 * (-1) ** (x + y))[..., None]
        return blend(image, Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), region(image.size, rng))


def test_it_finds_regions_of_photographs_it_never_saw(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corit_cli.engine.localize.parse_forge", lambda spec: Checkered())
    e = extractor()
    found, about = localize(samples, TRAIN, VAL, e, ["checkered"])
    assert about["taught_by"] == 30 and about["tried_on"] == 10 and found.forges == ("checkered",)
    assert set(about["pixel_auc"]) == {"checkered"} and about["pixel_auc"]["checkered"] > 0.75
    aucs = []
    for seed in range(100, 112):
        forged = Checkered().forge(photograph(seed, (96, 96), grain=10), np.random.default_rng(seed))
        shown = evidence(e, found, forged.image)
        inside = patch_mask(forged.mask, shown.box, shown.map.shape) >= FORGED
        aucs.append(auc(inside.ravel(), shown.map.ravel()))
    assert np.mean(aucs) > 0.75


def test_untouched_photographs_seldom_look_unusual(samples: list[Sample]) -> None:
    e = extractor()
    found, _ = localize(samples, TRAIN, VAL, e, ["resample@part"])
    cells = np.concatenate(
        [evidence(e, found, photograph(seed, (96, 96), grain=10)).map.ravel() for seed in range(200, 220)]
    )
    assert (cells > found.unusual).mean() < 0.05


def test_the_same_images_give_the_same_localizer(samples: list[Sample]) -> None:
    one, other = (localize(samples, TRAIN, VAL, extractor(), ["self_blend"], seed=3) for _ in range(2))
    assert one[1] == other[1] and one[0].unusual == other[0].unusual
    assert all(torch.equal(a, b) for a, b in zip(one[0].head.parameters(), other[0].head.parameters(), strict=True))


def test_the_head_is_a_weighted_logistic_regression() -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(300, 6), (np.arange(300) % 3 == 0).astype(int)
    z[:, 2] += torch.from_numpy(labels) * 2
    head = fit(z, labels)
    x = (z - z.mean(0)) / z.std(0, correction=0) / 6**0.5
    expected = LogisticRegression(C=1 / (PENALTY * 300), class_weight="balanced", max_iter=1000).fit(x, labels)
    with torch.inference_mode():
        np.testing.assert_allclose(head(z).numpy(), expected.decision_function(x), rtol=0.02, atol=0.02)
    assert auc(labels, head(z).detach().numpy()) > 0.85


def test_what_cannot_be_taught_is_said(samples: list[Sample], tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    small = [Sample(tmp_path / "small.png", 0, "a")]
    with pytest.raises(CoritError, match="at least 32 px"):
        localize(small, [0], [0], extractor(), ["self_blend"])
    with pytest.raises(CoritError, match="no contrast"):
        localize(samples, TRAIN, VAL, extractor(baseline(4)), ["self_blend"])
    with pytest.raises(CoritError):
        localize(samples, TRAIN, VAL, extractor(), [f"reconstruct@part:{tmp_path}"])


def test_the_shipped_heatmap_points_into_masks() -> None:
    """On photographs of the sample set, which no shipped detector was trained on."""
    from corit_cli.engine.predict import Detector
    from corit_cli.engine.weights import weights_dir

    detector = Detector.load()
    aucs = []
    for number, path in enumerate(sorted((weights_dir() / "samples" / "real").iterdir())[::20]):
        image = read_image(path)
        forged = parse_forge("resample@part").forge(image, np.random.default_rng(number))
        shown = evidence(detector.extractor, detector.checkpoint.localizer, forged.image)
        inside = patch_mask(forged.mask, shown.box, shown.map.shape) >= FORGED
        aucs.append(auc(inside.ravel(), shown.map.ravel()))
    assert len(aucs) > 4 and np.mean(aucs) > 0.7


def test_masks_are_shares_of_cells() -> None:
    mask = np.zeros((64, 96), np.float32)
    mask[8:16, 16:36] = 1
    t = tile(extractor(), (96, 64))
    cells = patch_mask(mask, t.box, t.shape)
    assert cells.shape == (8, 12)
    assert cells[1, 2] == pytest.approx(1) and cells[1, 4] == pytest.approx(0.5) and cells.sum() == pytest.approx(2.5)
