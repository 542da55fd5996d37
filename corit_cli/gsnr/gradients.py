"""Gradient moments of every layer over a set of images, without per-sample gradients.

The jackknife (``metrics/gsnr.py``) wants the inner products of J groups' gradient sums, and J copies of the parameters'
gradient would not fit. Each group's sum is kept as a count sketch instead (Charikar, Chen and Farach-Colton 2002): a
coordinate goes, with a random sign, into one of m buckets. Inner products of sketches are unbiased, with an error of
about 1/sqrt(m) of the norms' product; between groups of noise the inner product itself spreads by 1/sqrt(d') of that
product, where d' = (tr C)^2 / tr C^2 is the gradients' effective dimension. A sketched standard error is therefore off
by about sqrt(d'/m) of the sqrt(1/2J) that J groups leave unknown of it anyway: 2 to 4% on ViT-B/16's blocks, where
d' is 170 to 900, at J = 8. The estimate is not off at all, as norms and sums are exact, of up to two strata (the
classes). More of them (the sources) would want a copy of the gradient each, so the products of their sums are those of
sketches, off by about sqrt(2/m) of the plain ||mean||^2, 1%. Tensors of up to m entries are kept whole.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corit_cli.gsnr.per_sample import GhostPass
from corit_cli.metrics.gsnr import Moments
from corit_cli.model.backbone import VisionTower
from corit_cli.model.corit import Reading
from corit_cli.progress import Advance, hush

#: Buckets of a sketch. A prime, so that no row or column of a matrix falls into few of them.
BUCKETS = 32749

#: Strata of which the gradients' sums are kept whole.
WHOLE = 2

#: A stratum and a jackknife group.
Cell = tuple[int, int]
#: Logits and labels to losses (B,).
LossPerSample = Callable[[Tensor, Tensor], Tensor]


def bce_per_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B,) against labels (B,), 1 for fake: (B,)."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")


@dataclass(frozen=True)
class Gradients:
    """What a measurement found.

    ``parameters`` and ``sums`` (of g) are keyed by parameter name; ``tokens`` by layer and ``"cls"`` (the class token's
    gradient) or ``"patches"`` (the mean of the patches'), both of the image's stream. ``loss`` is the mean loss.
    """

    parameters: dict[str, Moments]
    sums: dict[str, Tensor]
    tokens: dict[tuple[int, str], Moments]
    loss: float

    def layers(self) -> dict[str, Moments]:
        """Moments by layer: ``"0"`` (embeddings and pre-norm), ``"1"``.. (blocks), then ``"head"``."""
        out: dict[str, Moments] = {}
        for name, moments in self.parameters.items():
            layer = layer_of(name)
            out[layer] = out[layer] + moments if layer in out else moments
        return dict(sorted(out.items(), key=lambda item: (not item[0].isdigit(), item[0].zfill(4))))


def named_parameters(tower: VisionTower, head: nn.Module) -> dict[str, nn.Parameter]:
    """The tower's parameters under their own names and the head's under ``head.``."""
    return {**dict(tower.named_parameters()), **{f"head.{name}": p for name, p in head.named_parameters()}}


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: ``blocks.3.fc.weight`` to ``"4"``; see :meth:`Gradients.layers`."""
    first, *rest = name.split(".")
    if first == "blocks":
        return str(int(rest[0]) + 1)
    if first == "head":
        return first
    return "output" if first in ("ln_post", "projection") else "0"


class Model(Protocol):
    """Anything that turns images (b, ...) to features (b, F) through a tower, as CoRIT does."""

    tower: VisionTower

    def __call__(self, images: Tensor, /) -> Reading: ...


def measure(
    corit: Model,
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Cell]],
    loss_per_sample: LossPerSample = bce_per_sample,
    advance: Advance = hush,
    layers: Container[str] | None = None,
    windows: int = 1,
    weights: Mapping[int, float] | None = None,
) -> Gradients:
    """Gradient moments of the parameters of all ``layers`` (or those named) and the head, and of tokens.

    ``batches`` yields images (b, ...) as ``corit`` takes them, labels (b,) and the cell, stratum and jackknife group,
    that all of them belong to; a cell's batches follow one another, and so do a stratum's cells (ValueError otherwise).
    ``advance`` is told each batch's size. ``weights`` are those of the strata, which weigh alike without. Of two strata
    a copy of the first one's sums is kept; memory also holds a sketch of every cell.
    Tokens are those of the layers that a tracked parameter stands before, in the first pass through the tower, which
    begins with ``windows`` rows of every sample, row r of sample r mod b.
    """
    tracked = {
        name: p
        for name, p in named_parameters(corit.tower, head).items()
        if layers is None or layer_of(name) in layers or name.startswith("head.")
    }
    ghost = GhostPass(tracked)
    sketch: Sketch | None = None
    cells: list[_Cell] = []
    strata: dict[int, dict[str, Tensor]] = {}  # sums of all gradients up to the end of a stratum
    loss = 0.0

    def close() -> None:
        """End the last cell: sketch the running totals."""
        # One tensor a cell: small ones that outlive the large ones around them would pin memory that is free.
        lengths = [min(total.numel(), BUCKETS) for total in ghost.sums.values()]
        places = sketch.signs.new_empty(sum(lengths)).split(lengths)
        cells[-1].sketches = dict(zip(ghost.sums, places, strict=True))
        for name, place in cells[-1].sketches.items():
            sketch(ghost.sums[name], out=place)

    for images, labels, place in batches:
        if not cells or cells[-1].place != place:
            if place in {cell.place for cell in cells} or place[0] in strata:
                raise ValueError(f"stratum {place[0]}, jackknife group {place[1]} comes in two places")
            if cells:
                close()
                if place[0] != cells[-1].place[0]:
                    keep = len(strata) < WHOLE - 1
                    strata[cells[-1].place[0]] = {k: total.clone() for k, total in ghost.sums.items() if keep}
            cells.append(_Cell(place))
        tokens = _TokenGradients(windows, samples=len(labels))
        with layer_outputs(corit.tower, tokens.saw):
            values, norms = ghost(partial(_losses, corit, head, images, labels, loss_per_sample))
        cells[-1].add(len(values), norms, tokens.found)
        sketch = sketch or Sketch(max(p.numel() for p in ghost.sums.values()), next(iter(ghost.sums.values())))
        loss += float(values.sum())
        advance(len(values))
    if not cells:
        raise ValueError("no samples were given")
    close()
    strata[cells[-1].place[0]] = ghost.sums
    weighed = None if weights is None else [weights[stratum] for stratum in strata]
    numbers = [sorted({cell.place[1] for cell in cells}), list(strata)]  # groups, and strata as they came
    at = tuple(np.array([[numbers[k].index(cell.place[1 - k]) for cell in cells] for k in (0, 1)]))
    shape = tuple(map(len, numbers))  # (J, C)

    def spread(values: Sequence[float]) -> np.ndarray:
        """One number a cell as (J, C), 0 where a group has none of a stratum."""
        out = np.zeros(shape)
        out[at] = values
        return out

    counts = spread([cell.count for cell in cells]).astype(int)

    def parameter(name: str) -> Moments:
        running = torch.stack([cell.sketches.pop(name) for cell in cells]).double()  # (cells, m)
        each = running.diff(dim=0, prepend=running.new_zeros(1, running.shape[1]))
        each = each.cpu().numpy()
        sums = np.zeros((*shape, each.shape[1]))
        sums[at] = each
        found = Moments.of(counts, spread([cell.squares.get(name, 0.0) for cell in cells]), sums, weighed)
        if len(strata) > WHOLE:
            return found
        # Exact, unlike the sketches': they are what the estimate itself comes from.
        nothing = torch.zeros_like(ghost.sums[name])
        upto = [nothing, *(sums.get(name, nothing) for sums in strata.values())]
        parts = [b - a for a, b in pairwise(upto)]
        return replace(found, totals=np.array([[_dot(a, b) for b in parts] for a in parts]))  # (C, C)

    def token(key: tuple[int, str]) -> Moments:
        sums = np.zeros((*shape, len(cells[0].token_sums[key])))
        sums[at] = torch.stack([cell.token_sums[key] for cell in cells]).cpu().numpy()
        return Moments.of(counts, spread([cell.token_squares[key] for cell in cells]), sums, weighed)

    return Gradients(
        {name: parameter(name) for name in ghost.parameters if name in ghost.sums},
        ghost.sums,
        {key: token(key) for key in sorted(cells[0].token_sums)},
        loss / int(counts.sum()),
    )


def _dot(a: Tensor, b: Tensor) -> float:
    """Inner product of two tensors of one shape, added up in float64 row by row."""
    return float(torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1)).double().sum())


def _losses(corit: Model, head: nn.Module, images: Tensor, labels: Tensor, loss_per_sample: LossPerSample) -> Tensor:
    return loss_per_sample(head(corit(images).z), labels)  # (B,)


class _Cell:
    """Sums over one jackknife group's samples of one stratum; ``sketches`` are of the running totals at its end."""

    def __init__(self, place: Cell) -> None:
        self.place, self.count = place, 0
        self.squares: dict[str, float] = {}
        self.sketches: dict[str, Tensor] = {}
        self.token_sums: dict[tuple[int, str], Tensor] = {}
        self.token_squares: dict[tuple[int, str], float] = {}

    def add(self, count: int, norms: dict[str, Tensor], tokens: dict[tuple[int, str], Tensor]) -> None:
        self.count += count
        for name, squares in norms.items():
            self.squares[name] = self.squares.get(name, 0.0) + float(squares.double().sum())
        for key, g in tokens.items():
            self.token_sums[key] = self.token_sums.get(key, 0.0) + g.double().sum(0)
            self.token_squares[key] = self.token_squares.get(key, 0.0) + float(g.double().square().sum())


class Sketch:
    """Count sketch of tensors of up to ``size`` entries: min(size, BUCKETS) numbers that keep inner products."""

    def __init__(self, size: int, like: Tensor) -> None:
        signs = torch.randint(2, (size,), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        self.signs = (2 * signs - 1).to(like)
        self._signed = like.new_empty(-(-size // BUCKETS) * BUCKETS)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The sketch of ``x``, (min(x.numel(), BUCKETS),), in ``out`` if given."""
        x = x.flatten()
        out = x.new_empty(min(len(x), BUCKETS)) if out is None else out
        if len(x) <= BUCKETS:
            return out.copy_(x)
        signed = self._signed[: -(-len(x) // BUCKETS) * BUCKETS]
        torch.mul(x, self.signs[: len(x)], out=signed[: len(x)])
        signed[len(x) :] = 0
        return torch.sum(signed.view(-1, BUCKETS), 0, out=out)


# --- tokens ---------------------------------------------------------------------------------------


@contextmanager
def layer_outputs(tower: VisionTower, saw: Callable[[int, Tensor], None]) -> Iterator[None]:
    """While entered, tell ``saw`` of each layer's output tokens (R, N, d) in the order in which they are computed.

    CoRIT has the image's rows in a layer's first call, before any rows of contrast views.
    """

    def hook(layer: int, module: nn.Module, args: tuple, out: Tensor) -> None:
        saw(layer, out)

    modules = [tower.ln_pre, *tower.blocks]
    handles = [module.register_forward_hook(partial(hook, layer)) for layer, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _TokenGradients:
    """Collects the loss gradients at every layer's output, averaged over windows: ``found[layer, part]`` (B, d)."""

    def __init__(self, windows: int, samples: int) -> None:
        self.windows, self.samples = windows, samples
        self.watched: set[int] = set()
        self.found: dict[tuple[int, str], Tensor] = {}

    def saw(self, layer: int, out: Tensor) -> None:
        if layer not in self.watched and out.requires_grad:
            self.watched.add(layer)
            out.register_hook(partial(self._keep, layer))

    def _keep(self, layer: int, grad: Tensor) -> None:
        grad = grad[: self.windows * self.samples].unflatten(0, (self.windows, -1)).mean(0)  # (B, N, d)
        self.found[layer, "cls"] = grad[:, 0].clone()
        if grad.shape[1] > 1:
            self.found[layer, "patches"] = grad[:, 1:].mean(1)
