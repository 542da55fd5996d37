"""A sweep over made-up models, of which the radius at which they collapse is known."""

from __future__ import annotations

import json
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corit_cli.cor import collapse as cor
from corit_cli.cor.collapse import Run
from corit_cli.cor.sweep import CLOSE, FARTHEST, Journal, Sweep, Wanted, summary
from corit_cli.cor.sweep import sweep as sweep_of_made
from corit_cli.errors import CoritError
from corit_cli.progress import Progress
from tests.conftest import Told

TESTS = cor.Criteria(chance=math.log(2), null_auc=0.6)
RADII, SEEDS = (0.05, 0.2, 0.8, 3.2), (0, 1, 2)
SETTINGS = {"images": ["a.png"], "optimization": {"lr": 1e-3, "m": None}, "radii": (0.1, 0.2)}
FIGURES = {"trained": (0.1, 0.99, 3.0), "collapsed": (math.log(2), 0.5, 0.01), "diverged": (math.nan, math.nan, 0.0)}


@dataclass
class Cliff:
    """Collapses above ``edge`` and on shuffled labels; what it was asked for is in ``calls``."""

    name: str = "m"
    edge: float = 0.5
    learns: bool = True
    leaks: bool = False
    diverges_above: float = math.inf
    interrupted_after: int | None = None
    calls: list[list[Wanted]] = field(default_factory=list)
    done: list[Wanted] = field(default_factory=list)

    def run(self, wanted: Sequence[Wanted]) -> Iterator[Run]:
        self.calls.append(list(wanted))
        for rho, seed, shuffled in wanted:
            if len(self.done) == self.interrupted_after:
                raise KeyboardInterrupt
            self.done.append((rho, seed, shuffled))
            trains = self.leaks if shuffled else self.learns and rho <= self.edge
            outcome = "diverged" if rho > self.diverges_above else "trained" if trains else "collapsed"
            yield Run(self.name, rho, seed, shuffled, *FIGURES[outcome], 1.0)


def sweep(arms: Sequence[Cliff], *how: Any, **more: Any) -> Sweep:
    """A sweep over arms that are there already."""
    return sweep_of_made({arm.name: lambda progress, arm=arm: arm for arm in arms}, *how, **more)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cor, "RESAMPLES", 40)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "sweep", SETTINGS)


def grid(radii: Sequence[float] = RADII) -> set[Wanted]:
    return {(rho, seed, False) for rho in radii for seed in SEEDS}


CONTROLS = {(0.0, seed, shuffled) for seed in SEEDS for shuffled in (False, True)}


# --- which runs


def test_controls_and_grid_are_asked_for_in_one_call(journal: Journal) -> None:
    arm = Cliff()
    sweep([arm], RADII, SEEDS, TESTS, journal, refine=False)
    assert len(arm.calls) == 1
    assert Counter(arm.calls[0]) == Counter(CONTROLS | grid())


@pytest.mark.parametrize("edge", [0.06, 0.5, 0.8, 3.1])
def test_the_cliff_is_closed_in_upon(edge: float, journal: Journal) -> None:
    arm = Cliff(edge=edge)
    found = sweep([arm], RADII, SEEDS, TESTS, journal).found["m"]
    low, high = found.cor.bracket
    assert low <= edge < high and high / low <= CLOSE
    assert low <= found.cor.value <= high
    coarse = max(r for r in RADII if r <= edge), min(r for r in RADII if r > edge)
    refined = {w[0] for w in arm.done if w not in CONTROLS | grid()}
    assert refined and all(coarse[0] < rho < coarse[1] for rho in refined)
    assert all((rho, seed, False) in arm.done for rho in refined for seed in SEEDS)
    assert len(refined) == 2 * (len(arm.calls) - 1)  # two radii a round
    assert found.learns_without_sam and found.learns_when_shuffled is False
    assert len(found.runs) == len(arm.done)


def test_a_close_bracket_is_left_as_it_is(journal: Journal) -> None:
    arm = Cliff(edge=0.5)
    sweep([arm], (0.1, 0.45, 0.6), SEEDS, TESTS, journal)
    assert len(arm.calls) == 1


@pytest.mark.parametrize("edge", [0.01, 100.0])
def test_without_a_cliff_nothing_is_refined_or_extended_unasked(edge: float, journal: Journal) -> None:
    arm = Cliff(edge=edge)
    found = sweep([arm], RADII, SEEDS, TESTS, journal)
    assert len(arm.calls) == 1 and found.found["m"].cor.value is None


def test_extending_doubles_until_the_collapse(journal: Journal) -> None:
    arm = Cliff(edge=10.0)
    found = sweep([arm], RADII, SEEDS, TESTS, journal, extend=True, refine=False)
    assert set(arm.done) == CONTROLS | grid((*RADII, 6.4, 12.8))
    assert found.found["m"].cor.bracket == (6.4, 12.8)


def test_extending_stops_far_out(journal: Journal) -> None:
    arm = Cliff(edge=math.inf)
    found = sweep([arm], RADII, SEEDS, TESTS, journal, extend=True).found["m"].cor
    top = max(w[0] for w in arm.done)
    assert top <= FARTHEST < 2 * top
    assert found.value is None and found.low == top and math.isinf(found.high)


def test_where_collapse_is_there_extending_does_nothing(journal: Journal) -> None:
    arm = Cliff(edge=0.01)
    sweep([arm], RADII, SEEDS, TESTS, journal, extend=True)
    assert len(arm.calls) == 1


@settings(max_examples=12, deadline=None)
@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=2), st.booleans(), st.booleans())
def test_no_run_is_ever_done_twice(
    tmp_path_factory: pytest.TempPathFactory, edges: list[float], refine: bool, extend: bool
) -> None:
    folder = tmp_path_factory.mktemp("sweep")
    arms = [Cliff(f"m{i}", edge) for i, edge in enumerate(edges)]
    told: list[Run] = []
    progress = Told()
    found = sweep(arms, RADII, SEEDS, TESTS, Journal(folder, SETTINGS), refine, extend, progress, told.append)
    assert progress.complete and sum(total for _, total, *_ in progress.stages) == len(told)
    assert {title for title, *_ in progress.stages} == {f"{arm.name}: runs" for arm in arms}
    assert len(told) == sum(len(arm.done) for arm in arms)
    assert sweep(arms, RADII, SEEDS, TESTS, Journal(folder, SETTINGS), refine, extend) == found
    for arm in arms:
        assert set(Counter(arm.done).values()) == {1}
        assert set(arm.done) >= CONTROLS | grid()
        assert all(call for call in arm.calls)
    assert Counter(r.key for r in told) == Counter((arm.name, *w) for arm in arms for w in arm.done)
    assert {r.key for f in found.found.values() for r in f.runs} == {r.key for r in told}


@pytest.mark.parametrize("refine", [False, True])
def test_kept_runs_are_told_of_and_only_missing_ones_are_work(refine: bool, tmp_path: Path) -> None:
    keys = []
    for again in (False, True):
        told: list[Run] = []
        progress, arm = Told(), Cliff()
        sweep([arm], RADII, SEEDS, TESTS, Journal(tmp_path, SETTINGS), refine, progress=progress, tell=told.append)
        keys.append(Counter(r.key for r in told))
        assert progress.complete and sum(total for _, total, *_ in progress.stages) == len(arm.done)
        assert (arm.done == []) == again
    assert keys[0] == keys[1] and set(keys[0].values()) == {1}
    grid_keys = {("m", *w) for w in CONTROLS | grid()}
    assert set(keys[0]) > grid_keys if refine else set(keys[0]) == grid_keys


def test_arms_are_kept_apart(journal: Journal) -> None:
    found = sweep([Cliff("a", 0.1), Cliff("b", 1.0)], RADII, SEEDS, TESTS, journal).found
    assert list(found) == ["a", "b"]
    for name, edge in (("a", 0.1), ("b", 1.0)):
        assert {r.model for r in found[name].runs} == {name}
        assert found[name].cor.low <= edge <= found[name].cor.high


def test_an_arm_is_made_when_it_is_wanted_and_let_go_before_the_next(journal: Journal) -> None:
    made: list[weakref.ref[Cliff]] = []

    def make(name: str, progress: Progress) -> Cliff:
        assert all(arm() is None for arm in made)
        made.append(weakref.ref(arm := Cliff(name)))
        progress(f"{name}: made", 1)(1)
        return arm

    arms, told = {name: partial(make, name) for name in "ab"}, Told()
    for _ in range(2):  # the second time all runs are kept
        sweep_of_made(arms, RADII, SEEDS, TESTS, journal, progress=told)
        assert len(made) == 2 and [title for title, *_ in told.stages].count("a: made") == 1


def test_only_the_seeds_of_this_sweep_count(journal: Journal) -> None:
    for seed in (7, 8, 9):
        journal.add(Run("m", 0.05, seed, False, *FIGURES["collapsed"], 1.0))
    found = sweep([Cliff()], RADII, SEEDS, TESTS, journal).found["m"]
    assert {r.seed for r in found.runs} == set(SEEDS)
    assert {s.runs for s in found.cor.shares} == {3}


# --- the journal


@pytest.mark.parametrize("after", [0, 1, 7, 18, 20])
def test_an_interrupted_sweep_goes_on_where_it_was(after: int, tmp_path: Path) -> None:
    whole = Cliff()
    expected = sweep([whole], RADII, SEEDS, TESTS, Journal(tmp_path / "whole", SETTINGS))
    first, second = Cliff(interrupted_after=after), Cliff()
    with pytest.raises(KeyboardInterrupt):
        sweep([first], RADII, SEEDS, TESTS, Journal(tmp_path / "cut", SETTINGS))
    assert len(Journal(tmp_path / "cut", SETTINGS).runs) == after
    found = sweep([second], RADII, SEEDS, TESTS, Journal(tmp_path / "cut", SETTINGS))
    assert Counter(first.done + second.done) == Counter(whole.done)
    assert found == expected
    third = Cliff()
    assert sweep([third], RADII, SEEDS, TESTS, Journal(tmp_path / "cut", SETTINGS)) == expected
    assert third.calls == []


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_cut_off_is_run_again(cut: int, tmp_path: Path) -> None:
    first = Cliff()
    expected = sweep([first], RADII, SEEDS, TESTS, Journal(tmp_path, SETTINGS), refine=False)
    file = tmp_path / "runs.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    second = Cliff()
    assert sweep([second], RADII, SEEDS, TESTS, Journal(tmp_path, SETTINGS), refine=False) == expected
    assert second.done == ([] if cut == 1 else first.done[-1:])  # without its line feed alone, a line is whole
    journal = Journal(tmp_path, SETTINGS)  # and what was written after it can be read
    journal.add(Run("m", 5.0, 0, False, 0.1, 0.9, 1.0, 1.0))
    assert len(Journal(tmp_path, SETTINGS).runs) == len(first.done) + 1


@pytest.mark.parametrize("rubbish", ["", "{}", "[]", "1", '{"model": "m"}', "\x00\x00"])
def test_other_lines_are_passed_over(rubbish: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    run = Run("m", 0.1, 0, False, 0.1, 0.9, 1.0, 1.0)
    journal.add(run)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write(rubbish + "\n")
    journal.add(replace(run, seed=1))
    assert Journal(tmp_path, SETTINGS).runs == {run.key: run, ("m", 0.1, 1, False): replace(run, seed=1)}


def test_a_run_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    for number, run in enumerate(Cliff().run([(1 / 3, 0, False), (0.1, 1, True)]), 1):
        journal.add(run)
        lines = (tmp_path / "runs.jsonl").read_text().splitlines()
        assert len(lines) == number and Run(**json.loads(lines[-1])) == run
    assert Journal(tmp_path, SETTINGS).runs == journal.runs


def test_diverged_runs_are_kept_too(tmp_path: Path) -> None:
    run = Run("m", 0.1, 0, False, math.nan, math.nan, math.inf, math.nan)
    Journal(tmp_path, SETTINGS).add(run)
    (kept,) = Journal(tmp_path, SETTINGS).runs.values()
    assert kept.key == run.key and math.isnan(kept.loss) and not math.isfinite(kept.spread)
    arm = Cliff()
    sweep([arm], (0.1,), (0,), TESTS, Journal(tmp_path, SETTINGS))
    assert (0.1, 0, False) not in arm.done


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({**SETTINGS, "images": ["b.png"]}, "images"),
        ({**SETTINGS, "new": 1}, "new"),
        ({"images": ["a.png"], "radii": (0.1, 0.2)}, "optimization"),
        ({**SETTINGS, "images": [], "radii": ()}, "images, radii"),
    ],
)
def test_another_sweeps_journal_is_refused(change: dict, named: str, tmp_path: Path) -> None:
    Journal(tmp_path, SETTINGS).add(Run("m", 0.1, 0, False, 0.1, 0.9, 1.0, 1.0))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CoritError, match=rf"another sweep \({named} differ\)"):
        Journal(tmp_path, change)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert len(Journal(tmp_path, SETTINGS).runs) == 1


def test_settings_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(CoritError, match=r"sweep\.json does not say"):
        Journal(tmp_path, SETTINGS)


# --- what is said


def test_an_arm_that_does_not_learn_is_warned_of(journal: Journal) -> None:
    found = sweep([Cliff(learns=False)], RADII, SEEDS, TESTS, journal)
    assert found.warnings() == ["m does not learn even without SAM: its critical radius says nothing"]


def test_an_arm_that_learns_shuffled_labels_is_warned_of(journal: Journal) -> None:
    found = sweep([Cliff(leaks=True)], RADII, SEEDS, TESTS, journal)
    assert found.warnings() == ["m scores above chance after training on shuffled labels: look for leaks"]


def test_diverged_runs_are_warned_of(journal: Journal) -> None:
    found = sweep([Cliff(edge=0.5, diverges_above=1.0), Cliff("fine")], RADII, SEEDS, TESTS, journal)
    assert found.warnings() == ["m: 3 runs diverged; they count as neither trained nor collapsed"]


def test_a_sound_sweep_warns_of_nothing(journal: Journal) -> None:
    assert sweep([Cliff()], RADII, SEEDS, TESTS, journal).warnings() == []
    assert Sweep(TESTS).warnings() == []


def test_a_summary_of_what_is_there_so_far(journal: Journal) -> None:
    assert summary(journal.runs.values(), TESTS).found == {}
    for run in Cliff().run([(0.0, 0, False), (0.0, 0, True)]):
        journal.add(run)
    assert summary(journal.runs.values(), TESTS).found == {}  # controls alone say nothing of a radius
    journal.runs.clear()
    for run in Cliff().run([(0.2, 0, False), (0.8, 0, False)]):
        journal.add(run)
    found = summary(journal.runs.values(), TESTS)
    assert list(found.found) == ["m"]
    assert found.found["m"].cor.value == pytest.approx(0.4)
    assert found.found["m"].learns_without_sam is None and found.found["m"].learns_when_shuffled is None
    assert found.warnings() == []


def test_controls_go_by_the_majority_of_seeds(journal: Journal) -> None:
    for seed, outcome in enumerate(("trained", "trained", "collapsed")):
        journal.add(Run("m", 0.0, seed, False, *FIGURES[outcome], 1.0))
        journal.add(Run("m", 0.0, seed, True, *FIGURES[outcome], 1.0))
    journal.add(Run("m", 0.1, 0, False, *FIGURES["trained"], 1.0))
    found = summary(journal.runs.values(), TESTS).found["m"]
    assert found.learns_without_sam is True and found.learns_when_shuffled is True
