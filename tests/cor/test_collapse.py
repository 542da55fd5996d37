from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from corit_cli.cor import collapse as cor
from corit_cli.cor.collapse import Run, critical_radius
from corit_cli.errors import CoritError
from corit_cli.metrics.ranking import auc

LOG2 = math.log(2)
TESTS = cor.Criteria(chance=LOG2, null_auc=0.6)
#: (loss, auc, spread) of a run that came out so
FIGURES = {"trained": (0.1, 0.99, 3.0), "collapsed": (LOG2, 0.5, 0.01), "diverged": (math.nan, math.nan, math.nan)}


def run(rho: float, seed: int, outcome: str = "trained", shuffled: bool = False) -> Run:
    return Run("m", rho, seed, shuffled, *FIGURES[outcome], 1.0)


def table(rows: dict[float, str]) -> list[Run]:
    """Runs by radius, one letter a seed: t(rained), c(ollapsed), d(iverged) or - (not run)."""
    names = {"t": "trained", "c": "collapsed", "d": "diverged"}
    return [run(rho, seed, names[x]) for rho, row in rows.items() for seed, x in enumerate(row) if x != "-"]


# --- tests of a run


@pytest.mark.parametrize(("fakes", "reals"), [(1, 1), (3, 9), (30, 10)])
def test_chance_is_the_entropy_of_the_training_labels(fakes: int, reals: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = cor.Criteria.of([1] * fakes + [0] * reals, [0, 1])
    assert found.chance == pytest.approx(stats.entropy([fakes, reals]))


def test_a_constant_guess_is_at_chance_and_nothing_constant_is_below() -> None:
    labels = np.array([1] * 3 + [0] * 9)
    losses = [-np.mean(np.where(labels, np.log(p), np.log(1 - p))) for p in np.linspace(0.01, 0.99, 99)]
    assert min(losses) == pytest.approx(cor.Criteria.of(labels, labels).chance, abs=1e-9)  # p = 0.25 is among them


@pytest.mark.parametrize(("fakes", "reals"), [(20, 20), (10, 40), (100, 60)])
def test_guessing_exceeds_the_null_auc_in_one_of_forty(fakes: int, reals: int) -> None:
    labels = np.array([1] * fakes + [0] * reals)
    bound = cor.Criteria.of(labels, labels).null_auc
    rng = np.random.default_rng(0)
    areas = np.array([auc(labels, rng.standard_normal(len(labels))) for _ in range(4000)])
    assert abs((areas <= bound).mean() - 0.975) < 0.01
    assert abs((abs(areas - 0.5) <= bound - 0.5).mean() - 0.95) < 0.02


@pytest.mark.parametrize(("fakes", "reals", "enough"), [(3, 3, False), (2, 7, False), (2, 8, True), (4, 4, True)])
def test_a_test_that_no_run_can_pass_is_refused(fakes: int, reals: int, enough: bool) -> None:
    labels, units = [1] * 2 * fakes + [0] * reals, [*range(fakes), *range(fakes), *range(100, 100 + reals)]
    found = cor.Criteria.of([0, 1], labels, units)
    assert (found.reals, found.fakes) == (reals, fakes)
    if enough:
        found.check()
        assert found.null_auc < 1
    else:
        with pytest.raises(CoritError, match=f"{reals} real and {fakes} fake, where"):
            found.check()


@pytest.mark.parametrize(("low_loss", "ranks", "spreads"), list(product([False, True], repeat=3)))
def test_outcomes(low_loss: bool, ranks: bool, spreads: bool) -> None:
    t = cor.Criteria(chance=0.69, null_auc=0.6, margin=0.05, floor=0.1)
    one = Run("m", 0.1, 0, False, 0.63 if low_loss else 0.65, 0.61 if ranks else 0.6, 0.1 if spreads else 0.09, 1.0)
    assert (t.loss_at_chance(one), t.guesses(one), t.flat(one)) == (not low_loss, not ranks, not spreads)
    expected = {
        # below chance, ranks, spreads
        (True, True, True): "trained",
        (True, True, False): "trained",
        (False, True, True): "trained",
        (False, True, False): "collapsed",
    }
    assert t.outcome(one) == expected.get((low_loss, ranks, spreads), "collapsed")


@pytest.mark.parametrize("field", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_diverged(field: int, value: float) -> None:
    for outcome in ("trained", "collapsed"):
        figures = list(FIGURES[outcome])
        figures[field] = value
        assert TESTS.outcome(Run("m", 0.1, 0, False, *figures, 1.0)) == "diverged"


def test_the_cosine_decides_nothing() -> None:
    assert TESTS.outcome(Run("m", 0.1, 0, False, *FIGURES["trained"], math.nan)) == "trained"


# --- the critical radius


def test_a_sharp_cliff_lies_midway_between_its_neighbours() -> None:
    found = critical_radius(table({0.1: "ttttt", 0.4: "ccccc", 1.6: "ccccc"}), TESTS)
    assert found.value == pytest.approx(0.2)  # half way in the logarithm
    assert (found.low, found.high) == (0.1, 0.4)
    assert found.bracket == (0.1, 0.4)
    assert str(found) == "0.2 [0.1, 0.4]"


def test_interpolation_is_linear_in_log_rho() -> None:
    found = critical_radius(table({0.1: "cttt-", 1.0: "ccct-"}), TESTS)  # 1/4 to 3/4
    assert found.value == pytest.approx(math.sqrt(0.1))
    found = critical_radius(table({0.1: "ttttt", 1.0: "ccctt", 10.0: "ccccc"}), TESTS)  # 0 to 3/5
    assert found.value == pytest.approx(10 ** (-1 + 5 / 6))
    assert found.low <= 0.1 and found.high >= 1.0


def test_shares_that_fall_are_pooled() -> None:
    falling = {0.1: "ttttt", 0.2: "ccctt", 0.4: "ctttt", 0.8: "ccccc"}  # 0, 3/5, 1/5, 1: pooled to 0, 2/5, 2/5, 1
    expected = math.exp(math.log(0.4) + (0.5 - 0.4) / 0.6 * math.log(2))
    assert critical_radius(table(falling), TESTS).value == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("tcd", min_size=5, max_size=5), min_size=1, max_size=7))
def test_shares_are_made_monotone_by_the_max_of_min_of_means(rows: list[str]) -> None:
    """The minimax formula of isotonic regression: the fit at k is the max over i <= k of the min over j >= k of the
    share among all runs at radii i..j."""
    by_radius = {0.1 * 2**k: row for k, row in enumerate(rows)}
    told = {rho: row for rho, row in by_radius.items() if row != "ddddd"}  # a radius where all diverged tells nothing
    radii, n = list(told), len(told)
    counts = [(row.count("c"), row.count("c") + row.count("t")) for row in told.values()]
    assume(n)

    def share(i: int, j: int) -> Fraction:
        return Fraction(sum(c for c, _ in counts[i : j + 1]), sum(runs for _, runs in counts[i : j + 1]))

    p = [max(min(share(i, j) for j in range(k, n)) for i in range(k + 1)) for k in range(n)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cor, "RESAMPLES", 10)
        found = critical_radius(table(by_radius), TESTS)
    if p[0] >= Fraction(1, 2) or p[-1] < Fraction(1, 2):
        assert found.value is None and found.side == ("above" if p[-1] < Fraction(1, 2) else "below")
        return
    k = next(k for k in range(n) if p[k] >= Fraction(1, 2))
    assert found.bracket == (radii[k - 1], radii[k])
    step = (Fraction(1, 2) - p[k - 1]) / (p[k] - p[k - 1])
    assert math.log(found.value) == pytest.approx(np.interp(float(step), [0, 1], np.log(radii[k - 1 : k + 1])))


def test_bounds_where_nothing_crosses() -> None:
    above = critical_radius(table({0.1: "ttttt", 0.5: "ttttt"}), TESTS)
    assert (above.value, above.low, above.high) == (None, 0.5, math.inf)
    assert str(above) == "above 0.5: no collapse up to there"
    below = critical_radius(table({0.1: "ccccc", 0.5: "ccccc"}), TESTS)
    assert (below.value, below.low, below.high) == (None, 0.0, 0.1)
    assert str(below) == "below 0.1: collapsed there already"
    assert above.bracket is None and below.bracket is None


def test_an_interval_may_end_beyond_the_radii() -> None:
    found = critical_radius(table({0.1: "ccttt", 1.0: "ccctt"}), TESTS)
    assert (found.low, found.high) == (0.0, math.inf)
    assert str(found) == f"{found.value:.3g} [< 0.1, > 1]"


def test_diverged_runs_are_counted_apart() -> None:
    rows = {0.1: "tttdd", 0.4: "cccdt", 1.6: "ddddd"}
    found = critical_radius(table(rows), TESTS)
    assert [(s.rho, s.collapsed, s.runs, s.diverged) for s in found.shares] == [
        (0.1, 0, 3, 2),
        (0.4, 3, 4, 1),
        (1.6, 0, 0, 5),
    ]
    without = critical_radius([r for r in table(rows) if TESTS.outcome(r) != "diverged"], TESTS)
    assert found.value == without.value == pytest.approx(0.1 * 4 ** (0.5 / 0.75))


def test_controls_and_plain_training_are_left_out() -> None:
    rows = table({0.1: "ttttt", 0.4: "ccccc"})
    extra = [run(0.0, s, "collapsed") for s in range(5)] + [run(0.1, s, "collapsed", True) for s in range(5)]
    assert critical_radius(rows + extra, TESTS) == critical_radius(rows, TESTS)
    for left in ([], extra):
        with pytest.raises(ValueError, match="no run"):
            critical_radius(left, TESTS)


def test_the_order_of_runs_says_nothing_and_the_seed_is_the_bootstraps() -> None:
    rows = table({0.1: "ttctt", 0.2: "tcctt", 0.4: "ccctt", 0.8: "cccct"})
    found = critical_radius(rows, TESTS)
    assert found == critical_radius(rows[::-1], TESTS)
    assert critical_radius(rows, TESTS, seed=1).value == found.value


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("tcd-", min_size=4, max_size=4), min_size=1, max_size=4))
def test_an_interval_holds_its_value(rows: list[str]) -> None:
    runs = table({0.1 * 3**k: row for k, row in enumerate(rows)})
    if runs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cor, "RESAMPLES", 200)
            found = critical_radius(runs, TESTS)
        assert 0 <= found.low <= found.high
        if found.value is None:
            assert found.low == 0 or found.high == math.inf
        else:
            assert found.low <= found.value <= found.high
        assert sum(s.collapsed for s in found.shares) == sum(row.count("c") for row in rows)
        assert sum(s.diverged for s in found.shares) == sum(row.count("d") for row in rows)
        json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("correlated", [False, True], ids=["runs independent", "a threshold for each seed"])
def test_the_interval_covers_a_known_radius(monkeypatch: pytest.MonkeyPatch, correlated: bool) -> None:
    monkeypatch.setattr(cor, "RESAMPLES", 200)
    truth, width, seeds, radii = 0.4, 0.35, 5, np.geomspace(0.05, 3.2, 9)
    rng = np.random.default_rng(0)
    covered, errors = 0, []
    for _ in range(200):
        if correlated:
            threshold = rng.logistic(math.log(truth), width, seeds)
            collapsed = np.log(radii)[:, None] > threshold  # (radii, seeds)
        else:
            p = 1 / (1 + np.exp(-(np.log(radii) - math.log(truth)) / width))
            collapsed = rng.random((len(radii), seeds)) < p[:, None]
        found = critical_radius(
            table({float(r): "".join("tc"[int(c)] for c in row) for r, row in zip(radii, collapsed, strict=True)}),
            TESTS,
        )
        covered += found.low <= truth <= found.high
        errors.append(math.log(found.value / truth) if found.value else math.nan)
    assert covered >= 180
    assert np.isfinite(errors).all()
    assert abs(np.median(errors)) < 0.1  # ten percent
    assert np.std(errors) < 0.5


def test_as_dict_is_plain_json() -> None:
    for rows in ({0.1: "ttttt"}, {0.1: "ccccc"}, {0.1: "ttttt", 0.4: "ccccc"}, {0.1: "ddddd"}):
        found = critical_radius(table(rows), TESTS)
        told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert told["value"] == found.value and told["low"] == found.low
        assert told["high"] == (found.high if math.isfinite(found.high) else None)
        assert told["shares"][0]["rho"] == 0.1 and set(told["shares"][0]) == {"rho", "collapsed", "runs", "diverged"}


def test_a_crossing_at_a_radius_has_a_bracket() -> None:
    found = critical_radius(table({0.05: "tt", 0.1: "ct"}), TESTS)  # one half is reached at 0.1, no more
    assert found.value == pytest.approx(0.1)
    assert found.bracket == (0.05, 0.1)


def test_collapse_at_every_radius_in_most_seeds_is_not_told_as_no_collapse() -> None:
    found = critical_radius(table({0.1: "ccctt", 0.2: "ccctt", 0.4: "ccctt"}), TESTS)
    assert found.value is None
    assert "no collapse" not in str(found)


@pytest.mark.parametrize("rows", [{0.1: "ttttt", 0.4: "ddddd"}, {0.1: "ddddd"}])
def test_a_radius_at_which_all_diverged_bounds_nothing(rows: dict[float, str]) -> None:
    found = critical_radius(table(rows), TESTS)
    assert found.low <= (0.1 if len(rows) == 2 else 0)
    assert f"above {max(rows):g}" not in str(found)


# --- the command line's spelling


def test_radii_are_read_from_text() -> None:
    assert cor.radii_of("0.5,0.1,2") == (0.1, 0.5, 2.0)
    assert cor.radii_of("0.5, 0.5") == (0.5,)
    assert cor.radii_of("0.1:10:3") == (0.1, 1.0, 10.0)
    radii = cor.radii_of("0.05:0.8")
    assert len(radii) == cor.COARSE
    np.testing.assert_allclose(radii, [0.05, 0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    "text", ["", "a", "0.1:", "1:0.1", "1:1", "0.1:1:x", "0.1:1:2.5", "0.1:1:-1", "1:2:3:4", "0.1:1:0", "0.1:1:1"]
)
def test_what_names_no_radii_is_refused(text: str) -> None:
    with pytest.raises(CoritError, match="--rho takes") as raised:
        cor.radii_of(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["0,1", "0:1", "-1,1", "nan", "inf,1", "nan:1", "-2:-1", "1:1.0000001:4"])
def test_impossible_radii_are_refused(text: str) -> None:
    with pytest.raises(CoritError, match="above zero"):
        cor.radii_of(text)


def test_small_radii_keep_their_digits() -> None:
    np.testing.assert_allclose(cor.radii_of("1e-7:1e-3:5"), [1e-7, 1e-6, 1e-5, 1e-4, 1e-3], rtol=1e-4)
