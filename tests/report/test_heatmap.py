from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corit_cli.detection.heatmap import Heatmap
from corit_cli.errors import CoritError
from corit_cli.report.heatmap import NARROWEST, SHRUNK, colourise, overlay, save_overlay

GREY = Image.new("RGB", (400, 240), (128, 128, 128))


def halves(size: tuple[int, int] = (400, 240), covered: bool = True) -> Heatmap:
    """The left half looks changed, the right untouched."""
    rows, columns = 15, 25
    cells = np.where(np.arange(columns) < 12, 1.0, -1.0)[None].repeat(rows, 0).astype(np.float32)
    seen = np.ones(cells.shape, bool)
    seen[8:] = covered
    return Heatmap(cells * seen, seen, (0, 0, *size), size, 0.0, 1.0)


def test_the_photograph_keeps_its_place_and_size() -> None:
    drawn = overlay(GREY, halves(), 0.9, "fake")
    assert drawn.mode == "RGB" and drawn.width == 400 and 240 < drawn.height < 480


def test_what_looks_changed_is_warm_and_the_rest_is_grey() -> None:
    pixels = np.asarray(overlay(GREY, halves(), 0.9, "fake"), int)
    left, right = pixels[120, 60], pixels[120, 340]
    assert left[0] > left[2] + 60 and np.ptp(right) == 0


def test_what_is_not_covered_is_dark_and_colourless() -> None:
    pixels = np.asarray(overlay(GREY, halves(covered=False), 0.9, "fake"), int)
    below = pixels[200, 60]
    assert np.ptp(below) == 0 and below.max() < 64 < pixels[60, 60].max()


def test_the_photograph_shows_through() -> None:
    """Wherever evidence is, light and shade of the photograph stay in order."""
    light = Image.new("RGB", GREY.size, (220, 220, 220))
    dark, bright = (np.asarray(overlay(image, halves(), 0.9, "fake"), int)[:240] for image in (GREY, light))
    assert (bright - dark).min() > 10


def test_the_legend_tells_what_was_found() -> None:
    one, other = (np.asarray(overlay(GREY, halves(), p, v))[240:] for p, v in ((0.9, "fake"), (0.1, "real")))
    assert one.shape == other.shape and (one != other).any()
    assert (one < 100).all(-1).any()  # ink on paper
    again = np.asarray(overlay(GREY, halves(), 0.9, "fake"))[240:]
    assert (one == again).all()


def test_the_scale_is_the_same_for_all_images() -> None:
    """Half as much evidence has other colours, beside whatever else the image holds."""
    strong, weak = halves(), halves()
    weak.map[:] *= 0.5
    one, other = (np.asarray(overlay(GREY, e, 0.9, "fake"), int)[:240] for e in (strong, weak))
    assert (one[120, 60] != other[120, 60]).any()
    stretched = Heatmap(weak.map, weak.covered, weak.box, weak.size, 0.0, 0.5)
    assert np.array_equal(one, np.asarray(overlay(GREY, stretched, 0.9, "fake"), int)[:240])


def test_what_is_common_in_untouched_photographs_stays_grey() -> None:
    found = halves()
    shy = Heatmap(found.map, found.covered, found.box, found.size, 1.0, 2.0)
    pixels = np.asarray(overlay(GREY, shy, 0.9, "fake"), int)[:240]
    assert np.ptp(pixels, axis=2).max() == 0


def test_colours_grow_with_the_evidence() -> None:
    values = np.linspace(0, 1, 50, dtype=np.float32)[None]
    colours, weight = colourise(values)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma[0]) < 0).all() and (np.diff(weight[0]) > 0).all() and weight[0, 0] == 0
    assert colourise(values * 3)[1].max() == pytest.approx(colourise(np.ones((1, 1)))[1].item())
    assert not colourise(-values)[1].any()


@pytest.mark.parametrize("size", [(20, 30), (300, 40), (1, 1)])
def test_small_images_have_room_for_their_legend(size: tuple[int, int]) -> None:
    drawn = overlay(GREY.resize(size), halves(size), 0.5, "uncertain")
    assert drawn.width == max(NARROWEST, size[0])


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    size = (5000, 1000)
    drawn = overlay(Image.new("RGB", size, (90, 90, 90)), halves(size), 0.5, "uncertain")
    assert drawn.width == SHRUNK


def test_saving_is_a_png_or_a_clear_error(tmp_path: Path) -> None:
    save_overlay(GREY, halves(), 0.9, "fake", tmp_path / "map.png", "a.jpg")
    saved = Image.open(tmp_path / "map.png")
    assert saved.format == "PNG"
    assert np.array_equal(np.asarray(saved), np.asarray(overlay(GREY, halves(), 0.9, "fake")))
    with pytest.raises(CoritError, match="cannot write"):
        save_overlay(GREY, halves(), 0.9, "fake", tmp_path / "missing" / "map.png", "a.jpg")
