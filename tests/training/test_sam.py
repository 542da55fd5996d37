from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from corit_cli.training.sam import SAM, Step

Part = tuple[Tensor, Tensor]
bce = nn.functional.binary_cross_entropy_with_logits


def problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return model, torch.randn(16, 5, dtype=torch.float64), torch.rand(16, 1, dtype=torch.float64).round()


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Part | None], Tensor]:
    """The mean loss of all samples, or a part's share of it."""
    return lambda part: bce(model(x), y) if part is None else bce(model(part[0]), part[1], reduction="sum") / len(x)


def split(x: Tensor, y: Tensor, parts: int) -> list[Part]:
    return list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))


def sgd(model: nn.Module, lr: float = 0.3) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same(a: nn.Module | Sequence[Tensor], b: nn.Module | Sequence[Tensor], **tolerance: float) -> None:
    a, b = (values(m) if isinstance(m, nn.Module) else list(m) for m in (a, b))
    torch.testing.assert_close(a, b, **(tolerance or {"atol": 1e-10, "rtol": 1e-8}))


def sharp_gradients(model: nn.Module, loss: Callable[[], Tensor], rho: float) -> list[Tensor]:
    """The gradients at w + rho g / ||g||, written out on a copy that the caller hands over."""
    flat = nn.utils.parameters_to_vector
    with torch.enable_grad():
        g = flat(torch.autograd.grad(loss(), list(model.parameters())))
    there = flat(model.parameters()).detach() + rho * g / g.norm()
    before = flat(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(there, model.parameters())
    gradients = list(torch.autograd.grad(loss(), list(model.parameters())))
    nn.utils.vector_to_parameters(before, model.parameters())
    return gradients


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float64])
def test_parameters_keep_their_dtypes(low: torch.dtype) -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=low))
    sam = SAM(torch.optim.SGD([a, b], lr=0.1), 0.5)
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def loss(_: None) -> Tensor:
        seen.append((a.dtype, b.dtype))
        return (a * a).sum() + (b.float() ** 2).sum()

    step = sam.step(loss)
    assert seen == [(torch.float32, low)] * 2 and step.perturbed > step.loss and (a < 1).all() and (b < 1).all()


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor]) -> None:
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()


# --- the single model, against an independent implementation ----------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("rho", [0.01, 0.3, 3.0])
def test_every_step_equals_pytorch_optimizer(rho: float, adaptive: bool) -> None:
    reference = pytest.importorskip("pytorch_optimizer")
    model, x, y = problem()
    twin = copy.deepcopy(model)
    options = {"lr": 0.05, "weight_decay": 0.01}
    ours = SAM(torch.optim.AdamW(model.parameters(), **options), rho, adaptive=adaptive)
    theirs = reference.SAM(twin.parameters(), torch.optim.AdamW, rho=rho, adaptive=adaptive, **options)
    for _ in range(10):
        ours.step(loss_of(model, x, y))
        for move in (theirs.first_step, theirs.second_step):
            loss_of(twin, x, y)(None).backward()
            move(zero_grad=True)
        assert_same(model, twin, atol=1e-6, rtol=1e-5)  # their norm is of single precision


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("decay", "from_zero"), [(0.0, False), (0.9, True), (0.5, True)])
def test_every_friendly_step_equals_pytorch_optimizer(decay: float, from_zero: bool, adaptive: bool) -> None:
    """Their mean starts at the first gradient, ours at zero: the same for decay 0, or once theirs is told to."""
    reference = pytest.importorskip("pytorch_optimizer")
    model, x, y = problem()
    twin = copy.deepcopy(model)
    ours = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.2, adaptive=adaptive, friendly=decay)
    theirs = reference.FriendlySAM(twin.parameters(), torch.optim.SGD, rho=0.2, lmbda=decay, adaptive=adaptive, lr=0.3)
    if from_zero:
        for p in twin.parameters():
            theirs.state[p]["momentum"] = torch.zeros_like(p)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        chosen = torch.randperm(len(x), generator=generator)[:6]
        ours.step(loss_of(model, x[chosen], y[chosen]))
        for move in (theirs.first_step, theirs.second_step):
            loss_of(twin, x[chosen], y[chosen])(None).backward()
            move(zero_grad=True)
        assert_same(model, twin, atol=1e-6, rtol=1e-5)


def test_without_a_radius_it_is_the_plain_optimizer() -> None:
    model, x, y = problem()
    twin = copy.deepcopy(model)
    sam, plain = SAM(sgd(model), 0.0, per_micro_batch=True), sgd(twin)
    for _ in range(3):
        step = sam.step(loss_of(model, x, y))
        plain.zero_grad()
        loss_of(twin, x, y)(None).backward()
        plain.step()
        assert step.cosine == 1.0 and step.perturbed == step.loss and step.norm > 0
    assert all(torch.equal(a, b) for a, b in zip(values(model), values(twin), strict=True))


def test_the_log_is_what_happened() -> None:
    model, x, y = problem()
    loss = loss_of(model, x, y)
    g = nn.utils.parameters_to_vector(torch.autograd.grad(loss(None), list(model.parameters())))
    d = nn.utils.parameters_to_vector(sharp_gradients(model, lambda: loss(None), 0.5))
    expected = [float(loss(None).detach()), float(torch.cosine_similarity(g, d, dim=0))]
    step = SAM(sgd(model), 0.5).step(loss)
    assert [step.loss, step.cosine] == pytest.approx(expected, rel=1e-9)
    assert step.norm == pytest.approx(float(g.norm()), rel=1e-9) and step.perturbed > step.loss
    assert type(step.loss) is type(step.perturbed) is type(step.norm) is type(step.cosine) is float
    assert step.cosine < 0.999


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"friendly": 0.9}, {"per_micro_batch": True}])
def test_weights_come_back_exactly(options: dict) -> None:
    model, x, y = problem()
    before = values(model)
    sam = SAM(sgd(model, lr=0.0), 0.37, **options)
    for _ in range(3):
        sam.step(loss_of(model, x, y), split(x, y, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))


def test_weights_come_back_when_the_loss_fails() -> None:
    model, x, y = problem()
    before, calls = values(model), []

    def loss(part: None) -> Tensor:
        calls.append(values(model))
        if len(calls) == 2:
            raise MemoryError
        return loss_of(model, x, y)(part)

    with pytest.raises(MemoryError):
        SAM(sgd(model), 0.37).step(loss)
    assert not torch.equal(calls[1][0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rho=st.floats(1e-3, 10),
    factor=st.floats(1e-3, 1e3),
    friendly=st.none() | st.floats(0, 0.99),
    adaptive=st.booleans(),
)
def test_the_perturbation_has_length_rho_whatever_the_scale_of_the_loss(
    seed: int, rho: float, factor: float, friendly: float | None, adaptive: bool
) -> None:
    model, x, y = problem(seed)
    seen: list[Tensor] = []

    def loss(part: Part) -> Tensor:
        seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        return factor * bce(model(part[0]), part[1])

    sam = SAM(sgd(model, lr=0.01), rho, friendly=friendly, adaptive=adaptive)
    for half in split(x, y, 2):
        sam.step(loss, [half])
    for w, moved in zip(seen[::2], seen[1::2], strict=True):
        distance = ((moved - w) / w if adaptive else moved - w).norm()  # ASAM measures in units of the weights
        assert float(distance) == pytest.approx(rho, rel=1e-6)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"friendly": 0.8}])
def test_accumulated_parts_equal_the_whole_batch(options: dict) -> None:
    model, x, y = problem()
    twin = copy.deepcopy(model)
    whole, parted = SAM(sgd(model), 0.4, **options), SAM(sgd(twin), 0.4, **options)
    for _ in range(5):
        a = whole.step(loss_of(model, x, y))
        b = parted.step(loss_of(twin, x, y), split(x, y, 5))  # of unequal sizes
        assert [a.loss, a.cosine] == pytest.approx([b.loss, b.cosine], rel=1e-9)
    assert_same(model, twin)


def test_per_micro_batch_equals_the_loop_written_out() -> None:
    model, x, y = problem()
    twin = copy.deepcopy(model)
    parts, sam, optimizer = split(x, y, 3), SAM(sgd(model), 0.4, per_micro_batch=True), sgd(twin)
    for _ in range(5):
        loss = loss_of(twin, x, y)
        each = [sharp_gradients(twin, lambda part=part, loss=loss: loss(part), 0.4) for part in parts]
        summed = [sum(gradients) for gradients in zip(*each, strict=True)]
        whole = torch.autograd.grad(loss(None), list(twin.parameters()))
        a, d = nn.utils.parameters_to_vector(whole), nn.utils.parameters_to_vector(summed)
        step = sam.step(loss_of(model, x, y), parts)
        assert [step.cosine, step.loss] == pytest.approx(
            [float(torch.cosine_similarity(a, d, dim=0)), loss(None).item()], rel=1e-9
        )
        descend(twin, optimizer, summed)
        assert_same(model, twin)


def test_a_parameter_that_some_parts_do_not_use() -> None:
    a, b = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (1.0, 2.0))
    sam = SAM(torch.optim.SGD([a, b], lr=1.0), 0.5, per_micro_batch=True)
    step = sam.step(lambda p: (p**2).sum(), [a, b])  # gradients 2 and 4, each moved by 0.5: 3 and 5
    assert (a.item(), b.item()) == (-2.0, -3.0)
    assert step.cosine == pytest.approx((2 * 3 + 4 * 5) / (20 * 34) ** 0.5)
    assert (step.loss, step.perturbed) == (1**2 + 2**2, 1.5**2 + 2.5**2)
    assert step.norm == pytest.approx((2**2 + 4**2) ** 0.5)


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"friendly": 0.8}, {"per_micro_batch": True}])
def test_without_a_finite_gradient_there_is_no_direction_and_no_second_pass(options: dict) -> None:
    model, x, y = problem()
    calls = []

    def loss(part: Part) -> Tensor:
        calls.append(part)
        return float("inf") * loss_of(model, x, y)(part)

    SAM(sgd(model), 0.4, **options).step(loss, [(x, y)])
    assert len(calls) == 1


# --- populations ------------------------------------------------------------------------------------------------------

RHO = torch.tensor([[0.0, 0.05, 0.5, 5.0], [5.0, 0.5, 0.05, 0.0]], dtype=torch.float64)  # (S, R)


def heads(mlp: bool, x: Tensor, shape: Sequence[int] = RHO.shape) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(x.shape[1], 6), (6,), (6,), ()] if mlp else [(x.shape[1],), ()]
    return [nn.Parameter(0.5 * torch.randn(*shape, *s, dtype=x.dtype, generator=generator)) for s in sizes]


def member_losses(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Losses (*population) of heads with weights (*population, ...) on x (n, d) and y (n)."""
    if len(weights) == 4:
        x = torch.tanh(x @ weights[0] + weights[1].unsqueeze(-2))  # (*population, n, hidden)
    logits = (x * weights[-2].unsqueeze(-2)).sum(-1) + weights[-1].unsqueeze(-1)  # (*population, n)
    return bce(logits, y.expand_as(logits), reduction="none").mean(-1)


def batches(x: Tensor, y: Tensor, steps: int) -> list[list[Part]]:
    generator = torch.Generator().manual_seed(5)
    chosen = [torch.randperm(len(x), generator=generator)[:8] for _ in range(steps)]
    return [split(x[c], y[c, 0], 2) for c in chosen]


def train(weights: list[nn.Parameter], rho: float | Tensor, data: list[list[Part]], **options) -> list[Step]:
    sam = SAM(torch.optim.AdamW(weights, lr=0.05), rho, **options)
    return [sam.step(lambda part: member_losses(weights, *part) / 2, parts) for parts in data]


@pytest.mark.parametrize("options", [{}, {"adaptive": True}, {"friendly": 0.8}, {"per_micro_batch": True}])
@pytest.mark.parametrize("mlp", [False, True])
def test_each_member_equals_its_own_run(mlp: bool, options: dict) -> None:
    _, x, y = problem()
    together = heads(mlp, x)
    alone = {(s, r): [nn.Parameter(p[s, r].detach().clone()) for p in together] for s in range(2) for r in range(4)}
    data = batches(x, y, 12)
    logs = train(together, RHO, data, **options)
    assert logs[0].loss.shape == logs[0].cosine.shape == RHO.shape
    for (s, r), weights in alone.items():
        own = train(weights, float(RHO[s, r]), data, **options)
        assert_same([p[s, r] for p in together], weights, atol=1e-6, rtol=1e-6)
        for field in ("loss", "cosine"):
            ours = [float(getattr(log, field)[s, r]) for log in logs]
            assert ours == pytest.approx([getattr(log, field) for log in own], rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    poison=st.dictionaries(
        st.tuples(st.integers(0, 1), st.integers(0, 3)), st.sampled_from([float("nan"), float("inf"), 0.0]), max_size=8
    ),
    options=st.sampled_from([{}, {"adaptive": True}, {"friendly": 0.8}, {"per_micro_batch": True}]),
)
def test_members_do_not_disturb_each_other(poison: dict, options: dict) -> None:
    """Members whose loss is not finite, or constant, leave the others bit for bit what they were."""
    _, x, y = problem()
    data, factor = batches(x, y, 4), torch.ones_like(RHO)
    for member, value in poison.items():
        factor[member] = value
    healthy, mixed = heads(True, x), heads(True, x)
    a = SAM(torch.optim.AdamW(healthy, lr=0.05), RHO, **options)
    b = SAM(torch.optim.AdamW(mixed, lr=0.05), RHO, **options)
    for parts in data:
        a.step(lambda part: member_losses(healthy, *part), parts)
        log = b.step(lambda part: factor * member_losses(mixed, *part), parts)
    others = factor == 1
    assert all(torch.equal(p[others], q[others]) for p, q in zip(healthy, mixed, strict=True))
    assert log.cosine[factor == 0].eq(1).all()
    assert all(p[factor == 0].isfinite().all() for p in mixed)


def test_a_member_without_a_finite_gradient_takes_the_plain_one() -> None:
    w = nn.Parameter(torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    factor = torch.tensor([[float("inf"), 1.0], [1.0, 1.0]])
    sam = SAM(torch.optim.SGD([w], lr=1.0), torch.tensor([0.5, 0.5]))
    sam.step(lambda _: (factor * w**2).sum(1) + w[:, 0] * w[:, 1])  # gradients (inf, 5) and (4, 5)
    assert w[0, 1].item() == 2 - 5
    assert w[1, 1].item() == pytest.approx(2 - (5 + 0.5 * (2 * 5 + 4) / 41**0.5))


# --- distributed data parallel ----------------------------------------------------------------------------------------


def test_two_processes(tmp_path: Path) -> None:
    """They are one process on the joint batch, whether they talk after every part or once a pass."""
    model, x, y = problem()
    x[8:] *= 3  # so that the processes' gradients differ much
    xs, ys = ([list(half.tensor_split(2)) for half in t.tensor_split(2)] for t in (x, y))  # [process][part] (4, ·)
    shared = {"weights": model.state_dict(), "x": xs, "y": ys, "rho": 0.4, "steps": 4, "once": False}
    cases = [
        shared | {"per_micro_batch": per_micro_batch, "once": once, "views": views}
        for per_micro_batch, once in ((False, False), (True, False), (False, True))
        for views in (False, True)
    ]
    cases.append(shared | {"rho": 0.0, "per_micro_batch": False, "views": False})
    torch.save(cases, tmp_path / "cases.pt")
    command = [sys.executable, str(Path(__file__).with_name("sam_worker.py")), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    for case, mine, other in zip(cases, first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine["weights"], other["weights"], strict=True))
        twin = copy.deepcopy(model)
        optimizer = sgd(twin)

        def loss(parts: Sequence[int], twin: nn.Module = twin) -> Tensor:
            """The loss of some parts of both processes, as a share of the whole batch's."""
            return torch.stack([bce(twin(xs[i][k]), ys[i][k]) / 4 for i in range(2) for k in parts]).sum()

        chosen = [(0,), (1,)] if case["per_micro_batch"] else [(0, 1)]
        for _ in range(case["steps"]):
            each = [sharp_gradients(twin, lambda k=k, loss=loss: loss(k), case["rho"]) for k in chosen]
            descend(twin, optimizer, [sum(g) for g in zip(*each, strict=True)])
        assert_same(twin, mine["weights"])
        assert mine["cosine"] == other["cosine"] and (mine["cosine"] < 0.999) == (case["rho"] > 0)
        passes = 2 if case["rho"] else 1
        assert mine["syncs"] == case["steps"] * passes * (1 if case["once"] else 2)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho"),
        ({"rho": float("nan")}, "rho"),
        ({"rho": float("inf")}, "rho"),
        ({"rho": torch.tensor([0.1, -0.1])}, "rho"),
        ({"rho": 0.1, "friendly": 1.0}, "friendly"),
        ({"rho": 0.1, "friendly": -0.1}, "friendly"),
        ({"rho": torch.tensor([0.1, 0.2, 0.3])}, "shape of rho"),
    ],
)
def test_nonsense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM(torch.optim.SGD([nn.Parameter(torch.zeros(2, 4))], lr=0.1), **options)


def test_a_loss_of_another_shape_and_no_parts_are_refused() -> None:
    w = nn.Parameter(torch.ones(2, 4))
    sam = SAM(torch.optim.SGD([w], lr=0.1), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="loss"):
        sam.step(lambda _: w.sum())
    with pytest.raises(ValueError, match="at least one micro-batch"):
        sam.step(lambda _: w.sum(1), [])
