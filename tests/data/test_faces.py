from __future__ import annotations

import builtins
import json
import math
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data import faces
from corit_cli.data.faces import Face, FaceFinder, align, decode
from corit_cli.errors import CoritError

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights" / "faces"
BOX = (182, 58, 270, 178)  # the face of the astronaut, within a few pixels


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder(WEIGHTS)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    """512 x 512, one face, upright. NASA, public domain."""
    return Image.open(ROOT / "examples" / "real" / "astronaut.png").convert("RGB")


def texture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def face_at(x: float, y: float, side: float, tilt: float = 0) -> Face:
    """A face with its eyes half a side apart, a quarter of a side above (x, y) before it is turned clockwise."""
    upright = side * np.array([[-0.25, -0.25], [0.25, -0.25], [0, 0], [-0.2, 0.25], [0.2, 0.25]])
    c, s = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    landmarks = upright @ np.array([[c, s], [-s, c]]) + (x, y)
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 1.0, landmarks)


def overlap_of(a, b) -> float:
    """Intersection over union of two boxes."""
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - common)


# --- finding --------------------------------------------------------------------------------------


def assert_is_the_astronaut(found: list[Face], scale: float = 1, shift: tuple[float, float] = (0, 0)) -> None:
    (face,) = found
    expected = scale * np.array(BOX) + np.tile(shift, 2)
    assert overlap_of(face.box, expected) > 0.8
    left, top, right, bottom = face.box
    x, y = face.landmarks.T
    assert ((x > left) & (x < right) & (y > top) & (y < bottom)).all()
    assert x[0] < x[2] < x[1] and x[3] < x[4]  # the nose is between the eyes
    assert max(y[:2]) < y[2] < min(y[3:])  # eyes, nose, mouth
    assert abs(face.tilt) < 10
    assert 0.5 < face.score < 1


def test_the_astronaut_is_found(finder: FaceFinder, astronaut: Image.Image) -> None:
    assert_is_the_astronaut(finder(astronaut))


@pytest.mark.parametrize("scale, longest", [(0.5, 1024), (1.2, 1024), (1.2, 400), (4, 300)])
def test_boxes_are_in_pixels_of_the_image_given(astronaut: Image.Image, scale: float, longest: int) -> None:
    side = round(512 * scale)
    image = astronaut.resize((side, side), Image.Resampling.BICUBIC)
    assert_is_the_astronaut(FaceFinder(WEIGHTS, longest=longest)(image), scale)


def test_sides_that_are_no_multiple_of_anything(finder: FaceFinder, astronaut: Image.Image) -> None:
    assert_is_the_astronaut(finder(astronaut.crop((101, 7, 398, 310))), shift=(-101, -7))


def test_a_wide_image_is_shrunk_without_distortion(astronaut: Image.Image) -> None:
    canvas = Image.new("RGB", (1537, 512), "gray")
    canvas.paste(astronaut, (1000, 0))
    assert_is_the_astronaut(FaceFinder(WEIGHTS, longest=800)(canvas), shift=(1000, 0))


def test_a_face_cut_by_the_edge(finder: FaceFinder, astronaut: Image.Image) -> None:
    (face,) = finder(astronaut.crop((210, 0, 512, 512)))
    assert face.box[0] < 5
    assert align(astronaut.crop((210, 0, 512, 512)), face).width > 100


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (40, 30), (320, 200)])
def test_no_face_in_a_flat_image(finder: FaceFinder, size: tuple[int, int]) -> None:
    assert finder(Image.new("RGB", size, (180, 140, 120))) == []


@pytest.mark.parametrize("name", ["chelsea.png", "coffee.png", "rocket.jpg"])
def test_no_face_in_photographs_without_one(finder: FaceFinder, name: str) -> None:
    assert finder(Image.open(ROOT / "examples" / "real" / name).convert("RGB")) == []


def crowd(astronaut: Image.Image) -> Image.Image:
    """Four times the same face, at different sizes: their sides are 65, 97, 122 and 146 percent of the original."""
    head = astronaut.crop((142, 18, 310, 218))  # (168, 200)
    canvas = Image.new("RGB", (900, 330), "gray")
    for x, scale in ((10, 0.65), (130, 0.97), (310, 1.22), (530, 1.46)):
        canvas.paste(head.resize((round(168 * scale), round(200 * scale)), Image.Resampling.BICUBIC), (x, 10))
    return canvas


def test_a_crowd_comes_largest_first_and_is_limited(astronaut: Image.Image) -> None:
    image = crowd(astronaut)
    found = FaceFinder(WEIGHTS)(image)
    assert len(found) == 4
    assert [face.area for face in found] == sorted((face.area for face in found), reverse=True)
    assert [face.box[0] for face in found] == sorted((face.box[0] for face in found), reverse=True)
    assert [face.box for face in FaceFinder(WEIGHTS, most=2)(image)] == [face.box for face in found[:2]]
    least = sorted(min(face.box[2] - face.box[0], face.box[3] - face.box[1]) for face in found)[2]
    assert len(FaceFinder(WEIGHTS, smallest=least)(image)) == 2
    scores = sorted(face.score for face in found)
    assert len(FaceFinder(WEIGHTS, threshold=(scores[0] + scores[1]) / 2)(image)) == 3


def test_an_image_of_another_size_before_changes_nothing(astronaut: Image.Image) -> None:
    small = astronaut.crop((130, 0, 330, 200))
    finder = FaceFinder(WEIGHTS)
    finder(astronaut)
    (after,), (first,) = finder(small), FaceFinder(WEIGHTS)(small)
    assert (after.box, after.score) == (first.box, first.score)
    np.testing.assert_array_equal(after.landmarks, first.landmarks)


def test_threads_take_turns(finder: FaceFinder, astronaut: Image.Image) -> None:
    images = [astronaut.crop((130, 0, 330 + 20 * i, 200 + 30 * i)) for i in range(4)]
    alone = [[face.box for face in finder(image)] for image in images]
    assert len({tuple(boxes) for boxes in alone}) == 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: [face.box for face in finder(image)], images * 2))
    assert together == alone * 2


# --- reading the network's outputs ------------------------------------------------------------------


def decode_slowly(heat, size, offset, landmarks, threshold):
    """One cell after the other, one number after the other."""
    boxes, scores, points = [], [], []
    for i in range(heat.shape[1]):
        for j in range(heat.shape[2]):
            if heat[0, i, j] <= threshold:
                continue
            height, width = 4 * math.exp(size[0, i, j]), 4 * math.exp(size[1, i, j])
            middle_y, middle_x = 4 * (i + 0.5 + offset[0, i, j]), 4 * (j + 0.5 + offset[1, i, j])
            left, top = middle_x - width / 2, middle_y - height / 2
            boxes.append([left, top, left + width, top + height])
            scores.append(heat[0, i, j])
            five = []
            for k in range(5):
                down, right = landmarks[2 * k, i, j], landmarks[2 * k + 1, i, j]
                five.append([left + right * width, top + down * height])
            points.append(five)
    return np.array(boxes).reshape(-1, 4), np.array(scores), np.array(points).reshape(-1, 5, 2)


@pytest.mark.parametrize("threshold", [0.2, 0.7, 1.0])
def test_decoding_agrees_with_a_slow_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    heat, size = rng.random((1, 5, 7)), rng.normal(1, 1, (2, 5, 7))
    offset, landmarks = rng.normal(0, 1, (2, 5, 7)), rng.random((10, 5, 7))
    fast, slow = (f(heat, size, offset, landmarks, threshold) for f in (decode, decode_slowly))
    for a, b in zip(fast, slow, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b)
    assert (len(fast[1]) == 0) == (threshold == 1.0)


BOXES = st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2, st.integers(0, 5)), max_size=12)


def boxes_and_scores(drawn: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(drawn, float).reshape(-1, 5)
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:4]], 1), 0.6 + values[:, 4] / 20


@settings(deadline=None)
@given(BOXES, st.floats(0, 1))
def test_overlapping_boxes_are_suppressed(drawn: list[tuple[int, ...]], overlap: float) -> None:
    boxes, scores = boxes_and_scores(drawn)
    finder = FaceFinder(WEIGHTS, overlap=overlap, smallest=0, most=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder, "_run", lambda pixels: ())
        patch.setattr(faces, "decode", lambda threshold: (boxes, scores, np.zeros((len(boxes), 5, 2))))
        found = finder(Image.new("RGB", (64, 64)))
    kept = [(*face.box, face.score) for face in found]
    given = [(*box, score) for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)]
    assert not Counter(kept) - Counter(given)
    for k, one in enumerate(kept):
        assert all(overlap_of(one, other) <= overlap + 1e-6 for other in kept[:k])
    for one in (Counter(given) - Counter(kept)).elements():  # what was dropped overlaps something at least as good
        assert any(overlap_of(one, other) > overlap - 1e-6 and other[4] >= one[4] for other in kept)


# --- cutting out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [0, 9, -9])
def test_an_upright_face_keeps_its_pixels(tilt: float) -> None:
    image = texture(200, 160)
    crop = np.asarray(align(image, face_at(90, 70, 40, tilt), margin=0.25))
    np.testing.assert_array_equal(crop, np.asarray(image)[40:100, 60:120])


def test_the_margin_is_measured_by_the_longer_side() -> None:
    face = Face((80, 60, 100, 110), 1.0, face_at(90, 85, 20).landmarks)
    assert align(texture(200, 200), face, margin=0).size == (50, 50)
    assert align(texture(200, 200), face, margin=0.5).size == (100, 100)
    assert align(texture(200, 200), face, size=32).size == (32, 32)


@pytest.mark.parametrize("quarters, back", [(1, 1), (2, 2), (-1, 3), (-2, 2)])
def test_quarter_turns_are_exact(quarters: int, back: int) -> None:
    image = texture(200, 160)
    crop = np.asarray(align(image, face_at(90, 70, 40, 90 * quarters + 4), margin=0.25))
    np.testing.assert_array_equal(crop, np.rot90(np.asarray(image)[40:100, 60:120], back))


def drawn(face: Face, width: int = 300, height: int = 300) -> Image.Image:
    """A smooth picture in which the left eye is a red spot and the right one a green spot."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.zeros((height, width, 3))
    for channel, (a, b) in enumerate(face.landmarks[:2]):
        pixels[..., channel] = 255 * np.exp(-((x + 0.5 - a) ** 2 + (y + 0.5 - b) ** 2) / 18)
    return Image.fromarray(pixels.astype(np.uint8))


def spot(crop: Image.Image, channel: int) -> np.ndarray:
    """Centre of mass of a channel: x, y."""
    weight = np.asarray(crop, float)[..., channel]
    y, x = np.mgrid[0 : crop.height, 0 : crop.width] + 0.5
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@settings(max_examples=30, deadline=None)
@given(st.floats(-179, 179))
def test_eyes_end_level(tilt: float) -> None:
    face = face_at(150, 150, 100, tilt)
    assert face.tilt == pytest.approx(tilt, abs=1e-6)
    crop = align(drawn(face), face)
    assert crop.size == (160, 160)
    across, down = spot(crop, 1) - spot(crop, 0)
    left = tilt - 90 * round(tilt / 90)
    remaining = left if abs(left) <= faces.MAX_TILT else 0
    assert math.degrees(math.atan2(down, across)) == pytest.approx(remaining, abs=1)
    assert math.hypot(across, down) == pytest.approx(50, abs=0.5)  # native resolution
    middle = (spot(crop, 0) + spot(crop, 1)) / 2
    if not remaining:
        assert middle == pytest.approx([80, 55], abs=1.5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(30, 90),
    st.integers(30, 90),
    st.floats(-60, 150),
    st.floats(-60, 150),
    st.floats(1, 150),
    st.floats(0, 1),
)
def test_a_square_that_leaves_the_image_moves_inside(
    width: int, height: int, x: float, y: float, side: float, margin: float
) -> None:
    y_of, x_of = np.mgrid[0:height, 0:width]
    image = Image.fromarray(np.stack([x_of, y_of, 0 * x_of], 2).astype(np.uint8))  # each pixel says where it is
    face = face_at(x, y, side)
    crop = np.asarray(align(image, face, margin=margin)).astype(int)
    left, top, right, bottom = face.box  # x, y and side as a box holds them, rounded
    x, y, side = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
    n = max(1, min(round((1 + 2 * margin) * side), width, height))
    assert crop.shape == (n, n, 3)
    left, top = crop[0, 0, :2]
    np.testing.assert_array_equal(crop, np.asarray(image)[top : top + n, left : left + n])
    for corner, centre, length in ((left, x, width), (top, y, height)):
        assert corner == np.clip(round(centre - n / 2), 0, length - n)


@pytest.mark.parametrize("spare", [0, 1, 9])
@pytest.mark.parametrize(("left", "top"), [(0, 0), (11, 0), (0, 8), (11, 8), (5, 4), (5, 0), (0, 4), (11, 4), (5, 8)])
def test_a_square_is_mirrored_where_the_picture_ends(left: int, top: int, spare: int) -> None:
    pixels, side = np.random.default_rng(0).integers(0, 256, (20, 23, 3), dtype=np.uint8), 12
    found = np.asarray(faces._cut(Image.fromarray(pixels), left, top, side, spare))
    whole = np.pad(pixels, ((spare, spare), (spare, spare), (0, 0)), mode="symmetric")
    assert np.array_equal(found, whole[top : top + side + 2 * spare, left : left + side + 2 * spare])


def test_corners_of_a_turned_square_are_mirrored() -> None:
    crop = np.asarray(align(Image.new("RGB", (80, 80), (50, 100, 150)), face_at(40, 40, 50, 30)))
    assert crop.shape == (80, 80, 3)
    assert (crop == (50, 100, 150)).all()


# --- what can be missing --------------------------------------------------------------------------


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    shutil.copytree(WEIGHTS, folder)
    (name,) = json.loads((folder / "config.json").read_text())["sha256"]
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CoritError, match=r"damaged .* install corit again"):
        FaceFinder(folder)
    (folder / name).unlink()
    with pytest.raises(CoritError, match=r"centerface.onnx is missing"):
        FaceFinder(folder)
    with pytest.raises(CoritError, match=r"config.json is missing"):
        FaceFinder(tmp_path)


def test_without_opencv_s_libraries_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def no_cv2(name: str, *rest: object):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
        return load(name, *rest)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", no_cv2)
    with pytest.raises(CoritError, match=r"libGL\.so\.1.*apt-get install libgl1 libglib2\.0-0.*opencv-python-headless"):
        FaceFinder(WEIGHTS)
