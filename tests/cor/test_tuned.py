"""Tuning against the whole forward pass: a tower with the tuned weights, run from the images every time."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corit_cli.cor import tuned as module
from corit_cli.cor.settings import Optimization
from corit_cli.cor.tuned import Prepared, Tuned, read, train_tuned
from corit_cli.errors import CoritError
from corit_cli.features.extractor import pixels
from corit_cli.model.backbone import VisionTower
from corit_cli.model.corit import CoRIT
from corit_cli.model.head import Head
from corit_cli.model.loading import Backbone
from corit_cli.model.precision import lowered
from corit_cli.model.scope import Scope, parse_scope
from corit_cli.model.settings import CoRITSettings, HeadKind, baseline
from corit_cli.training.sam import SAM
from tests.conftest import TINY, Told, photograph, random_tower

SETTINGS = {
    "spread of the deepest patches": CoRITSettings(cgp=(1,), integrate=(2,), spread=(1, 4)),
    "baseline": baseline(4),
    "plain, three deep": CoRITSettings(cgp=(), inject_at=(), integrate=(1, 3)),
    "contrast": CoRITSettings(("blur:1.0",), cgp=(2, 3), integrate=(2, 4)),
    "injection": CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(1, 2), integrate=(2, 3, 4)),
    "all streams end in class tokens": CoRITSettings(("blur:1.0", "noise:0.05"), cgp=(3, 4), integrate=(2, 4)),
    "pool, views go deepest": CoRITSettings(("blur:1.0",), cgp=(2, 4), patches=True, integrate=(1,)),
    "two views, pool, injection": CoRITSettings(
        ("blur:1.0", "noise:0.05"), cgp=(2, 3), patches=True, inject_at=(1, 3), integrate=(4,), mask="none"
    ),
}
SCOPES = ("head", "ln", "last:1", "last:2", "lora:2", "all")
EXACT = {"atol": 1e-5, "rtol": 1e-5}
SHORT = Optimization(lr=1e-3, epochs=2, batch_size=4)

every_scope = pytest.mark.parametrize("scope", SCOPES)
every_setting = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BATCH, "cpu", 6)  # of three images, and a view of each


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """(8, 32, 32, 3) uint8"""
    return torch.from_numpy(np.stack([np.asarray(photograph(i, (32, 32))) for i in range(8)]))


LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
TRAINED_ON = torch.tensor([6, 0, 1, 4, 3, 5])


def made(tower: VisionTower, name: str, scope: str, windows: Tensor) -> tuple[Tuned, Prepared]:
    tuned = Tuned(tower, SETTINGS[name], parse_scope(scope))
    return tuned, tuned.prepare(windows)


@pytest.mark.parametrize("scope", ["last:1", "lora:2", "all"])
def test_what_is_prepared_two_batches_at_a_time_is_the_same(
    scope: str, tower: VisionTower, windows: Tensor, two_threads: None
) -> None:
    told = []
    tuned = Tuned(tower, SETTINGS["contrast"], parse_scope(scope))
    found = tuned.prepare(windows, told.append)
    torch.set_num_threads(1)
    one = tuned.prepare(windows)
    torch.set_num_threads(2)
    assert told == [3, 3, 2] and found.begun.keys() == one.begun.keys()
    assert not found.z.requires_grad
    torch.testing.assert_close(found.z, one.z, **EXACT)
    for key, value in one.begun.items():
        torch.testing.assert_close(found.begun[key], value, **EXACT)


@every_scope
def test_another_shares_what_is_not_trained(scope: str, tower: VisionTower, windows: Tensor) -> None:
    tuned, prepared = made(tower, "contrast", scope, windows)
    other = tuned.another()
    assert other.trained.keys() == tuned.trained.keys()
    own, others = ({p.data_ptr() for p in one.parameters()} for one in (tuned, other))
    assert own & others == own - {p.data_ptr() for p in tuned.trained.values()}
    before = read(tuned, prepared, torch.arange(8))
    with torch.no_grad():
        for p in other.trained.values():
            p += 1
    assert torch.equal(read(tuned, prepared, torch.arange(8)), before)
    other.reset(0)
    assert torch.equal(read(other, prepared, torch.arange(8)), before)


def test_of_tokens_that_only_the_last_block_attends_to_nothing_but_normalised_ones_is_kept(
    tower: VisionTower, windows: Tensor
) -> None:
    _, prepared = made(tower, "all streams end in class tokens", "last:1", windows)
    streams, tokens, width = 3, 1 + tower.config.grid**2, tower.config.width
    assert prepared.begun["streams"].shape == (streams, 8, 1, width)
    normal = prepared.begun["normal"]
    assert normal.shape == (streams, 8, tokens, width)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(streams, 8, tokens), atol=1e-5, rtol=0)
    assert "normal" not in made(tower, "all streams end in class tokens", "last:2", windows)[1].begun


def test_frozen_blocks_may_multiply_in_bf16(tower: VisionTower, windows: Tensor) -> None:
    tuned, full = made(tower, "contrast", "last:1", windows)
    low = tuned.prepare(windows, frozen=lowered(Backbone(tower, "tiny", "0" * 64), "bf16"))
    assert not torch.equal(low.z, full.z)
    torch.testing.assert_close(low.z, full.z, atol=0.1, rtol=0)
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}


def disturb(tuned: Tuned, seed: int = 0) -> None:
    """Move every trained weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tuned.trained.values():
            p += 0.1 * torch.randn(p.shape, generator=generator)


def whole(tuned: Tuned, tower: VisionTower) -> VisionTower:
    """An ordinary tower with the weights that ``tuned`` has now."""
    out = copy.deepcopy(tower)
    with torch.no_grad():
        for name, p in out.named_parameters():
            p.copy_(attrgetter(name)(tuned.corit.tower))
    return out


@every_setting
@every_scope
def test_features_equal_the_whole_forward_pass(scope: str, name: str, tower: VisionTower, windows: Tensor) -> None:
    tuned, prepared = made(tower, name, scope, windows)
    images = pixels(windows, torch.device("cpu"))
    assert len(prepared) == 8
    tuned.reset(0)
    some = torch.tensor([5, 0, 2])
    before = CoRIT(tower, SETTINGS[name])(images).z
    with torch.no_grad():
        torch.testing.assert_close(read(tuned, prepared, torch.arange(8)), before, **EXACT)
        disturb(tuned)
        after = CoRIT(whole(tuned, tower), SETTINGS[name])(images).z
        torch.testing.assert_close(read(tuned, prepared, torch.arange(8)), after, **EXACT)
        torch.testing.assert_close(tuned(prepared, some), after[some], **EXACT)
    assert scope == "head" or not torch.allclose(before, after, atol=1e-2)


def expected_names(scope: str, end: int) -> set[str]:
    names = {name for name, _ in random_tower().named_parameters()}
    reached = {n for n in names if not n.startswith("blocks.") or int(n.split(".")[1]) < end}
    if scope == "head":
        return set()
    if scope == "ln":
        return {n for n in reached if re.fullmatch(r"blocks\.\d\.ln_[12]\.(weight|bias)", n)}
    if scope.startswith("last"):
        first = end - int(scope[-1])
        return {n for n in reached if n.startswith("blocks.") and int(n.split(".")[1]) >= first}
    if scope.startswith("lora"):
        weights = [n for n in reached if re.fullmatch(r"blocks\.\d\.(qkv|out)\.weight", n)]
        return {n.replace(".weight", f".parametrizations.weight.0.{part}") for n in weights for part in ("up", "down")}
    return {n for n in reached if n != "projection" and not n.startswith("ln_post")}


@pytest.mark.parametrize(("name", "end"), [("baseline", 4), ("plain, three deep", 3), ("pool, views go deepest", 4)])
@every_scope
def test_a_scope_trains_exactly_what_it_names(
    scope: str, name: str, end: int, tower: VisionTower, windows: Tensor
) -> None:
    tuned, prepared = made(tower, name, scope, windows)
    names = {f"tower.{n}" for n in expected_names(scope, end)}
    assert set(tuned.trained) == names
    assert {n for n, p in tuned.corit.named_parameters() if p.requires_grad} == names
    tuned.reset(0)
    before = {n: p.detach().clone() for n, p in tuned.corit.named_parameters()}
    train_tuned(tuned, prepared, LABELS, TRAINED_ON, 0, 0.05, SHORT)
    moved = {n for n, p in tuned.corit.named_parameters() if not torch.equal(p, before[n])}
    assert moved == names


def test_low_rank_parts_have_their_rank(tower: VisionTower) -> None:
    tuned = Tuned(tower, SETTINGS["baseline"], Scope("lora", 2))
    assert {tuple(p.shape) for n, p in tuned.trained.items() if n.endswith(".down")} == {(2, 32)}
    assert {tuple(p.shape) for n, p in tuned.trained.items() if n.endswith(".up")} == {(96, 2), (32, 2)}


@every_scope
def test_the_given_tower_is_never_changed(scope: str, tower: VisionTower, windows: Tensor) -> None:
    before = {n: t.clone() for n, t in tower.state_dict().items()}
    images = pixels(windows, torch.device("cpu"))
    z = CoRIT(tower, SETTINGS["injection"])(images).z
    tuned, prepared = made(tower, "injection", scope, windows)
    train_tuned(tuned, prepared, LABELS, TRAINED_ON, 0, 0.1, replace(SHORT, lr=0.1))
    after = tower.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())
    assert not any(block.reassociate for block in tower.blocks)
    assert torch.equal(CoRIT(tower, SETTINGS["injection"])(images).z, z)


@every_scope
def test_what_is_frozen_is_shared_with_the_given_tower(scope: str, tower: VisionTower) -> None:
    tuned = Tuned(tower, SETTINGS["baseline"], parse_scope(scope))
    theirs = {p.data_ptr() for p in tower.parameters()}
    for name, p in tuned.corit.named_parameters():
        assert (p.data_ptr() in theirs) == (name not in tuned.trained), name


@every_scope
def test_reset_goes_back_to_the_bit(scope: str, tower: VisionTower, windows: Tensor) -> None:
    tuned, prepared = made(tower, "injection", scope, windows)
    tuned.reset(4)
    first = {n: p.detach().clone() for n, p in tuned.corit.named_parameters()}
    for n, p in whole(tuned, tower).named_parameters():
        assert torch.equal(p, attrgetter(n)(tower)), n
    train_tuned(tuned, prepared, LABELS, TRAINED_ON, 1, 0.1, SHORT)
    tuned.reset(4)
    assert all(torch.equal(p, first[n]) for n, p in tuned.corit.named_parameters())
    tuned.reset(5)
    redrawn = {n for n, p in tuned.corit.named_parameters() if not torch.equal(p, first[n])}
    assert redrawn == {n for n in tuned.trained if n.endswith(".down")}
    assert bool(redrawn) == scope.startswith("lora")


@every_setting
@pytest.mark.parametrize("scope", [s for s in SCOPES if s != "head"])
def test_gradients_equal_those_of_the_whole_forward_pass(
    scope: str, name: str, tower: VisionTower, windows: Tensor
) -> None:
    tuned, prepared = made(tower, name, scope, windows)
    tuned.reset(0)
    disturb(tuned)  # a low-rank part that is zero gets no gradient through the other
    some = torch.tensor([5, 0, 2])
    direction = torch.randn(3, tuned.corit.width, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((tuned(prepared, some) * direction).sum(), list(tuned.trained.values()))

    plain = whole(tuned, tower).requires_grad_(True)
    z = CoRIT(plain, SETTINGS[name])(pixels(windows[some], torch.device("cpu"))).z
    (z * direction).sum().backward()
    theirs = {f"tower.{n}": p.grad for n, p in plain.named_parameters()}
    for (n, p), gradient in zip(tuned.trained.items(), ours, strict=True):
        weight, low_rank, part = n.partition(".parametrizations.weight.0.")
        if not low_rank:
            expected = theirs[n]
        elif part == "up":  # d(up @ down): G down^T for up, up^T G for down
            expected = theirs[f"{weight}.weight"] @ tuned.trained[n.replace(".up", ".down")].T
        else:
            expected = tuned.trained[n.replace(".down", ".up")].T @ theirs[f"{weight}.weight"]
        assert gradient.shape == p.shape
        near = 1e-5 * float(expected.detach().abs().max().clamp_min(1))  # what rounding goes by
        torch.testing.assert_close(gradient, expected, atol=near, rtol=1e-4, msg=lambda m, n=n: f"{n}: {m}")


def mean_loss(tuned: Tuned, prepared: Prepared, head: Head) -> float:
    with torch.no_grad():
        logits = head(read(tuned, prepared, TRAINED_ON))
    return float(F.binary_cross_entropy_with_logits(logits, LABELS[TRAINED_ON].float()))


@every_scope
def test_training_lowers_the_loss_and_does_so_alike_twice(scope: str, tower: VisionTower, windows: Tensor) -> None:
    tuned, prepared = made(tower, "injection", scope, windows)
    o = Optimization(lr=3e-3, epochs=10, batch_size=3)

    def trained(seed: int, o: Optimization = o, rho: float = 0.0) -> tuple[list[Tensor], float, float]:
        head, cosine = train_tuned(tuned, prepared, LABELS, TRAINED_ON, seed, rho, o)
        weights = [p.detach().clone() for p in (*tuned.trained.values(), *head.parameters())]
        return weights, mean_loss(tuned, prepared, head), cosine

    _, at_start, _ = trained(0, replace(o, lr=1e-12, epochs=1))
    weights, at_end, cosine = trained(0)
    assert at_end < at_start - (0.001 if scope == "head" else 0.01)
    assert cosine == 1
    trained(1)
    again, loss, _ = trained(0)
    assert loss == at_end and all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    sharp, _, cosine = trained(0, rho=0.1)
    assert -1 <= cosine < 1 and not torch.equal(sharp[-1], weights[-1])


@pytest.mark.parametrize(("m", "hidden"), [(0, 0), (2, 5)])
@pytest.mark.parametrize("scope", ["ln", "last:2", "all"])
def test_training_equals_a_loop_over_whole_forward_passes(
    scope: str, m: int, hidden: int, tower: VisionTower, windows: Tensor
) -> None:
    o = Optimization("sgd", lr=0.05, epochs=2, batch_size=4, m=m, hidden=hidden)
    tuned, prepared = made(tower, "injection", scope, windows)
    head, cosine = train_tuned(tuned, prepared, LABELS, TRAINED_ON, 3, 0.05, o)

    plain = copy.deepcopy(tower)
    corit = CoRIT(plain, SETTINGS["injection"])
    images = pixels(windows, torch.device("cpu"))
    torch.manual_seed(3)
    expected = Head(corit.width, HeadKind(hidden))
    expected.fit_standardiser(corit(images[TRAINED_ON]).z)
    parameters = [p.requires_grad_(f"tower.{n}" in tuned.trained) for n, p in plain.named_parameters()]
    parameters = [p for p in parameters if p.requires_grad] + list(expected.parameters())
    base = torch.optim.SGD(parameters, lr=o.lr, weight_decay=o.weight_decay, momentum=0.9)
    sam = SAM(base, 0.05, per_micro_batch=m > 0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(o.epochs):
        batch = TRAINED_ON[torch.randperm(6, generator=generator)[:4]]

        def loss(part: Tensor) -> Tensor:
            logits = expected(corit(images[part]).z)
            return F.binary_cross_entropy_with_logits(logits, LABELS[part].float(), reduction="sum") / 4

        last = sam.step(loss, batch.split(m or 4)).cosine
    torch.testing.assert_close(dict(head.state_dict()), dict(expected.state_dict()), **EXACT)
    for n, p in tuned.trained.items():
        torch.testing.assert_close(p, attrgetter(n)(corit), **EXACT)
    assert cosine == pytest.approx(last, abs=1e-4)
    assert not head.training


@pytest.mark.parametrize("scope", ["head", "last:2"])
def test_blocks_before_the_scope_are_run_once(scope: str, tower: VisionTower, windows: Tensor) -> None:
    tuned, prepared = made(tower, "injection", scope, windows)
    first = {"head": 4, "last:2": 2}[scope]

    def refuse(*_: object) -> None:
        raise AssertionError("a frozen block was run again")

    tuned.corit.tower.embed = refuse
    for block in tuned.corit.tower.blocks[:first]:
        block.forward = refuse
    train_tuned(tuned, prepared, LABELS, TRAINED_ON, 0, 0.1, SHORT)


@every_scope
def test_preparing_tells_of_all_images_and_keeps_no_gradient(scope: str, tower: VisionTower, windows: Tensor) -> None:
    tuned = Tuned(tower, SETTINGS["injection"], parse_scope(scope))
    told = Told()
    prepared = tuned.prepare(windows, told("images", 8))
    assert told.complete
    kept = list(prepared.begun.values())
    assert bool(kept) == (scope != "all")
    assert all(t.shape[1] == 8 and not t.requires_grad for t in kept)
    assert len(prepared.z) == 8 and not prepared.z.requires_grad


@pytest.mark.parametrize("make", [lambda: baseline(4), lambda: CoRITSettings(cgp=(), integrate=(2,))])
def test_more_blocks_than_are_read_are_refused(make: Callable[[], CoRITSettings], tower: VisionTower) -> None:
    settings = make()
    end = max(settings.integrate)
    Tuned(tower, settings, Scope("last", end))
    with pytest.raises(CoritError, match=f"last:{end + 1}.*{end}"):
        Tuned(tower, settings, Scope("last", end + 1))


def test_an_exact_gelu_tower_is_tuned_alike(windows: Tensor) -> None:
    tower = random_tower(replace(TINY, activation="gelu"))
    tuned, prepared = made(tower, "injection", "last:1", windows)
    expected = CoRIT(tower, SETTINGS["injection"])(pixels(windows, torch.device("cpu"))).z
    torch.testing.assert_close(read(tuned, prepared, torch.arange(8)), expected, **EXACT)
