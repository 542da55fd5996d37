from __future__ import annotations

import numpy as np

from corit_cli.gsnr.probes import probe_auc


def test_a_layer_that_knows_is_told_from_one_that_does_not():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    noise = rng.standard_normal((60, 8))
    telling = noise + 3 * labels[:, None] * np.eye(8)[0]
    found = probe_auc({1: noise, 2: telling}, labels.tolist(), list(range(60)))
    assert found[2].value > 0.95 and found[2].low > 0.8
    assert found[1].low < 0.5 < found[1].high or abs(found[1].value - 0.5) < 0.2


def test_what_belongs_together_is_held_out_together():
    """A photograph's own mark in every one of its images, and one class a photograph: only a probe that has seen the
    photograph would know."""
    apart, together = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        units = np.repeat(np.arange(40), 3)
        labels = (units % 2).tolist()
        marks = rng.standard_normal((40, 100))[units] + 0.01 * rng.standard_normal((120, 100))
        apart.append(probe_auc({1: marks}, labels, list(range(120)))[1].value)
        together.append(probe_auc({1: marks}, labels, units.tolist())[1].value)
    assert min(apart) > 0.8
    assert 0.35 < np.mean(together) < 0.65
