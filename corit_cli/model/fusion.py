"""Late fusion: several readings of an image, each with a head of its own, joined into one logit.

One head on everything would learn what is easiest; heads of their own learn what each reading knows, and one cannot
spoil another. Their logits are weighed and added: a logistic regression of few numbers, one for every set of readings
that can be had, since of some images one is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corit_cli.model.head import Head


class FusedHead(nn.Module):
    """Heads by reading, in the order in which their features stand side by side. A single head passes through.

    ``weights`` (2^R, R) and ``bias`` (2^R,) hold what the heads' logits are weighed by, and what is added, by the set
    of readings that there are, the r-th worth 2^r. All weights begin as 1.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.register_buffer("weights", torch.ones(2 ** len(heads), len(heads)))
        self.register_buffer("bias", torch.zeros(2 ** len(heads)))

    @property
    def names(self) -> list[str]:
        """The readings, in order."""
        return list(self.heads)

    @property
    def features(self) -> int:
        """F, how many features all heads read."""
        return sum(head.features for head in self.heads.values())

    def without(self, name: str) -> FusedHead:
        """The same without the last reading.

        Raises ValueError where it is another, or the only one: the sets of readings go by the order."""
        *names, last = self.names
        if name != last or not names:
            raise ValueError(f"{name} is not the last of several readings")
        rest = FusedHead({n: self.heads[n] for n in names}).train(self.training)
        rest.weights.copy_(self.weights[: len(rest.weights), :-1])
        rest.bias.copy_(self.bias[: len(rest.bias)])
        return rest

    def split(self, z: Tensor) -> list[Tensor]:
        """Features (B, F) as each head takes them, (B, F_r)."""
        return list(z.split([head.features for head in self.heads.values()], dim=-1))

    def each(self, z: Tensor) -> Tensor:
        """Features (B, F) to every head's own logit (B, R), NaN where the reading is missing."""
        return torch.stack([head(part) for head, part in zip(self.heads.values(), self.split(z), strict=True)], -1)

    def shares(self, logits: Tensor) -> Tensor:
        """What each head's logit (B, R) adds to the fused one (B, R), 0 where it is NaN."""
        there = logits.isfinite()  # (B, R)
        return torch.where(there, self.weights[self._set(there)] * logits, 0.0)

    def fuse(self, logits: Tensor) -> Tensor:
        """Every head's logit (B, R) to one (B,), NaN where all are missing."""
        there = logits.isfinite()
        fused = self.bias[self._set(there)] + self.shares(logits).sum(-1)
        return torch.where(there.any(-1), fused, float("nan"))

    def _set(self, there: Tensor) -> Tensor:
        """The number (B,) of the set of readings that are ``there`` (B, R)."""
        return (there * 2 ** torch.arange(there.shape[-1], device=there.device)).sum(-1)

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, F), NaN where a reading is missing, to logits (B,)."""
        return self.fuse(self.each(z))
