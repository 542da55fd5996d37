from __future__ import annotations

import numpy as np
import pytest
import torch

from corit_cli import metrics
from corit_cli.errors import CoritError
from corit_cli.training.head import balance_weights, fit_head
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
