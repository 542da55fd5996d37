from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli import metrics
from corit_cli.detection.calibration import (
    STEP,
    Calibration,
    Thresholds,
    fit_calibration,
    fit_thresholds,
    strict_threshold,
)
from corit_cli.errors import CoritError


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


def test_verdicts_at_the_thresholds_themselves() -> None:
    thresholds = Thresholds(0.2, 0.8)
    assert [thresholds.verdict(p) for p in (0.2, 0.21, 0.79, 0.8)] == ["real", "uncertain", "uncertain", "fake"]


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


def test_the_promise_holds_on_touched_files_alike_and_the_strict_one_is_stricter() -> None:
    rng = np.random.default_rng(0)
    labels, touched = np.arange(4000) % 2, np.arange(4000) % 4 > 1
    sources = [f"s{k}" for k in rng.integers(0, 20, 4000)]
    # What was touched looks more like a fake, of either class.
    probabilities = 1 / (1 + np.exp(-(2 * labels - 1 + touched + rng.standard_normal(4000))))
    alone, both = (fit_thresholds(probabilities, labels, sources, 0.05, 0.05, t) for t in (None, touched))
    verdicts = np.array([both.verdict(round(p, 6)) for p in probabilities])
    for state in (touched, ~touched):
        assert (verdicts[state & (labels == 0)] == "fake").mean() <= 0.05
        assert (verdicts[state & (labels == 1)] == "real").mean() <= 0.05
    assert (verdicts[touched & (labels == 0)] == "fake").mean() > 0.04
    assert alone.fake < both.fake and both.real < alone.real
    strict = both.strictly()
    assert strict.fake == both.strict > both.fake and strict.real == both.real
    assert 0.004 < (probabilities[touched & (labels == 0)] >= strict.fake).mean() <= 0.01


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


@pytest.mark.parametrize("values", [(np.nan, 0.0), (1.0, np.inf), (-np.inf, np.nan)])
def test_a_calibration_is_of_finite_numbers(values: tuple[float, float]) -> None:
    with pytest.raises(CoritError, match="finite numbers"):
        Calibration(*values)


@pytest.mark.parametrize("values", [(0.8, 0.2), (np.nan, 0.5), (0.5, np.nan), (-0.1, 0.5), (0.5, 1.1), (0.2, np.inf)])
def test_thresholds_are_probabilities_in_order(values: tuple[float, float]) -> None:
    with pytest.raises(CoritError, match="0 <= real <= fake <= 1"):
        Thresholds(*values)


def test_thresholds_may_lie_just_outside_so_that_no_probability_reaches_them() -> None:
    none = Thresholds(-STEP, 1 + STEP)
    assert [none.verdict(p) for p in (0.0, 0.5, 1.0)] == ["uncertain"] * 3
    equal = Thresholds(0.5, 0.5)
    assert [equal.verdict(p) for p in (0.4, 0.5, 0.6)] == ["real", "fake", "fake"]
