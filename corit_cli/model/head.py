"""Heads: features to a logit, higher for fake. The only part that is trained by default."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corit_cli.model.settings import LINEAR, HeadKind

#: Directions of the kernel whose eigenvalue is smaller than this share of the largest are left out.
SMALLEST = 1e-6


class Head(nn.Module):
    """A head on standardised features.

    Features (B, F) are standardised with the training set's mean and spread, then divided by sqrt(F), so that the
    input has unit norm on average and a learning rate means the same whatever is read. On that stands a linear layer,
    or a GELU layer between (``hidden``), or the kernel exp(-||x - y||^2 / 2) with m ``landmarks`` y among the training
    images: k(x) K^(-1/2), of which a linear layer is the kernel machine that they span (Nystroem's approximation;
    Williams and Seeger 2000).
    """

    def __init__(self, features: int, kind: HeadKind = LINEAR) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        if kind.landmarks:
            self.register_buffer("landmarks", torch.zeros(kind.landmarks, features))
            self.register_buffer("whitening", torch.eye(kind.landmarks))
        width = kind.landmarks or features
        if kind.hidden:
            self.layers = nn.Sequential(nn.Linear(width, kind.hidden), nn.GELU(), nn.Linear(kind.hidden, 1))
        else:
            self.layers = nn.Sequential(nn.Linear(width, 1))

    @property
    def features(self) -> int:
        """F, how many features are read."""
        return len(self.mean)

    def fit_standardiser(self, z: Tensor) -> None:
        """Take mean and spread from training features ``z`` (n, F). A constant feature keeps scale 1."""
        std = z.std(0, correction=0)
        self.mean.copy_(z.mean(0))
        self.scale.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def choose_landmarks(self, z: Tensor) -> None:
        """Take the kernel's landmarks from training features ``z`` (n, F), drawn by torch's random state. Where there
        are fewer images than landmarks, all serve, and the rest stay without effect."""
        if not self.kind.landmarks:
            return
        x = self.standardise(z)
        chosen = x[torch.randperm(len(x))[: self.kind.landmarks]].half().float()  # (m', F), as they are saved
        values, vectors = torch.linalg.eigh(_kernel(chosen, chosen).double())  # (m',), (m', m')
        keep = values > SMALLEST * values[-1]
        found = vectors[:, keep] / values[keep].sqrt()  # (m', r)
        self.landmarks.zero_()[: len(chosen)] = chosen
        self.whitening.zero_()[: len(chosen), : found.shape[1]] = found.float()

    def standardise(self, z: Tensor) -> Tensor:
        """(B, F) to (B, F), of unit norm on average."""
        return (z - self.mean) / (self.scale * z.shape[-1] ** 0.5)

    def expand(self, x: Tensor) -> Tensor:
        """Standardised features (B, F) to what the layers take: themselves, or (B, m) by the kernel."""
        return _kernel(x, self.landmarks) @ self.whitening if self.kind.landmarks else x

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, F) to logits (B,)."""
        return self.layers(self.expand(self.standardise(z))).squeeze(-1)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """exp(-||x - y||^2 / 2) of x (n, F) and y (m, F): (n, m)."""
    squares = (x**2).sum(-1, keepdim=True) + (y**2).sum(-1) - 2 * x @ y.T  # (n, m)
    return (-squares.clamp_min(0) / 2).exp()
