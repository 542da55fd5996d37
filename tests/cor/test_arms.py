"""Rows of a sweep against figures worked out by hand from the trained heads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corit_cli.cor import arms as module
from corit_cli.cor import collapse as cor
from corit_cli.cor.arms import HeadArm, Split, TunedArm
from corit_cli.cor.collapse import Run
from corit_cli.cor.heads import train_population
from corit_cli.cor.settings import Optimization
from corit_cli.cor.sweep import Journal, sweep
from corit_cli.cor.tuned import Prepared, Tuned, read, train_tuned
from corit_cli.model.scope import Scope, parse_scope
from corit_cli.model.settings import CoRITSettings
from tests.conftest import photograph, random_tower

SHORT = Optimization(lr=0.02, epochs=3, batch_size=4)
WANTED = [(0.0, 1, False), (0.5, 1, False), (0.0, 0, False), (0.0, 1, True), (0.5, 0, True)]


@pytest.fixture
def split() -> Split:
    labels = [0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0]
    return Split.of(labels, train=[14, 3, 0, 5, 6, 1, 9, 2, 12, 8], val=[4, 7, 10, 11, 13, 15])


@pytest.fixture
def z(split: Split) -> Tensor:
    """Features (16, 5): one that tells the class in a noisy way, one that is always the same, far from unit scale."""
    z = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    z[:, 0] += split.labels
    z[:, 1] = 7
    return z * torch.tensor([1.0, 1.0, 100.0, 0.01, 1.0]) + 3


def by_hand(logits: Tensor, labels: Tensor, split: Split) -> tuple[float, float, float]:
    """Loss in nats, AUC by counting pairs, and the spread of validation logits."""
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    y = labels.numpy()
    loss = -np.mean([math.log(p[i] if y[i] else 1 - p[i]) for i in split.train])
    val = split.val.tolist()
    truth = split.labels.numpy()
    pairs = [(logits[i], logits[j]) for i in val if truth[i] for j in val if not truth[j]]
    area = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    return float(loss), float(area), float(np.std(logits[split.val].double().numpy(), ddof=1))


def figures(run: Run) -> tuple[float, float, float]:
    return run.loss, run.auc, run.spread


# --- splits


def test_shuffling_keeps_counts_and_leaves_validation_alone(split: Split) -> None:
    before = split.labels.clone()
    train = set(split.train.tolist())
    others = [i for i in range(16) if i not in train]
    seen = set()
    for seed in range(10):
        labels = split.shuffled(seed)
        assert torch.equal(split.labels, before)
        assert labels[split.train].sum() == before[split.train].sum()
        assert torch.equal(labels[others], before[others])
        assert torch.equal(labels, split.shuffled(seed))
        seen.add(tuple(labels.tolist()))
    assert len(seen) > 5 and any(row != tuple(before.tolist()) for row in seen)


def test_shuffling_takes_the_order_away() -> None:
    split = Split.of([0] * 50 + [1] * 50, list(range(100)), [])
    agree = [float((split.shuffled(seed) == split.labels).float().mean()) for seed in range(40)]
    assert set(agree) == {0.5}  # not by chance more, of which a model could learn


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 100))
def test_shuffled_labels_say_nothing_of_the_true_ones(real: int, fake: int, seed: int) -> None:
    split = Split.of([0] * real + [1] * fake, list(range(real + fake)), [])
    labels = split.shuffled(seed)
    assert labels.sum() == fake
    shares = [float(labels[split.labels == label].float().mean()) for label in (0, 1)]
    assert abs(shares[0] - shares[1]) <= 0.5 / real + 0.5 / fake + 1e-6


def test_a_runs_figures_are_those_worked_out_by_hand(split: Split) -> None:
    logits = torch.randn(16, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    labels = split.shuffled(0)
    run = split.run("m", (0.5, 2, True), labels, logits, 0.25)
    assert (run.model, run.rho, run.seed, run.shuffled, run.cosine) == ("m", 0.5, 2, True, 0.25)
    assert figures(run) == pytest.approx(by_hand(logits, labels, split), abs=1e-6)
    assert run.loss != pytest.approx(split.run("m", (0.5, 2, False), split.labels, logits, 0.25).loss)


def test_logits_that_are_not_finite_give_figures_that_are_not(split: Split) -> None:
    for where, value in ((split.val[0], math.nan), (split.val[1], math.inf)):
        logits = torch.zeros(16)
        logits[where] = value
        run = split.run("m", (0.5, 0, False), split.labels, logits, math.nan)
        assert math.isnan(run.auc) and not math.isfinite(run.spread)
        assert run.loss == pytest.approx(math.log(2))
    logits = torch.zeros(16)
    logits[split.train[0]] = math.nan
    assert math.isnan(split.run("m", (0.5, 0, False), split.labels, logits, 1.0).loss)


# --- heads


@pytest.mark.parametrize("hidden", [0, 4])
def test_head_arm_tells_what_was_wanted_as_worked_out_by_hand(hidden: int, split: Split, z: Tensor) -> None:
    o = Optimization(lr=0.02, epochs=3, batch_size=4, hidden=hidden)
    runs = {r.key: r for r in HeadArm("m", z, split, o).run(WANTED)}
    assert set(runs) == {("m", *w) for w in WANTED}
    train = z[split.train].double()
    spread = ((train - train.mean(0)) ** 2).mean(0).sqrt()
    x = ((z - train.mean(0)) / torch.where(spread > 1e-6, spread, 1.0) / 5**0.5).float()
    for rho, seed, shuffled in WANTED:
        labels = split.shuffled(seed) if shuffled else split.labels
        fitted = train_population(x, labels, split.train, [seed], [rho], o)
        run = runs["m", rho, seed, shuffled]
        assert figures(run) == pytest.approx(by_hand(fitted.logits[0, 0], labels, split), abs=1e-4)
        assert run.cosine == pytest.approx(float(fitted.cosine[0, 0]), abs=1e-4)
    assert len({figures(r) for r in runs.values()}) == len(WANTED)


def test_validation_images_do_not_influence_the_head(split: Split, z: Tensor) -> None:
    changed = z.clone()
    changed[split.val] *= 10
    for a, b in zip(*(HeadArm("m", x, split, SHORT).run(WANTED) for x in (z, changed)), strict=True):
        assert a.loss == b.loss and a.spread != b.spread


def test_nothing_wanted_trains_nothing(split: Split, z: Tensor) -> None:
    arm = HeadArm("m", z, split, SHORT)
    assert list(arm.run([])) == []


# --- parts of the tower


def test_tuned_arm_tells_what_was_wanted_as_worked_out_by_hand(split: Split) -> None:
    tower = random_tower()
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    tuned = Tuned(tower, CoRITSettings(("blur:1.0",), cgp=(2,), inject_at=(1,), integrate=(3,)), Scope("last", 1))
    prepared = tuned.prepare(windows)
    runs = list(TunedArm("m", tuned, prepared, split, SHORT).run(WANTED))
    assert [r.key for r in runs] == [("m", *w) for w in WANTED]
    for run, (rho, seed, shuffled) in zip(runs, WANTED, strict=True):
        labels = split.shuffled(seed) if shuffled else split.labels
        head, cosine = train_tuned(tuned, prepared, labels, split.train, seed, rho, SHORT)
        with torch.no_grad():
            logits = head(read(tuned, prepared, torch.arange(16)))
        assert figures(run) == pytest.approx(by_hand(logits, labels, split), abs=1e-5)
        assert run.cosine == cosine
    assert len({figures(r) for r in runs}) == len(WANTED)


def test_a_head_and_a_tower_whose_head_alone_is_tuned_agree(split: Split) -> None:
    """Two programs for the same training: batched over members, and one run after the other."""
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    tuned = Tuned(random_tower(), CoRITSettings(("blur:1.0",), cgp=(2,), integrate=(3,)), Scope("head"))
    prepared = tuned.prepare(windows)
    z = read(tuned, prepared, torch.arange(16))
    heads = {r.key: r for r in HeadArm("m", z, split, SHORT).run(WANTED)}
    for run in TunedArm("m", tuned, prepared, split, SHORT).run(WANTED):
        assert figures(heads[run.key]) == pytest.approx(figures(run), abs=1e-4)
        assert heads[run.key].cosine == pytest.approx(run.cosine, abs=1e-4)


@pytest.mark.parametrize(("scope", "count"), [("last:1", 2), ("last:2", 2), ("lora:2", 1), ("all", 1)])
def test_as_many_runs_at_a_time_as_have_four_trained_blocks(
    scope: str, count: int, split: Split, two_threads: None
) -> None:
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    settings = CoRITSettings(cgp=(), inject_at=(), integrate=(3,))
    tuned = Tuned(random_tower(), settings, parse_scope(scope))
    arm = TunedArm("m", tuned, tuned.prepare(windows), split, SHORT)
    assert arm.at_once() == count and list(arm.run([])) == []
    assert [arm.at_once(threads) for threads in (1, 8)] == [1, {"last:1": 4}.get(scope, count)]


@pytest.mark.parametrize("scope", ["last:1", "last:2"])
def test_runs_at_the_same_time_are_those_of_one_after_the_other(
    scope: str, split: Split, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    tuned = Tuned(random_tower(), CoRITSettings(("blur:1.0",), cgp=(2,), integrate=(3,)), parse_scope(scope))
    arm = TunedArm("m", tuned, tuned.prepare(windows), split, SHORT)
    alone = {run.key: run for one in WANTED[:4] for run in arm.run([one])}
    met, drawn = Barrier(2, timeout=30), torch.get_rng_state()

    def together(*arguments: object) -> object:
        met.wait()
        assert torch.get_num_threads() == 1
        return train_tuned(*arguments)

    monkeypatch.setattr(module, "train_tuned", together)
    runs = list(arm.run(WANTED[:4]))
    assert {run.key: run for run in runs} == alone and len(alone) == 4
    assert torch.equal(torch.get_rng_state(), drawn)


def test_who_leaves_waits_for_a_step_and_not_for_a_run(
    split: Split, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    tuned = Tuned(random_tower(), CoRITSettings(cgp=(), inject_at=(), integrate=(3,)), Scope("last", 1))
    arm = TunedArm("m", tuned, tuned.prepare(windows), split, SHORT)
    begun = Event()

    def long(tuned: Tuned, prepared: Prepared, labels: Tensor, part: Tensor, seed: int, *others: object) -> object:
        rho, o, stop = others
        if seed:
            begun.set()
        return train_tuned(tuned, prepared, labels, part, seed, rho, replace(o, epochs=10**6 if seed else 1), stop)

    monkeypatch.setattr(module, "train_tuned", long)
    runs = arm.run([(0.0, seed, False) for seed in range(9)])
    assert next(runs).seed == 0 and begun.wait(30)
    runs.close()  # or this takes hours


@pytest.mark.parametrize("scope", ["last:1", "lora:2", "all"])
def test_the_loss_of_a_tuned_arm_is_that_of_the_images_named(scope: str, split: Split) -> None:
    windows = torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(16)]))
    tuned = Tuned(random_tower(), CoRITSettings(("blur:1.0",), cgp=(2, 3), integrate=(3,)), parse_scope(scope))
    loss, params = TunedArm("m", tuned, tuned.prepare(windows), split, SHORT).objective()
    each = [loss(params, [i]).item() for i in (5, 2, 9)]
    assert loss(params, [5, 2, 9]).item() == pytest.approx(np.mean(each), abs=1e-6)
    assert loss(params, torch.tensor([5, 2, 9])).item() == pytest.approx(np.mean(each), abs=1e-6)


def test_a_head_arm_serves_a_sweep(split: Split, z: Tensor, tmp_path: Path) -> None:
    tests = cor.Criteria.of(split.labels[split.train].tolist(), split.labels[split.val].tolist())
    arm = HeadArm("m", z, split, SHORT)
    found = sweep({"m": lambda progress: arm}, (0.1, 1.0), (0, 1), tests, Journal(tmp_path, {}), refine=False).found[
        "m"
    ]
    assert len(found.runs) == 2 * 2 + 2 * 2
