"""Contrastive Gradient Proxy (CGP): what the tower's features do along the image's non-semantic residual.

c_l = h_l(x) - h_l(x~), for a contrast view x~ of x. To first order this is J_l(x)(x - x~), the directional derivative
of layer l along x - x~, had with one more forward pass and no backward pass. It is not the loss gradient; how well it
stands in for that gradient is something to measure, not to assume.
"""

from __future__ import annotations

from torch import Tensor


def contrast(tokens: Tensor, views: Tensor) -> Tensor:
    """Contrast of tokens (B, ..., d) with those of K views (K, B, ..., d), one per view: (K, B, ..., d)."""
    return tokens.unsqueeze(0) - views


def energy(contrasts: Tensor) -> Tensor:
    """Norm of the mean contrast over K views, ||mean_K c||: (K, B, P, d) to (B, P)."""
    return contrasts.mean(0).norm(dim=-1)
