from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.config import options_of
from corit_cli.data import degrade
from corit_cli.data.degrade import (
    DEGRADATIONS,
    Degradation,
    blur,
    crop,
    fit,
    jpeg,
    noise,
    parse_degradation,
    resize,
    webp,
)
from corit_cli.data.opening import ImageError
from corit_cli.errors import CoritError
from corit_cli.training.settings import Recipe


def texture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def energy(image: Image.Image) -> float:
    """Mean squared step between neighbours: what compression and blur take away."""
    return float((np.diff(np.asarray(image, float), axis=1) ** 2).mean())


def error(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("codec", [jpeg, webp])
def test_lower_quality_loses_more(codec) -> None:
    losses = [error(codec(texture(), quality), texture()) for quality in (95, 60, 10)]
    assert 0 < losses[0] < losses[1] < losses[2]
    assert energy(codec(texture(), 5)) < 0.7 * energy(texture())


def test_jpeg_is_libjpeg_s_with_half_chroma() -> None:
    buffer = io.BytesIO()
    texture().save(buffer, "JPEG", quality=70, subsampling=2)
    assert error(jpeg(texture(), 70.4), Image.open(buffer).convert("RGB")) == 0


def test_blur_spreads_a_point_by_sigma() -> None:
    point = Image.new("RGB", (41, 41))
    point.putpixel((20, 20), (255, 255, 255))
    spread = np.asarray(blur(point, 2.0), float)[..., 0]
    x = np.arange(41) - 20
    assert (spread.sum(0) * x**2).sum() / spread.sum() == pytest.approx(4, rel=0.25)
    assert energy(blur(texture(), 1.5)) < energy(blur(texture(), 0.5)) < energy(texture())


def test_resize_and_crop_sizes() -> None:
    assert resize(texture(64, 48), 0.5).size == (32, 24)
    assert resize(texture(64, 48), 1.5).size == (96, 72)
    assert resize(texture(30, 3), 0.1).size == (3, 1)
    out = crop(texture(64, 48), 0.5)
    assert (np.asarray(out) == np.asarray(texture(64, 48))[12:36, 16:48]).all()
    assert error(crop(texture(), 1), texture()) == 0


def test_fit_brings_the_longer_side_down_and_never_up() -> None:
    assert fit(texture(64, 48), 32).size == (32, 24)
    assert fit(texture(48, 64), 32.4).size == (24, 32)
    assert fit(texture(64, 48), 64) == texture(64, 48)
    assert fit(texture(64, 1), 7).size == (7, 1)
    assert error(fit(texture(64, 48), 32), resize(texture(64, 48), 0.5)) == 0


def test_enlarging_ends_where_reading_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degrade, "MAX_PIXELS", 64 * 48 * 2)
    assert resize(texture(64, 48), 1.4).size == (90, 67)
    with pytest.raises(ImageError, match="2 times 64 x 48 pixels are too many"):
        resize(texture(64, 48), 2)


def test_resize_is_antialiased() -> None:
    assert np.asarray(resize(texture(), 0.25)).std() < 0.5 * np.asarray(texture()).std()


def test_noise_has_the_asked_spread() -> None:
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    difference = np.asarray(noise(grey, 5, np.random.default_rng(0)), float) - 128
    assert difference.std() == pytest.approx(5, rel=0.03)
    assert abs(difference.mean()) < 0.15
    assert abs(np.corrcoef(difference[..., 0].ravel(), difference[..., 1].ravel())[0, 1]) < 0.05
    white = noise(Image.new("RGB", (9, 9), "white"), 8, np.random.default_rng(0))
    assert np.asarray(white).min() > 200  # clipped, not wrapped round


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(DEGRADATIONS)),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_any_size_and_the_same_generator_gives_the_same_image(name: str, width: int, height: int, seed: int) -> None:
    image = texture(width, height)
    before = image.tobytes()
    one, two = (parse_degradation(name).apply(image, np.random.default_rng(seed)) for _ in range(2))
    assert one.mode == "RGB"
    assert (one.size, one.tobytes()) == (two.size, two.tobytes())
    assert image.tobytes() == before
    if name not in ("resize", "crop", "screenshot"):
        assert one.size == image.size


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_strengths_fill_the_range_and_stay_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    degradation = parse_degradation(name)
    low, high = degradation.low, degradation.high
    listening = replace(DEGRADATIONS[name], function=lambda image, strength, *rng: seen.append(strength))
    monkeypatch.setitem(DEGRADATIONS, name, listening)
    rng = np.random.default_rng(0)
    for _ in range(300):
        degradation.apply(texture(1, 1), rng)
    span = high - low
    assert low <= min(seen) <= low + 0.1 * span
    assert high - 0.1 * span <= max(seen) <= high
    assert np.mean(seen) == pytest.approx((low + high) / 2, abs=0.1 * span)


def test_parse() -> None:
    assert parse_degradation("jpeg:70-95") == Degradation("jpeg", 70, 95)
    assert parse_degradation("blur:.5-1.25") == Degradation("blur", 0.5, 1.25)
    assert parse_degradation(" noise:3 ") == Degradation("noise", 3, 3)
    assert parse_degradation("resize") == Degradation("resize", 0.5, 1.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sepia", "one of jpeg, webp"),
        ("sepia:1-2", "one of jpeg, webp"),
        ("", "unknown degradation"),
        ("jpeg:", "jpeg:70-95"),
        ("jpeg:high", "jpeg:70-95"),
        ("jpeg:-5", "jpeg:70-95"),
        ("jpeg:95-70", "low and a high"),
        ("jpeg:50-101", "within 1 to 100"),
        ("resize:0-1", "within 0.01 to 10"),
        ("crop:0.5-1.5", "within 0.01 to 1"),
    ],
)
def test_parse_errors(text: str, expected: str) -> None:
    with pytest.raises(CoritError, match=expected):
        parse_degradation(text)


def test_an_image_too_long_for_the_format() -> None:
    with pytest.raises(ImageError, match="20000 x 1 pixels are too many for a WEBP file"):
        webp(Image.new("RGB", (20_000, 1)), 80)


def test_the_help_of_training_names_them_all() -> None:
    help = dict(options_of(Recipe))["degrade"].help
    assert set(DEGRADATIONS) <= set(re.findall(r"\w+", help))
