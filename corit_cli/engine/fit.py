"""Fit a head to features: the training loop, and the calibration that turns its logits into probabilities."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corit_cli.config import TrainSettings
from corit_cli.engine.layer_weights import gsnr_weights, learned_weights
from corit_cli.engine.sam import SAM
from corit_cli.model.head import Head


def balance_weights(labels: Sequence[int], sources: Sequence[str], balance: str) -> Tensor:
    """One weight a sample (n,), mean 1, by ``balance`` (see TrainSettings). An absent class gets no weight."""
    y = np.asarray(labels)
    weights = np.ones(len(y))
    if balance != "none":
        for label in np.unique(y):
            chosen = y == label
            if balance in ("source", "even"):
                names, counts = np.unique(np.asarray(sources)[chosen], return_counts=True)
                # The square root: a source of five images should not weigh as much as one of five hundred.
                share = dict(zip(names, counts ** (-0.5 if balance == "source" else -1.0), strict=True))
                weights[chosen] = [share[s] for s in np.asarray(sources)[chosen]]
            weights[chosen] /= weights[chosen].sum()
    return torch.from_numpy(weights / weights.mean()).float()


def fit_head(
    z: Tensor,
    labels: Tensor,
    weights: Tensor,
    settings: TrainSettings,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
    parts: int = 1,
    units: Sequence[Hashable] = (),
) -> Head:
    """Train a head on features ``z`` (n, F), ``labels`` (n,) and sample ``weights`` (n,). Same inputs, same head.

    ``parts`` equally wide ones make up a feature vector, and by ``settings.layer_weights`` each gets a weight, in
    proportion to its GSNR over ``units`` (n,) or learned; the head multiplies by it itself.
    """
    torch.manual_seed(settings.seed)
    head = Head(z.shape[1], settings.hidden)
    head.fit_standardiser(z)
    if settings.layer_weights == "gsnr":
        head.weigh(gsnr_weights(head.standardise(z), labels, weights, units, parts))
    learned = nn.Parameter(torch.zeros(parts)) if settings.layer_weights == "learned" else None
    x, y = head.standardise(z), labels.float()  # (n, F), (n,)
    trained = [*head.parameters(), *([] if learned is None else [learned])]
    if settings.optimizer == "adamw":
        base = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    else:
        base = torch.optim.SGD(trained, lr=settings.lr, weight_decay=settings.weight_decay, momentum=0.9)
    sam = SAM(base, settings.rho)
    batches = max(1, len(x) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, settings.epochs * batches)

    def loss_of(part: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        features, truth, weight = part  # (b, F), (b,), (b,)
        if learned is not None:
            features = (features.unflatten(1, (parts, -1)) * learned_weights(learned)[:, None]).flatten(1)
        return F.binary_cross_entropy_with_logits(head.layers(features).squeeze(-1), truth, weight=weight)

    for epoch in range(settings.epochs):
        total = 0.0
        for batch in torch.randperm(len(x)).tensor_split(batches):
            part = x.index_select(0, batch), y[batch], weights[batch]  # once for both of SAM's passes
            total += sam.step(loss_of, [part]).loss * len(batch)
            schedule.step()
        progress(epoch + 1, total / len(x))
    if learned is not None:
        head.weigh(learned_weights(learned).detach())
    return head.eval()


@dataclass(frozen=True)
class Calibration:
    """Platt scaling: p = sigmoid(slope * logit + bias)."""

    slope: float = 1.0
    bias: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (n,) to probabilities of being fake (n,)."""
        return torch.sigmoid(self.slope * logits + self.bias)


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Platt scaling on held-out logits (n,), both classes given the same weight.

    The targets are Platt's (1999), (n_c + 1) / (n_c + 2) for a class of n_c images instead of 1, so that few images
    never give certainty. A slope that comes out negative (worse than chance on held-out data) means that nothing is
    known: it becomes 0, and every probability one half.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = logits.double().numpy(), labels.numpy()
    counts = np.bincount(y, minlength=2)[y]  # (n,), the size of each image's class
    sure = (counts + 1) / (counts + 2)
    # Soft targets as weights: each image once with its label and, weighing little, once with the other.
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(
        np.tile(x, 2)[:, None],
        np.concatenate([y, 1 - y]),
        np.concatenate([sure, 1 - sure]) * len(y) / np.tile(counts, 2),
    )
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Calibration(slope, bias) if slope > 0 else Calibration(0.0, 0.0)


@dataclass(frozen=True)
class Thresholds:
    """Probabilities from which on a file is called fake, up to which real; between them the verdict is uncertain."""

    real: float
    fake: float

    def verdict(self, probability: float) -> str:
        """``real``, ``fake`` or ``uncertain``."""
        if probability >= self.fake:
            return "fake"
        return "real" if probability <= self.real else "uncertain"


def fit_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, sources: Sequence[str], target_fpr: float, target_fnr: float
) -> Thresholds:
    """Thresholds that keep both error rates at their targets on held-out ``probabilities`` (n,).

    The upper one, past which an image is called fake, keeps its target also where each source is judged by a threshold
    that it had no part in (:func:`strict_threshold`): to accuse is the graver error. The lower one is the plain
    quantile. Where the classes separate so well that the two cross, both become their middle and nothing is uncertain.
    """
    probabilities = probabilities.round(6)  # as they are reported
    real, fake = labels == 0, labels == 1
    high = strict_threshold(probabilities[real], np.asarray(sources)[real], target_fpr)
    low = -_above(np.sort(-probabilities[fake]), target_fnr)
    if low > high:
        low = high = (low + high) / 2
    return Thresholds(round(low, 6), round(high, 6))


def strict_threshold(scores: np.ndarray, sources: np.ndarray, target: float) -> float:
    """The lowest threshold that a share of at most ``target`` of ``scores`` (n,) reaches, by two counts.

    A quantile of the pooled scores keeps its promise on those sources alone: a source of its own kind exceeds it more
    often. So the share aimed at is lowered until ``target`` also holds when every source is judged by the quantile of
    the others, over all images together, not in each source. Where even the highest of the others' scores is
    exceeded too often, no threshold keeps the promise, and the highest of all is returned. With one source only the
    pooled quantile is left.
    """
    order, names = np.sort(scores), np.unique(sources)
    parts = [(np.sort(scores[own]), np.sort(scores[~own])) for own in (sources == name for name in names)]
    if len(names) == 1:
        parts = []

    def kept(allowed: int) -> bool:
        share = allowed / len(order)
        over = sum(len(own) - np.searchsorted(own, _above(others, share)) for own, others in parts)
        return over <= target * len(order)

    low, high = 0, int(target * len(order))  # the count that others exceed a threshold by only grows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kept(middle) else (low, middle - 1)
    return _above(order, low / len(order))


def _above(order: np.ndarray, share: float) -> float:
    """Just above the value that all but ``share`` of the sorted ``order`` (n,) stay below or at."""
    return float(order[len(order) - 1 - int(share * len(order) + 1e-9)]) + 1e-6
