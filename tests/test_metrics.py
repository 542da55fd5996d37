from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli import metrics


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2).filter(lambda r: len({x for x, _ in r}) == 2)
)
def test_auc_equals_sklearn(rows: list[tuple[int, int]]) -> None:
    roc_auc_score = pytest.importorskip("sklearn.metrics").roc_auc_score
    labels, scores = np.array(rows).T
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_what_is_not_finite_is_none_in_json() -> None:
    document = {"a": [1, float("nan"), {"b": float("inf")}], 2: (0.5, None, "x", True)}
    assert metrics.plain(document) == {"a": [1, None, {"b": None}], "2": [0.5, None, "x", True]}
