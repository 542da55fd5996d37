"""What of the tower is trained: the parameters that a scope names, low-rank parts, and towers with tuned weights."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from corit_cli.errors import CoritError
from corit_cli.model.backbone import VisionTower
from corit_cli.model.loading import Backbone, state_sha256

_PARAMETRIZED = ".parametrizations.weight.0."


@dataclass(frozen=True)
class Scope:
    """What is trained besides the head: ``kind`` is head, ln, last, lora or all; ``number`` is K of last, R of lora."""

    kind: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.number else self.kind


def parse_scope(text: str) -> Scope:
    """``head``, ``ln`` (layer norms), ``last:K`` (blocks), ``lora:R`` or ``all``. Raises CoritError otherwise."""
    kind, _, number = text.partition(":")
    if kind in ("head", "ln", "all") and not number:
        return Scope(kind)
    if kind in ("last", "lora") and number.isdecimal() and int(number) > 0:
        return Scope(kind, int(number))
    raise CoritError(f"--tune takes head, ln, last:K, lora:R or all, not {text!r}")


class LowRank(nn.Module):
    """W + up @ down, of rank R, zero at the start (LoRA; Hu et al., ICLR 2022, arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rank, columns, device=weight.device) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """A weight (rows, columns) with its low-rank part."""
        return weight + self.up @ self.down


def thaw(tower: VisionTower, scope: Scope, end: int) -> tuple[VisionTower, int]:
    """A copy of ``tower``, of which blocks 1..``end`` are read, with the scope's parameters thawed.

    Frozen parameters are shared with the tower given. Also returned: how many blocks have an output that stays the same
    throughout training; -1 when even the embedding is trained. Raises CoritError when the scope names more blocks than
    are read.
    """
    if any(p.requires_grad for p in tower.parameters()):
        raise ValueError("the tower must be frozen: its parameters are shared")
    first = first_thawed(scope, end)
    own = _sharing(tower, _thawed(tower, scope, first, end))
    for block in own.blocks:
        block.reassociate = True
    if scope.kind == "lora":
        for block in own.blocks[:end]:
            for layer in (block.qkv, block.out):
                parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, scope.number))
    else:
        for p in _thawed(own, scope, first, end):
            p.requires_grad_(True)
    return own, -1 if scope.kind == "all" else first - 1


def first_thawed(scope: Scope, end: int) -> int:
    """The first of blocks 1..``end`` that a scope trains something of; ``end`` + 1 where it trains none.

    Raises CoritError when the scope names more blocks than these.
    """
    if scope.kind == "last" and scope.number > end:
        raise CoritError(f"last:{scope.number} asks for more blocks than the {end} that are read")
    return {"head": end + 1, "last": end - scope.number + 1}.get(scope.kind, 1)


def _thawed(tower: VisionTower, scope: Scope, first: int, end: int) -> list[nn.Parameter]:
    """The parameters of ``tower`` that the scope thaws."""
    if scope.kind == "all":
        reached = (tower.patch_embedding, tower.ln_pre, *tower.blocks[:end])
        return [tower.class_embedding, tower.position_embedding, *(p for m in reached for p in m.parameters())]
    blocks = tower.blocks[first - 1 : end]
    if scope.kind == "last":
        return [p for block in blocks for p in block.parameters()]
    if scope.kind == "ln":
        return [p for block in blocks for norm in (block.ln_1, block.ln_2) for p in norm.parameters()]
    return []


def _sharing(tower: VisionTower, own: Iterable[Tensor]) -> VisionTower:
    """A copy of ``tower`` that has its parameters ``own`` to itself and shares all others."""
    copied = {id(p) for p in own}
    shared = [t for t in (*tower.parameters(), *tower.buffers()) if id(t) not in copied]
    return copy.deepcopy(tower, {id(t): t for t in shared})


def draw_low_rank(trained: Mapping[str, Tensor], seed: int) -> None:
    """Draw the random halves of the low-rank parts among parameters by name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in trained.items():
            if name.endswith(".down"):
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)


def tuned_tensors(tower: VisionTower) -> dict[str, Tensor]:
    """What training changed in a thawed tower, on the CPU: weights by their names, of
    low-rank parts the factors, ``W.down`` (R, in) and ``W.up`` (out, R) for the weight W."""
    trained = {name.replace(_PARAMETRIZED, ".weight."): p for name, p in tower.named_parameters() if p.requires_grad}
    return {name: trained[name].detach().to("cpu", copy=True) for name in sorted(trained)}


def tuned_backbone(backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
    """``backbone`` with :func:`tuned_tensors` in place: a copy that shares all other weights and has a SHA-256 of its
    own; the same where there are none.

    Raises CoritError when the tensors do not fit.
    """
    if not tensors:
        return backbone
    old = dict(backbone.tower.named_parameters())
    new = _with_low_rank(tensors, old)
    for name, tensor in new.items():
        if name not in old or old[name].shape != tensor.shape:
            raise CoritError(f"the tuned weights do not fit the backbone {backbone.name}: {name} {(*tensor.shape,)}")
    tower = _sharing(backbone.tower, (old[name] for name in new))
    with torch.no_grad():
        for name, tensor in new.items():
            tower.get_parameter(name).copy_(tensor)
    digest = hashlib.sha256(f"{backbone.sha256}{state_sha256(tensors)}".encode()).hexdigest()
    digits = (
        backbone.digits if new.keys().isdisjoint(backbone.digits) else {}
    )  # else hardly any may be left that is run
    return replace(backbone, tower=tower, sha256=digest, digits=digits)


def _with_low_rank(tensors: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with every pair of factors that fits one of the ``old`` weights added to it."""
    new = dict(tensors)
    for name, up in tensors.items():
        weight, _, factor = name.rpartition(".")
        down = tensors.get(f"{weight}.down")
        pair = factor == "up" and down is not None and weight in old
        product = pair and up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
        if product and (up.shape[0], down.shape[1]) == old[weight].shape:
            new[weight] = old[weight].detach() + (up @ down).to(old[weight])
            del new[f"{weight}.down"], new[f"{weight}.up"]
    return new
