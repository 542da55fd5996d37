"""Many heads trained at once: every (seed, radius) of a sweep is one member of a single batched program.

Members of one seed see the same batches, so a batch is read once for all its radii, and a matrix product over all
members takes the place of as many small ones. No member knows of another: each is what a run of its own would have
made of its seed and radius, to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corit_cli.cor.settings import Optimization
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.seeds import undisturbed
from corit_cli.training.sam import SAM, base_optimizer

#: Numbers in the weights of members that are trained together; gradients and moments take three times as much again.
MEMBERS_SIZE = 16_000_000


def sam_of(o: Optimization, parameters: Sequence[Tensor], rho: float | Tensor) -> SAM:
    """The optimizer over ``parameters``."""
    base = base_optimizer(o.optimizer, parameters, o.lr, o.weight_decay, fused=o.optimizer == "adamw")
    return SAM(base, rho, adaptive=o.adaptive, friendly=o.friendly, per_micro_batch=bool(o.m))


def batches(o: Optimization, count: int, seed: int) -> Iterator[Tensor]:
    """Positions of every batch of all epochs, shuffled anew in each; what is left over sits the epoch out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(o.batch_size, count)
    for _ in range(o.epochs):
        yield from torch.randperm(count, generator=generator)[: count - count % size].split(size)


def micro_batches(o: Optimization, batch: Tensor) -> Sequence[Tensor]:
    """A batch (..., b) in the parts that are perturbed by themselves."""
    return batch.split(min(o.m, batch.shape[-1]), dim=-1) if o.m else [batch]


def run_batches(o: Optimization, trained_on: Tensor, seeds: Sequence[int], step: Callable[[Tensor], Tensor]) -> Tensor:
    """Call ``step`` for every batch, with positions (S, b) among those ``trained_on``, a row for each of the seeds.

    Returns the mean over the last epoch of what the steps return, the cosine of ascent with descent.
    """
    count, cosines = len(trained_on), []
    last = o.steps(count) - o.steps(count) // o.epochs
    for number, positions in enumerate(zip(*(batches(o, count, seed) for seed in seeds), strict=True)):
        cosine = step(trained_on[torch.stack(positions)])
        if number >= last:
            cosines.append(torch.as_tensor(cosine))
    return torch.stack(cosines).mean(0)


class Heads(torch.nn.Module):
    """Heads on ``features`` numbers, one a seed and radius (S, R), those of a seed alike at the start."""

    def __init__(self, features: int, hidden: int, seeds: Sequence[int], radii: int) -> None:
        super().__init__()
        self.hidden = hidden
        first: list[dict[str, Tensor]] = []
        for seed in seeds:
            with undisturbed():
                torch.manual_seed(seed)
                first.append({name: p.detach() for name, p in Head(features, HeadKind(hidden)).named_parameters()})
        self.names = list(first[0])
        self.stacked = torch.nn.ParameterList(
            torch.stack([f[name] for f in first])[:, None].repeat(1, radii, *[1] * first[0][name].dim())
            for name in self.names
        )  # (S, R, ...) each

    def forward(self, x: Tensor) -> Tensor:
        """Standardised features (S, b, F), a batch for every seed, to logits (S, R, b)."""
        if not self.hidden:
            weight, bias = self.stacked  # (S, R, 1, F), (S, R, 1)
            return torch.baddbmm(bias, weight.squeeze(2), x.transpose(1, 2))
        w1, b1, w2, b2 = self.stacked  # (S, R, h, F), (S, R, h), (S, R, 1, h), (S, R, 1)
        hidden = x @ w1.flatten(1, 2).transpose(1, 2)  # (S, b, R * h)
        hidden = F.gelu(hidden.unflatten(2, w1.shape[1:3]) + b1[:, None])  # (S, b, R, h)
        return torch.einsum("sbrh,srh->srb", hidden, w2.squeeze(2)) + b2

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """Leave plain SAM's gradients of a batch (S, b, F) with labels (S, b) in ``grad``; return cosines (S, R).

        A first layer's gradient is delta^T x, so with the Gram matrix K = x x^T + 1 (the 1 is the bias) its norm is
        <delta, K delta>, and the perturbed layer's output is the old one plus s K delta: the weights are read once and
        never written before the update, where a step through autograd passes over them a dozen times.
        """
        gram = x @ x.transpose(1, 2) + 1  # (S, b, b)
        first, bias = self.stacked[0].flatten(1, 2), self.stacked[1].flatten(1)  # (S, R * h, F), (S, R * h)
        shape = (*x.shape[:2], rho.shape[1], max(1, self.hidden))  # (S, b, R, h)
        pre = torch.baddbmm(bias[:, None], x, first.transpose(1, 2)).view(shape)
        second, offset = (p.view(*rho.shape, -1) for p in self.stacked[2:]) if self.hidden else (None, None)
        one = self._deltas(pre, second, offset, y)
        spread = (gram @ one.delta.flatten(2)).view(shape)  # K delta
        norm = (_dot(one.delta, spread) + one.square(one)).clamp_min(0).sqrt()  # (S, R)
        s = torch.where((norm > 0) & norm.isfinite(), rho.to(norm) / norm, 0)[..., None]  # (S, R, 1)
        moved = pre + s[:, None] * spread
        if self.hidden:
            two = self._deltas(moved, second + s * one.second, offset + s * one.offset, y)
        else:
            two = self._deltas(moved, None, None, y)
        again = (gram @ two.delta.flatten(2)).view(shape)
        length = (_dot(two.delta, again) + two.square(two)).clamp_min(0).sqrt()
        self.stacked[0].grad = torch.bmm(two.delta.flatten(2).transpose(1, 2), x).view_as(self.stacked[0])
        self.stacked[1].grad = two.delta.sum(1).view_as(self.stacked[1])
        if self.hidden:
            self.stacked[2].grad = two.second.view_as(self.stacked[2])
            self.stacked[3].grad = two.offset.view_as(self.stacked[3])
        cosine = (_dot(two.delta, spread) + one.square(two)) / (norm * length).clamp_min(1e-30)
        return torch.where((rho.to(norm) > 0) & (norm > 0), cosine, 1.0)

    def _deltas(self, pre: Tensor, second: Tensor | None, offset: Tensor | None, y: Tensor) -> _Deltas:
        """Gradients of the batch's mean loss from the first layer's output (S, b, R, h) and the second layer."""
        if second is None or offset is None:
            return _Deltas((pre.sigmoid() - y[:, :, None, None]) / y.shape[1])
        hidden = F.gelu(pre)  # (S, b, R, h)
        logits = (hidden * second[:, None]).sum(-1) + offset[:, None, :, 0]  # (S, b, R)
        error = (logits.sigmoid() - y[:, :, None]) / y.shape[1]  # (S, b, R)
        delta = torch.ops.aten.gelu_backward(error[..., None] * second[:, None], pre)
        return _Deltas(delta, (hidden * error[..., None]).sum(1), error.sum(1)[..., None])


@dataclass
class _Deltas:
    """Gradients at the first layer's output (S, b, R, h), and of the second layer's weights (S, R, h) and bias."""

    delta: Tensor
    second: Tensor | None = None
    offset: Tensor | None = None

    def square(self, other: _Deltas) -> Tensor | float:
        """The second layer's share of the inner product with another gradient, (S, R)."""
        if self.second is None:
            return 0.0
        return (self.second * other.second).sum(-1) + (self.offset * other.offset).sum(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over batch and width of (S, b, R, h) tensors: (S, R)."""
    return torch.einsum("sbrh,sbrh->sr", a, b)


@dataclass
class Fitted:
    """Logits of all members and images, (S, R, n), and each member's mean cosine of ascent with descent over the last
    epoch, (S, R)."""

    logits: Tensor
    cosine: Tensor


def train_population(
    x: Tensor, labels: Tensor, trained_on: Tensor, seeds: Sequence[int], radii: Sequence[float], o: Optimization
) -> Fitted:
    """Train a head for every seed and radius, at once.

    Args:
        x: standardised features of all images, (n, F).
        labels: 0 or 1, (n,), or (S, n) where seeds differ in them.
        trained_on: positions of the training images, (t,).
    """
    y = labels.float().to(x.device).expand(len(seeds), -1)  # (S, n)
    member = x.shape[1] * max(1, o.hidden) * len(seeds)
    chunk = max(1, MEMBERS_SIZE // member)
    out = []
    for start in range(0, len(radii), chunk):
        out.append(_train(x, y, trained_on, seeds, radii[start : start + chunk], o))
    return Fitted(torch.cat([f.logits for f in out], 1), torch.cat([f.cosine for f in out], 1))


def _train(
    x: Tensor, y: Tensor, trained_on: Tensor, seeds: Sequence[int], radii: Sequence[float], o: Optimization
) -> Fitted:
    heads = Heads(x.shape[1], o.hidden, seeds, len(radii)).to(x.device)
    rho = torch.tensor(radii, dtype=torch.float64).expand(len(seeds), -1)  # (S, R)
    sam = sam_of(o, list(heads.stacked), rho)
    rows = torch.arange(len(seeds))[:, None]
    size = min(o.batch_size, len(trained_on))

    def loss(batch: Tensor) -> Tensor:
        logits = heads(x[batch])  # (S, R, b)
        target = y[rows, batch][:, None].expand_as(logits)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1) / size  # (S, R)

    plain = not (o.m or o.adaptive or o.friendly is not None)

    def step(batch: Tensor) -> Tensor:  # (S, b)
        if not plain:
            return sam.step(loss, micro_batches(o, batch)).cosine
        cosine = heads.backward(x[batch], y[rows, batch], rho)
        sam.optimizer.step()
        return cosine

    cosine = run_batches(o, trained_on, seeds, step)
    with torch.no_grad():
        logits = heads(x.expand(len(seeds), -1, -1))  # (S, R, n)
    return Fitted(logits, cosine)
