from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from corit_cli.evaluation.summary import summarise
from tests.evaluation.conftest import checkpoint, scored


def test_robustness_is_paired_with_the_clean_images() -> None:
    found = scored(chains=("jpeg-75", "noise-10"))
    r = summarise(checkpoint(), found).robustness
    assert r is not None and r.images == 80 and (r.by, r.groups) == ("source", ["a", "b"])
    groups = [np.flatnonzero([s.source == g for s in found.samples]) for g in "ab"]
    mean = [np.mean([roc_auc_score(found.labels[g], row[g]) for g in groups]) for row in found.logits]
    assert r.clean_auc.value == pytest.approx(mean[0])
    verdicts = found.verdicts
    for k, chain in enumerate(r.chains, 1):
        assert chain.auc.value == pytest.approx(mean[k])
        assert chain.change.value == pytest.approx(mean[k] - mean[0])
        assert chain.fpr.value == (found.probabilities[k][found.labels == 0] >= 0.7).mean()
        pairs = list(zip(verdicts[0].tolist(), verdicts[k].tolist(), strict=True))
        assert chain.changed.value == pytest.approx(np.mean([a != b for a, b in pairs]))
        assert chain.flipped.value == pytest.approx(np.mean([{a, b} == {"real", "fake"} for a, b in pairs]))
        assert 0 < chain.flipped.value < chain.changed.value
    assert r.chains[1].flipped.value > r.chains[0].flipped.value


def test_a_chain_that_does_nothing_changes_nothing() -> None:
    found = scored(chains=("jpeg-95",))
    found.logits[1], found.probabilities[1] = found.logits[0], found.probabilities[0]
    chain = summarise(checkpoint(), found).robustness.chains[0]
    assert (chain.change.low, chain.change.value, chain.change.high) == (0, 0, 0)
    assert chain.flipped.value == chain.changed.value == 0


def test_robustness_is_on_images_that_took_every_chain() -> None:
    found = scored(chains=("jpeg-75", "noise-10"))
    found.logits[2, 5] = found.probabilities[2, 5] = np.nan
    r = summarise(checkpoint(), found).robustness
    assert r.images == 79 and np.isfinite(r.chains[1].auc.value)
