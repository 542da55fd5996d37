from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from corit_cli import metrics
from corit_cli.metrics import Roc

Rows = list[tuple[int, int]]
two_classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2).filter(
    lambda r: len({x for x, _ in r}) == 2
)


@settings(deadline=None)
@given(two_classes)
def test_auc_equals_sklearn(rows: Rows) -> None:
    labels, scores = np.array(rows).T
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


@settings(deadline=None)
@given(two_classes)
def test_a_curve_equals_sklearn(rows: Rows) -> None:
    labels, scores = np.array(rows).T
    roc = Roc.of(labels, scores)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.fpr[0], fpr)
    np.testing.assert_allclose(roc.tpr[0], tpr)
    assert roc.auc[0] == pytest.approx(roc_auc_score(labels, scores))
    assert roc.average_precision[0] == pytest.approx(average_precision_score(labels, scores))
    for target in (0.0, 0.01, 0.2, 0.5, 1.0):
        assert roc.tpr_at(target)[0] == tpr[fpr <= target].max()
    # Where a curve runs along the line 1 - TPR = FPR no point is singled out, nor is one by a root finder.
    line = interp1d(fpr, tpr)
    if len(np.unique(fpr)) == len(fpr):
        assert roc.eer[0] == pytest.approx(brentq(lambda x: 1 - x - line(x), 0, 1), abs=1e-9)
    before = np.flatnonzero(fpr + tpr - 1 < 0)[-1]
    assert fpr[before] - 1e-12 <= roc.eer[0] <= fpr[before + 1] + 1e-12


@settings(deadline=None)
@given(two_classes, st.integers(0, 99))
def test_a_weight_is_worth_as_many_images(rows: Rows, seed: int) -> None:
    labels, scores = np.array(rows).T
    weights = np.random.default_rng(seed).integers(0, 4, len(rows))
    weights[[labels.argmin(), labels.argmax()]] = 1
    one, other = Roc.of(labels, scores, weights[None]), Roc.of(labels.repeat(weights), scores.repeat(weights))
    for figure in ("auc", "average_precision", "eer"):
        assert getattr(one, figure)[0] == pytest.approx(getattr(other, figure)[0])
    assert one.tpr_at(0.3)[0] == pytest.approx(other.tpr_at(0.3)[0])
    repeated = metrics.expected_calibration_error(labels.repeat(weights), scores.repeat(weights) / 5)
    assert abs(metrics.calibration_gaps(labels, scores / 5, weights[None])).sum() == pytest.approx(repeated)


@settings(deadline=None)
@given(two_classes, st.integers(0, 99))
def test_ranks_equal_sklearn_on_resampled_arrays(rows: Rows, seed: int) -> None:
    labels, scores = np.array(rows).T
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(rows))).astype(np.float32)
    weights[:, [labels.argmin(), labels.argmax()]] = 1
    # Two images that are not among the chosen ones, and would change every figure.
    more = np.pad(labels, (1, 1), constant_values=(0, 1)), np.pad(scores, (1, 1), constant_values=(9, -9))
    ranks = metrics.Ranks.of(*more, np.arange(1, len(rows) + 1))
    found = ranks.auc(np.pad(weights, ((0, 0), (1, 1)), constant_values=7))
    drawn = [np.repeat(np.arange(len(rows)), w.astype(int)) for w in weights]
    np.testing.assert_allclose(found, [roc_auc_score(labels[d], scores[d]) for d in drawn])
    np.testing.assert_allclose(found, Roc.of(labels, scores, weights).auc)


def test_calibration_error_by_hand() -> None:
    labels, p = np.array([0, 1, 1, 1]), np.array([0.02, 0.04, 0.9, 1.0])
    # The first bin holds 0.5 fakes against 0.03, the last 1.0 against 0.95.
    assert metrics.expected_calibration_error(labels, p) == pytest.approx(0.5 * 0.47 + 0.5 * 0.05)


def test_one_class_has_no_ranking() -> None:
    roc = Roc.of(np.zeros(4, int), np.arange(4))
    figures = (roc.auc, roc.average_precision, roc.eer, roc.tpr_at(0.05))
    assert np.isnan([f[0] for f in figures]).all()


# --- bootstrap ------------------------------------------------------------------------------------


def example(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, rng.normal(size=n) + labels


def test_intervals_are_as_wide_as_delong_says() -> None:
    labels, scores = example(200)
    fake, real = scores[labels == 1], scores[labels == 0]
    wins = fake[:, None] > real[None]
    spread = np.sqrt(wins.mean(1).var(ddof=1) / len(fake) + wins.mean(0).var(ddof=1) / len(real))
    found = metrics.auc_interval(labels, scores)
    assert found.high - found.low == pytest.approx(2 * norm.ppf(0.975) * spread, rel=0.07)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.booleans())
def test_each_group_keeps_its_classes_and_units_stay_whole(seed: int, videos: bool) -> None:
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    units = [f"{g}{y}{i % 4}" for i, (g, y) in enumerate(zip(group, labels, strict=True))] if videos else None
    weights = np.concatenate(list(metrics.resample(labels, [str(g) for g in group], units, seed)))
    assert weights.shape == (metrics.RESAMPLES, 40)
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
    weights = np.concatenate(list(metrics.resample(labels, units=units)))
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
    assert metrics.auc_difference(labels, scores, 2 * scores + 3).high == 0
    gap = metrics.auc_difference(labels, scores, a)
    alone = metrics.auc_interval(labels, scores)
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)


def test_memory_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = example()
    groups = [f"{i % 5}" for i in range(80)]
    whole, figure = np.concatenate(list(metrics.resample(labels, groups))), metrics.auc_interval(labels, scores)
    monkeypatch.setattr(metrics, "BLOCK", 80 * 301)
    blocks = list(metrics.resample(labels, groups))
    assert [len(b) for b in blocks] == [301] * 6 + [194]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert metrics.auc_interval(labels, scores) == figure


def test_images_are_drawn_as_often_as_chance_has_it() -> None:
    labels = np.arange(60) % 3 == 0
    weights = np.concatenate(list(metrics.resample(labels)))
    # Of m images drawn m times each is drawn once on average, with a variance of 1 - 1/m.
    for label, m in ((True, 20), (False, 40)):
        chosen = weights[:, labels == label]
        assert abs(chosen.mean(0) - 1).max() < 5 / np.sqrt(metrics.RESAMPLES)
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
            draws = [abs(metrics.calibration_gaps(labels, p, w)).sum(1) for w in metrics.resample(labels)]
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


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = metrics.mean_interval(np.array(values))
    if np.ptp(values) < 1e-9:
        assert found.low == pytest.approx(found.high)
        return
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = metrics.mean_interval(np.array([0.7]))
    assert found.value == 0.7 and np.isnan([found.low, found.high]).all()
