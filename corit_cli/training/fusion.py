"""Fitting how heads are joined (``model/fusion.py``), on images that they never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        """The heads by fold, joined by what is said of the other folds; where these lack a class of the images that
        have a set of readings, by what is said of all."""
        out = {}
        for fold, head in self.heads.items():
            others = self.folds != fold
            out[fold] = FusedHead(dict(head.heads))
            fitted = _fit(out[fold], self.logits, self.labels)
            _fit(out[fold], self.logits[others], self.labels[others])
            _fill(out[fold], fitted)
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

    A reading that some image lacks judges by itself. It is not mixed with those that all have: what faces say added
    nothing to the rest on sources held out (docs/results.md). So a set of readings is joined as the largest set within
    it that can be. With a single reading nothing is to be joined, and all weights stay 1.
    """
    _fill(head, _fit(head, logits, labels))


def _fill(head: FusedHead, fitted: list[int]) -> None:
    """Give every set of readings that was not ``fitted`` the weights of the largest one within it that was."""
    for number in range(1, len(head.weights)):
        within = [part for part in fitted if part & number == part]
        if number not in fitted and within:
            largest = max(within, key=lambda part: (part.bit_count(), -part))
            chosen = torch.tensor([bool(largest >> r & 1) for r in range(len(head.names))])
            head.weights[number], head.bias[number] = head.weights[largest] * chosen, head.bias[largest]


@torch.no_grad()
def _fit(head: FusedHead, logits: Tensor, labels: Tensor) -> list[int]:
    """Fit the weights of every set of readings that can be mixed and that images of both classes have; the numbers of
    these sets."""
    fitted: list[int] = []
    always = logits.isfinite().all(0)  # (R,)
    if logits.shape[1] == 1:
        return fitted
    for number in range(1, len(head.weights)):
        chosen = torch.tensor([bool(number >> r & 1) for r in range(logits.shape[1])])
        if chosen.sum() > 1 and not always[chosen].all():
            continue
        there = logits[:, chosen].isfinite().all(1)
        if len(labels[there].unique()) == 2:
            found = _regression(logits[there][:, chosen].double().numpy(), labels[there].numpy())
            head.weights[number, chosen], head.bias[number] = found
            fitted.append(number)
    return fitted


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
