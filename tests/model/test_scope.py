"""Scopes, and towers with tuned weights; what they train is in tests/cor/test_tuned.py and tests/training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from corit_cli.errors import CoritError
from corit_cli.model.backbone import VisionTower
from corit_cli.model.loading import Backbone
from corit_cli.model.scope import draw_low_rank, parse_scope, thaw, tuned_backbone, tuned_tensors
from tests.conftest import random_tower

SCOPES = ("head", "ln", "last:1", "last:2", "lora:2", "all")


@pytest.mark.parametrize("text", SCOPES)
def test_scopes_read_as_they_are_written(text: str) -> None:
    assert str(parse_scope(text)) == text


@pytest.mark.parametrize(
    "text", ["", "heads", "last", "lora", "last:", "last:0", "lora:-1", "last:x", "last:1.5", "ln:2", "all:1", "head:1"]
)
def test_other_scopes_are_refused(text: str) -> None:
    with pytest.raises(CoritError, match="--tune takes") as raised:
        parse_scope(text)
    assert repr(text) in str(raised.value)


def backbone() -> Backbone:
    return Backbone(random_tower(), "tiny", "0" * 64)


def tuned(tower: VisionTower, scope: str) -> VisionTower:
    """A thawed copy of which blocks 1 to 3 are read, every trained weight moved."""
    own, _ = thaw(tower, parse_scope(scope), 3)
    draw_low_rank(dict(own.named_parameters()), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in own.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return own


@pytest.mark.parametrize("scope", [s for s in SCOPES if s != "head"])
def test_a_backbone_takes_tuned_tensors_and_shares_all_else(scope: str, images: Tensor) -> None:
    given = backbone()
    before = copy.deepcopy(given.tower.state_dict())
    own = tuned(given.tower, scope)
    tensors = tuned_tensors(own)
    found = tuned_backbone(given, tensors)
    torch.testing.assert_close(found.tower.layers(images)[3], own.layers(images)[3], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found.tower.layers(images)[3], given.tower.layers(images)[3], atol=1e-3)
    assert all(torch.equal(t, before[n]) for n, t in given.tower.state_dict().items())
    assert not any(p.requires_grad for p in found.tower.parameters())
    assert (found.name, len(found.sha256)) == (given.name, 64) and found.sha256 != given.sha256
    changed = {name.removesuffix(".up").removesuffix(".down") for name in tensors}
    theirs = {p.data_ptr() for p in given.tower.parameters()}
    assert {n for n, p in found.tower.named_parameters() if p.data_ptr() not in theirs} == changed


def test_low_rank_tensors_are_the_factors() -> None:
    given = backbone()
    tensors = tuned_tensors(tuned(given.tower, "lora:2"))
    names = [f"blocks.{k}.{layer}.weight" for k in range(3) for layer in ("out", "qkv")]
    assert list(tensors) == [f"{n}.{part}" for n in names for part in ("down", "up")]
    found = tuned_backbone(given, tensors)
    for name in names:
        expected = given.tower.get_parameter(name) + tensors[f"{name}.up"] @ tensors[f"{name}.down"]
        torch.testing.assert_close(found.tower.get_parameter(name), expected, atol=1e-6, rtol=1e-6)


def test_nothing_tuned_is_the_backbone_itself_and_other_weights_another() -> None:
    given = backbone()
    assert tuned_tensors(thaw(given.tower, parse_scope("head"), 3)[0]) == {}
    assert tuned_backbone(given, {}) is given
    tensors = tuned_tensors(tuned(given.tower, "lora:2"))
    other = tensors | {"blocks.0.out.weight.up": tensors["blocks.0.out.weight.up"] + 1}
    digests = {tuned_backbone(b, t).sha256 for b in (given, replace(given, sha256="1" * 64)) for t in (tensors, other)}
    assert len(digests) == 4


@pytest.mark.parametrize(
    "tensors",
    [
        {"blocks.9.fc.weight": (64, 32)},
        {"blocks.0.fc.weight": (64, 31)},
        {"blocks.0.fc.weight.up": (64, 2)},
        {"blocks.0.fc.weight.down": (2, 32)},
        {"blocks.0.fc.weight.up": (64, 2), "blocks.0.fc.weight.down": (3, 32)},
        {"blocks.0.fc.weight.up": (64, 2), "blocks.0.fc.weight.down": (2, 31)},
        {"blocks.0.fc.weight.up": (63, 2), "blocks.0.fc.weight.down": (2, 32)},
        {"blocks.0.fc.weight.up": (64,), "blocks.0.fc.weight.down": (32,)},
        {"blocks.0.fc.bias.up": (64, 2), "blocks.0.fc.bias.down": (2, 1)},
        {"up": (64, 2), "down": (2, 32)},
    ],
)
def test_tensors_of_another_backbone_are_refused(tensors: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CoritError, match="do not fit the backbone tiny"):
        tuned_backbone(backbone(), {name: torch.ones(shape) for name, shape in tensors.items()})


def test_a_tower_that_is_not_frozen_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="frozen"):
        thaw(random_tower().requires_grad_(True), parse_scope("ln"), 3)
