from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from corit_cli.data.images import ImageError, decode
from corit_cli.data.pages import sample_pages
from tests.conftest import photograph

FRAMES = [photograph(seed, (80, 60)) for seed in range(7)]


def animated(kind: str, duration: int = 200, frames: list[Image.Image] = FRAMES) -> bytes:
    data, extra = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {}
    extra |= {} if kind == "TIFF" else {"duration": duration}
    frames[0].save(data, kind, save_all=True, append_images=frames[1:], **extra)
    return data.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_every_frame_is_found(kind: str) -> None:
    data = animated(kind)
    assert decode(data).pages == 7
    found = sample_pages(data)
    assert [frame.number for frame in found.frames] == list(range(7)) and found.count == 7 and found.warning is None
    if kind != "GIF":  # of 256 colours
        for frame, expected in zip(found.frames, FRAMES, strict=True):
            assert (np.asarray(frame.image) == np.asarray(expected)).all()
    if kind == "TIFF":
        assert found.kind == "pages" and found.seconds == 0
    else:
        assert found.kind == "animation" and found.seconds == pytest.approx(1.4)
        assert [frame.seconds for frame in found.frames] == pytest.approx([0.2 * i for i in range(7)])


@pytest.mark.parametrize(("count", "numbers"), [(1, [3]), (2, [1, 5]), (3, [1, 3, 5]), (7, list(range(7)))])
def test_frames_are_spread_evenly(count: int, numbers: list[int]) -> None:
    assert [frame.number for frame in sample_pages(animated("PNG"), count).frames] == numbers


def test_a_rate_takes_frames_by_their_time() -> None:
    assert [frame.number for frame in sample_pages(animated("PNG"), rate=2.5).frames] == [0, 2, 4, 6]


def test_a_still_picture_has_one_page() -> None:
    for kind in ("PNG", "GIF", "TIFF", "WEBP", "JPEG"):
        data = io.BytesIO()
        FRAMES[0].save(data, kind)
        assert decode(data.getvalue()).pages == 1


def test_previews_of_a_jpeg_are_no_pages() -> None:
    data = io.BytesIO()
    FRAMES[0].save(data, "MPO", save_all=True, append_images=[FRAMES[1].resize((40, 32))])
    assert decode(data.getvalue()).pages == 1


def test_small_pages_are_passed_over() -> None:
    found = sample_pages(animated("TIFF", frames=[FRAMES[0].resize((20, 15)), FRAMES[1]]))
    assert [frame.number for frame in found.frames] == [1]
    with pytest.raises(ImageError, match="large enough"):
        sample_pages(animated("TIFF", frames=[frame.resize((20, 15)) for frame in FRAMES]))


def test_an_animation_that_is_cut_off_tells_how_far_it_was_read() -> None:
    data = animated("WEBP")
    try:
        found = sample_pages(data[: len(data) * 2 // 3])
    except ImageError:
        return  # the decoder wants all of it
    assert found.warning and "of 7 frames" in found.warning


def test_of_an_endless_animation_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corit_cli.data.pages.MOST_PIXELS", 3 * 80 * 60)
    found = sample_pages(animated("PNG"))
    assert [frame.number for frame in found.frames] == [0, 1, 2]
    assert found.warning == "only the first 3 of 7 frames were looked at"
