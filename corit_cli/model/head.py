"""The head: features to one logit, higher for fake. The only part that is trained by default."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """A linear or two-layer head on standardised features.

    Features (B, F) are standardised with the training set's mean and spread, then divided by sqrt(F), so that the
    input has unit norm on average and a learning rate means the same whatever is read. ``hidden`` = 0 gives a linear
    head, otherwise a GELU layer of that width stands between.
    """

    def __init__(self, features: int, hidden: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        #: What :meth:`weigh` was given; a head that was saved and loaded has it in its scale alone.
        self.layer_weights: list[float] | None = None
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        if hidden:
            self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, 1))
        else:
            self.layers = nn.Sequential(nn.Linear(features, 1))

    def fit_standardiser(self, z: Tensor) -> None:
        """Take mean and spread from training features ``z`` (n, F). A constant feature keeps scale 1."""
        std = z.std(0, correction=0)
        self.mean.copy_(z.mean(0))
        self.scale.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def weigh(self, weights: Tensor) -> None:
        """From now on multiply the standardised features' equally wide parts by ``weights`` (parts,), all positive."""
        self.layer_weights = weights.tolist()
        self.scale /= weights.repeat_interleave(len(self.scale) // len(weights))

    def standardise(self, z: Tensor) -> Tensor:
        """(B, F) to (B, F), as the layers see it."""
        return (z - self.mean) / (self.scale * z.shape[-1] ** 0.5)

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, F) to logits (B,)."""
        return self.layers(self.standardise(z)).squeeze(-1)
