from __future__ import annotations

import pytest
import torch

from corit_cli.model.backbone import TowerConfig
from corit_cli.model.loading import from_open_clip, load_backbone
from tests.conftest import TINY, random_tower


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14"])
def test_every_layer_equals_open_clip(name: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"]["layers"] = 4  # the arithmetic of a block is the same at any depth
    visual = open_clip.model._build_vision_tower(
        config["embed_dim"], config["vision_cfg"], quick_gelu=config.get("quick_gelu", False)
    ).eval()
    tower = from_open_clip(visual)
    assert tower.config.activation == ("quick_gelu" if "quickgelu" in name else "gelu")
    images = torch.rand(2, 3, tower.config.image_size, tower.config.image_size)
    normalised = (images - tower.mean) / tower.std
    with torch.inference_mode():
        theirs = visual.forward_intermediates(
            normalised, output_fmt="NLC", output_extra_tokens=True, normalize_intermediates=False
        )
        ours = tower.layers(images)
        for layer, (patches, prefix) in enumerate(
            zip(theirs["image_intermediates"], theirs["image_intermediates_prefix"], strict=True), start=1
        ):
            expected = torch.cat([prefix, patches], dim=1)
            torch.testing.assert_close(ours[layer], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tower(images), visual(normalised), atol=1e-4, rtol=1e-4)


def test_rows_are_the_first_rows_of_the_whole_block() -> None:
    block = random_tower().blocks[0]
    x = torch.randn(2, 17, 32)
    for rows in (1, 3, 17, None):
        torch.testing.assert_close(block(x, rows), block(x)[:, : rows or 17], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, None])
def test_an_image_comes_out_the_same_bit_for_bit_whatever_is_in_the_batch(rows: int | None) -> None:
    block = random_tower().blocks[0]
    x = torch.randn(9, 17, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = block(x, rows)
        for size in range(1, 9):
            assert torch.equal(block(x[:size], rows), whole[:size]), size


def test_the_two_activations_differ() -> None:
    quick = random_tower()
    exact = random_tower(TowerConfig(**{**TINY.__dict__, "activation": "gelu"}))
    images = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(quick(images), exact(images), atol=1e-3)


def test_frozen_and_deterministic() -> None:
    tower = random_tower()
    assert not any(p.requires_grad for p in tower.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(tower(images), tower(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "activation"),
        ({"interpolation": "nearest"}, "interpolation must be one of bicubic, bilinear"),
        ({"heads": 5}, "divisible"),
        ({"image_size": 33}, "multiple"),
    ],
)
def test_impossible_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TowerConfig(**{**TINY.__dict__, **change})


def test_wrong_image_size_is_refused() -> None:
    with pytest.raises(ValueError, match="32"):
        random_tower().embed(torch.rand(1, 3, 31, 32))


def test_the_embedded_tower_is_clip() -> None:
    backbone = load_backbone()
    config = backbone.tower.config
    assert (config.width, config.layers, config.patch_size, config.activation) == (768, 12, 16, "quick_gelu")
    assert sum(p.numel() for p in backbone.tower.parameters()) == 86_192_640


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_reassociated_class_row_equals_the_ordinary_one(activation: str, tokens: int) -> None:
    block = random_tower(TowerConfig(**{**TINY.__dict__, "activation": activation})).blocks[1].requires_grad_(True)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(3, 1, 32, generator=generator)
    tokens_in = 2 * torch.randn(3, tokens, 32, generator=generator) + 0.5
    seen = []
    for reassociate in (False, True):
        block.reassociate = reassociate
        x = tokens_in.clone().requires_grad_(True)
        y = block(x, 1)
        wanted = [x, *block.parameters()]
        seen.append((y, *torch.autograd.grad((y * direction).sum(), wanted, materialize_grads=True)))
    assert seen[0][0].shape == (3, 1, 32)
    names = ["output", "input", *(name for name, _ in block.named_parameters())]
    for name, ordinary, short in zip(names, *seen, strict=True):
        torch.testing.assert_close(short, ordinary, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_reassociation_keeps_the_class_row_of_the_whole_block() -> None:
    block = random_tower().blocks[0]
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    expected = block(x)
    block.reassociate = True
    torch.testing.assert_close(block(x, 1), expected[:, :1], atol=1e-5, rtol=1e-5)
    assert torch.equal(block(x), expected)  # all tokens take the ordinary way
    torch.testing.assert_close(block(x, 3), expected[:, :3], atol=1e-5, rtol=1e-5)


def test_reassociated_gradients_are_those_of_finite_differences() -> None:
    block = random_tower().blocks[2].double().requires_grad_(True)
    block.reassociate = True
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: block(x, 1), x, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(block, {"qkv.weight": weight}, (x.detach(), 1)),
        block.qkv.weight,
        fast_mode=True,
    )
