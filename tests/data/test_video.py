from __future__ import annotations

import os
import struct
import subprocess
import sys
import weakref
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data import video
from corit_cli.data.video import Frame, VideoError, inspect, sample_frames
from corit_cli.errors import CoritError

BITS = 10
WIDTH, HEIGHT, FPS = 16 * BITS, 48, 25.0


def picture(number: int) -> np.ndarray:
    """(H, W, 3) BGR: a bright stripe for each bit of the number, the top half blue and the bottom half red."""
    pixels = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            pixels[:, 16 * bit : 16 * (bit + 1)] = 160
    pixels[: HEIGHT // 2, :, 0] += 80
    pixels[HEIGHT // 2 :, :, 2] += 80
    return pixels


def number_of(image: Image.Image) -> int:
    """The inverse of :func:`picture`; fails unless the image is RGB and upright."""
    pixels = np.asarray(image, float)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels[: HEIGHT // 3, :, 2].mean() > pixels[: HEIGHT // 3, :, 0].mean() + 30
    assert pixels[-HEIGHT // 3 :, :, 0].mean() > pixels[-HEIGHT // 3 :, :, 2].mean() + 30
    stripes = pixels[4:-4, :, 1].reshape(-1, BITS, 16)[:, :, 4:12].mean((0, 2))  # (BITS,)
    return sum(1 << bit for bit in range(BITS) if stripes[bit] > 95)


def write(path: Path, frames: int, fps: float = FPS, codec: str | None = None) -> Path:
    codec = codec or {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}[path.suffix]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("video") / "hundred.mp4", 100)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 seconds."""
    return write(tmp_path_factory.mktemp("video") / "long.mp4", 1000)


def check(frames: list[Frame]) -> list[int]:
    """The numbers of the frames, after making sure that number, time and picture agree."""
    for frame in frames:
        assert number_of(frame.image) == frame.number
        assert frame.seconds == pytest.approx(frame.number / FPS, abs=2e-3)
    return [frame.number for frame in frames]


# --- what is in a video ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
@pytest.mark.parametrize("frames", [1, 60])
def test_info(tmp_path: Path, suffix: str, frames: int) -> None:
    info = inspect(write(tmp_path / f"a{suffix}", frames))
    assert (info.frames, info.fps, info.width, info.height) == (frames, FPS, WIDTH, HEIGHT)
    assert info.duration == pytest.approx(frames / FPS, abs=2e-3)
    assert info.warning is None


# --- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_stand_in_the_middle_of_equal_parts(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", 40)
    assert check(list(sample_frames(path, 4))) == [5, 15, 25, 35]
    assert check(list(sample_frames(path, 1))) == [20]
    assert check(list(sample_frames(path, 40))) == list(range(40))


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 130))
def test_any_number_of_frames(hundred: Path, frames: int) -> None:
    numbers = check(list(sample_frames(hundred, frames)))
    assert len(numbers) == min(frames, 100)
    # Every part's middle has its frame: none is further than half a part and one frame from it.
    for i in range(frames):
        assert min(abs(number - (i + 0.5) * 100 / frames) for number in numbers) <= 1


@pytest.mark.parametrize("rate, expected", [(5, range(0, 100, 5)), (25, range(100)), (100, range(100)), (0.5, [0, 50])])
def test_rate(hundred: Path, rate: float, expected) -> None:
    assert check(list(sample_frames(hundred, rate=rate))) == list(expected)


def test_jumping_and_decoding_give_the_same_frames(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = []
    jump = video._Reader.jump
    monkeypatch.setattr(video._Reader, "jump", lambda self, moment: (jumps.append(moment), jump(self, moment))[1])
    info = inspect(long)
    jumps.clear()
    jumped = check(list(sample_frames(long, 8, info=info)))
    assert len(jumps) == 7  # not to the first, which is near
    jumps.clear()
    monkeypatch.setattr(video, "FAR", 1e9)
    assert check(list(sample_frames(long, 8, info=info))) == jumped == list(range(62, 1000, 125))
    assert not jumps


def test_a_video_that_lets_nobody_jump_is_decoded(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jump = video._Reader.jump
    monkeypatch.setattr(video._Reader, "jump", lambda self, moment: jump(self, 0 if moment > 10 else moment))
    assert check(list(sample_frames(long, 5, info=inspect(long)))) == [100, 300, 500, 700, 900]


def test_variable_frame_rate(tmp_path: Path) -> None:
    """The first ten frames last 40 ms each, the other ten 400 ms: half of all samples fall on the last few."""
    path = write(tmp_path / "a.mp4", 20)
    data = bytearray(path.read_bytes())
    stts = data.index(b"stts")
    entries, samples, ticks = struct.unpack_from(">III", data, stts + 8)
    assert (entries, samples) == (1, 20)
    # The second entry takes eight bytes more, and so does every box around the table. The pixels lie before it.
    table = struct.pack(">III", 2, 10, ticks) + struct.pack(">II", 10, 10 * ticks)
    data[stts + 8 : stts + 20] = table
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        at = data.index(name) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 8)
    for name, offset in ((b"mdhd", 16), (b"mvhd", 16), (b"tkhd", 20), (b"elst", 8)):
        if name in data:
            at = data.index(name) + 4 + offset
            duration = struct.unpack_from(">I", data, at)[0]
            struct.pack_into(">I", data, at, duration * 11 // 2)
    path.write_bytes(data)
    info = inspect(path)
    assert info.duration == pytest.approx(4.4, abs=0.4)
    frames = list(sample_frames(path, 400, info=info))
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.seconds for frame in frames] == pytest.approx(
        [0.04 * i for i in range(10)] + [0.4 + 0.4 * i for i in range(10)], abs=2e-3
    )
    later = [number_of(frame.image) for frame in sample_frames(path, 10, info=info)]
    assert sum(number >= 10 for number in later) >= 8


def test_a_turned_video_comes_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", data, matrix)[0] == 1 << 16
    one = 1 << 16
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)  # a quarter turn clockwise
    path.write_bytes(data)
    info = inspect(path)
    assert (info.width, info.height) == (HEIGHT, WIDTH)
    images = [frame.image for frame in sample_frames(path)]
    assert [number_of(image.transpose(Image.Transpose.ROTATE_90)) for image in images] == [0, 1, 2]


# --- memory ---------------------------------------------------------------------------------------


def test_frames_are_read_when_asked_for_and_not_kept(hundred: Path) -> None:
    images: list[weakref.ref] = []
    for frame in sample_frames(hundred, rate=25):
        images.append(weakref.ref(frame.image))
        assert sum(image() is not None for image in images) <= 2
    assert len(images) == 100


def test_stopping_early_closes_the_file(hundred: Path) -> None:
    def opened() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link) == str(hundred.resolve()) for link in links)

    frames = sample_frames(hundred, 10)
    next(frames)
    assert opened() == 1
    frames.close()
    assert opened() == 0


def test_reading_stops_when_it_is_told_to(long: Path) -> None:
    asked = count()
    with pytest.raises(VideoError, match="given up"):
        inspect(long, lambda: next(asked) == 5)
    assert next(asked) == 6  # no frame was decoded after that
    frames = sample_frames(long, rate=25, info=inspect(long), stop=lambda: next(asked) == 20)
    with pytest.raises(VideoError, match="given up"):
        list(frames)


def test_frames_of_too_many_pixels(hundred: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", WIDTH * HEIGHT)
    assert inspect(hundred).frames == 100
    monkeypatch.setattr(video, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for read in (inspect, sample_frames):
        with pytest.raises(VideoError, match=r"frames of \d+ megapixels, more than the limit"):
            read(hundred)


# --- broken videos --------------------------------------------------------------------------------


def test_a_torn_off_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", 200)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    info = inspect(path)
    assert 80 < info.frames < 120
    assert info.warning is not None and info.warning.endswith("of 8.0 seconds can be read")
    assert info.duration == pytest.approx(info.frames / FPS)
    numbers = check(list(sample_frames(path, 10, info=info)))
    assert len(numbers) == 10
    assert numbers[-1] >= 0.9 * info.frames


def test_an_end_overwritten_with_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 200)
    data = bytearray(path.read_bytes())
    start, end = data.index(b"mdat"), data.index(b"moov")
    middle = (start + end) // 2
    data[middle : end - 4] = bytes(end - 4 - middle)
    path.write_bytes(data)
    info = inspect(path)
    frames = list(sample_frames(path, 10, info=info))
    assert 1 <= len(frames) <= 10
    first = [frame for frame in frames if frame.number < 80]
    assert first and check(first)


@pytest.mark.parametrize("claim", [20, 900])
def test_a_header_that_lies_about_the_number_of_frames(tmp_path: Path, claim: int) -> None:
    path = write(tmp_path / "a.avi", 100)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 24, claim)
    struct.pack_into("<I", data, data.index(b"strh") + 40, claim)
    path.write_bytes(data)
    info = inspect(path)
    assert (info.frames, info.duration) == (100, 4)
    assert check(list(sample_frames(path, 4, info=info))) == [12, 37, 62, 87]


def test_one_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", 1)
    assert check(list(sample_frames(path))) == [0]
    assert check(list(sample_frames(path, rate=3))) == [0]


def unreadable(tmp_path: Path) -> dict[str, Path]:
    text, empty, cut = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "cut.mp4"
    text.write_text("not a video\n" * 100)
    empty.touch()
    cut.write_bytes(write(tmp_path / "whole.mp4", 10).read_bytes()[:600])  # the index is at the end
    os.mkfifo(tmp_path / "pipe.mp4")
    return {
        "no such file": tmp_path / "none.mp4",
        "is a folder": tmp_path,
        "file is empty": empty,
        "not a video": text,
        "that can be read": cut,
        "not a regular file": tmp_path / "pipe.mp4",
        "no such": text / "below.mp4",
        "cannot be opened": Path("a\0b.mp4"),
    }


def test_what_is_not_a_video_is_one_line(tmp_path: Path) -> None:
    for reason, path in unreadable(tmp_path).items():
        for read in (inspect, sample_frames):
            with pytest.raises(VideoError, match=reason) as caught:
                read(path)
            assert isinstance(caught.value, CoritError)
            assert "\n" not in str(caught.value)


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", 3)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"movi") + 4])
    with pytest.raises(VideoError):
        inspect(path)


def test_nothing_is_said_on_stderr(tmp_path: Path) -> None:
    """In a process of its own, since FFmpeg is told to be silent when OpenCV first reads a video."""
    noisy = write(tmp_path / "a.mp4", 60)
    data = bytearray(noisy.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, data.index(b"moov") - 2000, dtype=np.uint8).tobytes()
    data[1000 : 1000 + len(noise)] = noise
    noisy.write_bytes(data)
    script = """if True:
        import sys
        from corit_cli.data.video import VideoError, sample_frames
        for path in sys.argv[1:]:
            try:
                print(len(list(sample_frames(path, 5))) > 0)
            except VideoError:
                print("error")
    """
    paths = [noisy, *unreadable(tmp_path).values()][:-1]  # an argument cannot hold a null
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.stdout.split() == ["True"] + ["error"] * (len(paths) - 1)


def test_a_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.avi", 2).rename(tmp_path / "http:a.avi")
    monkeypatch.chdir(tmp_path)
    assert inspect("http:a.avi").frames == 2


@pytest.mark.parametrize("options", [{"frames": 0}, {"rate": 0}, {"rate": -1}, {"rate": float("nan")}])
def test_senseless_options(hundred: Path, options: dict) -> None:
    with pytest.raises(CoritError, match="must be"):
        sample_frames(hundred, **options)


# --- pixels that are not square, codecs that cannot be decoded --------------------------------------


def with_aspect(path: Path, across: int, up: int) -> Path:
    """The MP4 with a box that says which shape its pixels have, after its table of samples."""
    data = bytearray(path.read_bytes())
    box = struct.pack(">I4sII", 16, b"pasp", across, up)
    start, end = 0, len(data)
    for name, head in (
        (b"moov", 8),
        (b"trak", 8),
        (b"mdia", 8),
        (b"minf", 8),
        (b"stbl", 8),
        (b"stsd", 16),
        (b"mp4v", 0),
    ):
        at = start
        while bytes(data[at + 4 : at + 8]) != name:
            at += struct.unpack_from(">I", data, at)[0]
            assert at < end
        size = struct.unpack_from(">I", data, at)[0]
        data[at : at + 4] = struct.pack(">I", size + len(box))
        start, end = at + head, at + size
    assert data.index(b"mdat") < data.index(b"moov")  # places of frames stay as they are
    data[end:end] = box
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("across", "up", "width"), [(2, 1, 2 * WIDTH), (1, 2, WIDTH // 2), (1, 1, WIDTH), (100, 101, WIDTH)]
)
def test_frames_have_the_shape_that_is_shown(tmp_path: Path, across: int, up: int, width: int) -> None:
    path = with_aspect(write(tmp_path / "a.mp4", 10), across, up)
    assert (inspect(path).width, inspect(path).height) == (width, HEIGHT)
    frames = list(sample_frames(path, 3))
    assert [frame.image.size for frame in frames] == 3 * [(width, HEIGHT)]
    back = [Frame(f.number, f.seconds, f.image.resize((WIDTH, HEIGHT))) for f in frames]
    assert check(back) == [number_of(frame.image) for frame in back]


def test_a_codec_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", 10)
    data = path.read_bytes()
    assert b"V_MPEG4/ISO/ASP" in data
    path.write_bytes(data.replace(b"V_MPEG4/ISO/ASP", b"V_AV1".ljust(15, b"\0")))
    with pytest.raises(VideoError, match="coded as AV1; convert it first, for example with ffmpeg"):
        inspect(path)
