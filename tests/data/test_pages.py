from __future__ import annotations

import io
import struct
import weakref

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from corit_cli.data import pages
from corit_cli.data.images import decode
from corit_cli.data.opening import ImageError
from corit_cli.data.pages import Pages, sample_pages
from corit_cli.data.video import Frame
from tests.conftest import photograph
from tests.hostile import chunk

FRAMES = [photograph(seed, (80, 60)) for seed in range(7)]


def animated(kind: str, duration: int = 200, frames: list[Image.Image] = FRAMES) -> bytes:
    data, extra = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {}
    extra |= {} if kind == "TIFF" else {"duration": duration}
    frames[0].save(data, kind, save_all=True, append_images=frames[1:], **extra)
    return data.getvalue()


def sampled(*asked: object, **named: object) -> tuple[list[Frame], Pages]:
    about = Pages()
    return list(sample_pages(*asked, about=about, **named)), about


def numbers_of(*asked: object, **named: object) -> list[int]:
    return [frame.number for frame in sampled(*asked, **named)[0]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_every_frame_is_found(kind: str) -> None:
    data = animated(kind)
    assert decode(data).several
    frames, found = sampled(data)
    assert [frame.number for frame in frames] == list(range(7)) and found.count == 7 and found.warning is None
    if kind != "GIF":  # of 256 colours
        for frame, expected in zip(frames, FRAMES, strict=True):
            assert (np.asarray(frame.image) == np.asarray(expected)).all()
    assert [frame.shown for frame in frames] == pytest.approx([0 if kind == "TIFF" else 0.2] * 7)
    if kind == "TIFF":
        assert found.kind == "pages" and found.seconds == 0
    else:
        assert found.kind == "animation" and found.seconds == pytest.approx(1.4)
        assert [frame.seconds for frame in frames] == pytest.approx([0.2 * i for i in range(7)])


@pytest.mark.parametrize(("count", "numbers"), [(1, [3]), (2, [1, 5]), (3, [1, 3, 5]), (7, list(range(7)))])
def test_frames_are_spread_evenly(count: int, numbers: list[int]) -> None:
    assert numbers_of(animated("PNG"), count) == numbers


def test_a_rate_takes_frames_by_their_time_beside_those_that_are_spread() -> None:
    assert numbers_of(animated("PNG"), 1, rate=2.5) == [0, 2, 3, 4, 6]
    assert numbers_of(animated("PNG"), rate=0.1) == list(range(7))  # one a period would be the first alone
    assert numbers_of(animated("TIFF"), rate=10.0) == list(range(7))  # pages have no time


@pytest.mark.parametrize("promised", [12, 64, 2**31 - 1])
@pytest.mark.parametrize("count", [1, 3])
def test_an_animation_that_lies_about_its_frames_is_judged_by_those_it_has(promised: int, count: int) -> None:
    data = animated("PNG", frames=FRAMES[:3])
    if count == 1:
        second = data.index(b"fcTL", data.index(b"fcTL") + 4) - 4
        data = data[:second] + chunk(b"IEND", b"")
    at = data.index(b"acTL") - 4
    data = data[:at] + chunk(b"acTL", struct.pack(">II", promised, 0)) + data[at + 20 :]
    frames, found = sampled(data, 3)
    assert {frame.number for frame in frames} == set(range(count))
    assert found.warning.startswith(f"only {count} of {promised} frames can be read")


def test_frames_are_held_one_at_a_time() -> None:
    alive: list[weakref.ref] = []
    for frame in sample_pages(animated("WEBP")):
        alive.append(weakref.ref(frame.image))
        del frame
        assert sum(one() is not None for one in alive) <= 1
    assert len(alive) == 7


def test_pages_that_grow_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = [FRAMES[0].resize((40, 40)), *(frame.resize((200, 200)) for frame in FRAMES[1:])]
    monkeypatch.setattr("corit_cli.data.pages.MOST_PIXELS", 100_000)
    frames, found = sampled(animated("TIFF", frames=grown))
    assert [frame.number for frame in frames] == [0, 1, 2] and found.warning.startswith("only 3 of 7 pages")
    monkeypatch.setattr("corit_cli.data.pages.MAX_PIXELS", 39_999)
    assert numbers_of(animated("TIFF", frames=grown)) == [0]


def test_frames_walked_over_and_taken_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corit_cli.data.pages.MOST_TAKEN", 4)
    assert numbers_of(animated("PNG"), 1, rate=1000.0) == [0, 1, 2, 3]
    monkeypatch.setattr("corit_cli.data.pages.MOST_FRAMES", 5)
    frames, found = sampled(animated("GIF"))
    assert max(frame.number for frame in frames) == 4 and found.warning == "only the first 5 of 7 frames were looked at"


def test_of_endless_pages_no_more_are_counted_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes more time to be found than the one before it."""
    data = animated("TIFF")
    reached, seek = [], TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "_seek", lambda own, number: (reached.append(number), seek(own, number))
    )
    for most, count, warning in (
        (4, 5, "only the first 4 of more than 4 pages were looked at"),
        (6, 7, "only the first 6 of more than 6 pages were looked at"),
        (7, 7, None),
        (8, 7, None),
    ):
        monkeypatch.setattr("corit_cli.data.pages.MOST_FRAMES", most)
        reached.clear()
        frames, found = sampled(data)
        assert [frame.number for frame in frames] == list(range(min(most, 7)))
        assert (found.count, found.warning) == (count, warning)
        assert max(reached) <= most


@pytest.mark.parametrize("mode", ["L", "F", "RGBA", "RGB"])
def test_a_page_is_held_as_it_is_and_as_rgb_and_no_more(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = animated("TIFF", frames=[frame.convert(mode) for frame in FRAMES])
    copied, copy = [], Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda own: (copied.append(own.mode), copy(own))[1])
    frames, _ = sampled(data)
    assert copied == (["RGB"] * 7 if mode == "RGB" else [])  # the next one is read into the same pixels
    for frame, expected in zip(frames, FRAMES, strict=True):
        grey = expected.convert("L").convert("RGB") if mode in "LF" else expected
        assert np.abs(np.asarray(frame.image, int) - np.asarray(grey)).max() <= 1


def test_a_still_picture_has_one_page() -> None:
    for kind in ("PNG", "GIF", "TIFF", "WEBP", "JPEG"):
        data = io.BytesIO()
        FRAMES[0].save(data, kind)
        assert not decode(data.getvalue()).several


def test_previews_of_a_jpeg_are_no_pages() -> None:
    data = io.BytesIO()
    FRAMES[0].save(data, "MPO", save_all=True, append_images=[FRAMES[1].resize((40, 32))])
    assert not decode(data.getvalue()).several


def test_a_page_that_is_broken_hides_no_other() -> None:
    data = io.BytesIO()
    FRAMES[0].save(data, "TIFF", save_all=True, append_images=FRAMES[1:4], compression="tiff_lzw")
    broken = bytearray(data.getvalue())
    with Image.open(io.BytesIO(broken)) as image:
        for number in (1, 2):
            image.seek(number)
            (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
            broken[start : start + length] = b"\xff" * length
    frames, found = sampled(bytes(broken))
    assert [frame.number for frame in frames] == [0, 3]
    assert np.array_equal(np.asarray(frames[1].image), np.asarray(FRAMES[3]))
    assert found.warning == "pages 2, 3 of 4 cannot be read"
    for most, numbers in ((1, [0]), (2, [0, 3]), (3, [0, 3])):  # others are taken in their places
        found = Pages()
        assert sorted(frame.number for frame in sample_pages(bytes(broken), most, None, found)) == numbers
        assert found.warning.startswith("page")


@pytest.mark.parametrize("small", [0, 1])
def test_a_file_is_gone_through_once_where_nothing_is_left_to_take(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, way = [], pages.open_image
    monkeypatch.setattr(pages, "open_image", lambda source: (opened.append(source), way(source))[1])
    data = animated("TIFF", frames=[FRAMES[0], *[FRAMES[1].resize((20, 15))] * small, FRAMES[2]])
    assert numbers_of(data) == [0, 1 + small] and len(opened) == 2  # to count them, and to look


def test_where_pages_cannot_be_read_or_are_small_others_are_found() -> None:
    data = io.BytesIO()
    FRAMES[0].save(data, "TIFF", save_all=True, append_images=[FRAMES[1]] * 19, compression="tiff_lzw")
    broken = bytearray(data.getvalue())
    with Image.open(io.BytesIO(broken)) as image:
        for number in range(1, 20):
            image.seek(number)
            (start,), (length,) = image.tag_v2[273], image.tag_v2[279]
            broken[start : start + length] = b"\xff" * length
    assert numbers_of(bytes(broken), 2) == [0]
    small = FRAMES[0].resize((20, 15))
    assert len(numbers_of(animated("TIFF", frames=[FRAMES[0], small] * 8), 4)) == 4


def test_small_pages_are_passed_over() -> None:
    assert numbers_of(animated("TIFF", frames=[FRAMES[0].resize((20, 15)), FRAMES[1]])) == [1]
    with pytest.raises(ImageError, match="large enough"):
        sampled(animated("TIFF", frames=[frame.resize((20, 15)) for frame in FRAMES]))


def test_an_animation_that_is_cut_off_tells_how_far_it_was_read() -> None:
    data = animated("WEBP")
    try:
        _, found = sampled(data[: len(data) * 2 // 3])
    except ImageError:
        return  # the decoder wants all of it
    assert found.warning and "of 7 frames" in found.warning


def test_of_an_endless_animation_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("corit_cli.data.pages.MOST_PIXELS", 3 * 80 * 60)
    frames, found = sampled(animated("PNG"))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert found.warning == "only the first 3 of 7 frames were looked at"
