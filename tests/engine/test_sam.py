from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from corit_cli.engine.sam import SAM


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(16, 5), torch.rand(16, 1).round()


def closure(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
    def run() -> torch.Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        return loss

    return run


@pytest.mark.parametrize("rho", [0.01, 0.3, 3.0])
def test_ten_steps_equal_pytorch_optimizer(rho: float) -> None:
    reference = pytest.importorskip("pytorch_optimizer")
    model, x, y = problem()
    twin = copy.deepcopy(model)
    ours = SAM(torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01), rho)
    theirs = reference.SAM(twin.parameters(), torch.optim.AdamW, rho=rho, adaptive=False, lr=0.05, weight_decay=0.01)
    for _ in range(10):
        ours.step(closure(model, x, y))
        run = closure(twin, x, y)
        run()
        theirs.first_step(zero_grad=True)
        run()
        theirs.second_step(zero_grad=True)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_without_a_radius_it_is_the_plain_optimizer() -> None:
    model, x, y = problem()
    twin = copy.deepcopy(model)
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.0)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        step = sam.step(closure(model, x, y))
        plain.zero_grad()
        closure(twin, x, y)()
        plain.step()
        assert step.cosine == 1.0 and step.ascent_norm == step.descent_norm
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_weights_come_back_exactly() -> None:
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    SAM(torch.optim.SGD(model.parameters(), lr=0.0), 0.37).step(closure(model, x, y))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_log_is_what_happened() -> None:
    model, x, y = problem()
    grads = torch.autograd.grad(nn.functional.binary_cross_entropy_with_logits(model(x), y), list(model.parameters()))
    g = torch.cat([t.flatten() for t in grads])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p, t in zip(twin.parameters(), grads, strict=True):
            p += 0.5 * t / g.norm()
    there = torch.autograd.grad(nn.functional.binary_cross_entropy_with_logits(twin(x), y), list(twin.parameters()))
    d = torch.cat([t.flatten() for t in there])
    step = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.5).step(closure(model, x, y))
    assert step.ascent_norm == pytest.approx(float(g.norm()), rel=1e-5)
    assert step.descent_norm == pytest.approx(float(d.norm()), rel=1e-5)
    assert step.cosine == pytest.approx(float(torch.cosine_similarity(g, d, dim=0)), rel=1e-5)


def test_a_negative_radius_is_refused() -> None:
    with pytest.raises(ValueError, match="rho"):
        SAM(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), -0.1)
