from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.metrics import jackknife
from corit_cli.metrics.gsnr import INDISTINCT, Moments, balanced_weights, compare, estimate, more_samples, variances

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


# --- strata ---------------------------------------------------------------------------------------

DRAWS = 2000


def strata_of(sizes: tuple[int, int], pairs: bool = False) -> tuple[np.ndarray, list[list[int]]]:
    """Classes (N,) of that many real and fake samples, and 10 groups of positions with much the same mix.

    As pairs, sample k of either class is of one photograph, and in one group.
    """
    classes = np.repeat([0, 1], sizes)
    rank = np.concatenate([np.arange(n) for n in sizes])
    return classes, [np.flatnonzero(rank % 10 == j).tolist() for j in range(10)]


def simulated(
    sizes: tuple[int, int], shared: float = 0.0, seed: int = 0
) -> tuple[list[Moments], list[Moments], float, float]:
    """Moments of ``DRAWS`` stratified samples, by class and as one stratum; the true GSNR of balanced batches and
    independent draws.

    The classes' means lie far apart (delta), as they do near an unfitted head; their noise differs. With ``shared``
    the two samples of a photograph have that much of their noise in common, with opposite sign.
    """
    rng = np.random.default_rng(seed)
    d, spread = 12, np.array([1.0, 1.4])
    mu, delta = np.zeros(d), np.zeros(d)
    mu[0], delta[1] = 1.2, 2.5
    classes, groups = strata_of(sizes)
    sign = 2.0 * classes - 1
    own = np.concatenate([np.arange(n) for n in sizes])
    by_class, as_one = [], []
    for _ in range(DRAWS):
        noise = rng.standard_normal((len(classes), d)) * np.sqrt(1 - shared)
        common = rng.standard_normal((max(sizes), d))[own] * np.sqrt(shared) * sign[:, None]
        g = mu + sign[:, None] * delta + spread[classes][:, None] * (noise + common)
        by_class.append(Moments.of_samples(g, classes, groups))
        as_one.append(Moments.of_samples(g, np.zeros(len(g)), groups))
    within = d * np.square(spread).mean()
    return by_class, as_one, mu @ mu / within, mu @ mu / (within + delta @ delta)


@pytest.mark.parametrize(
    ("sizes", "shared"),
    [((40, 40), 0.0), ((60, 20), 0.0), ((40, 40), 0.8)],
    ids=["balanced", "unbalanced", "photographs and their forgeries"],
)
def test_strata_are_unbiased_and_their_intervals_cover_the_truth(sizes: tuple[int, int], shared: float) -> None:
    moments, _, *truths = simulated(sizes, shared)
    signal = 1.2**2
    estimates = [variances(m, clustered=shared > 0).signal for m in moments]
    assert abs(np.mean(estimates) - signal) < 2 * np.std(estimates) / DRAWS**0.5 + 1e-3 * signal
    for draws, truth in zip(("balanced", "independent"), truths, strict=True):
        found = [estimate(m, clustered=shared > 0, draws=draws) for m in moments[::4]]
        values = np.array([e.value for e in found])
        assert abs(values.mean() - truth) < 3 * values.std() / len(values) ** 0.5 + 0.03 * truth
        assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99


def test_one_stratum_for_a_balanced_sample_is_too_low_by_what_the_classes_differ() -> None:
    _, as_one, _, _ = simulated((40, 40))
    signals = np.array([variances(m).signal for m in as_one[::4]])
    assert signals.mean() == pytest.approx(1.2**2 - 2.5**2 / 79, abs=4 * signals.std() / len(signals) ** 0.5)
    assert signals.mean() < 1.2**2 - 3 * signals.std() / len(signals) ** 0.5


@given(st.integers(0, 10_000), st.booleans())
def test_strata_equal_all_products_written_out(seed: int, clustered: bool) -> None:
    rng = np.random.default_rng(seed)
    classes, groups = strata_of((14, 11))
    g = rng.standard_normal((25, 3)) + 0.4 + 0.8 * classes[:, None]
    number = np.empty(25, int)
    for j, group in enumerate(groups):
        number[group] = j
    products = g @ g.T
    apart = number[:, None] != number[None] if clustered else ~np.eye(25, dtype=bool)
    a = np.empty((2, 2))
    for r, f in np.ndindex(2, 2):
        a[r, f] = products[apart & (classes[:, None] == r) & (classes[None] == f)].mean()
    squares = np.mean([np.diag(products)[classes == c].mean() for c in (0, 1)])
    found = variances(Moments.of_samples(g, classes, groups), clustered)
    assert found.signal == pytest.approx(a.mean(), abs=1e-9)
    assert found.within == pytest.approx(squares - np.trace(a) / 2)
    assert found.between == pytest.approx(np.trace(a) / 2 - a.mean(), abs=1e-9)


@pytest.mark.parametrize("clustered", [False, True])
def test_the_jackknife_over_strata_is_measuring_without_each_group(clustered: bool) -> None:
    rng = np.random.default_rng(3)
    classes, groups = strata_of((40, 30))
    g = rng.standard_normal((70, 4)) + 0.4
    weights = [0.3, 0.7]
    e = estimate(Moments.of_samples(g, classes, groups, weights), clustered)

    def without(j: int) -> float:
        kept = Moments.of_samples(g, classes, [group for k, group in enumerate(groups) if k != j], weights)
        return estimate(kept, clustered).value

    rest = np.array([without(j) for j in range(len(groups))])
    assert e.standard_error == pytest.approx(jackknife(e.value, rest, np.array([7] * 10))[0], rel=1e-9)


@pytest.mark.parametrize("clustered", [False, True])
def test_a_paired_difference_of_strata_is_measuring_both_without_each_group(clustered: bool) -> None:
    rng = np.random.default_rng(5)
    classes, groups = strata_of((40, 30))
    number = np.empty(70, int)
    for j, group in enumerate(groups):
        number[group] = j
    first = rng.standard_normal((70, 4)) + 0.2 + 0.6 * classes[:, None]
    second = first + 0.5 * rng.standard_normal((70, 4)) + 0.3

    def ratio(g: np.ndarray, kept: np.ndarray) -> float:
        """From all products written out."""
        g, c, n = g[kept], classes[kept], number[kept]
        products = g @ g.T
        apart = n[:, None] != n[None] if clustered else ~np.eye(len(g), dtype=bool)
        a = np.array([[products[apart & (c[:, None] == r) & (c[None] == f)].mean() for f in (0, 1)] for r in (0, 1)])
        squares = np.mean([np.diag(products)[c == k].mean() for k in (0, 1)])
        return a.mean() / (squares - np.trace(a) / 2)

    def difference(kept: np.ndarray) -> float:
        return ratio(second, kept) - ratio(first, kept)

    found = compare(*(Moments.of_samples(g, classes, groups) for g in (second, first)), clustered=clustered)
    value = difference(np.ones(70, bool))
    without = np.array([difference(number != j) for j in range(len(groups))])
    error, reach = jackknife(value, without, np.array([7] * 10))
    assert found.value == pytest.approx(value)
    assert (found.low, found.high, found.standard_error) == pytest.approx((value - reach, value + reach, error))


def test_intervals_are_skewed_as_the_estimates_are() -> None:
    """In few dimensions. Laid around R itself they would miss the truth more often."""
    rng = np.random.default_rng(6)
    classes, groups = strata_of((40, 40))
    mean = np.array([0.15, 0, 0]) ** 0.5
    found = [
        estimate(Moments.of_samples(mean + rng.standard_normal((80, 3)), classes, groups)) for _ in range(DRAWS // 2)
    ]
    truth, t = mean @ mean / 3, 2.2622  # Student's, of 9 degrees of freedom
    covered = np.mean([e.low <= truth <= e.high for e in found])
    around = np.mean([abs(e.value - truth) <= t * e.standard_error for e in found])
    assert covered >= 0.935 and around <= covered - 0.01
    for e in found:  # symmetric in the root
        shift = max(e.plugin - e.value, e.standard_error)
        down, middle, up = (e.low + shift) ** 0.5, (e.value + shift) ** 0.5, (e.high + shift) ** 0.5
        assert down == pytest.approx(max(2 * middle - up, 0), abs=1e-9)


# --- sources within classes -----------------------------------------------------------------------

#: Images of three real and two fake sources, of which a fake one has half the forgeries.
SOURCES = (12, 20, 8, 20, 20)


def of_sources(clustered: bool, seed: int = 0) -> tuple[list[Moments], list[Moments], float, float]:
    """Moments of ``DRAWS`` samples by source and by class, and the true GSNR of the mix of sources.

    The sources' means differ by more than the noise. Clustered, an image of a real source and one of a fake source
    have most of their noise in common, with opposite sign.
    """
    rng = np.random.default_rng(seed)
    d, spread = 8, np.array([1.0, 1.3, 0.7, 1.5, 1.0])
    means = 2.0 * rng.standard_normal((5, d))
    strata = np.repeat(np.arange(5), SOURCES)
    classes, sign = (strata >= 3).astype(int), np.where(strata >= 3, 1.0, -1.0)[:, None]
    weights = np.array(SOURCES) / 80
    means += np.eye(d)[0] - weights @ means  # so that ||mu|| is 1
    rank = np.tile(np.arange(40), 2)  # real and fake image k belong together
    groups = [np.flatnonzero(rank % 10 == j).tolist() for j in range(10)]
    np.testing.assert_allclose(balanced_weights(strata, classes), weights)
    by_source, by_class = [], []
    for _ in range(DRAWS):
        own, shared = rng.standard_normal((80, d)), rng.standard_normal((40, d))[rank]
        noise = 0.6 * own + 0.8 * sign * shared if clustered else own
        g = means[strata] + spread[strata][:, None] * noise
        by_source.append(Moments.of_samples(g, strata, groups, weights))
        by_class.append(Moments.of_samples(g, classes, groups))
    within = d * weights @ spread**2
    return by_source, by_class, 1 / within, 1 / (within + weights @ np.square(means).sum(1) - 1)


@pytest.mark.parametrize("clustered", [False, True])
def test_sources_as_strata_are_unbiased_and_their_intervals_cover_the_truth(clustered: bool) -> None:
    by_source, by_class, balanced, independent = of_sources(clustered)
    found = [variances(m, clustered) for m in by_source]
    for values, truth in (
        ([v.signal for v in found], 1.0),
        ([v.within for v in found], 1 / balanced),
        ([v.between for v in found], 1 / independent - 1 / balanced),
    ):
        assert abs(np.mean(values) - truth) < 2 * np.std(values) / DRAWS**0.5
    for draws, truth in (("balanced", balanced), ("independent", independent)):
        estimates = [estimate(m, clustered, draws) for m in by_source[::4]]
        assert 0.92 <= np.mean([e.low <= truth <= e.high for e in estimates]) <= 0.99
    if not clustered:  # with the classes alone as strata, a fixed mix of sources is taken for independent draws
        signals = np.array([variances(m).signal for m in by_class])
        assert signals.mean() < 1.0 - 5 * signals.std() / DRAWS**0.5


@pytest.mark.parametrize("shared", [0.0, 0.95])
@pytest.mark.parametrize("by", ["class", "source"])
def test_strata_without_any_signal_seldom_show_some(by: str, shared: float) -> None:
    """Also where a photograph's gradient and its forgery's nearly cancel, so that the plain ratio may lie below R."""
    rng = np.random.default_rng(7)
    d, rank = 30, np.tile(np.arange(40), 2)
    classes = np.repeat([0, 1], 40)
    strata = np.where(classes == 0, rank % 5, 5 + rank % 4) if by == "source" else classes
    weights, sign = balanced_weights(strata, classes), 2.0 * classes[:, None] - 1
    means = 2 * rng.standard_normal((len(weights), d))
    means -= weights @ means
    groups = [np.flatnonzero(rank % 16 == j).tolist() for j in range(16)]
    found = []
    for _ in range(500):
        own, common = rng.standard_normal((80, d)), rng.standard_normal((40, d))[rank]
        g = means[strata] + np.sqrt(1 - shared) * own + np.sqrt(shared) * sign * common
        found.append(estimate(Moments.of_samples(g, strata, groups, weights), clustered=shared > 0))
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert np.mean([e.significant for e in found]) <= 0.04


def test_both_classes_weigh_the_same_whatever_their_sources() -> None:
    strata, classes = [0] * 30 + [1] * 10 + [2] * 5, [0] * 40 + [1] * 5
    assert balanced_weights(strata, classes).tolist() == [0.375, 0.125, 0.5]
    assert balanced_weights([3, 3, 5], [1, 1, 1]).tolist() == pytest.approx([2 / 3, 1 / 3])  # fakes alone


# --- how many samples would do --------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "power"), [(0.0, 1), (4.0, 0.5)])
def test_the_standard_error_falls_within_what_more_samples_takes_it_to(ratio: float, power: float) -> None:
    """As 1 / n without any signal and as 1 / sqrt(n) with much of it."""
    spread = [np.std([e.signal for e in simulate(ratio, n, 16, d=50)]) for n in (64, 256)]
    assert spread[0] / spread[1] == pytest.approx(4**power, rel=0.12)


def test_more_samples_is_told_where_and_only_where_it_is_needed() -> None:
    assert more_samples(0.01, 0.03, 100) == (200, 800)
    assert more_samples(-0.01, 0.02, 100) == (100, 300)  # of a difference
    assert more_samples(0.03, 0.01, 100) == (0, 0)
    assert more_samples(0.0, 0.01, 100) is None
    for ratio in (0.0, 0.02, 0.3):
        for e in simulate(ratio, 64, 16)[:200]:
            assert (e.more_samples is None) == (e.significant or e.value <= 0)
            assert e.more_samples is None or 0 <= e.more_samples[0] <= e.more_samples[1]


def test_a_stratum_of_one_sample_says_nothing() -> None:
    g = np.random.default_rng(0).standard_normal((9, 2))
    with pytest.raises(ValueError, match="two independent samples"):
        variances(Moments.of_samples(g, [0] * 8 + [1], [[k] for k in range(9)]))


def test_what_is_no_sample_of_gradients_is_refused() -> None:
    g, groups = np.random.default_rng(0).standard_normal((12, 5)) + 1, np.arange(12).reshape(4, 3).tolist()
    strata = [0, 1] * 6
    found = Moments.of_samples(g, strata, groups)
    with pytest.raises(ValueError, match="balanced or independent, not 'balance'"):
        estimate(found, draws="balance")
    big = Moments.of_samples((300 * g).astype(np.float16), strata, groups)  # whose squares half precision cannot hold
    assert estimate(big).value == pytest.approx(estimate(found).value, rel=1e-2)
    for wrong in ([[0, 1, 2, 3], [4, 5], [6, 6, 6, 7]], [*groups, [0]]):
        with pytest.raises(ValueError, match="a sample belongs to one group only"):
            Moments.of_samples(g, strata, wrong)
    g[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Moments.of_samples(g, strata, groups)
