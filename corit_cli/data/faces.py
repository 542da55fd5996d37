"""Finding the faces in an image and cutting them out.

The network is CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019,
arXiv:1911.03599), run by OpenCV. It sees a face as one point: on a grid of one cell per 4 x 4 pixels it says how likely
a face has its centre there, how large that face is, where in the cell its centre lies, and where its landmarks are.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from corit_cli.data.images import resampled
from corit_cli.data.opencv import load_opencv
from corit_cli.errors import CoritError
from corit_cli.files import weights_dir

SMALLEST = 64  # side of a face, in pixels, below which it is not worth a reading of its own
MAX_TILT = 10  # degrees a face may lean before it is turned
_CELL = 4  # pixels of the network's input per cell of its output, along each side
_MULTIPLE = 64  # the network halves its input five times; twice that, so that pictures share few sizes
_SIZES = 4  # sizes for which a network is kept
_OUTPUTS = ("537", "538", "539", "540")  # heat, size, offset, landmarks


@dataclass(frozen=True, eq=False)
class Face:
    """One face in an image.

    ``box`` is left, top, right, bottom in pixels of the image; it may reach past the image's edge. ``score`` is the
    network's, 0 to 1. ``landmarks`` (5, 2) are x and y of the eyes, the nose and the corners of the mouth; of each pair
    the one further left comes first when the face is upright.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)

    @property
    def side(self) -> float:
        """The box's longer side, in pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)

    @property
    def tilt(self) -> float:
        """Degrees by which the line through the eyes is turned clockwise from level, -180 to 180."""
        across, down = self.landmarks[1] - self.landmarks[0]
        return math.degrees(math.atan2(down, across))


class FaceFinder:
    """``finder(image)`` returns the faces in an RGB image, the largest first.

    An image whose longer side exceeds ``longest`` is shrunk to that for finding; what is returned is in pixels of the
    image given. ``threshold`` is the least score. Of two boxes whose intersection over union exceeds ``overlap`` the
    one with the lower score is dropped. Faces whose box has a side shorter than ``smallest`` pixels are dropped, and of
    a crowd only the ``most`` largest are kept.

    Landmarks hold up to a tilt of about 60 degrees. Lying faces and those upside down are mostly found too, with a box
    that fits and landmarks that do not.

    ``folder`` is ``weights/faces``. May be called from several threads: they take turns.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threshold: float = 0.5,
        overlap: float = 0.3,
        longest: int = 640,
        smallest: float = 40,
        most: int = 16,
    ) -> None:
        self.threshold, self.overlap, self.longest = threshold, overlap, longest
        self.smallest, self.most = smallest, most
        self._read = load_opencv().dnn.readNetFromONNX
        self._model = np.frombuffer(_model(folder), np.uint8)
        self._network = lru_cache(_SIZES)(self._new_network)
        self._lock = Lock()

    def __call__(self, image: Image.Image) -> list[Face]:
        shrink = min(1, self.longest / max(image.size))
        size = tuple(max(1, round(side * shrink)) for side in image.size)
        seen = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2) if shrink < 1 else image
        boxes, scores, landmarks = decode(*self._run(np.asarray(seen, np.float32)), self.threshold)
        scale = np.divide(image.size, seen.size)  # (2,)
        boxes, landmarks = boxes * np.tile(scale, 2), landmarks * scale
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)  # (n, 4), left, top, width, height
        kept = load_opencv().dnn.NMSBoxes(sides.tolist(), scores.tolist(), self.threshold, self.overlap)
        kept = [i for i in kept if _shorter_side(boxes[i]) >= self.smallest]
        faces = [Face(tuple(boxes[i].tolist()), float(scores[i]), landmarks[i]) for i in kept]
        return sorted(faces, key=lambda face: -face.area)[: self.most]

    def _run(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """The network's four outputs (C, H, W) for pixels (h, w, 3): see :func:`decode`."""
        height, width = (math.ceil(side / _MULTIPLE) * _MULTIPLE for side in pixels.shape[:2])
        padded = np.zeros((1, 3, height, width), np.float32)
        padded[0, :, : pixels.shape[0], : pixels.shape[1]] = pixels.transpose(2, 0, 1)
        with self._lock:  # a network keeps its state between setInput and forward
            network = self._network(padded.shape)
            network.setInput(padded)
            outputs = network.forward(_OUTPUTS)
        return tuple(output[0] for output in outputs)

    def _new_network(self, shape: tuple[int, ...]):
        """A network for inputs of one ``shape``: OpenCV 4 answers wrongly when it changes. Reading takes 40 ms."""
        return self._read(self._model)


@lru_cache(maxsize=1)
def finder() -> FaceFinder:
    """The finder that corit brings along, with what is said of :class:`FaceFinder`. Raises CoritError where OpenCV
    cannot be loaded."""
    return FaceFinder(weights_dir() / "faces")


def decode(
    heat: np.ndarray, size: np.ndarray, offset: np.ndarray, landmarks: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), scores (n,) and landmarks (n, 5, 2), in pixels of the network's input, of the n cells that are
    hotter than ``threshold``.

    For the cell in row i and column j, heat (1, H, W) is the score; size (2, H, W) holds the logarithms of the box's
    height and width in cells; offset (2, H, W) says how far down and right of (i + 1/2, j + 1/2) the box's centre lies,
    in cells; landmarks (10, H, W) say for each of the five how far down and right of the box's corner it lies, in
    fractions of the box's height and width.
    """
    rows, columns = np.nonzero(heat[0] > threshold)  # (n,)
    extent = _CELL * np.exp(size[:, rows, columns].T)  # (n, 2), height and width
    centre = _CELL * (np.stack([rows, columns], 1) + 0.5 + offset[:, rows, columns].T)  # (n, 2), y and x
    corner = centre - extent / 2  # (n, 2)
    boxes = np.concatenate([corner[:, ::-1], (corner + extent)[:, ::-1]], 1)  # (n, 4)
    points = landmarks[:, rows, columns].T.reshape(-1, 5, 2)  # (n, 5, 2), y and x
    points = corner[:, None] + points * extent[:, None]
    return boxes, heat[0, rows, columns], points[..., ::-1]


def align(image: Image.Image, face: Face, size: int | None = None, margin: float = 0.3) -> Image.Image:
    """A square crop around a face, upright.

    The square is centred on the box and as wide as its longer side plus ``margin`` times that on either side. Where it
    leaves the image it is moved inside, and one larger than the image is made as large as the image's shorter side:
    pixels that were not there would be taken for a forger's.

    Traces of a forgery live in untouched pixels, so these are kept where that is possible: a face that leans no more
    than ``MAX_TILT`` degrees is cut out as it is, quarter turns are exact, and only what then remains of a larger tilt
    is turned back by bicubic interpolation, at native resolution; corners that fall outside the image are mirrored.
    With ``size`` the crop is resampled to that many pixels a side, otherwise it stays as large as it is.
    """
    *corner, side = square(image.size, face, margin)
    quarters = round(face.tilt / 90)
    lean = face.tilt - 90 * quarters  # -45 to 45
    # A square cut and then turned has empty corners: cut a larger one, which holds the turned one, and trim it.
    spare = math.ceil(side * (math.sqrt(2) - 1) / 2) if abs(lean) > MAX_TILT else 0
    crop = _cut(image, *corner, side, spare)
    if quarters % 4:
        crop = crop.transpose(_QUARTERS[quarters % 4])
    if spare:
        crop = crop.rotate(lean, Image.Resampling.BICUBIC).crop((spare, spare, spare + side, spare + side))
    return crop if size in (None, side) else resampled(crop, (size, size))


def square(size: tuple[int, int], face: Face, margin: float = 0.3) -> tuple[int, int, int]:
    """Left, top and side of the square around a face that :func:`align` cuts from an image of ``size``."""
    left, top, right, bottom = face.box
    side = max(1, min(round((1 + 2 * margin) * face.side), *size))
    x, y = (
        min(max(round(centre - side / 2), 0), length - side)
        for centre, length in zip(((left + right) / 2, (top + bottom) / 2), size, strict=True)
    )
    return x, y, side


# Pillow turns counter-clockwise, which is what a face that leans clockwise needs.
_QUARTERS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def _cut(image: Image.Image, left: int, top: int, side: int, spare: int) -> Image.Image:
    """The square at (left, top), which lies in the image, and ``spare`` pixels around it, ``side`` at most, mirrored
    where the image ends."""
    right, bottom = left + side, top + side
    room = [left, top, image.width - right, image.height - bottom]
    lacking = [max(0, spare - there) for there in room]
    within = (
        left - spare + lacking[0],
        top - spare + lacking[1],
        right + spare - lacking[2],
        bottom + spare - lacking[3],
    )
    part = image.crop(within)
    if not any(lacking):
        return part
    around = ((lacking[1], lacking[3]), (lacking[0], lacking[2]), (0, 0))
    return Image.fromarray(np.pad(np.asarray(part), around, mode="symmetric"))


def _shorter_side(box: np.ndarray) -> float:
    return float((box[2:] - box[:2]).min())


def _model(folder: Path) -> bytes:
    """The network's file, its SHA-256 checked against the recorded one."""
    config = folder / "config.json"
    if not config.is_file():
        raise CoritError(f"{config} is missing: install corit again")
    ((name, expected),) = json.loads(config.read_text())["sha256"].items()
    path = folder / name
    if not path.is_file():
        raise CoritError(f"{path} is missing: install corit again")
    model = path.read_bytes()
    if hashlib.sha256(model).hexdigest() != expected:
        raise CoritError(f"{path} is damaged (its SHA-256 is not the recorded one): install corit again")
    return model
