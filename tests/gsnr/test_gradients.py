from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from corit_cli.gsnr import gradients
from corit_cli.gsnr.gradients import Sketch, bce_per_sample, layer_of, measure
from corit_cli.metrics.gsnr import Moments, estimate
from corit_cli.model.settings import baseline
from tests.conftest import Told
from tests.gsnr.test_per_sample import SETTINGS, gradients_one_by_one, random_batch, random_model, randomise


def parts_of(count: int, groups: int) -> list[list[int]]:
    return [part.tolist() for part in torch.arange(count).tensor_split(groups)]


def batches_of(images, labels, groups, size):
    """Class by class, and group by group within a class."""
    for label in labels.unique().tolist():
        for j, group in enumerate(parts_of(len(labels), groups)):
            own = [i for i in group if labels[i] == label]
            for start in range(0, len(own), size):
                chosen = own[start : start + size]
                yield images[chosen], labels[chosen], (label, j)


def exact_moments(oracle: dict[str, torch.Tensor], labels: torch.Tensor, groups: int) -> dict[str, Moments]:
    """Moments by layer from per-sample gradients (n, ...)."""
    layers: dict[str, list[torch.Tensor]] = {}
    for name, g in oracle.items():
        layers.setdefault(layer_of(name), []).append(g.flatten(1))
    parts = parts_of(len(labels), groups)
    return {layer: Moments.of_samples(torch.cat(g, 1).numpy(), labels.numpy(), parts) for layer, g in layers.items()}


@pytest.mark.parametrize("name", ["baseline", "a block run twice"])
def test_estimates_equal_those_of_explicit_gradients(name):
    corit, head = random_model(SETTINGS[name])
    images, labels = random_batch(22)
    expected = exact_moments(gradients_one_by_one(corit, head, images, labels), labels, 5)
    told = Told()
    found = measure(corit, head, batches_of(images, labels, 5, 3), advance=told("samples", 22))
    assert told.complete
    assert list(found.layers()) == ["0", "1", "2", "3", "4", "head"]
    for layer, moments in found.layers().items():
        a, b = estimate(moments), estimate(expected[layer])
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-8)
    with torch.no_grad():
        assert found.loss == pytest.approx(float(bce_per_sample(head(corit(images).z), labels).mean()))


def test_sketched_intervals_are_those_of_exact_inner_products(monkeypatch):
    corit, head = random_model(SETTINGS["a block run twice"])
    images, labels = random_batch(64)
    batches = list(batches_of(images, labels, 16, 4))
    exact = measure(corit, head, batches).layers()
    # Every matrix of this tower is sketched, sixfold at least where it is largest.
    monkeypatch.setattr(gradients, "BUCKETS", 509)
    sketched = measure(corit, head, batches).layers()
    for layer, moments in exact.items():
        a, b = estimate(moments), estimate(sketched[layer])
        assert b.value == pytest.approx(a.value, rel=1e-9)
        assert b.standard_error == pytest.approx(a.standard_error, rel=0.15)


def test_sources_as_strata_equal_those_of_explicit_gradients(monkeypatch):
    corit, head = random_model(SETTINGS["baseline"])
    images, labels = random_batch(32)
    strata, groups = np.repeat([0, 1, 2], [10, 14, 8]), [list(range(j, 32, 4)) for j in range(4)]
    weights = {0: 0.5, 1: 0.2, 2: 0.3}
    batches = [
        (images[own], labels[own], (stratum, j))
        for stratum in weights
        for j, group in enumerate(groups)
        if (own := [i for i in group if strata[i] == stratum])
    ]
    found = measure(corit, head, batches, weights=weights).layers()
    for layer in found:
        per_sample = [g.flatten(1) for n, g in gradients_one_by_one(corit, head, images, labels).items()
                      if layer_of(n) == layer]  # fmt: skip
        g = torch.cat(per_sample, 1).numpy()
        expected = estimate(Moments.of_samples(g, strata, groups, list(weights.values())))
        assert (found[layer].n, estimate(found[layer]).value) == (32, pytest.approx(expected.value, rel=1e-8))
        assert estimate(found[layer]).standard_error == pytest.approx(expected.standard_error, rel=1e-8)
    monkeypatch.setattr(gradients, "BUCKETS", 509)
    sketched = measure(corit, head, batches, weights=weights).layers()
    for layer, moments in found.items():
        assert estimate(sketched[layer]).value == pytest.approx(
            estimate(moments).value, abs=0.5 * estimate(moments).standard_error
        )


def test_sketches_keep_inner_products():
    rng = torch.Generator().manual_seed(1)
    # Low-rank matrices with a few dominant columns, as weight gradients are.
    columns = torch.ones(256)
    columns[[3, 77]] = 20.0
    make = torch.randn(40, 512, 2, generator=rng), torch.randn(40, 2, 256, generator=rng) * columns
    matrices = (make[0] @ make[1]).double()
    sketch = Sketch(512 * 256, matrices)
    sketched = torch.stack([sketch(m) for m in matrices])
    flat = matrices.flatten(1)
    error = (sketched @ sketched.T - flat @ flat.T) / (flat.norm(dim=1)[:, None] * flat.norm(dim=1)[None])
    assert error.square().mean().sqrt() < 2 * gradients.BUCKETS**-0.5
    assert torch.equal(sketch(flat[0, :100]), flat[0, :100])


@pytest.mark.parametrize("name", ["baseline", "a block run twice", "pooled"])
def test_token_gradients(name):
    corit, head = random_model(SETTINGS[name])
    images, labels = random_batch(8)
    found = measure(corit, head, batches_of(images, labels, 4, 2)).tokens
    seen: dict[int, torch.Tensor] = {}
    modules = [corit.tower.ln_pre, *corit.tower.blocks]

    def keep(layer):
        def hook(module, args, out):
            if layer not in seen:
                seen[layer] = out if out.requires_grad else out.requires_grad_(True)

        return hook

    handles = [m.register_forward_hook(keep(i)) for i, m in enumerate(modules)]
    rows: dict[tuple[int, str], list[torch.Tensor]] = {}
    for image, label in zip(images, labels, strict=True):
        seen.clear()
        loss = bce_per_sample(head(corit(image[None]).z), label[None]).sum()
        for (layer, _), g in zip(seen.items(), torch.autograd.grad(loss, list(seen.values())), strict=True):
            rows.setdefault((layer, "cls"), []).append(g[0, 0])
            if g.shape[1] > 1:
                rows.setdefault((layer, "patches"), []).append(g[0, 1:].mean(0))
    for handle in handles:
        handle.remove()
    assert set(found) == set(rows)
    for key, g in rows.items():
        per_sample = torch.stack(g)
        expected = Moments.of_samples(per_sample.numpy(), labels.numpy(), parts_of(8, 4))
        np.testing.assert_allclose(found[key].squares, expected.squares, rtol=1e-9)
        for name in ("own", "cross"):
            np.testing.assert_allclose(getattr(found[key], name), getattr(expected, name), rtol=1e-9, atol=1e-20)


def test_groups_out_of_order_and_empty_data_are_refused():
    corit, head = random_model(baseline(4))
    images, labels = random_batch(2)
    with pytest.raises(ValueError, match="two places"):
        measure(corit, head, [(images, labels, (0, 0)), (images, labels, (0, 1)), (images, labels, (0, 0))])
    with pytest.raises(ValueError, match="no samples"):
        measure(corit, head, [])


def test_another_loss_and_a_head_of_ones_own():
    corit, _ = random_model(baseline(4))
    head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    randomise(head)
    images, labels = random_batch(8)

    def cross_entropy(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none")

    found = measure(corit, head, batches_of(images, labels, 4, 2), cross_entropy)
    losses = cross_entropy(head(corit(images).z), labels)
    expected = 0.0
    for value in losses:
        expected += sum(
            float(g.square().sum()) for g in torch.autograd.grad(value, head.parameters(), retain_graph=True)
        )
    assert found.layers()["head"].squares.sum() == pytest.approx(expected)


def test_a_sample_of_two_windows_has_one_gradient():
    corit, head = random_model(SETTINGS["a block run twice"])

    class TwoWindows:
        """The mean of the features of two windows; images (b, 2, 3, S, S)."""

        tower = corit.tower

        def __call__(self, images):
            reading = corit(images.transpose(0, 1).flatten(0, 1))
            reading.z = reading.z.unflatten(0, (2, -1)).mean(0)
            return reading

    images, labels = random_batch(24)
    images, labels = images.unflatten(0, (12, 2)), labels[:12]
    batches = list(batches_of(images, labels, 4, 3))
    found = measure(TwoWindows(), head, batches, windows=2)
    oracle = gradients_one_by_one(TwoWindows(), head, images, labels)
    for layer, moments in exact_moments(oracle, labels, 4).items():
        np.testing.assert_allclose(found.layers()[layer].squares, moments.squares, rtol=1e-9)
        np.testing.assert_allclose(found.layers()[layer].own, moments.own, rtol=1e-9, atol=1e-15)
    cls = torch.zeros(32)
    for i in range(3):  # the first group
        seen = []
        hook = corit.tower.ln_pre.register_forward_hook(lambda m, a, out, s=seen: s.append(out.requires_grad_(True)))
        loss = bce_per_sample(head(TwoWindows()(images[i : i + 1]).z), labels[i : i + 1])
        hook.remove()
        (g,) = torch.autograd.grad(loss.sum(), seen)
        cls = cls + g[:2].mean(0)[0]
    assert found.tokens[0, "cls"].own[0].sum() == pytest.approx(float(cls.square().sum()))


@pytest.mark.parametrize("chosen", [("0", "3"), ("2",), ("4",), ()])
def test_chosen_layers_are_measured_as_among_all(chosen):
    corit, head = random_model(SETTINGS["cgp, rsi, hri"])
    batches = list(batches_of(*random_batch(8), 4, 2))
    whole = measure(corit, head, batches)
    found = measure(corit, head, batches, layers=chosen)
    assert set(found.layers()) == {*chosen, "head"}
    for layer, moments in found.layers().items():
        np.testing.assert_allclose(moments.squares, whole.layers()[layer].squares, rtol=1e-9)
        np.testing.assert_allclose(moments.cross, whole.layers()[layer].cross, rtol=1e-9, atol=1e-15)
    first = min(map(int, chosen), default=5)
    assert {layer for layer, _ in found.tokens} == set(range(first, 5))
    for key, moments in found.tokens.items():
        np.testing.assert_allclose(moments.cross, whole.tokens[key].cross, rtol=1e-9, atol=1e-15)
