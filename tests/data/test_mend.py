"""Faults that viewers look past, and those that they do not."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from corit_cli.data import jpeg
from corit_cli.data.images import NO_END, decode, inspect
from corit_cli.data.mend import CUT_SHORT, PASSED_OVER
from corit_cli.data.opening import ImageError
from tests.conftest import photograph
from tests.hostile import chunk

PHOTO = photograph(3, (320, 240), grain=12)
PNG_HEAD = 33  # bytes up to the end of the first chunk


def saved(kind: str = "JPEG", **options: object) -> bytes:
    data = io.BytesIO()
    PHOTO.save(data, kind, **options)
    return data.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
@settings(max_examples=12)
@given(cut=st.integers(2, 40))
def test_a_jpeg_that_lacks_its_last_bytes_is_shown_as_viewers_show_it(
    progressive: bool, subsampling: int, cut: int
) -> None:
    whole = saved(quality=92, progressive=progressive, subsampling=subsampling)
    found = decode(whole[:-cut])
    assert found.notes in ((CUT_SHORT,), (NO_END,))
    blocks = 16 if subsampling else 8
    reach = slice(0, (240 - 1) // blocks * blocks - 2)
    assert (pixels(found.image)[reach] == pixels(Image.open(io.BytesIO(whole)))[reach]).all()


def test_a_large_jpeg_that_lacks_its_end_is_held_once(tmp_path: Path) -> None:
    data = io.BytesIO()
    stripes = Image.fromarray(np.tile((np.arange(5000) // 8 % 200 + 20).astype(np.uint8), (5000, 1)))
    stripes.convert("RGB").save(data, "JPEG", quality=50)
    (tmp_path / "a.jpg").write_bytes(data.getvalue()[:-6])
    script = (
        "import resource, sys; from corit_cli.data.images import decode;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3;"
        "before = peak(); notes = decode(sys.argv[1]).notes; print(peak() - before, *notes)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.jpg")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    megabytes, _, notes = found.partition(" ")
    assert notes.strip() == CUT_SHORT and float(megabytes) < 1.5 * 100  # of four bytes a pixel


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_lacks_more_is_refused(progressive: bool, share: float) -> None:
    whole = saved(quality=92, progressive=progressive)
    with pytest.raises(ImageError, match="truncated"):
        decode(whole[: int(share * len(whole))])


def test_a_sound_file_has_no_notes() -> None:
    for options in ({}, {"progressive": True}, {"kind": "PNG"}):
        assert decode(saved(**options)).notes == ()
    assert decode(saved() + b"\0" * 1000).notes == ()  # padding
    assert decode(saved() + b"what a camera appends").notes == ()
    assert decode(saved()[:-2]).notes in ((CUT_SHORT,), (NO_END,))


def test_what_pillow_itself_makes_of_a_cut_jpeg_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(quality=92)[:-30]
    found = decode(data)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert (pixels(found.image) == pixels(Image.open(io.BytesIO(data)))).all()


@pytest.mark.parametrize("name", [b"iTXt", b"zTXt", b"iCCP"])
def test_a_bomb_beside_the_pixels_costs_nothing_but_a_note(name: bytes) -> None:
    bomb = zlib.compress(b"a" * 50_000_000, 9)
    body = {b"iTXt": b"big\0\1\0\0\0", b"zTXt": b"big\0\0", b"iCCP": b"big\0\0"}[name] + bomb
    plain = saved("PNG")
    data = plain[:PNG_HEAD] + chunk(name, body) + plain[PNG_HEAD:]
    found = decode(data)
    assert found.notes == (PASSED_OVER,) and (pixels(found.image) == pixels(PHOTO)).all()
    assert inspect(data).format == "PNG"


def test_a_damaged_text_costs_nothing_but_a_note() -> None:
    plain = saved("PNG")
    broken = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    broken[-1] ^= 0xFF  # its check sum
    found = decode(plain[:PNG_HEAD] + bytes(broken) + plain[PNG_HEAD:])
    assert found.notes == (PASSED_OVER,) and (pixels(found.image) == pixels(PHOTO)).all()


def test_damaged_pixels_are_no_metadata() -> None:
    plain = bytearray(saved("PNG"))
    plain[len(plain) // 2] ^= 0xFF
    with pytest.raises(ImageError):
        decode(bytes(plain))


def test_the_scans_of_a_jpeg() -> None:
    baseline, progressive = saved(), saved(progressive=True)
    assert jpeg.scans(baseline) == jpeg.Scans(1, True, True)
    assert jpeg.scans(progressive) == jpeg.Scans(progressive.count(b"\xff\xda"), True, True)
    last = progressive.rindex(b"\xff\xda")
    found = jpeg.scans(progressive[:last])
    assert not found.end and not found.complete


@given(st.binary(max_size=200))
def test_the_scans_of_anything(tail: bytes) -> None:
    jpeg.scans(b"\xff\xd8" + tail)
    jpeg.scans(b"\xff\xd8\xff\xda" + tail)
