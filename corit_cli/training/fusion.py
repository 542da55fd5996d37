"""Fitting how heads are joined (``model/fusion.py``), on images that they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from corit_cli.detection.calibration import fit_calibration
from corit_cli.model.fusion import FusedHead

#: How many images' worth of evidence the weights' proportions go by. Thousands from the same sources say little more
#: about unknown ones, where the reading that is best on average need not be; fewer keep the weights closer to even.
EVIDENCE = 20.0


@dataclass(frozen=True)
class HeldOut:
    """What heads say of images of folds that they never saw.

    ``samples`` (n,) are the images' numbers, ``logits`` (n, R) each reading's, NaN where it is missing; ``labels``,
    ``folds`` and ``touched`` (n,), true for degraded copies. ``heads`` holds, by fold, those that say it.
    """

    samples: list[int]
    logits: Tensor
    labels: Tensor
    folds: Tensor
    touched: Tensor
    heads: Mapping[int, FusedHead]

    def joined(self) -> dict[int, FusedHead]:
        """The heads by fold, joined by what is said of the other folds, or of all where these hold one class only."""
        out = {}
        for fold, head in self.heads.items():
            others = self.folds != fold
            if len(self.labels[others].unique()) < 2:
                others = torch.ones_like(others)
            out[fold] = FusedHead(dict(head.heads))
            join(out[fold], self.logits[others], self.labels[others])
        return out

    def fused(self, only: str | None = None) -> Tensor:
        """Logits (n,) of the heads as :meth:`joined` has them, or of one reading by itself, NaN where it is missing."""
        out = torch.empty(len(self.labels))
        for fold, head in self.joined().items():
            own, heard = self.folds == fold, torch.tensor([only in (None, name) for name in head.names])
            out[own] = head.fuse(torch.where(heard, self.logits[own], float("nan")))
        return out


@torch.no_grad()
def join(head: FusedHead, logits: Tensor, labels: Tensor) -> None:
    """Fit a head's weights to ``logits`` (n, R) of images that its heads never saw, and their ``labels`` (n,), both
    classes weighing the same.

    For a set of readings that some image lacks, what the others say of all images counts. With a single reading, or
    one class, nothing is to be joined and all weights stay 1.
    """
    if logits.shape[1] == 1:
        return
    for number, chosen in enumerate(product((False, True), repeat=logits.shape[1])):
        chosen = torch.tensor(chosen[::-1])  # the r-th is worth 2^r
        there = logits[:, chosen].isfinite().all(1)
        if chosen.any() and len(labels[there].unique()) == 2:
            found = _regression(logits[there][:, chosen].double().numpy(), labels[there].numpy())
            head.weights[number, chosen], head.bias[number] = found


def _regression(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, float]:
    """Weights (R,) and bias of the log odds on logits ``x`` (n, R): proportions by a penalised logistic regression on
    standardised logits, then slope and bias by Platt scaling."""
    from sklearn.linear_model import LogisticRegression

    mean, spread = x.mean(0), x.std(0).clip(1e-12)
    z = (x - mean) / spread
    proportions = LogisticRegression(C=EVIDENCE / len(y), class_weight="balanced").fit(z, y).coef_[0]
    odds = fit_calibration(torch.from_numpy(z @ proportions), torch.from_numpy(y))
    weights = odds.slope * proportions / spread
    return torch.from_numpy(weights).float(), float(odds.bias - mean @ weights)
