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


@undisturbed()
def fit_head(
    z: Tensor,
    labels: Tensor,
    weights: Tensor,
    settings: TrainSettings,
    advance: Advance = hush,
    after: Callable[[int, Head], None] = lambda epoch, head: None,
    log: Log = unlogged,
) -> Head:
    """Train a head on features ``z`` (n, F), ``labels`` (n,) and sample ``weights`` (n,). Same inputs, same head.
    ``advance`` is told of every epoch, ``after`` its number, from 1, with the head as it then is, and ``log`` what its
    steps saw. Raises CoritError where the training diverged.
    """
    torch.manual_seed(settings.seed)
    head = Head(z.shape[1], HeadKind.parse(settings.head))
    head.fit_standardiser(z)
    head.choose_landmarks(z)
    x, y = head.expand(head.standardise(z)), labels.float()  # (n, F or m), (n,)
    base = base_optimizer(settings.optimizer, head.parameters(), settings.lr, settings.weight_decay)
    sam = SAM(base, settings.rho)
    batches = max(1, len(x) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, settings.epochs * batches)

    def loss_of(rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        features, truth, weight = rows  # (b, F), (b,), (b,)
        return F.binary_cross_entropy_with_logits(head.layers(features).squeeze(-1), truth, weight=weight)

    for epoch in range(1, settings.epochs + 1):
        seen = Epoch(schedule.get_last_lr()[0])
        for batch in torch.randperm(len(x)).tensor_split(batches):
            rows = x.index_select(0, batch), y[batch], weights[batch]  # once for both of SAM's passes
            seen.add(sam.step(loss_of, [rows]), len(batch))
            schedule.step()
        advance(1, f"loss {seen.means['loss']:.3f}")
        log(epoch=epoch, **seen.means)
        after(epoch, head)
    if not all(p.isfinite().all() for p in head.parameters()):
        raise CoritError("the training diverged: lower --lr, --rho or --weight-decay")
    return head.eval()
