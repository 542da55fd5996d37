"""Region Refinement Mask (RRM): which patches' contrast is let through.

Flat patches carry no signal and edges carry the scene's own high frequencies; both add variance. A mask maps the
contrasts of K views at the source layer, (K, B, P, d), to weights (B, P) in [0, 1]. No parameter is learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from corit_cli.model.cgp import energy

Mask = Callable[[Tensor], Tensor]


def everywhere(contrasts: Tensor) -> Tensor:
    """All ones: no mask."""
    return contrasts.new_ones(contrasts.shape[1:3])


def _bounds(values: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Quantiles over the patches of each image: values (B, P) to two tensors (B, 1)."""
    q = torch.quantile(values, values.new_tensor([low, high]), dim=1, keepdim=True)  # (2, B, 1)
    return q[0], q[1]


def quantile(contrasts: Tensor, low: float, high: float) -> Tensor:
    """1 where the contrast energy lies between two of its quantiles over the image's patches, else 0."""
    e = energy(contrasts)  # (B, P)
    lo, hi = _bounds(e, low, high)
    return ((e >= lo) & (e <= hi)).to(e.dtype)


def soft(contrasts: Tensor, low: float, high: float) -> Tensor:
    """The quantile mask with sigmoid edges; an edge is as wide as a quarter of the band between the quantiles."""
    e = energy(contrasts)  # (B, P)
    lo, hi = _bounds(e, low, high)
    width = ((hi - lo) / 4).clamp_min(torch.finfo(e.dtype).eps)
    return torch.sigmoid((e - lo) / width) * torch.sigmoid((hi - e) / width)


def _largest(values: Tensor, share: float) -> Tensor:
    """1 for the largest ``share`` of each image's patches, at least one: (B, P) to (B, P)."""
    count = max(1, round(share * values.shape[1]))
    return torch.zeros_like(values).scatter_(1, values.topk(count, dim=1).indices, 1.0)


def topk(contrasts: Tensor, share: float) -> Tensor:
    """1 for the ``share`` of patches with the largest contrast energy."""
    return _largest(energy(contrasts), share)


def snr(contrasts: Tensor, share: float) -> Tensor:
    """1 for the ``share`` of patches with the largest signal-to-noise over views, ||mean_K c||^2 / tr var_K c.

    GSNR's own ratio, applied to patches. Needs K >= 2 views; raises ValueError otherwise.
    """
    if contrasts.shape[0] < 2:
        raise ValueError("the snr mask compares views: give at least two --view")
    signal = contrasts.mean(0).square().sum(-1)  # (B, P)
    noise = contrasts.var(0).sum(-1).clamp_min(torch.finfo(contrasts.dtype).tiny)  # (B, P)
    return _largest(signal / noise, share)


def parse_mask(spec: str) -> Mask:
    """``none``, ``quantile:LO-HI``, ``soft:LO-HI``, ``topk:SHARE`` or ``snr:SHARE`` to a mask function.

    Raises ValueError naming the forms that are understood.
    """
    name, _, text = spec.partition(":")
    try:
        if name == "none" and not text:
            return everywhere
        if name in ("quantile", "soft"):
            low, high = (float(t) for t in (text or "0.25-0.75").split("-"))
            if 0 <= low < high <= 1:
                function = quantile if name == "quantile" else soft
                return lambda contrasts: function(contrasts, low, high)
        if name in ("topk", "snr"):
            share = float(text or 0.5)
            if 0 < share <= 1:
                ranked = topk if name == "topk" else snr
                return lambda contrasts: ranked(contrasts, share)
    except ValueError:
        pass
    raise ValueError(
        f"mask {spec!r} is not understood: give none, quantile:LO-HI, soft:LO-HI, topk:SHARE or snr:SHARE, "
        "with 0 <= LO < HI <= 1 and 0 < SHARE <= 1"
    )
