from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data import windows
from corit_cli.data.faces import SMALLEST, align
from corit_cli.data.settings import CropConfig
from corit_cli.data.windows import crop, crop_with_face
from corit_cli.errors import CoritError
from tests.conftest import OneFace


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width + height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (225, 224), (50, 40), (7, 300), (1, 1)])
@pytest.mark.parametrize("target", [48, 224])  # of a side of six times that whole blocks are averaged first
def test_resize_mode_equals_torchvision(size: tuple[int, int], target: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = noise(*size)
    oracle = transforms.Compose(
        [transforms.Resize(target, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(target)]
    )
    out = crop(image, CropConfig("resize", target, crops=5))
    assert out.shape == (1, target, target, 3)
    assert (out[0] == np.asarray(oracle(image))).all()


@pytest.mark.parametrize("count", [0, 1001, 10**8])
def test_windows_are_neither_none_nor_without_end(count: int) -> None:
    assert len(CropConfig("native", 224, 1000).windows) == 1000
    with pytest.raises(CoritError, match="crops must be at"):
        CropConfig("native", 224, count)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 50),
    flip=st.booleans(),
    size=st.sampled_from([1, 16, 31]),
    crops=st.integers(1, 7),
    mode=st.sampled_from(["native", "resize", "both"]),
)
def test_shapes_for_any_size(width: int, height: int, flip: bool, size: int, crops: int, mode: str) -> None:
    image = Image.new("RGB", (height, width) if flip else (width, height), (9, 8, 7))
    config = CropConfig(mode, size, crops)
    out = crop(image, config)
    assert out.dtype == np.uint8
    assert out.shape == (len(config.windows), size, size, 3)
    assert len(config.windows) == {"native": crops, "resize": 1, "both": crops + 1}[mode]
    assert (out == (9, 8, 7)).all()


@settings(max_examples=60, deadline=None)
@given(width=st.integers(16, 400), height=st.integers(16, 90), flip=st.booleans(), crops=st.integers(1, 7))
def test_native_windows_are_sub_arrays(width: int, height: int, flip: bool, crops: int) -> None:
    # A picture whose pixels hold their own coordinates, so that a window tells where it was cut.
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x % 256, y, x // 256], -1).astype(np.uint8)
    pixels = pixels.swapaxes(0, 1) if flip else pixels
    out = crop(Image.fromarray(np.ascontiguousarray(pixels)), CropConfig("native", 16, crops))
    for window in out:
        x0, y0 = int(window[0, 0, 0]) + 256 * int(window[0, 0, 2]), int(window[0, 0, 1])
        top, left = (x0, y0) if flip else (y0, x0)
        assert (window == pixels[top : top + 16, left : left + 16]).all()


def test_native_positions() -> None:
    assert windows._windows(100, 60, 20, 1) == [(40, 20)]
    assert windows._windows(100, 60, 20, 2) == [(15, 10), (65, 30)]
    assert windows._windows(60, 100, 20, 2) == [(10, 15), (30, 65)]
    assert windows._windows(40, 20, 20, 2) == [(0, 0), (20, 0)]  # twice as wide as high: two windows tile it
    assert windows._windows(20, 20, 20, 2) == [(0, 0), (0, 0)]


def test_both_is_resize_then_native() -> None:
    image = noise(300, 250)
    out = crop(image, CropConfig("both", 224, 2))
    assert (out[:1] == crop(image, CropConfig("resize", 224))).all()
    assert (out[1:] == crop(image, CropConfig("native", 224, 2))).all()


def test_native_enlarges_only_what_is_too_small() -> None:
    image = noise(30, 20)
    enlarged = np.asarray(image.resize((60, 40), Image.Resampling.BICUBIC))
    out = crop(image, CropConfig("native", 40, 2))
    assert (out == np.stack([enlarged[:, :40], enlarged[:, 20:]])).all()


def test_a_million_pixels_in_a_row_do_not_fill_the_memory() -> None:
    for mode in ("native", "resize"):
        assert crop(Image.new("RGB", (1_000_000, 1)), CropConfig(mode, 64, 2)).shape[1:] == (64, 64, 3)


@pytest.mark.parametrize("wrong", [{"mode": "squash"}, {"size": 0}, {"crops": 0}])
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(CoritError):
        CropConfig(**wrong)


def test_the_window_of_a_face_stands_last_and_may_be_missing(one_face: OneFace) -> None:
    image, config = noise(120, 100), CropConfig("both", 32, face=True)
    assert config.windows == ("resize", "native 1/1", "face")
    *others, face = crop_with_face(image, config)
    assert np.array_equal(np.stack(others), crop(image, config)) and len(others) == 2
    (found,) = one_face(image)
    assert np.array_equal(face, np.asarray(align(image, found, 32)))
    small = replace(found, box=(10.0, 5.0, 10.0 + SMALLEST - 1, 40.0))
    assert crop_with_face(image, config, [small])[-1] is None
    assert crop_with_face(image, config, [])[-1] is None and crop_with_face(noise(80, 80), config)[-1] is None
    asked = one_face.asked
    assert len(crop_with_face(image, replace(config, face=False))) == 2  # nothing is looked for in vain
    assert crop_with_face(image, config, [found])[-1] is not None and one_face.asked == asked
