from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from corit_cli.cor import theory as module
from corit_cli.cor.arms import Split
from corit_cli.cor.collapse import COR
from corit_cli.cor.settings import Optimization
from corit_cli.cor.theory import Condition, head_gsnr, rank_correlation, theory
from corit_cli.errors import CoritError
from corit_cli.metrics.gsnr import GSNREstimate
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from tests.conftest import Told


def condition(gsnr: float, cor: float | None, side: str | None = None) -> Condition:
    estimate = GSNREstimate(gsnr, gsnr, gsnr, gsnr, 0.0, 10, gsnr, 1.0)
    return Condition("layer", 0.0, estimate, COR(cor, 0.0, math.inf if side == "above" else 1.0, (), side))


def test_rank_correlation_orders_bounds_beyond_every_radius() -> None:
    rising = [condition(0.0, None, "below"), condition(0.1, 0.2), condition(0.2, 0.3), condition(0.3, None, "above")]
    assert rank_correlation(rising).value == pytest.approx(1)
    falling = [condition(-c.gsnr.value, c.cor.value, c.cor.side) for c in rising]
    assert rank_correlation(falling).value == pytest.approx(-1)


def test_conditions_of_several_kinds_are_no_independent_pairs() -> None:
    rising = [condition(k / 10, k + 1.0) for k in range(6)]
    assert rank_correlation(rising).p < 0.01 and math.isnan(rank_correlation(rising, independent=False).p)


def test_rank_correlation_of_a_constant_is_unknown() -> None:
    assert math.isnan(rank_correlation([condition(g, None, "above") for g in (0.1, 0.2, 0.3)]).value)


@pytest.mark.parametrize("hidden", [0, 3])
def test_head_gsnr_equals_a_loop_of_autograd(hidden: int) -> None:
    torch.manual_seed(1)
    x, labels = torch.randn(24, 5), torch.arange(24) % 2
    found = head_gsnr(x, labels, torch.arange(4, 24), list(range(24)), Optimization(hidden=hidden))
    torch.manual_seed(0)
    head = Head(5, HeadKind(hidden)).layers
    with torch.no_grad():
        head[-1].bias -= head(x[4:]).mean()
    rows = []
    for i in range(4, 24):
        loss = F.binary_cross_entropy_with_logits(head(x[i])[0], labels[i].float())
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(head.parameters()))]).double())
    g = torch.stack(rows).numpy()
    classes = [g[labels[4:].numpy() == label] for label in (0, 1)]
    traces = [np.trace(np.atleast_2d(np.cov(own.T))) for own in classes]
    mean = sum(own.mean(0) for own in classes) / 2
    signal = np.square(mean).sum() - sum(trace / len(own) for trace, own in zip(traces, classes, strict=True)) / 4
    assert found.noise == pytest.approx(sum(traces) / 2, rel=1e-5)
    assert found.value == pytest.approx(signal / (sum(traces) / 2), rel=1e-4)


def test_what_is_too_few_is_told_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RADII", (0.1,))
    o, z = Optimization(epochs=1, batch_size=4), torch.randn(60, 4)
    labels = [i // 4 % 2 for i in range(60)]
    split = Split.of(labels, list(range(32)), list(range(32, 60)))
    found = theory({1: z}, split, [i // 4 for i in range(60)], o, [0])  # eight videos to train on
    assert found.left_out and all(line.startswith("data size") for line in found.left_out)
    left = {f"data size {c.level:g}" for c in found.conditions if c.kind == "data size"}
    assert len(left) + len(found.left_out) == len(module.DATA_SIZE)
    monkeypatch.setattr(module, "HeadArm", lambda *_: SimpleNamespace(x=z, run=lambda _: pytest.fail("it trained")))
    with pytest.raises(CoritError, match="too few independent images"):
        theory({1: z}, split, [i // 15 for i in range(60)], o, [0])


def test_flipped_labels_weaken_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RADII", (0.1, 1.0))
    torch.manual_seed(0)
    labels = torch.arange(80) % 2
    z = torch.randn(80, 12) + 2.5 * labels[:, None]
    tokens = {1: torch.randn(80, 12), 2: z}
    split = Split.of(labels.tolist(), list(range(50)), list(range(50, 80)))
    told = Told()
    o = Optimization(lr=1e-2, epochs=4, batch_size=10)
    found = theory(tokens, split, list(range(80)), o, [0, 1], told)
    ((title, total, _, notes),) = told.stages
    assert told.complete and (title, total) == ("conditions", len(found.conditions))
    names = [note for note in notes if note]
    assert names == [f"{c.kind} {c.level:g}" for c in found.conditions] and len(names) == len(set(names))
    by = {(c.kind, c.level): c.gsnr.value for c in found.conditions}
    assert by["label noise", 0.0] > by["label noise", 0.5] and by["label noise", 0.0] > by["layer", 1.0]
    assert by["label noise", 0.0] > by["feature noise", 8.0]
    # Fewer images: the same signal, less surely known.
    few = next(c.gsnr for c in found.conditions if (c.kind, c.level) == ("data size", 0.25))
    assert few.n < 50 / 3 and few.low <= by["label noise", 0.0] <= few.high
    assert found.as_dict()["conditions"][0]["kind"] == "label noise"
