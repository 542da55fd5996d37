from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from corit_cli import metrics
from corit_cli.metrics.ranking import Roc

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
    # The real image weighs 3/6, each fake 1/6. The first bin holds 1/4 of fakes against .025, the last all against .95.
    assert metrics.expected_calibration_error(labels, p) == pytest.approx(4 / 6 * 0.225 + 2 / 6 * 0.05)


@given(st.integers(0, 99), st.integers(2, 9))
def test_calibration_error_does_not_depend_on_how_many_are_fake(seed: int, times: int) -> None:
    rng = np.random.default_rng(seed)
    labels, p = np.arange(40) % 2, rng.uniform(size=40)
    more = np.where(labels == 1, times, 1)
    found = metrics.expected_calibration_error(labels.repeat(more), p.repeat(more))
    assert found == pytest.approx(metrics.expected_calibration_error(labels, p))
    assert np.isnan(metrics.expected_calibration_error(np.ones(40), p))


def test_one_class_has_no_ranking() -> None:
    roc = Roc.of(np.zeros(4, int), np.arange(4))
    figures = (roc.auc, roc.average_precision, roc.eer, roc.tpr_at(0.05))
    assert np.isnan([f[0] for f in figures]).all()


def test_scores_that_are_no_numbers_are_refused_by_all_figures() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, np.nan, 0.3, 0.8])
    for figure in (metrics.auc, metrics.average_precision, metrics.expected_calibration_error, Roc.of):
        with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
            figure(labels, scores)
    with pytest.raises(ValueError, match="1 of 4 scores are NaN"):
        metrics.auc_interval(labels, scores)
    assert metrics.auc(labels, np.array([-np.inf, 0, 0.3, np.inf])) == 1
    assert np.isnan([metrics.auc([], []), metrics.average_precision([], []), metrics.auc([1], [0.5])]).all()
    with pytest.raises(ValueError, match="needs images"):
        Roc.of(np.array([]), np.array([]))
