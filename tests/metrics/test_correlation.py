from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from corit_cli.metrics.correlation import spearman

NUMBERS = st.integers(-3, 9).map(float) | st.floats(-1, 1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=7))
def test_the_value_is_scipys_and_the_test_counts_orders(pairs: list[tuple[float, float]]) -> None:
    x, y = zip(*pairs, strict=True)
    found = spearman(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert math.isnan(found.value) and math.isnan(found.p)
        return
    assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert 0 < found.p <= 1 and found.count == len(x)
    assert spearman(x, [-v for v in y]).p == pytest.approx(found.p)


def test_five_pairs_in_order_are_an_exact_chance_of_two_in_a_hundred_and_twenty() -> None:
    found = spearman([1, 2, 3, 4, 5], [2, 3, 5, 7, 11])
    assert found.value == pytest.approx(1) and found.p == pytest.approx(2 / 120)
    assert str(found) == "1.000 (p = 0.017, n = 5)"
    assert str(spearman([1, 2, 3], [1, 2, 3], independent=False)) == "1.000 (n = 3)"
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]).p > 0.05  # whatever four pairs do, they show nothing


def test_of_no_pairs_nothing_is_known() -> None:
    for pairs in ([], [1.0]):
        assert math.isnan(spearman(pairs, pairs).value) and spearman(pairs, pairs).count == len(pairs)


def test_chance_is_told_from_none_as_often_as_promised() -> None:
    rng = np.random.default_rng(0)
    said = [spearman(rng.random(6), rng.random(6)).p <= 0.05 for _ in range(400)]
    assert np.mean(said) <= 0.08
