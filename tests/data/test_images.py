from __future__ import annotations

import io
import os
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import BmpImagePlugin, Image, ImageCms, MpoImagePlugin

from corit_cli.data import colours, images, opening
from corit_cli.data.images import FileInfo, decode, inspect, read_image, resampled
from corit_cli.data.kinds import IMAGE_SUFFIXES
from corit_cli.data.opening import ImageError
from corit_cli.errors import CoritError
from tests.conftest import photograph


@pytest.fixture(autouse=True, scope="module")
def any_size() -> Iterator[None]:
    """Decoding is tested on pictures of a few pixels, whose values can be written down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MIN_SIDE", 1)
        yield


def photo(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth coloured picture with no symmetry."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    phase = seed + np.arange(3)
    pixels = 127 + 100 * np.sin(3 * x[..., None] * (1 + phase) + 2 * y[..., None] + phase)
    return Image.fromarray(pixels.astype(np.uint8))


def distance(a: Image.Image, b: Image.Image) -> float:
    assert a.mode == b.mode == "RGB"
    assert a.size == b.size
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_come_back_unchanged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photo().save(path)
    assert distance(read_image(path), photo()) == 0
    assert distance(read_image(str(path)), photo()) == 0


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".pgm", ".gif"}))
def test_every_searched_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    pillow_heif.register_heif_opener()
    path = tmp_path / f"a{suffix.upper()}"
    photo().save(path, quality=95, chroma=444)
    assert distance(read_image(path), photo()) < 3


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    photo().convert("CMYK").save(path, quality=95)
    assert Image.open(path).mode == "CMYK"
    assert distance(read_image(path), photo()) < 3


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_16_bit_greyscale_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(path)
    out = np.asarray(read_image(path))
    assert (out == np.arange(256).reshape(16, 16, 1)).all()


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 200, np.uint16)).save(tmp_path / "a.png")
    assert (np.asarray(read_image(tmp_path / "a.png")) == 1).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]]), [0, 100, 255]),
        (np.array([[0.0, 257.0, 65535.0]]), [0, 1, 255]),
        (np.array([[-1.0, 0.0, 1.0]]), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1.0]]), [0, 0, 255]),
        (np.array([[0.0, 0.5, 1.004]]), [0, 128, 255]),  # a filter's overshoot
        (np.array([[-2.0, -2.0, -2.0]]), [0, 0, 0]),
        (np.array([[0, 100, 255]]), [0, 100, 255]),
        (np.array([[0, 1, 1]]), [0, 1, 1]),
        (np.array([[0, 1_000_000, 2_000_000]]), [0, 128, 255]),
    ],
)
def test_wide_greyscale_by_range(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(values.astype(np.float32 if values.dtype.kind == "f" else np.int32)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_bands_do_not_show(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The range is that of the whole picture, however many bands it is brought to 8 bits in."""
    values = np.random.default_rng(0).integers(0, 60_000, (3000, 1400)).astype(dtype)
    values[0, 0], values[-1, -1] = (0, 65_535) if dtype is np.uint16 else (-5000, 100_000)
    low, high = (0, 65_535) if dtype is np.uint16 else (-5000, 100_000)
    expected = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    assert (colours._to_8_bit(values) == expected).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 20, axis=1).repeat(30, axis=0))  # (30, 40)
    white_left = photo()
    white_left.paste("white", (0, 0, 20, 30))
    rgba = photo()
    rgba.putalpha(alpha)
    rgba.save(tmp_path / "rgba.png")
    assert distance(read_image(tmp_path / "rgba.png"), white_left) == 0

    grey = photo().convert("L")
    la = grey.copy()
    la.putalpha(alpha)
    la.save(tmp_path / "la.png")
    assert Image.open(tmp_path / "la.png").mode == "LA"
    grey.paste(255, (0, 0, 20, 30))
    assert distance(read_image(tmp_path / "la.png"), grey.convert("RGB")) == 0


@pytest.mark.parametrize("transparent", [1, bytes([255, 0, 255])])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_transparency(tmp_path: Path, suffix: str, transparent: int | bytes) -> None:
    if suffix == "gif" and isinstance(transparent, bytes):
        pytest.skip("a GIF has one transparent colour")
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    path = tmp_path / f"a.{suffix}"
    image.save(path, transparency=transparent)
    assert np.asarray(read_image(path))[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_transparency_keeps_half_tones(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 100, 200, 128)).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[0, 0].tolist() == pytest.approx([127, 177, 227], abs=1)


def test_one_bit_and_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert Image.open(tmp_path / "bit.png").mode == "1"
    assert np.asarray(read_image(tmp_path / "bit.png"))[0, :, 0].tolist() == [255, 0]
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").getpixel((0, 0)) == (1, 2, 3)


def test_a_second_picture_that_is_no_preview_is_noted(tmp_path: Path) -> None:
    file, picture = tmp_path / "a.jpg", photograph(1, (160, 120))
    for sizes, note in (([(160, 120)], "1 of 2"), ([(80, 60)], ""), ([(40, 30), (160, 120)], "1 of 3")):
        picture.save(file, format="MPO", save_all=True, append_images=[photograph(2, size) for size in sizes])
        found = decode(str(file))
        assert bool(note) == bool(found.notes) and note in " ".join(found.notes)
        assert found.image.size == picture.size


def test_of_many_pictures_in_a_file_a_few_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of each may be as long as the file."""
    file, picture = tmp_path / "a.jpg", photograph(1, (160, 120))
    picture.save(file, format="MPO", save_all=True, append_images=[picture] * 2)
    monkeypatch.setattr(images, "_MOST_BESIDE", 1)
    passed, seek = [], MpoImagePlugin.MpoImageFile.seek
    monkeypatch.setattr(MpoImagePlugin.MpoImageFile, "seek", lambda own, at: (passed.append(at), seek(own, at)))
    assert decode(file).notes == ("1 of 3 pictures in it judged; at least 1 of the others as large",)
    assert passed == [1]
    monkeypatch.setattr(images, "_MOST_BESIDE", 2)
    assert decode(file).notes == ("1 of 3 pictures in it judged; 2 of the others as large",)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert Image.open(path).n_frames == 2
    assert distance(read_image(path), frames[0]) < 3


# How a camera held in each orientation stores the upright picture: EXIF 2.32, table of the Orientation tag, as numpy.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("suffix", "tolerance"), [("jpg", 3), ("png", 0), ("tif", 0), ("webp", 3)])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str, tolerance: float) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = STORED[orientation](np.asarray(photo()))
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=98)
    assert distance(read_image(path), photo()) <= tolerance


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"II*\0\x08\0\0\0\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    photo().save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert distance(read_image(tmp_path / "a.jpg"), photo()) < 3


# --- what is in memory ----------------------------------------------------------------------------


def test_bytes_and_pictures_in_memory_are_read_as_the_file_is(tmp_path: Path) -> None:
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6
    photo(40, 30).save(path, exif=exif)
    expected, content = read_image(path), path.read_bytes()
    for source in (content, bytearray(content), memoryview(content), np.asarray(expected)):
        assert distance(read_image(source), expected) == 0
    with Image.open(path) as opened:
        assert distance(read_image(opened), expected) == 0
        assert distance(read_image(opened), expected) == 0  # it is the caller's, and stays open
        assert opened.size == (40, 30)


def test_a_caller_s_picture_is_not_shared(tmp_path: Path) -> None:
    given = photo()
    read_image(given).paste("red", (0, 0, 40, 30))
    assert distance(given, photo()) == 0


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "file is empty"),
        (b"this is a note", "not an image that can be read"),
        (b"\0\0\0\x18ftypisom" + bytes(16), "an MP4 video, which cannot be read from memory: run corit detect"),
        (np.zeros((40, 40, 3)), "must be \\(H, W, 3\\) of uint8, not \\(40, 40, 3\\) of float64"),
        (np.zeros((40, 40), np.uint8), "must be \\(H, W, 3\\) of uint8, not \\(40, 40\\) of uint8"),
        (np.zeros((40, 40, 4), np.uint8), "must be"),
        (np.zeros((0, 40, 3), np.uint8), "must be"),
    ],
    ids=["empty", "text", "video", "float", "grey", "alpha", "nothing"],
)
def test_what_in_memory_is_no_picture(source: bytes | np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_image(source)


# --- files that are no use ------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file is empty"),
        (b"this is a note", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a drawing, not a photograph: save it as PNG first"),
        (png_claiming(60_000, 60_000), "3600 megapixels, more than the limit of 200"),
        (png_claiming(20_000, 15_000), "300 megapixels, more than the limit of 200"),
        (png_claiming(20_000, 10_001), "201 megapixels, more than the limit of 200"),
    ],
    ids=["empty", "text", "eps", "bomb", "large", "hardly too large"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the module's own filter
def test_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for function in (read_image, inspect):
        with pytest.raises(ImageError) as error:
            function(tmp_path / "a.jpg")
        assert str(error.value) == reason
    assert issubclass(ImageError, CoritError)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, reason in [("none.jpg", "no such file"), ("", "is a folder"), ("pipe.jpg", "not a regular file")]:
        with pytest.raises(ImageError, match=f"^{reason}$"):
            read_image(tmp_path / path)


def test_a_panorama_within_the_limit_passes_silently(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_claiming(20_000, 9_900))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert inspect(tmp_path / "a.png").width == 20_000


@pytest.mark.parametrize("size", [(1, 1), (31, 300), (300, 31)])
def test_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(images, "MIN_SIDE", 32)
    photo(*size).save(tmp_path / "small.png")
    reason = f"{size[0]} x {size[1]} px is too small to judge: give at least 32 px a side"
    with pytest.raises(ImageError, match=f"^{reason}$"):
        read_image(tmp_path / "small.png")
    assert (inspect(tmp_path / "small.png").width, inspect(tmp_path / "small.png").height) == size
    photo(32, 32).save(tmp_path / "enough.png")
    assert read_image(tmp_path / "enough.png").size == (32, 32)


def test_a_jpeg_of_endless_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    photo(200, 150).save(path, progressive=True)
    content = path.read_bytes()
    scans = content.count(b"\xff\xda")
    assert scans == 10  # what libjpeg's standard progression takes, for colour
    last = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + 500 * last + content[-2:])
    monkeypatch.setattr(images, "MAX_SCAN_PIXELS", 16 * 200 * 150)
    with pytest.raises(ImageError, match=r"^damaged \(more than 16 passes over 200 x 150 pixels\)$"):
        read_image(path)
    path.write_bytes(content[:-2] + 6 * last + content[-2:])
    assert distance(read_image(path), photo(200, 150)) < 5


def run_lengths(width: int, height: int) -> bytes:
    """A BMP of 256 greys, run-length encoded: the first pixel of each row, and the end of the row."""
    data = (b"\x01\x55" + b"\0\0") * height + b"\0\x01"
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    sizes = struct.pack("<IHHI", 54 + len(palette) + len(data), 0, 0, 54 + len(palette))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 256)
    return b"BM" + sizes + header + palette + data


def test_a_large_run_length_compressed_bmp_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow does that in Python, pixel by pixel where a row ends early."""
    monkeypatch.setattr(BmpImagePlugin.BmpRleDecoder, "decode", lambda *_: pytest.fail("it is decoded"))
    large = run_lengths(6_250_000, 32)
    with Image.open(io.BytesIO(large)) as opened:
        assert images.held(opened) is opened
        for function, source in ((read_image, large), (inspect, large), (read_image, opened)):
            with pytest.raises(ImageError, match=r"^200 megapixels, .* limit of 10 for a run-length compressed BMP"):
                function(source)


def test_a_run_length_compressed_bmp_within_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = run_lengths(40, 30)
    expected = np.zeros((30, 40, 3), np.uint8)
    expected[:, 0] = 0x55
    assert (np.asarray(read_image(data)) == expected).all()
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        monkeypatch.setattr(opening, "MAX_RUN_PIXELS", 40 * 30 - 1)
        assert (np.asarray(read_image(opened)) == expected).all()  # as it is decoded already


def test_what_follows_a_jpeg_is_not_taken_for_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras append films and depth maps, which look like any bytes."""
    monkeypatch.setattr("corit_cli.data.images.MAX_SCAN_PIXELS", 20 * 64 * 48)
    path = tmp_path / "motion.jpg"
    photograph(1).save(path, quality=90, progressive=True)
    alone = path.read_bytes()
    path.write_bytes(alone + np.random.default_rng(0).bytes(20_000) + b"\xff\xda\x00\x02" * 100)
    assert read_image(path).size == (64, 48)
    image = alone.removesuffix(b"\xff\xd9")
    last = image[image.rindex(b"\xff\xda") :]
    path.write_bytes(image + last * 20 + b"\xff\xd9")
    with pytest.raises(ImageError, match="passes over"):
        read_image(path)


def test_nothing_is_said_on_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff would, and so would Pillow's log."""
    photo().save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    content = (tmp_path / "a.tif").read_bytes()
    strip = Image.open(tmp_path / "a.tif").tag_v2[273][0]
    (tmp_path / "a.tif").write_bytes(content[:strip] + b"\xff" * 40 + content[strip + 40 :])
    photo().save(tmp_path / "b.tif")
    content = (tmp_path / "b.tif").read_bytes()
    entry = content.index(struct.pack("<HHI", 277, 3, 1)) + 8  # SamplesPerPixel
    (tmp_path / "b.tif").write_bytes(content[:entry] + struct.pack("<H", 117) + content[entry + 2 :])
    for name in ("a.tif", "b.tif"):
        with pytest.raises(ImageError):
            read_image(tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "RGB"])
def test_large_images_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(images, "_LARGE", 40 * 30 - 1)
    for name, size in (("large", (40, 30)), ("small", (39, 30))):
        Image.new(mode, size, 7).save(tmp_path / f"{name}.png")
    inside, most = [], []

    def convert(image: Image.Image, convert=colours.to_rgb) -> Image.Image:
        inside.append(image)
        time.sleep(0.02)
        most.append(len(inside))
        inside.remove(image)
        return convert(image)

    monkeypatch.setattr(images, "to_rgb", convert)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_image, 4 * [tmp_path / "large.png"]))
        assert max(most) == 1
        list(pool.map(read_image, 4 * [tmp_path / "small.png"]))
        assert max(most) > 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photo(200, 150).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"^truncated$"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_one_line_error(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    suffix = data.draw(st.sampled_from(["jpg", "png", "gif", "webp", "bmp", "tif", "jp2", "ppm"]))
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    photo(24, 18).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert read_image(path).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)
        assert str(error)


@pytest.mark.parametrize("kind", [MemoryError, KeyError, struct.error, zlib.error, ZeroDivisionError, SyntaxError])
def test_whatever_a_decoder_throws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "to_rgb", lambda image: (_ for _ in ()).throw(kind("two\nlines")))
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_an_interrupt_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "to_rgb", lambda image: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read_image(tmp_path / "a.png")


# --- headers --------------------------------------------------------------------------------------


def test_inspect(tmp_path: Path) -> None:
    path = tmp_path / "misnamed.jpg"
    photo().save(path, format="PNG")
    assert inspect(path) == FileInfo("PNG", 40, 30, path.stat().st_size, None)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_quality_is_recovered_at_every_setting(tmp_path: Path, mode: str) -> None:
    for quality in range(1, 101):
        photo(8, 8).convert(mode).save(tmp_path / "a.jpg", quality=quality)
        assert inspect(tmp_path / "a.jpg").jpeg_quality == quality


def test_jpeg_quality_of_foreign_tables_is_the_nearest(tmp_path: Path) -> None:
    photo().save(tmp_path / "q.jpg", quality=80)
    table = [min(v + (i % 2), 255) for i, v in enumerate(Image.open(tmp_path / "q.jpg").quantization[0])]
    photo().save(tmp_path / "a.jpg", qtables=[table])
    assert inspect(tmp_path / "a.jpg").jpeg_quality in (79, 80)


def test_a_phone_s_multi_picture_file_is_a_jpeg(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[photo(seed=1)], quality=90)
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    info = inspect(tmp_path / "a.jpg")
    assert (info.format, info.jpeg_quality) == ("JPEG", 90)
    assert distance(read_image(tmp_path / "a.jpg"), photo()) < 3


# --- colour profiles ------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def adobe_rgb() -> bytes:
    """A profile of wider colours than sRGB's, as cameras write it."""
    return Image.open(Path(__file__).parents[2] / "examples/real/rocket.jpg").info["icc_profile"]


def apart(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in levels; dark wide colours have few levels in eight bits."""
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean())


@pytest.mark.parametrize("file", ["wide.png", "wide.tif", "wide.jpg", "bytes"])
def test_colours_are_those_that_a_viewer_shows(tmp_path: Path, file: str) -> None:
    shown = photograph(3, grain=0)
    wide = ImageCms.profileToProfile(shown, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb())))
    assert apart(wide, shown) > 5
    path = tmp_path / (file if file != "bytes" else "wide.png")
    wide.save(path, icc_profile=adobe_rgb(), **({"quality": 100, "subsampling": 0} if file == "wide.jpg" else {}))
    read = read_image(path.read_bytes() if file == "bytes" else path)
    assert apart(read, shown) < (2 if file == "wide.jpg" else 1)


def test_lab_pixels_are_brought_back(tmp_path: Path) -> None:
    shown = photograph(3, grain=0)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    ImageCms.profileToProfile(shown, SRGB, lab, outputMode="LAB").save(tmp_path / "lab.tif")
    assert apart(read_image(tmp_path / "lab.tif"), shown) < 2


@pytest.mark.parametrize("profile", [SRGB.tobytes(), b"", b"no profile", adobe_rgb()[:200], None])
def test_the_usual_and_broken_profiles_leave_pixels_alone(tmp_path: Path, profile: bytes | None) -> None:
    image = photograph(4)
    image.save(tmp_path / "a.png", icc_profile=profile)
    assert apart(read_image(tmp_path / "a.png"), image) == 0


def test_a_profile_of_other_colours_is_passed_over(tmp_path: Path) -> None:
    grey = photograph(4).convert("L")
    grey.save(tmp_path / "a.png", icc_profile=adobe_rgb())
    assert apart(read_image(tmp_path / "a.png"), grey.convert("RGB")) == 0


def test_what_shines_through_is_converted_too(tmp_path: Path) -> None:
    shown = photograph(3, grain=0)
    wide = ImageCms.profileToProfile(shown, SRGB, ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb())))
    wide.putalpha(255)
    wide.save(tmp_path / "a.png", icc_profile=adobe_rgb())
    assert apart(read_image(tmp_path / "a.png"), shown) < 1


@pytest.mark.parametrize(("size", "same"), [((1300, 1000), True), ((1400, 1344), False), ((3000, 2200), False)])
def test_resampling_is_bicubic_and_of_large_pictures_hardly_differs_from_it(size: tuple[int, int], same: bool) -> None:
    gap = _from_plain_resampling(photograph(3, size))
    assert gap.max() <= 3 and gap.mean() < 0.25
    assert (gap.max() == 0) == same


def test_resampling_of_the_finest_patterns_stays_close_to_bicubic() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    gap = _from_plain_resampling(Image.fromarray(noise))
    assert gap.max() <= 12 and gap.mean() < 2


def _from_plain_resampling(image: Image.Image) -> np.ndarray:
    """How far, in levels, pixels lie from those of a plain bicubic."""
    ours, plain = (np.asarray(a, int) for a in (resampled(image, (224, 168)), image.resize((224, 168), 3)))
    return np.abs(ours - plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_was_read_is_not_turned_again(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph(0, (48, 40)).save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    again = read_image(found)
    assert again.size == found.size and again.tobytes() == found.tobytes()
