from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import norm, ttest_1samp

from corit_cli import metrics
from corit_cli.metrics import jackknife_interval
from tests.metrics.test_resampling import example


def test_intervals_are_as_wide_as_delong_says() -> None:
    labels, scores = example(200)
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = fake[:, None] > real[None]
    spread = np.sqrt(wins.mean(1).var(ddof=1) / len(fake) + wins.mean(0).var(ddof=1) / len(real))
    drawn = metrics.bootstrap_groups(labels, {"": scores})["", ""]
    for found in (metrics.auc_interval(labels, scores), metrics.interval(drawn.value, drawn.draws)):
        assert found.high - found.low == pytest.approx(2 * norm.ppf(0.975) * spread, rel=0.07)
    assert drawn.estimate == metrics.auc_interval(labels, scores)  # no percentiles for one group


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_in_its_interval(counts: tuple[int, int]) -> None:
    found = metrics.proportion(*counts)
    assert 0 <= found.low <= found.value <= found.high <= 1


numbers = st.floats(1.01, 500)


@given(st.floats(0, 1), numbers, numbers, numbers)
def test_the_interval_of_an_auc(value: float, reals: float, fakes: float, others: float) -> None:
    found = metrics.newcombe(value, reals, fakes)
    assert 0 <= found.low <= value <= found.high <= 1 and found.low < found.high
    mirrored = metrics.newcombe(1 - value, fakes, reals)
    assert (1 - found.low, 1 - found.high) == pytest.approx((mirrored.high, mirrored.low), abs=1e-9)
    for more in (metrics.newcombe(value, reals + others, fakes), metrics.newcombe(value, reals, fakes + others)):
        assert found.low - 1e-9 <= more.low and more.high <= found.high + 1e-9
        assert more.high - more.low < found.high - found.low


@given(st.floats(0.05, 0.95), st.integers(2, 200), st.integers(2, 200))
def test_its_ends_are_where_the_value_would_be_1_96_standard_errors_away(value: float, reals: int, fakes: int) -> None:
    def surprise(area: float) -> float:
        q1, q2 = (
            area / (2 - area),
            2 * area**2 / (1 + area),
        )  # Hanley and McNeil, with the mean of both classes for each
        pairs = (reals + fakes) / 2 - 1
        variance = (area * (1 - area) + pairs * (q1 - area**2) + pairs * (q2 - area**2)) / (reals * fakes)
        return (value - area) ** 2 - norm.ppf(0.975) ** 2 * variance

    found = metrics.newcombe(value, reals, fakes)
    assert found.low == pytest.approx(brentq(surprise, 1e-9, value), abs=1e-5)
    assert found.high == pytest.approx(brentq(surprise, value, 1 - 1e-9), abs=1e-5)


def test_the_interval_of_an_auc_of_few_images_covers_it() -> None:
    rng, labels, truth = np.random.default_rng(0), np.arange(20) % 2, 0.9
    shift = norm.ppf(truth) * 2**0.5
    found = [metrics.auc_interval(labels, rng.normal(size=20) + shift * labels) for _ in range(1000)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert 0.93 < covered < 0.99  # percentiles of the bootstrap cover .8


def test_frames_of_a_video_count_as_one_in_the_interval_of_an_auc() -> None:
    labels, scores = example()
    frames = [i for i in range(80) for _ in range(5)]
    assert metrics.auc_interval(labels.repeat(5), scores.repeat(5), units=frames) == metrics.auc_interval(
        labels, scores
    )
    assert metrics.class_counts([0, 0, 0, 0, 1], "aabbc") == (2, 1)
    assert metrics.effective_count("aaab") == 16 / 10 and metrics.effective_count("") == 0


def test_no_interval_of_an_auc_without_two_of_each_class() -> None:
    for labels in ([0, 0, 0], [0, 0, 1], [1, 1, 0]):
        found = metrics.auc_interval(np.array(labels), np.arange(3))
        assert np.isnan([found.low, found.high]).all() and np.isnan(found.value) == (max(labels) == 0)


def test_the_mean_of_nothing_is_nan() -> None:
    assert np.isnan(metrics.Sampled.mean([]).estimate.value)


def test_what_is_not_finite_is_none_in_json() -> None:
    document = {"a": [1, float("nan"), {"b": float("inf")}], 2: (0.5, None, "x", True)}
    assert metrics.plain(document) == {"a": [1, None, {"b": None}], "2": [0.5, None, "x", True]}


def test_an_interval_may_be_widened_by_another() -> None:
    one, other, none = (
        metrics.Estimate(0.5, 0.4, 0.6),
        metrics.Estimate(0.5, 0.45, 0.7),
        metrics.Estimate(0.5, *[np.nan] * 2),
    )
    assert one.widened(other) == metrics.Estimate(0.5, 0.4, 0.7)
    assert all(np.isnan([e.low, e.high]).all() for e in (one.widened(none), none.widened(one)))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = metrics.mean_interval(np.array(values))
    if np.ptp(values) < 1e-9:
        assert found.low == pytest.approx(found.high, abs=1e-7)
        return
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_new_value_lies_where_it_is_predicted() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.9, 0.02, size=(1000, 6))
    hits = {metrics.mean_interval: 0, metrics.prediction_interval: 0}
    for *values, new in drawn:
        for of in hits:
            found = of(np.array(values))
            hits[of] += found.low <= new <= found.high
    assert 930 < hits[metrics.prediction_interval] < 970 and hits[metrics.mean_interval] < 750


def test_intervals_of_means_end_at_bounds() -> None:
    values = np.array([0.5, 1.0])
    for of in (metrics.mean_interval, metrics.prediction_interval):
        found = of(values, bounds=(0.0, 1.0))
        assert (found.value, found.low, found.high) == (0.75, 0, 1) and of(values).high > 1


def test_what_values_share_widens_the_interval_of_their_mean() -> None:
    """Where nothing else varies, all of it is what they share."""
    for of in (metrics.mean_interval, metrics.prediction_interval):
        found = of(np.full(5, 0.8), shared=0.01)
        reach = stats.t(4).ppf(0.975) * 0.1
        assert (found.low, found.high) == pytest.approx((0.8 - reach, 0.8 + reach))
        assert np.isnan(of(np.full(5, 0.8), shared=np.nan).low)


def test_one_value_has_a_mean_and_no_interval() -> None:
    for of in (metrics.mean_interval, metrics.prediction_interval):
        found = of(np.array([0.7]))
        assert found.value == 0.7 and np.isnan([found.low, found.high]).all()


def test_a_jackknife_of_a_mean_is_that_of_the_textbook():
    x = np.random.default_rng(0).standard_normal(20)
    found = jackknife_interval(lambda kept: float(x[kept].mean()), [[i] for i in range(20)])
    reach = stats.t(19).ppf(0.975) * x.std(ddof=1) / np.sqrt(20)
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), x.mean() - reach, x.mean() + reach))
