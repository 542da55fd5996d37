"""Where a picture may have been changed: a map of log odds over its patches, window by window.

A localizer (``training/localizer.py``) tells of each patch's contrasts how much they look like those of a forged
region, w . c_p + b. The windows' maps are laid together and, as single patches are noisy, smoothed over neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from corit_cli.data.windows import MAX_STRETCH
from corit_cli.detection.checkpoint import Localizer
from corit_cli.errors import CoritError
from corit_cli.features.extractor import Extractor, Reader, pixels
from corit_cli.features.lanes import Lanes
from corit_cli.features.stream import on_lanes

#: Native windows that one map is made of. On a CPU each takes a quarter of a second.
WINDOWS = 48
#: Standard deviation of the smoothing, in patches.
SMOOTHING = 1.5


@dataclass(frozen=True)
class Heatmap:
    """Where an image may have been changed.

    ``map`` (rows, columns), float32, holds one cell a patch: the log odds that it was forged, if half of all patches
    were; 0 stands where no window looked, that is, where ``covered`` (rows, columns) is False. The cells lie side by
    side in ``box``, (left, top, right, bottom) in pixels of the image, whose ``size`` is (width, height). ``common``
    and ``rare`` are the values that one patch in ten and one in a hundred of untouched photographs exceed.
    """

    map: np.ndarray
    covered: np.ndarray
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    common: float
    rare: float

    def resized(self, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Map (h, w) float32 and covered (h, w) bool over the whole image drawn at ``size`` (width, height), by default
        its own. Values go over linearly from cell to cell, without regard to those that are not covered."""
        (width, height), (left, top, right, bottom) = size or self.size, self.box
        y, x = self._axis(height, self.size[1], top, bottom, 0), self._axis(width, self.size[0], left, right, 1)

        def enlarge(cells: np.ndarray) -> np.ndarray:
            tall = cells[y.low] + y.share[:, None] * (cells[y.high] - cells[y.low])  # (h, columns)
            return tall[:, x.low] + x.share * (tall[:, x.high] - tall[:, x.low])  # (h, w)

        weight = enlarge(self.covered.astype(np.float32))
        covered = (weight >= 0.5) & y.inside[:, None] & x.inside
        values = enlarge(np.where(self.covered, self.map, 0).astype(np.float32))
        return np.divide(values, weight, out=np.zeros_like(values), where=covered), covered

    def _axis(self, size: int, side: int, start: float, stop: float, axis: int) -> _Axis:
        cells = self.map.shape[axis]
        centre = (np.arange(size, dtype=np.float32) + 0.5) * (side / size)
        at = (centre - start) * (cells / (stop - start)) - 0.5  # in cells, 0 at the middle of the first
        near = at.clip(0, cells - 1)
        low = np.floor(near).astype(int)
        # Up to half a cell is left over at the image's edges, where a window of whole patches does not fit.
        inside = (at >= -1) & (at <= cells)
        return _Axis(low, np.minimum(low + 1, cells - 1), near - low, inside)


@dataclass(frozen=True)
class _Axis:
    """Of each pixel along one side: the two nearest cells, the share of the second, and whether cells are there."""

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray
    inside: np.ndarray


def heatmap(extractor: Extractor, localizer: Localizer, image: Image.Image, windows: int = WINDOWS) -> Heatmap:
    """The heatmap of an RGB ``image``, as a ``localizer`` sees it through the extractor's contrasts.

    Where contrasts are read from native windows, the image is tiled with them and overlapping maps are averaged. An
    image that would take more than ``windows`` is looked at in as many, spread evenly; between them nothing is covered.
    Where contrasts are read from the resized image, that one window is all.

    Raises CoritError when the extractor reads no contrast, or the image is smaller than a window.
    """
    corit = contrasted(extractor).corit
    side = extractor.crops.size
    if min(image.size) < side:  # enlarged pixels look changed all over
        raise CoritError(f"no heatmap: the picture needs at least {side} px a side")
    tiling = tile(extractor, image.size, windows)
    total, count = np.zeros(tiling.shape), np.zeros(tiling.shape, int)
    batch, grid = max(1, extractor.batch // 2), corit.tower.config.grid
    lanes = Lanes(extractor.device.type)
    rounds = -(-len(tiling.corners) // (batch * lanes.count))
    parts = np.array_split(tiling.corners, min(rounds * lanes.count, len(tiling.corners)))  # (b, 2) each

    @torch.inference_mode()
    def read(corners: np.ndarray) -> np.ndarray:
        seen = np.stack([tiling.window(image, *corner) for corner in corners.tolist()])  # (b, S, S, 3)
        contrasts = corit.regional(pixels(torch.from_numpy(seen), extractor.device)).cpu()  # (b, P, F)
        return localizer.head(contrasts).view(-1, grid, grid).double().numpy()

    for corners, maps in zip(parts, on_lanes(read, parts, lanes, min(lanes.count, len(parts))), strict=True):
        for (row, column), values in zip(corners, maps, strict=True):
            total[row : row + grid, column : column + grid] += values
            count[row : row + grid, column : column + grid] += 1
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    return Heatmap(smooth(mean, count > 0), count > 0, tiling.box, image.size, localizer.common, localizer.rare)


def smooth(values: np.ndarray, covered: np.ndarray, sigma: float = SMOOTHING) -> np.ndarray:
    """``values`` (rows, columns) averaged over ``covered`` neighbours with Gaussian weights, 0 elsewhere: float32."""
    from scipy.ndimage import gaussian_filter

    weight = gaussian_filter(covered.astype(float), sigma, mode="constant")
    blurred = gaussian_filter(np.where(covered, values, 0.0), sigma, mode="constant")
    return np.divide(blurred, weight, out=np.zeros_like(blurred), where=covered).astype(np.float32)


# --- windows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling:
    """Windows of ``side`` pixels on an image enlarged (or shrunk) by ``scale``, on a grid of cells of ``patch`` pixels
    that starts at ``origin`` (x, y), in enlarged pixels. ``corners`` are the windows' first cells, (row, column)."""

    scale: float
    side: int
    patch: int
    origin: tuple[float, float]
    shape: tuple[int, int]
    corners: list[tuple[int, int]]
    interpolation: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What the cells span, in the image's own pixels."""
        (left, top), (rows, columns) = self.origin, self.shape
        right, bottom = left + columns * self.patch, top + rows * self.patch
        return left / self.scale, top / self.scale, right / self.scale, bottom / self.scale

    def window(self, image: Image.Image, row: int, column: int) -> np.ndarray:
        """The pixels of one window, (side, side, 3) uint8; the image's own where the scale is 1."""
        left, top = self.origin[0] + column * self.patch, self.origin[1] + row * self.patch
        if self.scale == 1:
            return np.asarray(image.crop((left, top, left + self.side, top + self.side)))
        box = tuple(edge / self.scale for edge in (left, top, left + self.side, top + self.side))
        box = (max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
        return np.asarray(image.resize((self.side, self.side), Image.Resampling[self.interpolation.upper()], box))


def contrasted(extractor: Extractor) -> Reader:
    """The extractor's reader of contrasts. Raises CoritError when there is none."""
    found = [reader for reader in extractor.readers if reader.corit.settings.cgp]
    if not found:
        raise CoritError("no contrast is read, so nothing shows where a picture was changed")
    return found[-1]


def tile(extractor: Extractor, size: tuple[int, int], limit: int = WINDOWS) -> Tiling:
    """Where ``extractor`` is to look for contrasts in an image of ``size`` (width, height): at most ``limit`` windows.

    Raises CoritError when it reads no contrasts.
    """
    reader = contrasted(extractor)
    config = reader.corit.tower.config
    side, patch, grid = config.image_size, config.patch_size, config.grid
    # As crop() does: the middle of a long strip, and a small image enlarged until a window fits.
    used = [min(s, MAX_STRETCH * min(size)) for s in size]
    if extractor.crops.windows[reader.windows[0]] == "resize":
        scale, used = side / min(size), [min(size)] * 2
    else:
        scale = max(1.0, side / min(size))
    cells = [max(grid, int(u * scale + 1e-6) // patch) for u in used]  # across, down
    origin = [(s * scale - c * patch) / 2 for s, c in zip(size, cells, strict=True)]
    if scale == 1:
        origin = [int(o) for o in origin]
    columns, rows = _share(cells, grid, limit)
    corners = [(row, column) for row in _spread(cells[1], grid, rows) for column in _spread(cells[0], grid, columns)]
    return Tiling(
        scale, side, patch, (origin[0], origin[1]), (cells[1], cells[0]), corners, extractor.crops.interpolation
    )


def _share(cells: list[int], grid: int, limit: int) -> tuple[int, int]:
    """Windows across and down: enough to cover all cells, or as many of equal spacing as ``limit`` allows."""
    need = [-(-c // grid) for c in cells]
    if need[0] * need[1] <= limit:
        return need[0], need[1]
    short, long = sorted((0, 1), key=lambda i: need[i])
    few = min(need[short], max(1, int((limit * need[short] / need[long]) ** 0.5)))
    many = min(need[long], max(1, limit // few))
    return (few, many) if short == 0 else (many, few)


def _spread(cells: int, grid: int, windows: int) -> list[int]:
    """First cells of so many windows, from edge to edge; a single one stands in the middle."""
    if windows == 1:
        return [(cells - grid) // 2]
    return [round(i * (cells - grid) / (windows - 1)) for i in range(windows)]
