from __future__ import annotations

import numpy as np
from PIL import Image

from corit_cli.data import edits
from tests.conftest import photograph


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, float)


def test_tone_mapping_evens_out_what_is_bright_and_dark() -> None:
    """A dark and a bright half with the same faint texture: local contrast grows, and more with a higher limit."""
    rng = np.random.default_rng(0)
    levels = np.where(np.arange(160) < 80, 40, 200)[None, :, None] + rng.integers(-6, 7, (160, 160, 1))
    image = Image.fromarray(np.repeat(levels, 3, 2).astype(np.uint8))

    def contrast(image: Image.Image) -> float:
        return float(np.mean([pixels(image)[:, half].std() for half in (slice(10, 70), slice(90, 150))]))

    assert contrast(image) < contrast(edits.tonemap(image, 2)) < contrast(edits.tonemap(image, 6))


def test_grading_changes_colours_within_its_strength() -> None:
    image = Image.new("RGB", (16, 16), (100, 100, 100))
    for seed in range(20):
        found = pixels(edits.grade(image, 0.3, np.random.default_rng(seed)))[0, 0]
        assert (np.abs(found / 100 - 1) < 0.3 + 0.3).all()  # exposure and white balance, one upon the other
    assert edits.grade(image, 0, np.random.default_rng(0)).tobytes() == image.tobytes()


def test_grey_is_luma() -> None:
    image = photograph(0)
    assert edits.grey(image, 1).tobytes() == image.convert("L").convert("RGB").tobytes()
    assert edits.grey(image, 0).tobytes() == image.tobytes()


def test_a_portrait_is_sharp_in_the_middle_and_blurred_around() -> None:
    image = photograph(0, (120, 90), grain=20)
    moved = np.abs(pixels(edits.portrait(image, 3)) - pixels(image)).mean(2)
    assert moved[40:50, 55:65].max() == 0 and moved[:8, :8].mean() > 5


def test_painting_keeps_edges_and_loses_grain() -> None:
    rng = np.random.default_rng(0)
    levels = np.where(np.arange(80) < 40, 60, 190)[None, :, None] + 6 * rng.standard_normal((80, 80, 3))
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    painted = pixels(edits.paint(image, 30))
    assert painted[:, 5:30].std() < 0.4 * pixels(image)[:, 5:30].std()
    assert painted[:, 45:75].mean() - painted[:, 5:35].mean() > 110


def test_a_collage_repeats_the_picture_between_white_gutters() -> None:
    image = photograph(0, (200, 120))
    sheet = pixels(edits.collage(image, 2))
    cell = sheet[1:60, 1:99]
    assert (sheet[0] == 255).all() and (sheet[:, 0] == 255).all() and cell.mean() < 250
    np.testing.assert_array_equal(sheet[1:60, 100:198], cell[:, ::-1])
    np.testing.assert_array_equal(sheet[60:119, 100:198], cell)


def test_a_screenshot_holds_the_picture_at_the_size_shown() -> None:
    image = Image.new("RGB", (100, 60), (200, 30, 30))
    page = pixels(edits.screenshot(image, 0.5, np.random.default_rng(1)))
    red = (page == (200, 30, 30)).all(2)
    assert red.sum() == 50 * 30 and red.any(1).sum() == 30 and red.any(0).sum() == 50


def test_a_scanned_print_has_the_range_of_ink_on_paper_and_grain() -> None:
    halves = np.where(np.arange(200) < 100, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(halves[None, :, None], (120, 200, 3)).copy())
    found = pixels(edits.rescan(image, 1, np.random.default_rng(0)))
    black, white = found[30:90, 30:80], found[30:90, 120:170]
    assert 20 < black.mean() < 40 and 215 < white.mean() < 250
    assert 2 < black.std() < 8 and white[..., 0].mean() > white[..., 2].mean()
