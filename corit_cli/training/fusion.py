"""Fitting how heads are joined (``model/fusion.py``), on images that they never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from corit_cli.detection.calibration import fit_calibration
from corit_cli.model.fusion import FusedHead, Joint
from corit_cli.training.head import balance_weights

#: How many images' worth of evidence the weights' proportions go by. Thousands from the same sources say little more
#: about unknown ones, where the reading that is best on average need not be; fewer keep the weights closer to even.
EVIDENCE = 20.0


@dataclass(frozen=True)
class HeldOut:
    """What heads say of images of folds that they never saw.

    ``samples`` (n,) are the images' numbers, ``logits`` (n, R) each reading's, NaN where it is missing, and a further
    column where the heads tell degraded pictures; ``labels``, ``folds`` and ``touched`` (n,), true for degraded copies.
    ``heads`` holds, by fold, those that say it. Where their ``sources`` (n,) are known, ``balance`` weighs these as
    TrainSettings has it.
    """

    samples: list[int]
    logits: Tensor
    labels: Tensor
    folds: Tensor
    touched: Tensor
    heads: Mapping[int, FusedHead]
    sources: Sequence[str] | None = None
    balance: str = "class"

    def join(self, head: FusedHead, keep: Tensor | None = None) -> None:
        """:func:`join` a head by all of it, or by the rows that ``keep`` (n,) names."""
        join(head, self.logits, self.labels, self.touched, keep, self.sources, self.balance)

    def joined(self) -> dict[int, FusedHead]:
        """The heads by fold, joined by what is said of the other folds; where these lack a class of the images that
        have a set of readings, by what is said of all."""
        out = {}
        for fold, head in self.heads.items():
            out[fold] = FusedHead(dict(head.heads), head.degradation)
            self.join(out[fold], self.folds != fold)
        return out

    def fused(self, *readings: str) -> Tensor:
        """Logits (n,) of the heads as :meth:`joined` has them, of pictures as a whole; or by ``readings`` alone, NaN
        where one of them is missing."""
        out = torch.empty(len(self.labels))
        for fold, head in self.joined().items():
            own = self.folds == fold
            said = self.logits[own, : len(head.heads) + (head.degradation is not None)]
            heard = head.hearing(said, readings or head.of_pictures)  # (m, R) or (m, R + 1)
            there = torch.tensor([name in readings for name in head.names])
            missing = heard[:, : len(there)][:, there].isnan().any(1)
            out[own] = torch.where(missing, float("nan"), head.fuse(heard))
        return out


@torch.no_grad()
def join(
    head: FusedHead,
    logits: Tensor,
    labels: Tensor,
    touched: Tensor | None = None,
    keep: Tensor | None = None,
    sources: Sequence[str] | None = None,
    balance: str = "class",
) -> None:
    """Fit a head's weights to ``logits`` (n, R), or (n, R + 1), of images that its heads never saw, and their
    ``labels`` (n,). Both classes weigh the same, and within each the ``sources`` (n,) by ``balance``, as rows do that
    heads are trained on: an unknown source is none of the large ones. Where it tells degraded pictures, those for them
    are fitted to copies that were ``touched`` (n,), the others to the rest, or both to all where either lacks a class.

    Every set of readings is joined by the images that have all of them: of their kind, or of both where that lacks a
    class; where both do, as the largest set within it. With a single reading, and nothing that tells degraded
    pictures, nothing is to be joined, and all weights stay 1. Only rows that ``keep`` (n,) names are used, but for what
    these cannot tell.
    """
    each = logits[:, : len(head.heads)]
    if each.shape[1] == 1 and head.degradation is None:
        return
    every = torch.ones(len(labels), dtype=torch.bool)
    kinds = [every]
    if head.degradation is not None and touched is not None:
        kinds = [~touched, touched]
    if any(len(labels[kind].unique()) < 2 for kind in kinds):
        kinds = [every]
    for joint, kind in zip(head.joints, kinds * len(head.joints), strict=False):
        fitted: list[int] = []
        for number in range(1, len(joint.weights)):
            chosen = torch.tensor([bool(number >> r & 1) for r in range(each.shape[1])])
            rows = each[:, chosen].isfinite().all(1)
            own = rows & kind
            for used in (own, rows) if keep is None else (own & keep, rows & keep, own, rows):
                if len(labels[used].unique()) == 2:
                    found = _regression(
                        each[used][:, chosen].double(), labels[used], _weights(used, labels, sources, balance)
                    )
                    joint.weights[number, chosen], joint.bias[number] = found
                    fitted.append(number)
                    break
        _fill(joint, fitted)


def _fill(joint: Joint, fitted: list[int]) -> None:
    """Give every set of readings that was not ``fitted`` the weights of the largest one within it that was."""
    for number in range(1, len(joint.weights)):
        within = [part for part in fitted if part & number == part]
        if number not in fitted and within:
            largest = max(within, key=lambda part: (part.bit_count(), -part))
            chosen = torch.tensor([bool(largest >> r & 1) for r in range(joint.weights.shape[1])])
            joint.weights[number], joint.bias[number] = joint.weights[largest] * chosen, joint.bias[largest]


def _weights(used: Tensor, labels: Tensor, sources: Sequence[str] | None, balance: str) -> Tensor:
    """What each of the images that ``used`` (n,) names weighs: their classes alike whatever the balance."""
    numbers = used.nonzero().squeeze(1).tolist()
    if sources is None or balance == "none":
        sources, balance = [""] * len(used), "class"
    return balance_weights(labels[used].tolist(), [sources[k] for k in numbers], balance)


def _regression(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Weights (R,) and bias of the log odds on logits ``x`` (n, R) of images with ``weights`` (n,): proportions by a
    penalised logistic regression on standardised logits, then slope and bias by Platt scaling."""
    from sklearn.linear_model import LogisticRegression

    share = (weights.double() / weights.sum())[:, None]  # (n, 1)
    mean = (share * x).sum(0)
    spread = (share * (x - mean) ** 2).sum(0).sqrt().clamp_min(1e-12)
    z = (x - mean) / spread
    model = LogisticRegression(C=EVIDENCE / len(y)).fit(z.numpy(), y.numpy(), sample_weight=weights.numpy())
    proportions = torch.from_numpy(model.coef_[0])
    odds = fit_calibration(z @ proportions, y, weights)
    found = odds.slope * proportions / spread
    return found.float(), float(odds.bias - mean @ found)
