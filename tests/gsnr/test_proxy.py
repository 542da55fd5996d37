from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from corit_cli.gsnr.gradients import bce_per_sample
from corit_cli.gsnr.proxy import measure_proxy
from corit_cli.model.corit import CoRIT
from corit_cli.model.head import Head
from corit_cli.model.integration import integrate
from corit_cli.model.settings import CoRITSettings, baseline
from corit_cli.model.views import parse_view
from tests.conftest import random_tower

VIEWS = ("blur:1.0", "resample:2.0")
PLAIN = CoRITSettings(VIEWS, cgp=(2, 3), inject_at=(), integrate=(2, 3))
INJECTED = replace(PLAIN, inject_at=(1,))
N = 8
GROUPS = [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(N, 3, 32, 32, generator=generator), torch.arange(N) % 2


def model(settings: CoRITSettings) -> tuple[CoRIT, Head]:
    corit = CoRIT(random_tower(), settings)
    torch.manual_seed(1)
    head = Head(corit.width)
    torch.nn.init.normal_(head.layers[0].weight)
    return corit, head


def run(settings: CoRITSettings, images: Tensor, labels: Tensor, size: int = 4):
    corit, head = model(settings)
    nothing = torch.empty(len(labels), 0)
    batches = list(zip(images.split(size), labels.split(size), nothing.split(size), strict=True))
    return measure_proxy(corit, head, batches, GROUPS)


def contrasts(corit: CoRIT, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of every layer and their contrasts with the views' mean, without injection."""
    with torch.no_grad():
        tokens = corit.tower.layers(images)
        views = [corit.tower.layers(parse_view(view)(images)) for view in VIEWS]
    return tokens, [t - (a + b) / 2 for t, a, b in zip(tokens, *views, strict=True)]


@pytest.mark.parametrize("settings", [PLAIN, INJECTED], ids=["plain", "injected"])
def test_relative_norms_of_the_plain_streams(settings, batch):
    images, labels = batch
    found = run(settings, images, labels)
    assert list(found.layers) == [0, 1, 2, 3]
    tokens, c = contrasts(model(settings)[0], images)
    for layer, p in found.layers.items():
        ratio = c[layer].norm(dim=-1) / tokens[layer].norm(dim=-1)
        assert p.norm.value == pytest.approx(float(ratio[:, 1:].mean()), rel=1e-4)
        assert p.cls_norm.value == pytest.approx(float(ratio[:, 0].mean()), rel=1e-4, abs=1e-7)
    assert found.inject_at == ((1,) if settings.inject_at else (2,)) and found.tried == (not settings.inject_at)


def test_it_goes_as_deep_as_the_deepest_patches_whose_spread_is_read(batch):
    settings = replace(PLAIN, spread=(1, 4))
    found, narrower = run(settings, *batch), run(replace(PLAIN, integrate=(2, 4)), *batch)
    assert list(found.layers) == [0, 1, 2, 3, 4]
    assert found.layers[4].norm.value == pytest.approx(narrower.layers[4].norm.value)
    assert list(run(replace(settings, integrate=()), *batch).layers) == [0, 1, 2, 3]  # no class token, no spread


def test_injection_changes_what_follows_the_source(batch):
    found = run(INJECTED, *batch).layers
    assert found[1].injected_norm.value == pytest.approx(found[1].norm.value, rel=1e-5)  # taken before it is injected
    assert found[2].injected_norm.value > 1.05 * found[2].norm.value
    tried = run(PLAIN, *batch)  # at layer 2: the last before the deepest that is read
    assert tried.layers[2].injected_norm.value == pytest.approx(tried.layers[2].norm.value, rel=1e-5)
    assert tried.layers[3].injected_norm.value > 1.05 * tried.layers[3].norm.value
    assert tried.layers[1].rank.value == pytest.approx(run(PLAIN, *batch).layers[1].rank.value)
    gentle = run(replace(INJECTED, alpha=0.0), *batch).layers
    assert gentle[3].injected_norm.value == pytest.approx(gentle[3].norm.value, rel=1e-5)


def test_agreement_with_the_gradient_of_the_loss(batch):
    images, labels = batch
    corit, head = model(PLAIN)
    found = run(PLAIN, images, labels).layers
    tokens, c = contrasts(corit, images)
    for layer in (0, 1, 2):
        h = tokens[layer].clone().requires_grad_(True)
        x, parts = h, {}
        for k in range(layer, 4):
            if k > layer:
                x = corit.tower.blocks[k - 1](x)
            parts[k] = x
        views = [t - d for t, d in zip(tokens, c, strict=True)]
        stream = [parts.get(k, tokens[k])[:, 0] for k in (2, 3)]
        differences = [parts.get(k, tokens[k])[:, 0] - views[k][:, 0] for k in (2, 3)]
        loss = bce_per_sample(head(integrate([*stream, *differences])), labels).sum()
        (gradient,) = torch.autograd.grad(loss, h)
        sizes = c[layer][:, 1:].norm(dim=-1), gradient[:, 1:].norm(dim=-1)
        p = found[layer]
        if layer == 2:  # read at layer 3 through its patches
            assert gradient[:, 1:].any()
        expected = np.mean([spearmanr(a.numpy(), b.numpy())[0] for a, b in zip(*sizes, strict=True)])
        assert p.rank.value == pytest.approx(expected, abs=0.01)
        cosine = torch.nn.functional.cosine_similarity(c[layer][:, 1:], gradient[:, 1:], dim=-1).mean(1)
        assert p.cosine_real.value == pytest.approx(float(cosine[labels == 0].mean()), abs=1e-4)
        assert p.cosine_fake.value == pytest.approx(float(cosine[labels == 1].mean()), abs=1e-4)
    assert found[3].rank is None and found[3].cosine_real is None  # only its class token is read


def test_the_label_turns_the_gradient_round(batch):
    images, _ = batch
    corit, head = model(replace(PLAIN, cgp=(), integrate=(4,), inject_at=(1,)))
    real, fake = (
        measure_proxy(corit, head, [(images, torch.full((N,), label), torch.empty(N, 0))], GROUPS).layers[2]
        for label in (0, 1)
    )
    # The gradient is the same up to its sign and size, which the label decides.
    assert real.rank.value == pytest.approx(fake.rank.value, abs=1e-6)
    assert real.cosine_real.value == pytest.approx(-fake.cosine_fake.value, abs=1e-5)
    assert real.cosine_fake is None and fake.cosine_real is None


def test_variance_of_all_and_of_masked_patches(batch):
    images, labels = batch
    v = run(INJECTED, images, labels).variance
    corit, _ = model(INJECTED)
    _, c = contrasts(corit, images)
    mask = corit(images).mask.bool()
    everything = c[1][:, 1:].flatten(0, 1).double()
    masked = c[1][:, 1:][mask].double()
    for rows, variance, ratio in (
        (everything, v.variance, v.signal_to_noise),
        (masked, v.masked_variance, v.masked_signal_to_noise),
    ):
        total = float(rows.var(0, correction=0).sum())
        assert variance.value == pytest.approx(total, rel=1e-4)
        assert ratio.value == pytest.approx(float(rows.mean(0).square().sum()) / total, rel=1e-3)
    assert v.ratio.value == pytest.approx(v.masked_variance.value / v.variance.value)
    assert v.share.value == pytest.approx(float(mask.float().mean()))
    assert v.source == 1 and v.ratio.low < v.ratio.value < v.ratio.high


def test_features_of_another_pass_stand_before(batch):
    images, labels = batch
    corit, head = model(PLAIN)
    before = torch.randn(N, 64)
    wide = Head(64 + corit.width)
    wide.layers[0].weight.data = torch.cat([torch.randn(1, 64), head.layers[0].weight.data], 1)
    found = measure_proxy(corit, wide, [(images, labels, before)], GROUPS).layers[1]
    alone = run(PLAIN, images, labels).layers[1]
    # Each image's gradient changes its size with the probability, never its direction.
    assert found.rank.value == pytest.approx(alone.rank.value, abs=1e-6)
    assert found.cosine_real.value == pytest.approx(alone.cosine_real.value, abs=1e-5)


def test_batches_do_not_matter(batch):
    whole, single = run(INJECTED, *batch, size=8), run(INJECTED, *batch, size=1)
    assert whole.variance.ratio.value == pytest.approx(single.variance.ratio.value, rel=1e-4)
    assert whole.layers[1].cosine_real.value == pytest.approx(single.layers[1].cosine_real.value, abs=1e-4)


def test_without_a_contrast_there_is_nothing_to_measure(batch):
    with pytest.raises(ValueError, match="no contrast"):
        run(baseline(4), *batch)
