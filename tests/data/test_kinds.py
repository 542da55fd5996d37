from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.data.images import read_image
from corit_cli.data.kinds import IMAGE, OTHER, RAW, VIDEO, kind_of, sniff
from corit_cli.data.opening import ImageError
from corit_cli.data.video import inspect, sample_frames
from tests.conftest import photograph

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "HEIF")


def encoded(kind: str) -> bytes:
    pillow_heif.register_heif_opener()
    data = io.BytesIO()
    photograph(1).save(data, kind)
    return data.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["a", "a.jpg_large", "a.mp4"])
def test_an_image_is_one_whatever_it_is_called(tmp_path: Path, kind: str, name: str) -> None:
    data = encoded(kind)
    (tmp_path / name).write_bytes(data)
    assert sniff(tmp_path / name).media == sniff(data).media == IMAGE
    assert read_image(tmp_path / name).size == read_image(data).size == (64, 48)


def film(path: Path, fourcc: str, size: tuple[int, int] = (96, 64)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), 4.0, size)
    assert writer.isOpened()
    for number in range(8):
        writer.write(np.asarray(photograph(number, size))[..., ::-1])
    writer.release()
    return path


@pytest.mark.parametrize(
    ("suffix", "fourcc"), [("mp4", "mp4v"), ("mkv", "mp4v"), ("avi", "FFV1"), ("ts", "mpg2"), ("webm", "VP80")]
)
@pytest.mark.parametrize("name", ["a", "a.jpg"])
def test_a_video_is_one_whatever_it_is_called(tmp_path: Path, suffix: str, fourcc: str, name: str) -> None:
    film(tmp_path / f"film.{suffix}", fourcc).rename(tmp_path / name)
    assert sniff(tmp_path / name).media == VIDEO
    assert inspect(tmp_path / name).frames >= 7 and len(list(sample_frames(tmp_path / name, 3))) == 3
    with pytest.raises(ImageError, match="video, not an image"):
        read_image(tmp_path / name)


OGG = b"OggS\0\2" + bytes(20) + b"\1\x1e"  # the header of a page


@pytest.mark.parametrize(
    ("head", "name", "media", "words"),
    [
        (b"%PDF-1.4\n", "a.jpg", OTHER, "PDF"),
        (b"PK\x03\x04", "a", OTHER, "ZIP"),
        (b"II*\0\x08\0\0\0", "a.NEF", RAW, "raw"),
        (b"II*\0\x08\0\0\0", "a.tif", IMAGE, "TIFF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a", RAW, "raw"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a", IMAGE, "HEIC"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  qt  ", "a", VIDEO, "MP4"),
        (b"\0\0\0\x1cftypM4V \0\0\0\0M4V M4A mp42", "a", VIDEO, "MP4"),
        (b"\0\0\0\x1cftypM4A \0\0\0\0M4A mp42isom", "a", OTHER, "sound"),
        (OGG + b"\x01vorbis" + bytes(23), "a.ogg", OTHER, "sound"),
        (OGG + b"OpusHead", "a.ogg", OTHER, "sound"),
        (OGG + b"\x80theora" + bytes(35) + OGG + b"\x01vorbis", "a.ogg", VIDEO, "Ogg"),
        (OGG + b"\x01vorbis" + bytes(23) + OGG + b"\x80theora", "a.ogg", VIDEO, "Ogg"),
        (b"P5\n# by a scanner\n640 480\n255\n", "a", IMAGE, "PNM"),
        (b"P6 640 480 255\n", "a", IMAGE, "PNM"),
    ],
)
def test_what_files_are(head: bytes, name: str, media: str, words: str) -> None:
    kind = kind_of(head, name)
    assert kind.media == media and words in kind.name


@pytest.mark.parametrize(
    "text", ["The free world\n", "BM\n", "P.S. I love you", "P1 title", "P5\nnotes", "P2 3 things"]
)
def test_text_is_nothing_known(text: str) -> None:
    assert kind_of(text.encode()) is None


def test_what_is_not_read_says_what_to_do(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.pdf", b"%PDF-1.4\n", "pdftoppm"),
        ("a.dng", encoded("TIFF"), "darktable"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "an HEIC image that cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=words):
            read_image(tmp_path / name)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\xff\xff\xff\xffftyp", b"RIFF", b"II*\0", b"\0\0\0\0ftyp"]))
def test_any_bytes_are_told_apart_at_once(tail: bytes, head: bytes) -> None:
    kind_of(head + tail, "a.tga")
