"""A population against training its members one by one, with the loop written out here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corit_cli.cor import heads as population
from corit_cli.cor.heads import Heads, batches, micro_batches, run_batches, train_population
from corit_cli.cor.settings import Optimization
from corit_cli.errors import CoritError
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.training.sam import SAM

SEEDS, RADII = (3, 0, 7), (0.0, 0.05, 1.0)
SHORT = Optimization(lr=0.02, epochs=3, batch_size=8)
EXACT = {"atol": 1e-5, "rtol": 1e-5}

OPTIMIZATIONS = {
    "adamw": SHORT,
    "sgd": replace(SHORT, optimizer="sgd", lr=0.3),
    "adamw, hidden": replace(SHORT, hidden=6),
    "sgd, hidden": replace(SHORT, optimizer="sgd", lr=0.3, hidden=6),
    "m-sharpness": replace(SHORT, m=2),
    "m-sharpness, sgd, hidden": replace(SHORT, optimizer="sgd", lr=0.3, hidden=6, m=4),
    "adaptive": replace(SHORT, optimizer="sgd", lr=0.3, adaptive=True),
    "friendly": replace(SHORT, optimizer="sgd", lr=0.3, friendly=0.9),
    "one batch is all": replace(SHORT, batch_size=64, epochs=8),
}


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Standardised features (24, 10), labels (3, 24) that differ by seed, and 19 training positions in no order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 10, generator=generator) / 10**0.5
    labels = (x[:, :3].T + 0.1 * torch.randn(3, 24, generator=generator) > 0).long()
    return x, labels, torch.randperm(24, generator=generator)[:19]


def shuffled_batches(o: Optimization, count: int, seed: int) -> list[list[Tensor]]:
    """Batches by epoch: each epoch a new order, the remainder left out."""
    generator, size = torch.Generator().manual_seed(seed), min(o.batch_size, count)
    orders = [torch.randperm(count, generator=generator) for _ in range(o.epochs)]
    return [[order[i * size : (i + 1) * size] for i in range(count // size)] for order in orders]


def alone(
    x: Tensor, y: Tensor, trained_on: Tensor, seed: int, rho: float, o: Optimization
) -> tuple[Tensor, list[Tensor], float]:
    """One member by itself: logits (n,), weights, and mean cosine over the last epoch."""
    torch.manual_seed(seed)
    head = Head(x.shape[1], HeadKind(o.hidden))
    if o.optimizer == "adamw":
        base = torch.optim.AdamW(head.parameters(), lr=o.lr, weight_decay=o.weight_decay)
    else:
        base = torch.optim.SGD(head.parameters(), lr=o.lr, weight_decay=o.weight_decay, momentum=0.9)
    sam = SAM(base, rho, adaptive=o.adaptive, friendly=o.friendly, per_micro_batch=o.m > 0)
    for epoch in shuffled_batches(o, len(trained_on), seed):
        cosines = []
        for positions in epoch:
            batch = trained_on[positions]

            def loss(part: Tensor, size: int = len(batch)) -> Tensor:
                logits = head.layers(x[part]).squeeze(-1)
                return F.binary_cross_entropy_with_logits(logits, y[part].float(), reduction="sum") / size

            step = sam.step(loss, batch.split(o.m) if o.m else [batch])
            cosines.append(step.cosine)
    with torch.no_grad():
        return head.layers(x).squeeze(-1), [p.detach() for p in head.parameters()], sum(cosines) / len(cosines)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Heads]:
    """Every population of heads that training makes."""
    kept: list[Heads] = []

    class Kept(Heads):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(population, "Heads", Kept)
    return kept


def check_against_alone(
    fitted: population.Fitted,
    heads: Heads,
    problem: tuple[Tensor, Tensor, Tensor],
    o: Optimization,
    seeds: Sequence[int] = SEEDS,
    radii: Sequence[float] = RADII,
) -> None:
    x, labels, trained_on = problem
    assert fitted.logits.shape == (len(seeds), len(radii), len(x))
    for s, seed in enumerate(seeds):
        for r, rho in enumerate(radii):
            logits, weights, cosine = alone(x, labels[s], trained_on, seed, rho, o)
            torch.testing.assert_close(fitted.logits[s, r], logits, **EXACT)
            torch.testing.assert_close([p[s, r] for p in heads.stacked], weights, **EXACT)
            assert float(fitted.cosine[s, r]) == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("name", OPTIMIZATIONS)
def test_every_member_equals_its_own_training(
    name: str, problem: tuple[Tensor, Tensor, Tensor], made: list[Heads]
) -> None:
    o = OPTIMIZATIONS[name]
    fitted = train_population(*problem, SEEDS, RADII, o)
    check_against_alone(fitted, made[0], problem, o)
    # and the comparison means something: seeds and radii differ by far more than the tolerance
    flat = fitted.logits.flatten(0, 1).detach()
    apart = (flat[:, None] - flat[None]).abs().amax(-1) + torch.eye(len(flat))
    assert apart.min() > 1e-4


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a_linear_member_equals_pytorch_optimizer(rho: float, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    reference = pytest.importorskip("pytorch_optimizer")
    x, labels, trained_on = problem
    o = replace(SHORT, optimizer="sgd", lr=0.3)
    fitted = train_population(*problem, SEEDS, (0.0, rho), o)
    for s, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        layer = nn.Linear(x.shape[1], 1)
        optimizer = reference.SAM(
            layer.parameters(), torch.optim.SGD, rho=rho, lr=o.lr, momentum=0.9, weight_decay=o.weight_decay
        )
        for positions in (p for epoch in shuffled_batches(o, len(trained_on), seed) for p in epoch):
            batch = trained_on[positions]
            for step in (optimizer.first_step, optimizer.second_step):
                loss = F.binary_cross_entropy_with_logits(layer(x[batch]).squeeze(-1), labels[s, batch].float())
                loss.backward()
                step(zero_grad=True)
        with torch.no_grad():
            torch.testing.assert_close(fitted.logits[s, 1], layer(x).squeeze(-1), **EXACT)


def test_one_row_of_labels_serves_all_seeds(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, labels, trained_on = problem
    one = train_population(x, labels[0], trained_on, SEEDS, RADII, SHORT)
    each = train_population(x, labels[:1].repeat(3, 1), trained_on, SEEDS, RADII, SHORT)
    assert torch.equal(one.logits, each.logits)


def test_only_training_labels_matter(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, labels, trained_on = problem
    others = torch.ones(24, dtype=torch.bool)
    others[trained_on] = False
    changed = torch.where(others, 1 - labels, labels)
    before, after = (train_population(x, y, trained_on, SEEDS, RADII, SHORT) for y in (labels, changed))
    assert torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("name", ["adamw", "sgd, hidden"])
@pytest.mark.parametrize("held", [1, 2])
def test_chunks_change_nothing(
    name: str, held: int, problem: tuple[Tensor, Tensor, Tensor], made: list[Heads], monkeypatch: pytest.MonkeyPatch
) -> None:
    o = OPTIMIZATIONS[name]
    whole = train_population(*problem, SEEDS, RADII, o)
    monkeypatch.setattr(population, "MEMBERS_SIZE", held * 10 * max(1, o.hidden) * len(SEEDS))
    chunked = train_population(*problem, SEEDS, RADII, o)
    assert [h.stacked[0].shape[1] for h in made] == ([3, 1, 1, 1] if held == 1 else [3, 2, 1])
    torch.testing.assert_close(chunked.logits, whole.logits, **EXACT)
    torch.testing.assert_close(chunked.cosine, whole.cosine, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adamw, hidden", "sgd, hidden", "m-sharpness"])
def test_a_member_that_diverges_leaves_the_others_alone(
    name: str, problem: tuple[Tensor, Tensor, Tensor], made: list[Heads]
) -> None:
    o = OPTIMIZATIONS[name]
    radii = (0.05, 3e38, 1.0)  # over the gradient's norm it is beyond single precision
    fitted = train_population(*problem, SEEDS, radii, o)
    if o.m:  # through autograd it overflows; in closed form a sigmoid of infinity is still a number
        assert not fitted.logits[:, 1].isfinite().any()
    kept = population.Fitted(fitted.logits[:, ::2], fitted.cosine[:, ::2])
    for p in made[0].stacked:
        p.data = p.data[:, ::2]
    check_against_alone(kept, made[0], problem, o, radii=radii[::2])


def test_at_a_learning_rate_beyond_reason_members_diverge_as_they_would_alone(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, labels, trained_on = problem
    o = replace(SHORT, optimizer="sgd", lr=1e30, weight_decay=1e-2, epochs=2)
    fitted = train_population(x, labels, trained_on, SEEDS, RADII, o)
    assert not fitted.logits.isfinite().all()
    for s, seed in enumerate(SEEDS):
        for r, rho in enumerate(RADII):
            logits, _, _ = alone(x, labels[s], trained_on, seed, rho, o)
            assert torch.equal(fitted.logits[s, r].isfinite(), logits.isfinite())


def test_without_a_radius_ascent_and_descent_agree(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    fitted = train_population(*problem, SEEDS, RADII, SHORT)
    assert (fitted.cosine[:, 0] == 1).all()
    assert (fitted.cosine[:, 1:] < 1).all()


@pytest.mark.parametrize(("count", "size"), [(19, 8), (16, 8), (5, 8), (1, 1)])
def test_batches_hold_every_position_at_most_once_an_epoch(count: int, size: int) -> None:
    o = Optimization(batch_size=size, epochs=3)
    found = list(batches(o, count, 0))
    assert len(found) == o.steps(count)
    assert {len(b) for b in found} == {min(size, count)}
    epochs = [torch.cat(found[i : i + len(found) // 3]).tolist() for i in range(0, len(found), len(found) // 3)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == count // min(size, count) * min(size, count)
        assert set(epoch) <= set(range(count))
    assert count == 1 or epochs[0] != epochs[1]
    again, other = list(batches(o, count, 0)), list(batches(o, count, 1))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert count == 1 or not all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_micro_batches_make_up_the_batch() -> None:
    batch, o = torch.arange(24).view(3, 8), Optimization(batch_size=8, m=2)
    assert [p.shape for p in micro_batches(o, batch)] == [(3, 2)] * 4
    assert torch.equal(torch.cat(list(micro_batches(o, batch)), 1), batch)
    assert [p.shape for p in micro_batches(Optimization(batch_size=8), batch)] == [(3, 8)]
    assert [p.shape for p in micro_batches(Optimization(batch_size=16, m=16), batch)] == [(3, 8)]  # fewer than m


def test_training_steps_through_every_seeds_batches_and_tells_the_last_epochs_mean() -> None:
    o, trained_on = Optimization(batch_size=4, epochs=3), torch.tensor([9, 2, 4, 7, 1, 5, 8, 0, 3])
    seen: list[Tensor] = []

    def step(batch: Tensor) -> Tensor:
        seen.append(batch)
        return torch.tensor([1.0, -1.0]) * len(seen)

    mean = run_batches(o, trained_on, (3, 0), step)
    assert len(seen) == o.steps(9) == 6 and mean.tolist() == [5.5, -5.5]
    for row, seed in enumerate((3, 0)):
        expected = [trained_on[positions] for positions in batches(o, 9, seed)]
        assert all(torch.equal(batch[row], own) for batch, own in zip(seen, expected, strict=True))


def test_heads_of_a_seed_start_alike_and_as_a_head_of_that_seed() -> None:
    heads = Heads(5, 4, SEEDS, 2)
    for s, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        for stacked, one in zip(heads.stacked, Head(5, HeadKind(4)).parameters(), strict=True):
            assert torch.equal(stacked[s, 0], one) and torch.equal(stacked[s, 1], one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "adamw or sgd"),
        ({"batch_size": 16, "m": 5}, "16.*5"),
        ({"lr": 0.0}, "lr must be above zero"),
        ({"friendly": 1.0}, r"\[0, 1\)"),
    ],
)
def test_impossible_optimizations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(CoritError, match=message):
        Optimization(**change)
