from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import roc_auc_score

from corit_cli import metrics
from corit_cli.metrics import intervals as module
from corit_cli.metrics import jackknife_interval
from corit_cli.metrics.intervals import RESAMPLES, resample


def example(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, rng.normal(size=n) + labels


def test_intervals_are_as_wide_as_delong_says() -> None:
    labels, scores = example(200)
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = fake[:, None] > real[None]
    spread = np.sqrt(wins.mean(1).var(ddof=1) / len(fake) + wins.mean(0).var(ddof=1) / len(real))
    drawn = metrics.bootstrap_groups(labels, {"": scores})["", ""]
    for found in (metrics.auc_interval(labels, scores), metrics.interval(drawn.value, drawn.draws)):
        assert found.high - found.low == pytest.approx(2 * norm.ppf(0.975) * spread, rel=0.07)
    assert drawn.estimate == metrics.auc_interval(labels, scores)  # no percentiles for one group


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


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.booleans())
def test_each_group_keeps_its_classes_and_units_stay_whole(seed: int, videos: bool) -> None:
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    units = [f"{g}{y}{i % 4}" for i, (g, y) in enumerate(zip(group, labels, strict=True))] if videos else None
    weights = np.concatenate(list(resample(labels, [str(g) for g in group], units, seed)))
    assert weights.shape == (RESAMPLES, 40)
    for g in range(3):
        for y in (0, 1):
            chosen = (group == g) & (labels == y)
            if units is None:
                assert (weights[:, chosen].sum(1) == chosen.sum()).all()
            elif chosen.any():
                assert (weights[:, chosen].sum(1) > 0).all()
    for unit in set(units or ()):
        same = weights[:, [u == unit for u in units]]
        assert (same == same[:, :1]).all()


def test_images_of_a_video_count_as_one() -> None:
    labels, scores = example()
    frames = [f"video {i}" for i in range(len(labels)) for _ in range(3)]
    alone = metrics.bootstrap_groups(labels, {"a": scores})["a", ""]
    together = metrics.bootstrap_groups(labels.repeat(3), {"a": scores.repeat(3)}, units=frames)["a", ""]
    np.testing.assert_allclose(together.draws, alone.draws)
    apart = metrics.bootstrap_groups(labels.repeat(3), {"a": scores.repeat(3)})["a", ""]
    assert apart.draws.std() < 0.7 * alone.draws.std()


def test_a_video_with_images_of_both_classes_is_drawn_whole() -> None:
    labels = np.tile([0, 1], 20)
    units = [str(i // 2) for i in range(40)]
    weights = np.concatenate(list(resample(labels, units=units)))
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights.sum(1) == 40).all()
    # A fake that always beats its own photograph by a little: pairs vary together.
    rng = np.random.default_rng(0)
    base = rng.normal(size=20)
    scores = np.stack([base, base + 0.5], 1).ravel()
    paired = metrics.bootstrap_groups(labels, {"a": scores}, units=units)["a", ""]
    assert paired.draws.std() < 0.7 * metrics.bootstrap_groups(labels, {"a": scores})["a", ""].draws.std()


def test_differences_are_paired() -> None:
    labels, scores = example()
    a = scores + np.random.default_rng(1).normal(scale=0.05, size=len(scores))
    draws, values = metrics.bootstrap_auc(labels, {"same": 2 * scores + 3, "other": a, "": scores})
    assert not (draws["same"] - draws[""]).any()
    gap = metrics.interval(values["other"] - values[""], draws["other"] - draws[""])
    alone = metrics.auc_interval(labels, scores)
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)


def test_memory_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = example()
    groups = [f"{i % 5}" for i in range(80)]
    whole, figure = np.concatenate(list(resample(labels, groups))), metrics.auc_interval(labels, scores)
    monkeypatch.setattr(module, "BLOCK", 80 * 301)
    blocks = list(resample(labels, groups))
    assert [len(b) for b in blocks] == [301] * 6 + [194]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert metrics.auc_interval(labels, scores) == figure


def test_images_are_drawn_as_often_as_chance_has_it() -> None:
    labels = np.arange(60) % 3 == 0
    weights = np.concatenate(list(resample(labels)))
    # Of m images drawn m times each is drawn once on average, with a variance of 1 - 1/m.
    for label, m in ((True, 20), (False, 40)):
        chosen = weights[:, labels == label]
        assert abs(chosen.mean(0) - 1).max() < 5 / np.sqrt(RESAMPLES)
        assert chosen.var(0).mean() == pytest.approx(1 - 1 / m, rel=0.02)
        assert np.cov(chosen.T)[np.triu_indices(m, 1)].mean() == pytest.approx(-1 / m, rel=0.1)


def test_a_group_of_one_class_has_no_auc() -> None:
    labels, scores = example()
    found = metrics.bootstrap_groups(labels, {"a": scores}, {"both": np.arange(80), "real": np.arange(0, 80, 2)})
    assert list(found) == [("a", "both"), ("a", "real")]
    assert np.isnan(found["a", "real"].value) and np.isnan(found["a", "real"].draws).all()
    assert np.isfinite(found["a", "both"].draws).all()


def stated(n: int, seed: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities, well calibrated at a slope of one: N(1, 1) against N(-1, 1) has a log ratio of 2x."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, 1 / (1 + np.exp(-2 * slope * (rng.normal(size=n) + 2 * labels - 1)))


def test_a_calibration_interval_covers_what_percentiles_miss() -> None:
    hits = {1.0: [0, 0], 3.0: [0, 0]}
    for slope, hit in hits.items():
        truth = metrics.expected_calibration_error(*stated(1_000_000, 0, slope))
        for seed in range(1, 21):
            labels, p = stated(100, seed, slope)
            found = metrics.calibration_interval(labels, p)
            hit[0] += found.low - 0.003 <= truth <= found.high + 0.003
            draws = [abs(metrics.calibration_gaps(labels, p, w)).sum(1) for w in resample(labels)]
            low, high = np.percentile(np.concatenate(draws), [2.5, 97.5])
            hit[1] += low - 0.003 <= truth <= high + 0.003
    assert hits[1.0][0] >= 18 and hits[3.0][0] >= 17
    assert hits[1.0][1] < 10


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.integers(8, 60), st.floats(0.2, 4))
def test_a_calibration_interval_holds_its_value(seed: int, n: int, slope: float) -> None:
    labels, p = stated(n, seed, slope)
    found = metrics.calibration_interval(labels, p)
    assert found.value == pytest.approx(metrics.expected_calibration_error(labels, p))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_calibration_intervals_at_the_ends() -> None:
    labels = np.arange(400) % 2
    sure = metrics.calibration_interval(labels, labels)
    wrong = metrics.calibration_interval(labels, 1 - labels)
    assert (sure.value, wrong.value) == (0, 1)
    assert np.isnan([sure.low, sure.high, wrong.low, wrong.high]).all()  # nothing varies, which tells nothing
    # Far from zero noise has no sign, and the interval is the one of an ordinary mean.
    rng = np.random.default_rng(0)
    p = rng.uniform(0.9, 1, size=400)
    p[labels == 1] = 1 - p[labels == 1]
    far, noise = metrics.calibration_interval(labels, p), np.std(abs(labels - p)) / np.sqrt(400)
    assert far.high - far.low == pytest.approx(2 * norm.ppf(0.975) * noise, rel=0.15)
    one = metrics.calibration_interval(labels, p, units=["v" if y else str(i) for i, y in enumerate(labels)])
    assert np.isnan([one.low, one.high]).all() and one.value == pytest.approx(far.value)
    real = metrics.calibration_interval(np.zeros(400), p)
    assert np.isnan([real.value, real.low, real.high]).all()


def test_groups_may_be_names_or_masks_and_may_overlap() -> None:
    labels, scores = example()
    names = np.array(["a", "b"])[np.arange(80) // 40]
    by_name = metrics.auc_interval(labels, scores, list(names))
    by_mask = metrics.auc_interval(labels, scores, {"a": names == "a", "b": np.arange(40, 80)})
    assert by_name == by_mask
    assert by_name.value == pytest.approx(
        np.mean([roc_auc_score(labels[g], scores[g]) for g in (names == "a", names == "b")])
    )
    # Two groups with the same images are drawn alike: their mean varies as one of them does.
    same = metrics.bootstrap_groups(labels, {"": scores}, {"a": np.arange(80), "b": np.arange(80)})
    np.testing.assert_array_equal(same["", "a"].draws, same["", "b"].draws)


def test_scores_may_depend_on_the_group() -> None:
    labels, scores = example()
    groups = {"a": np.arange(40), "b": np.arange(40, 80)}
    found = metrics.bootstrap_groups(labels, {"m": {"a": scores, "b": -scores}}, groups)
    assert found["m", "b"].value == pytest.approx(1 - roc_auc_score(labels[40:], scores[40:]))


@pytest.mark.parametrize("mixed", [1, 2])
def test_where_no_unit_has_another_to_be_drawn_instead_there_is_no_interval(mixed: int) -> None:
    """One real video, one fake and one or two that are both: strata of one do not vary."""
    labels = np.array([0] * 4 + [1] * 4 + [0, 0, 1, 1] * mixed)
    units = ["real"] * 4 + ["fake"] * 4 + [f"mixed {i // 4}" for i in range(4 * mixed)]
    scores = np.random.default_rng(0).normal(size=len(labels)) + labels

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"auc": metrics.Roc.of(labels, scores, weights).auc}

    whole = metrics.bootstrap(figures, labels, units=units)["auc"].estimate
    groups = {"a": np.arange(len(labels)), "b": np.arange(len(labels))}
    mean = metrics.auc_interval(labels, scores, groups, units)
    assert np.isfinite([whole.value, mean.value]).all()
    for found in (whole, mean):
        assert np.isnan([found.low, found.high]).all() if mixed == 1 else found.low < found.high


def test_a_class_of_a_single_video_has_no_interval() -> None:
    labels, scores = example()
    units = ["one" if y else str(i) for i, y in enumerate(labels)]
    found = metrics.auc_interval(labels, scores)
    alone = metrics.bootstrap_groups(labels, {"": scores}, units=units)["", ""].estimate
    assert alone.value == pytest.approx(found.value) and np.isnan([alone.low, alone.high]).all()


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
