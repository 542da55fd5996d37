"""Linear probes of every layer's class token: what a layer knows, beside what its gradient says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from corit_cli import metrics
from corit_cli.data.splits import deal, jackknife_groups
from corit_cli.metrics import jackknife_interval
from corit_cli.metrics.intervals import Estimate

FOLDS = 5
#: Inverse regularisation, on standardised features.
C = 0.003


def probe_auc(
    tokens: Mapping[int, np.ndarray], labels: Sequence[int], units: Sequence[Hashable], seed: int = 0
) -> dict[int, Estimate]:
    """AUC of a logistic probe on each layer's ``tokens`` (n, d), cross-validated with whole units held out.

    Labels are 1 for fake; there must be two units of each class. Intervals are those of a jackknife over units.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = np.asarray(labels)
    everything = np.arange(len(y))
    folds = deal(labels, units, min(FOLDS, len(set(units))), seed)
    groups = jackknife_groups(units, seed=seed)
    out = {}
    for layer, z in tokens.items():
        scores = np.empty(len(y))
        for fold in folds:
            rest = np.setdiff1d(everything, fold)
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
            scores[fold] = probe.fit(z[rest], y[rest]).decision_function(z[fold])
        found = jackknife_interval(lambda kept, s=scores: metrics.auc(y[kept], s[kept]), groups)
        out[layer] = Estimate(found.value, max(0.0, found.low), min(1.0, found.high))
    return out
