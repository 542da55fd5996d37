"""Region Refinement Mask (RRM): which patches' contrast is let through.

Flat patches carry no signal and edges carry the scene's own high frequencies; both add variance. A mask maps the
contrasts of K views at the source layer, (K, B, P, d), to weights (B, P) in [0, 1]. No parameter is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.model.cgp import energy

Mask = Callable[[Tensor], Tensor]


def everywhere(contrasts: Tensor) -> Tensor:
    """All ones: no mask."""
    return contrasts.new_ones(contrasts.shape[1:3])


def quantile(contrasts: Tensor, low: float, high: float) -> Tensor:
    """1 where the contrast energy lies between two of its quantiles over the image's patches, else 0."""
    e = energy(contrasts)  # (B, P)
    lo, hi = torch.quantile(e, e.new_tensor([low, high]), dim=1, keepdim=True)  # (B, 1) each
    return ((e >= lo) & (e <= hi)).to(e.dtype)


def parse_mask(spec: str) -> Mask:
    """``none`` or ``quantile:LO-HI`` to a mask function. Raises CoritError naming the forms that are understood."""
    name, _, text = spec.partition(":")
    if spec == "none":
        return everywhere
    try:
        low, high = (float(t) for t in (text or "0.25-0.75").split("-"))
    except ValueError:
        low = high = 0.0
    if name == "quantile" and 0 <= low < high <= 1:
        return partial(quantile, low=low, high=high)
    raise CoritError(
        f"mask {spec!r} is not understood: give none or quantile:LO-HI, with 0 <= LO < HI <= 1 "
        "(soft, topk and snr are gone: train a detector that used them again)"
    )
