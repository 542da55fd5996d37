from __future__ import annotations

import numpy as np
import pytest
import torch

from corit_cli import metrics
from corit_cli.errors import CoritError
from corit_cli.training import head as module
from corit_cli.training.head import balance_weights, fit_head, fit_heads
from corit_cli.training.settings import TrainSettings


def separable(n: int = 200, features: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % 2).long()
    z = torch.randn(n, features, generator=generator) * 3 + 5
    z[:, 0] += 8 * y
    return z, y


@pytest.mark.parametrize("head", ["linear", "mlp:16", "rbf:40"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_learns(head: str, optimizer: str) -> None:
    z, y = separable()
    config = TrainSettings(head=head, optimizer=optimizer, lr=0.05 if optimizer == "adamw" else 2.0, epochs=20)
    head = fit_head(z, y, torch.ones(len(y)), config)
    z_new, y_new = separable(seed=1)
    with torch.inference_mode():
        assert metrics.auc(y_new.numpy(), head(z_new).numpy()) > 0.7
        assert metrics.auc(y.numpy(), head(z).numpy()) > 0.8


def test_a_training_that_diverges_is_an_error() -> None:
    z, labels = torch.randn(20, 4), torch.arange(20) % 2
    with pytest.raises(CoritError, match="diverged: lower --lr"):
        fit_head(z, labels, torch.ones(20), TrainSettings(lr=1.0, weight_decay=100.0, epochs=200, optimizer="sgd"))


def test_same_seed_same_head() -> None:
    z, y = separable()
    fit = lambda seed: fit_head(z, y, torch.ones(len(y)), TrainSettings(head="mlp:4", epochs=3, seed=seed))  # noqa: E731
    a, b, c = (fit(seed).state_dict()["layers.0.weight"] for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def held_out(n: int, count: int = 3) -> torch.Tensor:
    """Weights (count, n) of heads from which every count-th row is held out, another each."""
    weights = torch.rand(count, n, generator=torch.Generator().manual_seed(2)) + 0.5
    return torch.where(torch.arange(n) % count == torch.arange(count)[:, None], 0, weights)


@pytest.mark.parametrize("kind", ["linear", "mlp:8", "rbf:10"])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_heads_trained_at_once_are_those_trained_on_their_rows_alone(
    kind: str, rho: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are one batch here: what else differs is who shares one with whom."""
    monkeypatch.setattr(module, "MEMBERS_SIZE", 2 * 30 * 8)  # not all of those with a layer between at once
    z, y = separable(n=90)
    z[:, 3] = 7.0  # constant
    z[::3, 4], z[1::3, 4], z[2::3, 4] = 2.0, 2.0, torch.randn(30)  # constant to the last head
    settings = TrainSettings(head=kind, epochs=30, batch_size=90, lr=0.05, rho=rho)
    weights = held_out(90)
    weights /= weights.sum(1, keepdim=True) / 60
    for own, head in zip(weights, fit_heads(z, y, weights, settings), strict=True):
        kept = own > 0
        alone = fit_head(z[kept], y[kept], own[kept], settings)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(head.state_dict()[name], value, atol=2e-4, rtol=1e-4, msg=name)
        assert not torch.allclose(head.layers[0].weight, fit_head(z, y, torch.ones(90), settings).layers[0].weight)


@pytest.mark.parametrize("kind", ["linear", "mlp:4"])
def test_what_is_held_out_from_a_head_does_not_reach_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = separable(n=90)
    settings = TrainSettings(head=kind, epochs=5, batch_size=16)
    other, flipped = z.clone(), y.clone()
    other[::3] = torch.randn(30, 30) * 5 - 4
    flipped[::3] = 1 - flipped[::3]
    weights = held_out(90)
    monkeypatch.setattr(module, "MEMBERS_SIZE", 2 * 30 * 4)  # three are not all trained at once
    together, (two, *_) = fit_heads(z, y, weights, settings), fit_heads(other, flipped, weights, settings)
    for name, value in together[0].state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, atol=1e-4, rtol=1e-4)
    for k in (0, 2):  # nor do others that are trained beside it
        (single,) = fit_heads(z, y, weights[k : k + 1], settings)
        torch.testing.assert_close(single.layers[0].weight, together[k].layers[0].weight, atol=1e-4, rtol=1e-4)


def test_a_linear_head_without_sam_finds_the_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    z, y = separable(features=5)
    config = TrainSettings(optimizer="sgd", rho=0, lr=2.0, weight_decay=0, epochs=600, batch_size=200)
    head = fit_head(z, y, torch.ones(len(y)), config)
    x = head.standardise(z).numpy()
    oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x, y.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(head(z).numpy(), oracle.decision_function(x), atol=0.02, rtol=0.01)


def test_balance() -> None:
    labels, sources = [0] * 90 + [1] * 10, ["a"] * 81 + ["b"] * 9 + ["c"] * 10
    for balance in ("class", "source"):
        weights = balance_weights(labels, sources, balance)
        assert weights[:90].sum() == pytest.approx(float(weights[90:].sum()), rel=1e-5)
        assert weights.mean() == pytest.approx(1)
    by_source = balance_weights(labels, sources, "source")
    assert by_source[:81].sum() == pytest.approx(3 * float(by_source[81:90].sum()), rel=1e-5)  # sqrt(81 / 9)
    assert torch.equal(balance_weights(labels, sources, "none"), torch.ones(100))
