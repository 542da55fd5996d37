from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from corit_cli.data.forge import Forged, blend, parse_forge, region
from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.detection.heatmap import heatmap, tile
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor
from corit_cli.metrics.ranking import auc
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from corit_cli.training.localizer import (
    FORGED,
    PENALTY,
    contrasts_for,
    fit,
    localize,
    pairs,
    patch_mask,
    photographs,
    teach,
)
from tests.conftest import Told, photograph, random_tower

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

    spelling = "checkered"

    def forge(self, image: Image.Image, rng: np.random.Generator) -> Forged:
        y, x = np.indices(image.size[::-1])
        pixels = np.asarray(image, np.int16) + (25 * (-1) ** (x + y))[..., None]
        return blend(image, Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), region(image.size, rng))


def test_it_finds_regions_of_photographs_it_never_saw(samples: list[Sample]) -> None:
    e = extractor()
    told = Told()
    found, about = localize(samples, TRAIN, VAL, e, [Checkered()], progress=told)
    assert told.complete and [stage[:2] for stage in told.stages] == [("forged regions", 40)]
    assert about["taught_by"] == 30 and about["tried_on"] == 10 and found.forges == ("checkered",)
    figures = about["pixel_auc"]["checkered"]
    assert figures["photographs"] == 10 and figures["forged"] > 0.75 and 0.3 < figures["original"] < 0.7
    aucs = []
    for seed in range(100, 112):
        forged = Checkered().forge(photograph(seed, (96, 96), grain=10), np.random.default_rng(seed))
        shown = heatmap(e, found, forged.image)
        inside = patch_mask(forged.mask, shown.box, shown.map.shape) >= FORGED
        aucs.append(auc(inside.ravel(), shown.map.ravel()))
    assert np.mean(aucs) > 0.75


class Untouched(Checkered):
    """No forgery at all, though a mask says so: always the middle."""

    spelling = "untouched"

    def forge(self, image: Image.Image, rng: np.random.Generator) -> Forged:
        mask = np.zeros((image.height, image.width), np.float32)
        mask[32:64, 24:72] = 1
        return Forged(image, mask)


def test_it_does_not_learn_where_regions_lie(samples: list[Sample]) -> None:
    """Patches tell where they stand, and here every region has the same place."""
    e = extractor()
    head = teach(pairs([samples[i] for i in range(30)], e, [Untouched()], [0]))
    aucs = []
    for pair in pairs([samples[i] for i in range(30, 40)], e, [Untouched()], [1]):
        inside = pair.mask.ravel() >= FORGED
        assert inside.any() and not inside.all()
        aucs.append(auc(inside, head(pair.original).detach().numpy()))
    assert 0.35 < np.mean(aucs) < 0.65


def test_untouched_photographs_seldom_look_changed(samples: list[Sample]) -> None:
    e = extractor()
    found, _ = localize(samples, TRAIN, VAL, e, [parse_forge("resample@part")])
    cells = np.concatenate(
        [heatmap(e, found, photograph(seed, (96, 96), grain=10)).map.ravel() for seed in range(200, 220)]
    )
    assert found.common < found.rare
    assert (cells > found.rare).mean() < 0.05 and (cells > found.common).mean() < 0.25


def test_the_same_images_give_the_same_localizer(samples: list[Sample]) -> None:
    one, other = (localize(samples, TRAIN, VAL, extractor(), [parse_forge("self_blend")], seed=3) for _ in range(2))
    assert one[1] == other[1] and one[0].rare == other[0].rare and one[0].forges == ("self_blend",)
    assert all(torch.equal(a, b) for a, b in zip(one[0].head.parameters(), other[0].head.parameters(), strict=True))


def test_pairs_differ_inside_the_mask_only(samples: list[Sample]) -> None:
    found = list(pairs([s for s in samples if s.label == 0], extractor(), [parse_forge("recompress@part")], [0]))
    assert len(found) == 40
    for pair in found:
        assert pair.forged.shape == pair.original.shape == (16, 64) and pair.mask.shape == (4, 4)
        changed = (pair.forged - pair.original).norm(dim=1)  # patches see each other, but themselves most
        if (pair.mask >= FORGED).any() and (pair.mask <= 0.02).any():
            assert changed[pair.mask.ravel() >= FORGED].mean() > changed[pair.mask.ravel() <= 0.02].mean()


def test_the_head_is_a_logistic_regression_that_weighs_places_evenly() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    z, labels, places = torch.randn(400, 6), rng.integers(0, 2, 400), rng.integers(0, 5, 400)
    labels[places == 4] = 1  # a place that tells nothing
    z[:, 2] += torch.from_numpy(labels) * 2
    head = fit(z, labels, places)
    x = (z - z.mean(0)) / z.std(0, correction=0) / 6**0.5
    weights = np.zeros(400)
    for place in range(4):
        at = places == place
        for label in (0, 1):
            chosen = at & (labels == label)
            weights[chosen] = at.sum() / chosen.sum()
    expected = LogisticRegression(C=1 / (PENALTY * weights.sum()), max_iter=1000).fit(x, labels, weights)
    with torch.inference_mode():
        np.testing.assert_allclose(head(z).numpy(), expected.decision_function(x), rtol=0.02, atol=0.02)
    assert auc(labels, head(z).detach().numpy()) > 0.85


def test_photographs_come_from_all_sources_and_are_large_enough(samples: list[Sample], tmp_path: Path) -> None:
    few = photographs(samples, range(41), 8, 32)
    assert {s.source: sum(t.source == s.source for t in few) for s in few} == {f"source{i}": 2 for i in range(4)}
    assert photographs(samples, range(41), 8, 32) == few != photographs(samples, range(41), 8, 32, seed=1)
    assert photographs(samples, range(41), 8, 97) == []


def test_what_cannot_be_taught_is_said(samples: list[Sample], tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    small = [Sample(tmp_path / "small.png", 0, "a")]
    kinds = [parse_forge("self_blend")]
    with pytest.raises(CoritError, match="at least 32 px"):
        localize(small, [0], [0], extractor(), kinds)
    with pytest.raises(CoritError, match="0 to validate on"):
        localize(samples, TRAIN, [40], extractor(), kinds)
    with pytest.raises(CoritError, match="no contrast"):
        localize(samples, TRAIN, VAL, extractor(baseline(4)), kinds)


def test_heatmaps_have_contrasts_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    many = CoRITSettings(("blur:2.0",), cgp=(1, 3), native=(2,), patches=True, integrate=(2,))
    assert contrasts_for(extractor(many)).settings == CoRITSettings(("blur:2.0",), cgp=(1, 3), integrate=())
    plain = extractor(CoRITSettings(("blur:2.0",), cgp=(), integrate=(2,)))
    with pytest.raises(CoritError, match="has layers 1 to 4"):
        contrasts_for(plain)
    monkeypatch.setattr("corit_cli.training.localizer.LAYERS", (1, 2))
    assert contrasts_for(extractor(many)).settings.cgp == (1, 2)
    found = contrasts_for(plain)
    assert found.settings == CoRITSettings(("blur:2.0",), cgp=(1, 2), integrate=())
    assert found.crops.windows == ("native 1/1",) and found.crops.size == 32
    assert contrasts_for(extractor(baseline(4))).settings.views == ("blur:1.0",)


def test_the_shipped_heatmap_points_into_masks() -> None:
    """On photographs of the sample set, which the shipped detector was not trained on."""
    from corit_cli.detection.detector import Detector
    from corit_cli.files import weights_dir

    detector = Detector.load()
    aucs = []
    for number, path in enumerate(sorted((weights_dir() / "samples" / "real").iterdir())[::20]):
        image = read_image(path)
        forged = parse_forge("resample@part").forge(image, np.random.default_rng(number))
        maps = [detector.heatmap(i) for i in (forged.image, image)]
        inside = patch_mask(forged.mask, maps[0].box, maps[0].map.shape) >= FORGED
        aucs.append([auc(inside.ravel(), shown.map.ravel()) for shown in maps])
    forged_auc, original_auc = np.mean(aucs, 0)
    assert len(aucs) > 4 and forged_auc > 0.65 and forged_auc > original_auc + 0.1


def test_masks_are_shares_of_cells() -> None:
    mask = np.zeros((64, 96), np.float32)
    mask[8:16, 16:36] = 1
    t = tile(extractor(), (96, 64))
    cells = patch_mask(mask, t.box, t.shape)
    assert cells.shape == (8, 12)
    assert cells[1, 2] == pytest.approx(1) and cells[1, 4] == pytest.approx(0.5) and cells.sum() == pytest.approx(2.5)
