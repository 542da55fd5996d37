from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from corit_cli.gsnr import (
    INDISTINCT,
    Moments,
    compare,
    estimate,
    jackknife,
    jackknife_groups,
    jackknife_interval,
    parameter_quantiles,
)

RUNS = 1000


def moments_of(g: np.ndarray, sizes: list[int]) -> Moments:
    """Moments of gradients (N, d) in consecutive groups of the given sizes."""
    parts = np.split(g, np.cumsum(sizes)[:-1])
    return Moments.of(sizes, [np.square(p).sum() for p in parts], np.stack([p.sum(0) for p in parts]))


def simulate(ratio: float, n: int, groups: int, d: int = 500, decay: float = 0.0, seed: int = 0):
    """Estimates from ``RUNS`` sets of n Gaussian gradients whose true GSNR is ``ratio``; variances fall as k^-decay."""
    rng = np.random.default_rng(seed)
    variance = np.arange(1.0, d + 1) ** -decay
    spread = np.sqrt(variance / variance.sum()).astype(np.float32)
    mean = rng.standard_normal(d).astype(np.float32) * spread
    mean *= np.sqrt(ratio) / np.linalg.norm(mean)
    sizes = [n // groups] * groups
    return [
        estimate(moments_of(rng.standard_normal((n, d), dtype=np.float32) * spread + mean, sizes)) for _ in range(RUNS)
    ]


@pytest.mark.parametrize(
    ("ratio", "n", "groups", "decay"),
    [(0.02, 64, 16, 0.0), (0.1, 64, 8, 0.0), (0.5, 64, 16, 0.0), (0.01, 128, 16, 0.0), (0.1, 64, 16, 1.0)],
)
def test_estimates_are_unbiased_and_intervals_cover_the_truth(ratio, n, groups, decay):
    found = simulate(ratio, n, groups, decay=decay)
    assert np.mean([e.value for e in found]) == pytest.approx(ratio, rel=0.02)
    assert np.mean([e.plugin for e in found]) == pytest.approx(ratio + 1 / n, rel=0.02)
    assert 0.90 <= np.mean([e.low <= ratio <= e.high for e in found]) <= 0.99


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_a_null_model_is_reported_as_zero(decay):
    found = simulate(0.0, 64, 16, decay=decay)
    assert abs(np.mean([e.value for e in found])) < 0.05 / 64  # the plain estimate would show 1/64
    assert np.mean([e.verdict == INDISTINCT for e in found]) >= 0.97


def test_standard_error_is_the_spread_of_the_estimates():
    found = simulate(0.2, 64, 16)
    errors = [e.standard_error for e in found]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std([e.value for e in found]), rel=0.1)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=3, max_size=7))
def test_agrees_with_the_definition_and_a_jackknife_that_deletes_samples(seed, sizes):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((sum(sizes), 4)) + 0.5
    group = np.repeat(np.arange(len(sizes)), sizes)

    def ratio(x: np.ndarray) -> float:
        noise = np.trace(np.cov(x.T))
        return (np.square(x.mean(0)).sum() - noise / len(x)) / noise

    if min(len(g) - size for size in sizes) < 2:
        return
    e = estimate(moments_of(g, sizes))
    assert e.value == pytest.approx(ratio(g), rel=1e-9)
    assert e.signal / e.noise == pytest.approx(e.value)
    assert e.low <= e.high and e.high >= e.value
    without = np.array([ratio(g[group != j]) for j in range(len(sizes))])
    share = np.array(sizes) / len(g)
    pseudo = ratio(g) / share - (1 / share - 1) * without
    centre = len(sizes) * ratio(g) - ((1 - share) * without).sum()
    variance = np.mean((pseudo - centre) ** 2 / (1 / share - 1))
    assert e.standard_error == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-12)


@given(st.floats(0.01, 100.0), st.integers(0, 1000))
def test_gsnr_does_not_depend_on_the_scale_of_the_loss(scale, seed):
    g = np.random.default_rng(seed).standard_normal((24, 6)) + 0.3
    a, b = estimate(moments_of(g, [3] * 8)), estimate(moments_of(scale * g, [3] * 8))
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-6)


def test_moments_of_parts_add_up_to_those_of_the_whole():
    g = np.random.default_rng(0).standard_normal((24, 6)) + 0.3
    whole, parts = moments_of(g, [3] * 8), moments_of(g[:, :2], [3] * 8) + moments_of(g[:, 2:], [3] * 8)
    assert estimate(parts).value == pytest.approx(estimate(whole).value)
    assert estimate(parts).low == pytest.approx(estimate(whole).low)
    with pytest.raises(ValueError, match="different samples"):
        whole + moments_of(g, [4] * 6)


def test_paired_comparison_covers_the_difference_and_gains_from_pairing():
    rng = np.random.default_rng(0)
    mean = np.zeros(200)
    mean[0] = np.sqrt(0.1)
    pairs, covered, paired, apart = [16] * 16, [], [], []
    for _ in range(300):
        noise = rng.standard_normal((256, 200)) / np.sqrt(200)
        own = rng.standard_normal((256, 200)) / np.sqrt(200)
        a, b = moments_of(mean + noise, pairs), moments_of(1.2 * mean + noise + 0.1 * own, pairs)
        difference = compare(b, a)
        truth = 1.44 * 0.1 / 1.01 - 0.1
        covered.append(difference.low <= truth <= difference.high)
        paired.append(difference.standard_error)
        apart.append(np.hypot(estimate(a).standard_error, estimate(b).standard_error))
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.mean(paired) < 0.6 * np.mean(apart)


def test_comparison_in_words():
    rng = np.random.default_rng(0)
    weak = rng.standard_normal((64, 50))
    strong = moments_of(weak + 1.0, [4] * 16)
    weak_moments = moments_of(weak, [4] * 16)
    assert compare(strong, weak_moments).verdict == "higher"
    assert compare(weak_moments, strong).verdict == "lower"
    assert compare(strong, strong).verdict == INDISTINCT
    with pytest.raises(ValueError, match="same samples"):
        compare(strong, moments_of(weak, [8] * 8))


def test_degenerate_gradients_are_refused():
    with pytest.raises(ValueError, match="do not vary"):
        estimate(moments_of(np.ones((12, 3)), [3] * 4))
    with pytest.raises(ValueError, match="at least 3 groups"):
        estimate(moments_of(np.random.default_rng(0).standard_normal((12, 3)), [6] * 2))


def test_pairs_whose_gradients_cancel_do_not_hide_the_signal():
    """A photograph and its forgery pull in opposite directions: their sum says little, and is not all noise."""
    rng = np.random.default_rng(0)
    ratio, d, pairs, runs = 0.02, 300, 32, 400
    mean = rng.standard_normal(d)
    mean *= np.sqrt(ratio) / np.linalg.norm(mean)
    found, naive = [], []
    for _ in range(runs):
        shared = rng.standard_normal((pairs, 1, d)) * np.sqrt(0.9 / d)
        own = rng.standard_normal((pairs, 2, d)) * np.sqrt(0.1 / d)
        g = (mean + shared * np.array([1.0, -1.0])[:, None] + own).reshape(2 * pairs, d)
        found.append(estimate(moments_of(g, [4] * 16), clustered=True))
        naive.append(estimate(moments_of(g, [4] * 16)))
    assert np.mean([e.value for e in found]) == pytest.approx(ratio, rel=0.02)
    assert 0.90 <= np.mean([e.low <= ratio <= e.high for e in found]) <= 0.99
    assert np.mean([e.value for e in naive]) < 0.5 * ratio


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=3, max_size=7))
def test_clusters_leave_their_own_products_out(seed, sizes):
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((sum(sizes), 4)) + 0.5
    group = np.repeat(np.arange(len(sizes)), sizes)

    def ratio(kept: np.ndarray) -> float:
        apart = group[kept][:, None] != group[kept][None]
        signal = (g[kept] @ g[kept].T)[apart].mean()
        return signal / (np.square(g[kept]).sum(1).mean() - signal)

    e = estimate(moments_of(g, sizes), clustered=True)
    assert e.value == pytest.approx(ratio(np.arange(len(g))), rel=1e-6, abs=1e-9)
    without = np.array([ratio(np.flatnonzero(group != j)) for j in range(len(sizes))])
    assert e.standard_error == pytest.approx(jackknife(e.value, without, np.array(sizes))[0], rel=1e-6, abs=1e-9)


def test_a_jackknife_of_a_mean_is_that_of_the_textbook():
    x = np.random.default_rng(0).standard_normal(20)
    found = jackknife_interval(lambda kept: float(x[kept].mean()), [[i] for i in range(20)])
    reach = stats.t(19).ppf(0.975) * x.std(ddof=1) / np.sqrt(20)
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), x.mean() - reach, x.mean() + reach))


def test_parameter_quantiles_follow_the_definition_and_skip_dead_parameters():
    g = np.random.default_rng(0).standard_normal((20, 5)) + np.arange(5)
    ratios = np.sort(g.mean(0) ** 2 / g.var(0, ddof=1) - 1 / 20)  # groups of one: the ordinary debiased ratio
    dead = np.full((20, 3), 2.5)
    sums = {"a": g[:, :2].sum(0), "b": g[:, 2:].sum(0), "dead": dead.sum(0)}
    squares = {"a": (g[:, :2] ** 2).sum(0), "b": (g[:, 2:] ** 2).sum(0), "dead": (dead**2).sum(0)}
    ones = np.ones(20, dtype=int)
    assert parameter_quantiles(sums, squares, squares, ones, [0.0, 0.5, 1.0]) == pytest.approx(ratios[[0, 2, 4]])
    assert np.isnan(parameter_quantiles({"dead": sums["dead"]}, squares, squares, ones, [0.5])).all()


def test_a_parameters_ratio_is_that_of_a_group_of_one():
    g = np.random.default_rng(0).standard_normal((24, 1)) + 0.7
    e = estimate(moments_of(g, [6] * 4), clustered=True)
    within = sum(part.sum() ** 2 for part in np.split(g, 4))
    found = parameter_quantiles({"p": g.sum(0)}, {"p": (g**2).sum(0)}, {"p": [within]}, np.array([6] * 4), [0.5])
    assert found == pytest.approx([e.value])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 16), st.integers(0, 5))
def test_groups_share_out_every_sample_once_and_keep_units_together(units, groups, seed):
    dealt = jackknife_groups(units, groups, seed)
    assert sorted(i for group in dealt for i in group) == list(range(len(units)))
    assert len(dealt) == min(groups, len(set(units))) and all(dealt)
    homes = [{units[i] for i in group} for group in dealt]
    assert sum(len(home) for home in homes) == len(set(units))
    sizes = [len(home) for home in homes]
    assert max(sizes) - min(sizes) <= 1
    assert dealt == jackknife_groups(units, groups, seed)
