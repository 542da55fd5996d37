from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from corit_cli import metrics
from corit_cli.metrics import resampling as module
from corit_cli.metrics.resampling import RESAMPLES, resample


def example(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, rng.normal(size=n) + labels


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
