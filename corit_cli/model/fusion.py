"""Late fusion: several readings of an image, each with a head of its own, joined into one logit.

One head on everything would learn what is easiest; heads of their own learn what each reading knows, and one cannot
spoil another. Their logits are weighed and added: a logistic regression of few numbers, one for every set of readings
that can be had, since of some images one is missing. What a reading is worth depends on what befell the file, so a
further head may tell degraded pictures from untouched ones, and each kind is joined by numbers of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corit_cli.model.head import Head
from corit_cli.model.settings import FACE


class FusedHead(nn.Module):
    """Heads by reading, in the order in which their features stand side by side. A single head passes through.

    ``weights`` (2^R, R) and ``bias`` (2^R,) hold what the heads' logits are weighed by, and what is added, by the set
    of readings that there are, the r-th worth 2^r. All weights begin as 1. With ``degradation``, a head on the first
    of the features that gives the log odds of a picture's having been degraded, these are for pictures that were not,
    and ``degraded_weights`` and ``degraded_bias`` for those that were; between them it goes by the probability.
    """

    def __init__(self, heads: Mapping[str, Head], degradation: Head | None = None) -> None:
        super().__init__()
        self.heads, self.degradation = nn.ModuleDict(heads), degradation
        for prefix in ("", "degraded_") if degradation else ("",):
            self.register_buffer(f"{prefix}weights", torch.ones(2 ** len(heads), len(heads)))
            self.register_buffer(f"{prefix}bias", torch.zeros(2 ** len(heads)))

    @property
    def names(self) -> list[str]:
        """The readings, in order."""
        return list(self.heads)

    @property
    def of_pictures(self) -> list[str]:
        """The readings that a picture as a whole is judged by, in order: all but that of a face."""
        return [name for name in self.names if name != FACE]

    @property
    def features(self) -> int:
        """F, how many features all heads read."""
        return sum(head.features for head in self.heads.values())

    def without(self, name: str) -> FusedHead:
        """The same without the last reading.

        Raises ValueError where it is another, or the only one: the sets of readings go by the order; and where
        degraded pictures are told by it."""
        *names, last = self.names
        if name != last or not names:
            raise ValueError(f"{name} is not the last of several readings")
        if self.telling[-1]:
            raise ValueError(f"degraded pictures are told by {name}, too")
        rest = FusedHead({n: self.heads[n] for n in names}, self.degradation).train(self.training)
        for joined, whole in zip(rest.joints, self.joints, strict=True):
            joined.weights.copy_(whole.weights[: len(joined.weights), :-1])
            joined.bias.copy_(whole.bias[: len(joined.bias)])
        return rest

    def untouched(self) -> FusedHead:
        """The same for pictures that were not degraded, without what tells them from others."""
        plain = FusedHead(dict(self.heads)).train(self.training)
        plain.weights.copy_(self.weights)
        plain.bias.copy_(self.bias)
        return plain

    @property
    def telling(self) -> Tensor:
        """Which readings (R,) degraded pictures are told by."""
        begins = torch.tensor([0, *(head.features for head in self.heads.values())]).cumsum(0)[:-1]  # (R,)
        return begins < (0 if self.degradation is None else self.degradation.features)

    def split(self, z: Tensor) -> list[Tensor]:
        """Features (B, F) as each head takes them, (B, F_r)."""
        return list(z.split([head.features for head in self.heads.values()], dim=-1))

    def each(self, z: Tensor) -> Tensor:
        """Features (B, F) to every head's own logit (B, R), NaN where the reading is missing. With ``degradation`` its
        logit is a further one, (B, R + 1)."""
        logits = [head(part) for head, part in zip(self.heads.values(), self.split(z), strict=True)]
        if self.degradation is not None:
            logits.append(self.degradation(z[:, : self.degradation.features]))
        return torch.stack(logits, -1)

    def hearing(self, logits: Tensor, readings: Collection[str]) -> Tensor:
        """What :meth:`each` gives as if there were no others than ``readings``: NaN for these. Whether the picture was
        degraded is heard nevertheless."""
        heard = [name in readings for name in self.names] + [True] * (self.degradation is not None)
        return torch.where(torch.tensor(heard, device=logits.device), logits, float("nan"))

    @property
    def joints(self) -> list[Joint]:
        """What pictures are joined by that were not degraded and, with ``degradation``, those that were."""
        joints = [Joint(self.weights, self.bias)]
        return joints if self.degradation is None else [*joints, Joint(self.degraded_weights, self.degraded_bias)]

    def shares(self, logits: Tensor) -> Tensor:
        """What each head's logit, of those that :meth:`each` gives, adds to the fused one (..., R), 0 where it is
        NaN."""
        return self._terms(logits)[0]

    def fuse(self, logits: Tensor) -> Tensor:
        """What :meth:`each` gives to one logit (...), NaN where all are missing."""
        shares, bias = self._terms(logits)
        there = logits[..., : len(self.heads)].isfinite()
        return torch.where(there.any(-1), bias + shares.sum(-1), float("nan"))

    def degraded(self, logits: Tensor) -> Tensor:
        """How likely (...) a picture was degraded, by what :meth:`each` gives: 0 where nothing tells."""
        if self.degradation is None:
            return torch.zeros_like(logits[..., 0])
        return logits[..., -1].sigmoid().nan_to_num(0.0)

    def _terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Shares (..., R) and bias (...) of what :meth:`each` gives."""
        degraded, logits = self.degraded(logits), logits[..., : len(self.heads)]
        there = logits.isfinite()  # (..., R)
        # The number of the set of readings that there are, (...).
        number = (there * 2 ** torch.arange(there.shape[-1], device=there.device)).sum(-1)
        untouched, last = self.joints[0], self.joints[-1]
        weights = torch.lerp(untouched.weights[number], last.weights[number], degraded[..., None])  # (..., R)
        bias = torch.lerp(untouched.bias[number], last.bias[number], degraded)  # (...)
        return torch.where(there, weights * logits, 0.0), bias

    def forward(self, z: Tensor) -> Tensor:
        """Features (B, F), NaN where a reading is missing, to logits (B,) of pictures as a whole."""
        return self.fuse(self.hearing(self.each(z), self.of_pictures))


class Joint(NamedTuple):
    """What readings are joined by: ``weights`` (2^R, R) and ``bias`` (2^R,), by the set of readings that there are."""

    weights: Tensor
    bias: Tensor
