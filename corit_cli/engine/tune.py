"""Train parts of the tower: which parameters a scope names, and the streams cached up to the first of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from corit_cli.config import Optimization
from corit_cli.engine.features import Extractor
from corit_cli.engine.population import batches, parts, sam_of
from corit_cli.engine.weights import Backbone, state_sha256
from corit_cli.errors import CoritError
from corit_cli.model.backbone import VisionTower
from corit_cli.model.corit import CoRIT, State
from corit_cli.model.head import Head
from corit_cli.model.settings import CoRITSettings

#: Images in one forward pass through the frozen blocks.
BATCH = 16


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
    if scope.kind == "last" and scope.number > end:
        raise CoritError(f"last:{scope.number} asks for more blocks than the {end} that are read")
    first = {"head": end + 1, "last": end - scope.number + 1}.get(scope.kind, 1)
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


def merged(tower: VisionTower) -> dict[str, Tensor]:
    """The trained weights by the names of an ordinary tower, low-rank parts added in; on the CPU."""
    trained = (name for name, p in tower.named_parameters() if p.requires_grad)
    names = {name.replace(".parametrizations.weight.0.up", ".weight") for name in trained if not name.endswith(".down")}
    return {name: attrgetter(name)(tower).detach().to("cpu", copy=True) for name in sorted(names)}


def retuned(backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
    """``backbone`` with some weights replaced: a copy that shares the others and has a SHA-256 of its own.

    Raises CoritError when the tensors do not fit.
    """
    old = dict(backbone.tower.named_parameters())
    for name, tensor in tensors.items():
        if name not in old or old[name].shape != tensor.shape:
            raise CoritError(f"the tuned weights do not fit the backbone {backbone.name}: {name} {(*tensor.shape,)}")
    tower = _sharing(backbone.tower, (old[name] for name in tensors))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tower.get_parameter(name).copy_(tensor)
    digest = hashlib.sha256(f"{backbone.sha256}{state_sha256(tensors)}".encode()).hexdigest()
    return replace(backbone, tower=tower, sha256=digest)


def tuned_extractor(extractor: Extractor, tensors: Mapping[str, Tensor]) -> Extractor:
    """``extractor`` on the :func:`retuned` backbone, or itself where nothing was tuned."""
    if not tensors:
        return extractor
    backbone = retuned(extractor.backbone, tensors)
    return Extractor(backbone, extractor.settings, extractor.crops, extractor.device.type)


def mean_over_windows(images: Tensor, windows: Sequence[int], read: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``read`` makes of some windows of images with all their windows (b, w, 3, S, S), averaged: (b, F).

    ``read`` takes windows (n, 3, S, S) to (n, F).
    """
    rows = images[:, windows].transpose(0, 1).flatten(0, 1)  # (w * b, 3, S, S), row r of image r mod b
    return read(rows).unflatten(0, (len(windows), -1)).mean(0)


class Tuned(nn.Module):
    """CoRIT whose tower is partly trained, on images whose streams were run up to the first trained block once.

    Frozen parameters are shared with the tower given; trained ones are copies. ``trained`` maps names to them.
    """

    def __init__(self, tower: VisionTower, settings: CoRITSettings, scope: Scope) -> None:
        super().__init__()
        try:
            end = CoRIT(tower, settings).end
        except ValueError as error:
            raise CoritError(str(error)) from None
        self.scope = scope
        own, self.frozen_blocks = thaw(tower, scope, end)
        self.corit = CoRIT(own, settings)
        self.trained = {name: p for name, p in self.corit.named_parameters() if p.requires_grad}
        self._initial = {name: p.detach().clone() for name, p in self.trained.items()}

    def reset(self, seed: int) -> None:
        """Back to the weights given; low-rank parts are drawn anew."""
        with torch.no_grad():
            for name, p in self.trained.items():
                p.copy_(self._initial[name])
        draw_low_rank(self.trained, seed)

    @torch.no_grad()
    def prepare(self, images: Tensor, progress: Callable[[int], None] = lambda _: None) -> Prepared:
        """Windows (n, S, S, 3) uint8 to what :meth:`forward` takes. ``progress`` is told each batch's size."""
        if self.frozen_blocks < 0:
            progress(len(images))
            return Prepared(images, None)
        states = []
        for batch in images.split(BATCH):
            states.append(self.corit.run(self.corit.start(pixels(batch, self._device)), self.frozen_blocks))
            progress(len(batch))
        K = len(self.corit.views)
        views = [s.views.view(K, len(s.x), *s.views.shape[1:]).transpose(0, 1) for s in states]  # (b, K, N, d)
        found = {key: torch.cat([s.found[key] for s in states]) for key in states[0].found}
        x = torch.cat([s.x for s in states])
        return Prepared(images, State(self.frozen_blocks, x, torch.cat(views), found))

    @property
    def _device(self) -> torch.device:
        return self.corit.tower.class_embedding.device

    def forward(self, prepared: Prepared, indices: Sequence[int] | Tensor) -> Tensor:
        """Features (b, F) of some of the images."""
        if prepared.state is None:
            state = self.corit.start(pixels(prepared.images[indices], self._device))
        else:
            s = prepared.state
            found = {key: value[indices] for key, value in s.found.items()}
            state = State(s.layer, s.x[indices], s.views[indices].transpose(0, 1).flatten(0, 1), found)
        return self.corit.read(self.corit.run(state, self.corit.end)).z


@dataclass(frozen=True)
class Prepared:
    """Images (n, S, S, 3) uint8 and their streams up to the first trained block, views as (n, K, N, d)."""

    images: Tensor
    state: State | None

    def __len__(self) -> int:
        return len(self.images)


def pixels(windows: Tensor, device: torch.device) -> Tensor:
    """Windows (b, S, S, 3) uint8 to images (b, 3, S, S) in [0, 1]."""
    return windows.to(device).permute(0, 3, 1, 2).float() / 255


def train_tuned(
    tuned: Tuned,
    prepared: Prepared,
    labels: Tensor,
    trained_on: Tensor,
    seed: int,
    rho: float,
    o: Optimization,
) -> tuple[Head, float]:
    """Train the scope's parameters, in place, and a fresh head on images ``trained_on`` (t,) with ``labels`` (n,).

    The head's standardiser is fitted at the initial weights and stays. Returns the head, and the mean cosine between
    ascent and descent over the last epoch.
    """
    tuned.reset(seed)
    z = features(tuned, prepared, trained_on)
    torch.manual_seed(seed)
    head = Head(z.shape[1], o.hidden).to(z.device)
    head.fit_standardiser(z)
    sam = sam_of(o, [*tuned.trained.values(), *head.parameters()], rho)
    y, size = labels.float().to(z.device), min(o.batch_size, len(trained_on))

    def loss(batch: Tensor) -> Tensor:
        logits = head(tuned(prepared, batch))  # (b,)
        return F.binary_cross_entropy_with_logits(logits, y[batch], reduction="sum") / size

    last = o.steps(len(trained_on)) - o.steps(len(trained_on)) // o.epochs
    cosines = []
    for number, positions in enumerate(batches(o, len(trained_on), seed)):
        step = sam.step(loss, parts(o, trained_on[positions]))
        if number >= last:
            cosines.append(step.cosine)
    return head.eval(), sum(cosines) / len(cosines)


@torch.no_grad()
def features(tuned: Tuned, prepared: Prepared, indices: Tensor) -> Tensor:
    """Features (n, F) of the images ``indices`` at the present weights."""
    return torch.cat([tuned(prepared, batch) for batch in indices.split(BATCH)])
