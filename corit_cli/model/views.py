"""Contrast views: copies of an image that keep its semantics and lose its high-frequency residual.

The contrast x - view(x) is what CGP pushes through the tower, so a view decides which traces can be seen.
Every view maps images (B, 3, H, W) in [0, 1] to the same shape and range, is deterministic, and has one number
for its strength. ``parse_view("blur:1.0")`` turns the command line's spelling into a callable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from corit_cli.errors import CoritError

View = Callable[[Tensor], Tensor]


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian low-pass with standard deviation ``sigma`` pixels, truncated at 4 sigma, reflect padding."""
    radius = max(1, min(math.ceil(4 * sigma), min(images.shape[-2:]) - 1))
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)  # (3, 1, 1, 2r+1)
    images = F.pad(images, (radius,) * 4, mode="reflect")
    images = F.conv2d(images, kernel, groups=images.shape[1])
    return F.conv2d(images, kernel.transpose(2, 3), groups=images.shape[1])


def resample(images: Tensor, factor: float) -> Tensor:
    """Bicubic down-sampling by ``factor`` (> 1) with antialiasing, then back up to the original size."""
    size = images.shape[-2:]
    small = [max(1, round(s / factor)) for s in size]
    images = F.interpolate(images, size=small, mode="bicubic", antialias=True)
    return F.interpolate(images, size=size, mode="bicubic").clamp(0, 1)


def noise(images: Tensor, sigma: float) -> Tensor:
    """Additive Gaussian noise of standard deviation ``sigma`` (in units of the [0, 1] range).

    The same pattern for every image and every call, so that a score never depends on chance. This is the
    perturbation of RIGID (He et al. 2024, arXiv 2405.20112).
    """
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(images.shape[1:], generator=generator).to(images)
    return (images + sigma * pattern).clamp(0, 1)


# ITU-T T.81 annex K, tables K.1 and K.2: the example quantisation tables nearly every encoder scales.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(images: Tensor, quality: float) -> Tensor:
    """A JPEG round trip at ``quality`` 1..100 without chroma subsampling: YCbCr, 8x8 DCT, quantise, back.

    In tensors rather than through a codec, so that it runs on any device inside the model.
    """
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    tables = torch.tensor([_LUMA, _CHROMA, _CHROMA], dtype=images.dtype, device=images.device)
    tables = (tables * scale).round().clamp(1, 255).view(3, 1, 1, 8, 8)
    k = torch.arange(8, dtype=images.dtype, device=images.device)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2  # (8, 8), orthonormal DCT-II
    dct[0] /= math.sqrt(2)
    to_ycc = torch.tensor(_TO_YCC, dtype=images.dtype, device=images.device)
    B, C, H, W = images.shape
    x = F.pad(images, (0, -W % 8, 0, -H % 8), mode="replicate")
    h, w = x.shape[-2] // 8, x.shape[-1] // 8
    x = torch.einsum("ij,bjhw->bihw", to_ycc, x * 255)
    x[:, 0] -= 128
    x = x.view(B, C, h, 8, w, 8).transpose(3, 4)  # (B, 3, h, w, 8, 8)
    x = dct.T @ (((dct @ x @ dct.T) / tables).round() * tables) @ dct
    x = x.transpose(3, 4).reshape(B, C, h * 8, w * 8)[..., :H, :W]
    x[:, 0] += 128
    return (torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), x) / 255).clamp(0, 1)


#: name -> (function, default strength, lowest, highest)
VIEWS: dict[str, tuple[Callable[[Tensor, float], Tensor], float, float, float]] = {
    "blur": (blur, 1.0, 0.1, 32.0),
    "resample": (resample, 2.0, 1.01, 32.0),
    "noise": (noise, 0.05, 1e-4, 1.0),
    "jpeg": (jpeg, 75.0, 1.0, 100.0),
}


def parse_view(spec: str) -> View:
    """``NAME`` or ``NAME:STRENGTH`` to a function on images. Raises CoritError naming what is allowed."""
    name, _, text = spec.partition(":")
    if name not in VIEWS:
        raise CoritError(f"unknown view {name!r}: choose from {', '.join(VIEWS)}")
    function, default, low, high = VIEWS[name]
    try:
        strength = float(text) if text else default
    except ValueError:
        raise CoritError(f"the strength in view {spec!r} is not a number") from None
    if not low <= strength <= high:
        raise CoritError(f"the strength of view {name!r} must lie between {low:g} and {high:g}, not {strength:g}")
    return partial(_applied, function, strength)


def _applied(function: Callable[[Tensor, float], Tensor], strength: float, images: Tensor) -> Tensor:
    return function(images, strength)
