from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from corit_cli.gsnr import per_sample as ghost
from corit_cli.gsnr.gradients import bce_per_sample, layer_of, named_parameters
from corit_cli.gsnr.per_sample import GhostPass
from corit_cli.model.backbone import TowerConfig, VisionTower
from corit_cli.model.corit import CoRIT
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings, HeadKind, baseline

VIEWS = ("blur:1.0", "noise:0.1")
SETTINGS = {
    "baseline": baseline(4),
    "cgp, rsi, hri": CoRITSettings(VIEWS, cgp=(2, 3), inject_at=(1, 2), integrate=(2, 3, 4)),
    "a block run twice": CoRITSettings(VIEWS, cgp=(3,), inject_at=(1,), integrate=(4,)),
    "pooled": CoRITSettings(VIEWS, cgp=(2, 3), patches=True, mask="quantile:0.2-0.8", inject_at=(1,), integrate=()),
    "no mask, no cls": CoRITSettings(VIEWS, cgp=(2, 4), patches=True, mask="none", inject_at=(1, 3), integrate=()),
}


def randomise(module: nn.Module, spread: float = 0.2) -> None:
    """Random weights everywhere, norms and embeddings included, so that no gradient is zero by chance."""
    generator = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * spread + (1.0 if "ln_" in name else 0.0)


def random_tower(layers: int = 4, activation: str = "quick_gelu", pre_norm: bool = True) -> VisionTower:
    """A tower of width 32 on 16-pixel images with four patches, in float64."""
    config = TowerConfig(16, 8, 32, layers, 4, 64, activation, embed_dim=12, pre_norm=pre_norm)
    tower = VisionTower(config).double()
    randomise(tower)
    return tower


def random_model(settings: CoRITSettings, hidden: int = 0, **tower) -> tuple[CoRIT, Head]:
    """CoRIT on a random tower and a random head for its features, in float64."""
    corit = CoRIT(random_tower(**tower), settings)
    head = Head(corit.width, HeadKind(hidden)).double()
    randomise(head, spread=1.0)
    return corit, head


def random_batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 16, 16) in [0, 1] and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % 2


def gradients_one_by_one(corit: CoRIT, head: Head, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients (n, ...) of every parameter that takes part, by a backward pass for each sample."""
    parameters = named_parameters(corit.tower, head)
    for p in parameters.values():
        p.requires_grad_(True)
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = bce_per_sample(head(corit(image[None]).z), label[None]).sum()
        rows.append(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
    for name, p in parameters.items():
        p.requires_grad_(name.startswith("head."))
    columns = zip(*rows, strict=True)
    return {name: torch.stack(g) for name, g in zip(parameters, columns, strict=True) if g[0] is not None}


def run(corit, head, images, labels):
    passed = GhostPass(named_parameters(corit.tower, head))
    return passed, passed(lambda: bce_per_sample(head(corit(images).z), labels))


@pytest.mark.parametrize("pass_cost", [0, ghost.PASS_COST, 10**9], ids=["formed", "chosen", "gram"])
@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_norms_and_sums_equal_those_of_single_sample_gradients(name, hidden, pass_cost, monkeypatch):
    monkeypatch.setattr(ghost, "PASS_COST", pass_cost)
    corit, head = random_model(SETTINGS[name], hidden)
    images, labels = random_batch(5)
    oracle = gradients_one_by_one(corit, head, images, labels)
    passed, (losses, norms) = run(corit, head, images, labels)
    assert losses.shape == (5,)
    assert set(norms) == set(passed.sums) == set(oracle)
    for parameter, g in oracle.items():
        # A bias that image and views share cancels in their contrast: 0 up to rounding.
        torch.testing.assert_close(norms[parameter], g.flatten(1).square().sum(1), rtol=1e-9, atol=1e-25)
        torch.testing.assert_close(passed.sums[parameter], g.sum(0), rtol=1e-9, atol=1e-12)


def test_norms_equal_those_of_torch_func():
    corit, head = random_model(SETTINGS["cgp, rsi, hri"], hidden=8)
    images, labels = random_batch(4)
    model = nn.ModuleDict({"corit": corit, "head": head})

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image, label):
            return bce_per_sample(head(corit(image[None]).z), label[None])[0]

    loss = Loss()
    parameters = {name: p.detach() for name, p in loss.named_parameters()}
    per_sample = vmap(
        grad(lambda p, image, label: functional_call(loss, p, (image, label))), (None, 0, 0), randomness="same"
    )
    oracle = per_sample(parameters, images, labels)
    _, (_, norms) = run(corit, head, images, labels)
    for name, g in oracle.items():
        name = name.removeprefix("model.corit.tower.").removeprefix("model.")
        expected = g.flatten(1).square().sum(1)
        torch.testing.assert_close(norms.get(name, torch.zeros(4).double()), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_the_towers_own_embedding_with_post_norm_and_projection(pre_norm):
    tower = random_tower(2, activation="gelu", pre_norm=pre_norm)
    images, _ = random_batch(3)
    parameters = dict(tower.named_parameters())
    passed = GhostPass(parameters)
    _, norms = passed(lambda: tower(images).sin().sum(1))
    assert set(norms) == set(parameters)
    tower.requires_grad_(True)
    for i, image in enumerate(images):
        grads = torch.autograd.grad(tower(image[None]).sin().sum(), list(parameters.values()))
        for name, g in zip(parameters, grads, strict=True):
            torch.testing.assert_close(norms[name][i], g.square().sum(), rtol=1e-9, atol=0)


def test_float32_norms_hold_to_1e_5():
    corit, head = random_model(SETTINGS["a block run twice"], hidden=8)
    images, labels = random_batch(4)
    oracle = gradients_one_by_one(corit, head, images, labels)
    _, (_, norms) = run(corit.float(), head.float(), images.float(), labels)
    layers: dict[str, list[torch.Tensor]] = {}
    for name, g in oracle.items():
        layers.setdefault(layer_of(name), []).append(norms[name].double() - g.flatten(1).square().sum(1))
    for layer, errors in layers.items():
        scale = sum(g.flatten(1).square().sum(1) for name, g in oracle.items() if layer_of(name) == layer)
        assert (sum(errors).abs() / scale).max() < 1e-5


def test_the_model_is_left_as_it_was():
    corit, head = random_model(SETTINGS["cgp, rsi, hri"])
    images, labels = random_batch(3)
    before = corit(images).z
    run(corit, head, images, labels)
    assert not any(p.requires_grad for p in corit.parameters()) and all(p.requires_grad for p in head.parameters())
    assert all(p.grad is None for p in [*corit.parameters(), *head.parameters()])
    assert torch.equal(corit(images).z, before)


def test_an_unknown_use_of_a_parameter_is_refused():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(3, 1), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return (self.linear(x) * self.scale).squeeze(-1)

    model = Scaled()
    with pytest.raises(ValueError, match="scale is used in an operation"):
        GhostPass(dict(model.named_parameters()))(lambda: model(torch.randn(4, 3)))


def test_rows_in_turn_make_one_sample_of_a_pair():
    corit, head = random_model(baseline(4))
    images, labels = random_batch(6)
    oracle = gradients_one_by_one(corit, head, images, labels)
    passed = GhostPass(named_parameters(corit.tower, head))
    _, norms = passed(lambda: bce_per_sample(head(corit(images).z), labels).view(2, 3).sum(0))
    for name, g in oracle.items():
        expected = (g[:3] + g[3:]).flatten(1).square().sum(1)
        torch.testing.assert_close(norms[name], expected, rtol=1e-9, atol=1e-20)


def test_a_pass_leaves_nothing_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Watched(ghost._Capture):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(ghost, "_Capture", Watched)
    layer, x = nn.Linear(3, 1), torch.randn(4, 3)
    gc.collect()
    gc.disable()
    try:
        GhostPass(dict(layer.named_parameters()))(lambda: layer(x).squeeze(-1))
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()


class Timm(nn.Module):
    """A class token of a single row, expanded as ``how`` says, before tokens that are normalised."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.cls = how, nn.Parameter(torch.randn(1, 1, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, d = len(x), x.shape[-1]
        sizes = {"kept": (B, -1, -1), "given": (B, 1, d), "size": (torch.Size((B, 1, d)),)}[self.how]
        return self.head(self.norm(torch.cat([self.cls.expand(*sizes), x], 1)).mean(1))[:, 0]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("how", ["kept", "given", "size"])
def test_a_token_of_a_single_row_is_expanded_as_timm_does(how: str, count: int) -> None:
    torch.manual_seed(0)
    model, x = Timm(how).double(), torch.randn(count, 3, 6, dtype=torch.float64)
    _, norms = GhostPass(dict(model.named_parameters()))(lambda: model(x).square())
    for i in range(count):
        grads = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(model.parameters()))
        for (name, _), g in zip(model.named_parameters(), grads, strict=True):
            torch.testing.assert_close(norms[name][i], g.square().sum())


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Sequential(nn.LayerNorm((7, 6))), (4, 7, 6)), (nn.Sequential(nn.Conv2d(3, 4, 2, 2)), (4, 3, 9, 9))],
)
def test_what_is_not_known_is_refused_not_broken(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is used in an operation whose per-sample gradient norm is not known"):
        GhostPass(dict(model.named_parameters()))(lambda: model(torch.randn(shape)).flatten(1).sum(1))


def test_a_parameter_that_is_repeated_along_tokens_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
            super().__init__()
            self.t, self.sizes = nn.Parameter(torch.randn(shape)), sizes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.t.expand(*self.sizes)).square().sum((1, 2))

    known, rows = "t is used in an operation whose per-sample", "t has 1 rows, which are not those of 3 samples"
    for shape, sizes, why in (((1, 4), (6, 4), known), ((1, 6, 4), (1, 6, 4), rows)):
        model = Shared(shape, sizes)
        with pytest.raises(ValueError, match=why):
            GhostPass({"t": model.t})(lambda model=model: model(torch.randn(3, 6, 4)))
    model = Shared((1, 1, 4), (2, 1, 4))
    with pytest.raises(ValueError, match="t has 2 rows, which are not those of 3 samples"):
        GhostPass({"t": model.t})(lambda: model.t.expand(2, 1, 4).sum() * torch.ones(3))


def test_losses_of_another_shape_are_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"one loss a sample, not losses of shape \(4, 2\)"):
        GhostPass(dict(model.named_parameters()))(lambda: model(torch.randn(4, 3)))
