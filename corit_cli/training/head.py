"""The training loop of a head on features, and how much each sample weighs in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.progress import Advance, hush
from corit_cli.seeds import undisturbed
from corit_cli.training.log import Epoch, Log, unlogged
from corit_cli.training.sam import SAM, base_optimizer
from corit_cli.training.settings import TrainSettings

#: Numbers in the weights of heads that are trained at once; gradients and moments take three times as much again.
MEMBERS_SIZE = 16_000_000
#: Share of a feature's spread over all rows below which that over some of them is not found by their squares alone.
CANCELLING = 0.01


def centre(layers: nn.Sequential, x: Tensor) -> None:
    """Take the mean logit on standardised features ``x`` (n, F) out of the last bias.

    A random head's offset says nothing of the classes, but all images agree on its gradient: GSNR would call it signal.
    """
    with torch.no_grad():
        layers[-1].bias -= layers(x).mean()


def per_sample_gradients(layers: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Gradients (n, parameters) of each sample's loss with respect to a head's ``layers``, from standardised features
    ``x`` (n, F) and ``labels`` (n,), in float64."""
    parameters = {name: p.detach() for name, p in layers.named_parameters()}

    def loss(p: dict[str, Tensor], features: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(functional_call(layers, p, (features[None],))[0, 0], label)

    found = vmap(grad(loss), (None, 0, 0), chunk_size=1024)(parameters, x, labels.float())
    return torch.cat([g.flatten(1) for g in found.values()], 1).double()


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


@undisturbed()
def missing(features: int, settings: TrainSettings) -> Head:
    """A head with nothing to learn from: its logit is missing (NaN) of every image."""
    head = Head(features, HeadKind.parse(settings.head)).eval()
    with torch.no_grad():
        for p in head.layers.parameters():
            p.zero_()
        head.layers[-1].bias.fill_(float("nan"))
    return head


def fit_head(
    z: Tensor,
    labels: Tensor,
    weights: Tensor,
    settings: TrainSettings,
    advance: Advance = hush,
    after: Callable[[int, Head], None] = lambda epoch, head: None,
    log: Log = unlogged,
) -> Head:
    """Train a head on features ``z`` (n, F), ``labels`` (n,) and sample ``weights`` (n,): :func:`fit_heads` of one.
    ``after`` is told the number of every epoch, from 1, with the head as it then is."""
    (head,) = fit_heads(z, labels, weights[None], settings, advance, lambda epoch, heads: after(epoch, *heads), [log])
    return head


@undisturbed()
def fit_heads(
    z: Tensor,
    labels: Tensor,
    weights: Tensor,
    settings: TrainSettings,
    advance: Advance = hush,
    after: Callable[[int, Sequence[Head]], None] = lambda epoch, heads: None,
    logs: Sequence[Log] = (),
) -> list[Head]:
    """Train K heads on features ``z`` (n, F) and ``labels`` (n,), each with its own sample ``weights`` (K, n), at once.

    Where a head's weight is 0 the row is held out from it: neither its features nor its label reach the head. All see
    the same batches, so that these are read once, and small steps take hardly longer for many heads than for one. What
    one learns from is its own; how its rows fall into batches, and how many steps there are, depends on all rows. Same
    inputs, same heads. ``advance`` is told of every epoch, ``after`` its number, from 1, with
    the heads as they then are, and ``logs``, one a head, what its steps saw. Raises CoritError where a training
    diverged.
    """
    kind, count = HeadKind.parse(settings.head), len(weights)
    heads = []
    for _ in range(count):
        torch.manual_seed(settings.seed)
        heads.append(Head(z.shape[1], kind))
    logs = logs or [unlogged] * count
    if kind.landmarks:  # each head's kernel has landmarks of its own
        as_it_is = torch.zeros(1, 1), torch.ones(1, 1)
        for number, (head, own, log) in enumerate(zip(heads, weights, logs, strict=True)):
            kept = own > 0
            head.fit_standardiser(z[kept])
            torch.manual_seed(settings.seed)
            head.choose_landmarks(z[kept])
            x = head.expand(head.standardise(z[kept]))  # (n_k, m)
            last = number == count - 1
            _train(
                [head], x, labels[kept], own[None, kept], settings, advance if last else hush, after, [log], *as_it_is
            )
        return heads
    pooled = Head(z.shape[1])
    pooled.fit_standardiser(z)
    x = (z - pooled.mean).div_(pooled.scale * z.shape[1] ** 0.5)  # (n, F), as Head.standardise has it
    drawn = torch.get_rng_state()
    for begin in range(0, count, step := max(1, MEMBERS_SIZE // (z.shape[1] * max(1, kind.hidden)))):
        torch.set_rng_state(drawn)
        some, told = slice(begin, begin + step), advance if begin + step >= count else hush
        own = _own_standardisers(heads[some], pooled, z, x, weights[some] > 0)
        _train(heads[some], x, labels, weights[some], settings, told, after, logs[some], *own)
    return heads


@torch.no_grad()
def _own_standardisers(
    heads: Sequence[Head], pooled: Head, z: Tensor, x: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit each head's standardiser to the rows that are ``kept`` (K, n) for it, of features ``z`` (n, F), which the
    ``pooled`` one has made ``x`` (n, F).

    Returns what makes of ``x`` what each head takes, shift and spread (K, F); where a feature is the same in all rows
    that are kept the spread is infinite, so that rounding teaches nothing.
    """
    share = kept.float() / kept.sum(1, keepdim=True)  # (K, n)
    size = x.shape[1] ** 0.5
    mean = share @ x * size  # (K, F), in spreads of all rows
    square = torch.cat([share @ part.square() for part in x.split(1024, 1)], 1) * size**2
    spread = (square - mean.square()).clamp_min(0).sqrt()  # (K, F)
    for head, m, s, own in zip(heads, mean, spread, kept, strict=True):
        few = s < CANCELLING  # constant, perhaps
        if few.any():
            part, exact = z[:, few][own], Head(int(few.sum()))
            exact.fit_standardiser(part)
            head.mean[few], head.scale[few] = exact.mean, exact.scale
            m[few] = (exact.mean - pooled.mean[few]) / pooled.scale[few]
            s[few] = torch.where(part.amin(0) == part.amax(0), torch.inf, exact.scale / pooled.scale[few])
        head.mean[~few], head.scale[~few] = (pooled.mean + m * pooled.scale)[~few], (s * pooled.scale)[~few]
    return mean / size, spread


def _train(
    heads: Sequence[Head],
    x: Tensor,
    labels: Tensor,
    weights: Tensor,
    settings: TrainSettings,
    advance: Advance,
    after: Callable[[int, Sequence[Head]], None],
    logs: Sequence[Log],
    shift: Tensor,
    spread: Tensor,
) -> None:
    """Train the layers of K heads on ``labels`` (n,) with ``weights`` (K, n) and what they take: ``x`` (n, F) less
    ``shift`` and over ``spread``, (K, F)."""
    layers = [dict(head.layers.named_parameters()) for head in heads]
    stacked = {
        name: nn.Parameter(torch.stack([own[name].detach() for own in layers])) for name in layers[0]
    }  # (K, ...)
    for k, own in enumerate(layers):  # the heads are always as trained so far
        for name, p in own.items():
            p.data = stacked[name].data[k]

    def forward(x: Tensor) -> Tensor:
        """(b, F) to logits (K, b)."""
        first, bias, *second = stacked.values()  # (K, h or 1, F), (K, h or 1), (K, 1, h), (K, 1)
        first = first / spread[:, None]
        bias = bias - (first * shift[:, None]).sum(-1)
        out = (first.flatten(0, 1) @ x.T).unflatten(0, bias.shape) + bias[..., None]  # (K, h or 1, b)
        if second:
            out = second[0] @ F.gelu(out) + second[1][..., None]  # (K, 1, b)
        return out.squeeze(1)

    kept = weights > 0
    weights = weights * (kept.shape[1] / kept.sum(1, keepdim=True))  # 1 on average over all rows
    y = labels.float()
    base = base_optimizer(
        settings.optimizer, stacked.values(), settings.lr, settings.weight_decay, settings.optimizer == "adamw"
    )
    sam = SAM(base, torch.full((len(heads),), settings.rho, dtype=torch.float64))
    batches = max(1, len(x) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, settings.epochs * batches)

    def loss_of(rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        features, truth, weight = rows  # (b, F), (b,), (K, b)
        truth = truth.expand_as(weight)
        return F.binary_cross_entropy_with_logits(forward(features), truth, weight, reduction="none").mean(1)  # (K,)

    for epoch in range(1, settings.epochs + 1):
        seen = Epoch(schedule.get_last_lr()[0])
        for batch in torch.randperm(len(x)).tensor_split(batches):
            rows = x.index_select(0, batch), y[batch], weights[:, batch]  # once for both of SAM's passes
            seen.add(sam.step(loss_of, [rows]), len(batch))
            schedule.step()
        means = [seen.of(k) for k in range(len(heads))]
        advance(1, f"loss {means[0]['loss']:.3f}")
        for log, own in zip(logs, means, strict=True):
            log(epoch=epoch, **own)
        after(epoch, heads)
    for head in heads:
        for p in head.layers.parameters():
            p.data = p.data.clone()
            if not p.isfinite().all():
                raise CoritError("the training diverged: lower --lr, --rho or --weight-decay")
        head.eval()
