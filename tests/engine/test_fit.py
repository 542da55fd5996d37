from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli import metrics
from corit_cli.config import TrainSettings
from corit_cli.engine.fit import balance_weights, fit_calibration, fit_head, fit_thresholds, strict_threshold


def separable(n: int = 200, features: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % 2).long()
    z = torch.randn(n, features, generator=generator) * 3 + 5
    z[:, 0] += 8 * y
    return z, y


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_learns(hidden: int, optimizer: str) -> None:
    z, y = separable()
    config = TrainSettings(hidden=hidden, optimizer=optimizer, lr=0.05 if optimizer == "adamw" else 2.0, epochs=20)
    head = fit_head(z, y, torch.ones(len(y)), config)
    z_new, y_new = separable(seed=1)
    with torch.inference_mode():
        assert metrics.auc(y_new.numpy(), head(z_new).numpy()) > 0.7
        assert metrics.auc(y.numpy(), head(z).numpy()) > 0.8


def test_same_seed_same_head() -> None:
    z, y = separable()
    fit = lambda seed: fit_head(z, y, torch.ones(len(y)), TrainSettings(hidden=4, epochs=3, seed=seed))  # noqa: E731
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


def test_calibration_recovers_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(20_000) % 2
    x = rng.normal(2.0 * y - 1.0, 1.0)  # the true log odds of N(1,1) against N(-1,1) are 2x
    logits = torch.from_numpy(5 * x + 3)
    calibration = fit_calibration(logits, torch.from_numpy(y))
    np.testing.assert_allclose(calibration(logits).numpy(), 1 / (1 + np.exp(-2 * x)), atol=0.03)
    assert metrics.expected_calibration_error(y, calibration(logits).numpy()) < 0.02


def test_scores_that_point_the_wrong_way_become_ignorance() -> None:
    y = torch.arange(100) % 2
    calibration = fit_calibration(-y.double() + torch.randn(100, dtype=torch.double) * 0.1, y)
    assert calibration(torch.tensor([-3.0, 3.0])).tolist() == [0.5, 0.5]


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1), st.sampled_from("abc")), min_size=4).filter(
        lambda d: len({x for x, _, _ in d}) == 2
    ),
    fpr=st.floats(0, 0.5),
    fnr=st.floats(0, 0.5),
)
def test_thresholds_keep_their_promise(data: list[tuple[int, float, str]], fpr: float, fnr: float) -> None:
    labels, probabilities = np.array([d[0] for d in data]), np.array([d[1] for d in data])
    thresholds = fit_thresholds(probabilities, labels, [d[2] for d in data], fpr, fnr)
    assert thresholds.real <= thresholds.fake
    verdicts = np.array([thresholds.verdict(round(p, 6)) for p in probabilities])
    assert (verdicts[labels == 0] == "fake").mean() <= fpr + 1e-9
    assert (verdicts[labels == 1] == "real").mean() <= fnr + 1e-9


def test_a_source_of_its_own_kind_makes_the_threshold_stricter() -> None:
    rng = np.random.default_rng(0)
    sources = np.repeat(list("abcdefgh"), 100)
    alike = rng.normal(size=800)
    shifted = alike + 2 * (sources == "a")  # one source scores higher than all others
    plain, strict = (np.quantile(s, 0.95) for s in (alike, shifted))
    assert strict_threshold(alike, sources, 0.05) == pytest.approx(plain, abs=0.1)
    at = strict_threshold(shifted, sources, 0.05)
    assert at > strict + 0.5
    assert strict_threshold(shifted, np.repeat("a", 800), 0.05) == pytest.approx(strict, abs=0.05)


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=2, max_size=60),
    target=st.floats(0, 0.5),
)
def test_a_stricter_target_never_lowers_the_threshold(scores: list[tuple[float, str]], target: float) -> None:
    values, sources = np.array([s for s, _ in scores]), np.array([s for _, s in scores])
    at = strict_threshold(values, sources, target)
    assert (values >= at).mean() <= target
    assert strict_threshold(values, sources, target / 2) >= at
