from __future__ import annotations

import numpy as np
import pytest
import torch

from corit_cli import metrics
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.training.head import fit_head
from corit_cli.training.layer_weights import LEAST, gsnr_weights
from corit_cli.training.settings import TrainSettings


def layered(n: int = 240, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Features of three parts of 8 and four sources: the first part tells the classes apart everywhere, the second in
    each source the other way round than in the next, the third not at all."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    source = torch.arange(n) // 2 % 4
    z = torch.randn(n, 24, generator=generator)
    z[:, 0] += 3 * y
    z[:, 8] += 6 * y * (-1) ** source
    return z, y, [f"s{s}" for s in source.tolist()]


def test_layers_whose_signal_sources_share_weigh_most() -> None:
    z, y, sources = layered()
    weights = gsnr_weights((z - z.mean(0)) / z.std(0), y, torch.ones(len(y)), sources, parts=3)
    assert weights.mean() == pytest.approx(1, abs=0.01)
    assert weights[0] > 2.5 and weights[1] < 0.2 and weights[2] < 0.2


def test_gsnr_weights_are_those_of_autograd() -> None:
    z, y, sources = layered()
    w = torch.rand(len(y)) + 0.5
    head = torch.zeros(24, requires_grad=True)
    gradients = []
    for x, label, weight in zip(z, y.float(), w, strict=True):
        loss = weight * torch.nn.functional.binary_cross_entropy_with_logits(x @ head, label)
        gradients.append(torch.autograd.grad(loss, head)[0].view(3, 8))
    g = torch.stack(gradients).double()  # (n, 3, 8)
    groups = np.array(sources)
    means = []
    labels = y.numpy()
    for part in range(3):  # signal from pairs of images of different sources, class by class; noise within classes
        products = (g[:, part] @ g[:, part].T).numpy()
        a = np.empty((2, 2))
        for r, f in np.ndindex(2, 2):
            pairs = (groups[:, None] != groups[None]) & (labels[:, None] == r) & (labels[None] == f)
            a[r, f] = products[pairs].mean()
        squares = np.mean([np.diag(products)[labels == c].mean() for c in (0, 1)])
        means.append(max(a.mean(), 0) / (squares - np.trace(a) / 2))
    expected = np.maximum(np.array(means) / np.mean(means), LEAST)
    np.testing.assert_allclose(gsnr_weights(z, y, w, sources, parts=3).numpy(), expected, rtol=1e-5)


def test_no_signal_or_too_few_sources() -> None:
    z, y, sources = layered()
    turned = (-1.0) ** torch.tensor([int(s[1]) for s in sources])
    none = gsnr_weights(turned[:, None] * (2.0 * y[:, None] - 1) * torch.ones(1, 24), y, torch.ones(len(y)), sources, 3)
    assert torch.equal(none, torch.ones(3))
    assert torch.equal(gsnr_weights(z, y, torch.ones(len(y)), ["a", "b"] * 120, parts=3), torch.ones(3))


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("kind", ["gsnr", "learned"])
def test_a_head_multiplies_by_its_layer_weights_itself(kind: str, hidden: int) -> None:
    z, y, sources = layered()
    config = TrainSettings(head=f"mlp:{hidden}" if hidden else "linear", layer_weights=kind, epochs=60)
    head = fit_head(z, y, torch.ones(len(y)), config, parts=3, units=sources)
    assert head.layer_weights is not None and np.mean(head.layer_weights) == pytest.approx(1, abs=0.01)
    assert head.layer_weights[0] == max(head.layer_weights)
    plain = Head(24, HeadKind(hidden))
    plain.fit_standardiser(z)
    with torch.inference_mode():
        shares = torch.tensor(head.layer_weights).repeat_interleave(8)
        torch.testing.assert_close(head.standardise(z), plain.standardise(z) * shares)
        assert metrics.auc(y.numpy(), head(z).numpy()) > 0.9


def test_uniform_weights_change_nothing() -> None:
    z, y, sources = layered()
    a = fit_head(z, y, torch.ones(len(y)), TrainSettings(epochs=2))
    b = fit_head(z, y, torch.ones(len(y)), TrainSettings(epochs=2), parts=3, units=sources)
    assert a.layer_weights is b.layer_weights is None
    assert torch.equal(a(z), b(z))
