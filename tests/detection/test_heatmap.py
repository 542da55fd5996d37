from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corit_cli.data.settings import CropConfig
from corit_cli.data.windows import crop
from corit_cli.detection.checkpoint import Localizer
from corit_cli.detection.heatmap import Heatmap, heatmap, smooth, tile
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor
from corit_cli.model.corit import CoRIT
from corit_cli.model.head import Head
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from tests.conftest import photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3, 4), integrate=(2, 3))
CROPS = CropConfig("both", 32, 1)


def extractor(settings: CoRITSettings = SETTINGS, crops: CropConfig = CROPS) -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, crops)


def localizer(layers: int = 3) -> Localizer:
    torch.manual_seed(7)
    return Localizer(Head(32 * layers).eval(), SETTINGS, CROPS, 0.25, 0.5)


# --- the map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (70, 50), (200, 33)])
def test_the_map_covers_the_image(size: tuple[int, int]) -> None:
    image = photograph(1, size)
    found = heatmap(extractor(), localizer(), image)
    assert found.map.shape == found.covered.shape and found.covered.all() and found.size == size
    drawn, covered = found.resized()
    assert drawn.shape == covered.shape == size[::-1] and covered.all() and np.isfinite(drawn).all()
    assert np.array_equal(found.map, heatmap(extractor(), localizer(), image).map)
    assert (found.common, found.rare) == (0.25, 0.5)


def test_one_window_is_that_windows_log_odds() -> None:
    e, image = extractor(), photograph(3, (32, 32))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        direct = localizer().head(e.readers[-1].corit.regional(pixels))  # (1, P)
    expected = smooth(direct.view(4, 4).numpy(), np.ones((4, 4), bool))
    np.testing.assert_allclose(heatmap(e, localizer(), image).map, expected, rtol=1e-4, atol=1e-7)


def test_overlapping_windows_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window gives its own number: a cell holds the mean of those that cover it."""
    e = extractor()
    numbers = iter(range(100))

    def regional(self: CoRIT, images: Tensor) -> Tensor:
        return torch.stack([torch.full((16, 96), float(next(numbers))) for _ in images])

    monkeypatch.setattr(CoRIT, "regional", regional)
    monkeypatch.setattr("corit_cli.detection.heatmap.smooth", lambda values, covered: values)
    head = Head(96)
    head.layers[0].weight.data.fill_(96**0.5 / 96)
    head.layers[0].bias.data.zero_()
    found = heatmap(
        e, Localizer(head, SETTINGS, CROPS, 0.0, 1.0), photograph(1, (48, 32))
    )  # two windows of 4 x 4 cells, two columns apart
    np.testing.assert_allclose(found.map[0], [0, 0, 0.5, 0.5, 1, 1], atol=1e-5)


def test_the_resized_window_covers_the_middle_only() -> None:
    e = extractor(crops=CropConfig("resize", 32))
    found = heatmap(e, localizer(), photograph(1, (120, 40)))
    assert found.map.shape == (4, 4) and found.box == pytest.approx((40, 0, 80, 40))
    _, covered = found.resized()
    assert covered[:, 45:75].all() and not covered[:, :30].any() and not covered[:, 90:].any()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(CoritError, match="32 px a side"):
        heatmap(extractor(), localizer(), photograph(1, (31, 90)))
    with pytest.raises(CoritError, match="no contrast"):
        heatmap(extractor(baseline(4)), localizer(), photograph(1))


# --- tiling ---------------------------------------------------------------------------------------


EXTRACTOR = extractor()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 40))
def test_tiles_lie_inside_and_cover_what_they_can(width: int, height: int, limit: int) -> None:
    t = tile(EXTRACTOR, (width, height), limit)
    rows, columns = t.shape
    covered = np.zeros(t.shape, bool)
    for row, column in t.corners:
        assert 0 <= row <= rows - 4 and 0 <= column <= columns - 4
        covered[row : row + 4, column : column + 4] = True
    assert 1 <= len(set(t.corners)) == len(t.corners) <= max(limit, 1)
    if -(-rows // 4) * -(-columns // 4) <= limit:
        assert covered.all()
    left, top, right, bottom = t.box
    patch = t.patch / t.scale  # less than a patch is left over, half of it on either side
    if max(width, height) <= 64 * min(width, height):
        for low, high, side in ((left, right, width), (top, bottom, height)):
            assert -1 / t.scale <= low <= patch / 2 and side - patch / 2 - 1 / t.scale <= high <= side + 1 / t.scale


def test_windows_are_the_images_own_pixels() -> None:
    image = photograph(5, (75, 61))
    t = tile(extractor(), image.size)
    pixels = np.asarray(image)
    for row, column in t.corners:
        left, top = t.origin[0] + column * t.patch, t.origin[1] + row * t.patch
        assert np.array_equal(t.window(image, row, column), pixels[top : top + 32, left : left + 32])


def test_a_small_image_is_enlarged_as_for_the_detector() -> None:
    image = photograph(5, (20, 20))
    t = tile(extractor(), image.size)
    assert t.corners == [(0, 0)]
    assert np.array_equal(t.window(image, 0, 0), crop(image, CropConfig("native", 32))[0])


def test_a_panorama_is_bounded() -> None:
    t = tile(extractor(), (20_000, 3_000), 16)
    assert len(t.corners) <= 16 and len({row for row, _ in t.corners}) >= 1
    columns = sorted({column for _, column in t.corners})
    assert columns[0] == 0 and columns[-1] == t.shape[1] - 4
    strip = tile(extractor(), (1_000_000, 1), 16)
    assert strip.shape[0] * strip.shape[1] < 2_000


# --- drawing --------------------------------------------------------------------------------------


def test_cells_are_drawn_where_they_are() -> None:
    cells = np.zeros((3, 5), np.float32)
    cells[1, 3] = 2.0
    found = Heatmap(cells, np.ones((3, 5), bool), (4.0, 2.0, 84.0, 50.0), (90, 53), 0.0, 1.0)
    drawn, covered = found.resized()
    assert covered.all()
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert abs(y - (2 + 1.5 * 16)) <= 1 and abs(x - (4 + 3.5 * 16)) <= 1 and drawn.max() == pytest.approx(2, rel=0.1)
    assert drawn[:, :36].max() == 0 and drawn[:15, 60].max() < 1
    small, _ = found.resized((45, 26))
    assert small.shape == (26, 45) and abs(int(np.unravel_index(small.argmax(), small.shape)[1]) - 30) <= 1


def test_linear_maps_are_drawn_exactly() -> None:
    """Linear interpolation reproduces a linear map between the cells' centres."""
    y, x = np.mgrid[0:4, 0:6]
    found = Heatmap((2.0 * y - x).astype(np.float32), np.ones((4, 6), bool), (0, 0, 96, 64), (96, 64), 0.0, 1.0)
    drawn, _ = found.resized()
    at_y, at_x = np.meshgrid((np.arange(64) + 0.5) / 16 - 0.5, (np.arange(96) + 0.5) / 16 - 0.5, indexing="ij")
    inside = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(drawn[inside], (2 * at_y - at_x)[inside], atol=1e-4)


def test_what_is_not_covered_does_not_spread() -> None:
    covered = np.zeros((4, 8), bool)
    covered[:, :4] = True
    found = Heatmap(np.where(covered, 3.0, 0).astype(np.float32), covered, (0, 0, 128, 64), (128, 64), 0.0, 1.0)
    drawn, seen = found.resized()
    assert np.allclose(drawn[seen], 3) and (drawn[~seen] == 0).all() and seen.mean() == pytest.approx(0.5, abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_smoothing_is_a_mean_of_what_is_covered(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    covered = rng.random((rows, columns)) < 0.6
    values = rng.standard_normal((rows, columns))
    out = smooth(values, covered)
    assert (out[~covered] == 0).all()
    if covered.any():
        assert out[covered].min() >= values[covered].min() - 1e-5 and out[covered].max() <= values[covered].max() + 1e-5
    np.testing.assert_allclose(smooth(np.full((rows, columns), 2.5), covered)[covered], 2.5, rtol=1e-5)
    spoilt = np.where(covered, values, 1e6)
    np.testing.assert_allclose(smooth(spoilt, covered), out, rtol=1e-6)
