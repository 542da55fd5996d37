"""CoRIT: a frozen tower read through CGP, RRM, RSI and HRI.

Two streams run side by side in one batch: the image and its contrast views. At the source layer s their difference
is taken and masked; after each block of ``inject_at`` it is added to the image's stream. Deeper layers of that stream
see what was injected, so a CLS contrast below the source is the injected stream against the views: a third, plain pass
is never needed. A stream ends at the deepest layer somebody reads; only the tokens that are read are computed there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corit_cli.model import cgp
from corit_cli.model.backbone import Block, VisionTower
from corit_cli.model.injection import inject
from corit_cli.model.integration import integrate
from corit_cli.model.mask import parse_mask
from corit_cli.model.settings import CoRITSettings
from corit_cli.model.spread import spread
from corit_cli.model.views import parse_view
from corit_cli.progress import Stop, never


@dataclass
class Reading:
    """What CoRIT reads from a batch: features ``z`` (B, F) and, with RSI, the source layer's patch contrast
    ``energy`` (B, P) and ``mask`` (B, P)."""

    z: Tensor
    energy: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class State:
    """Where the streams are after block ``layer``, and what was read so far, by (kind, layer), each (B, ...).

    ``streams`` ((1+K)B, N, d) holds the images' tokens and then, view by view, those of the views, as long as these are
    read. ``normal``, of the same shape, are these tokens as the next block normalises them, before scale and shift:
    where it reads no more than that and the class tokens, ``streams`` may be without the others, ((1+K)B, 1, d).
    """

    layer: int
    streams: Tensor
    found: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    normal: Tensor | None = None


class Pass(NamedTuple):
    """What is asked of the block of a ``layer``, as it takes it: ``tokens`` (n, N, d), ``rows`` and ``normal``."""

    layer: int
    tokens: Tensor
    rows: int | None = None
    normal: Tensor | None = None


#: Asks for passes through one block, is given their outputs, and in the end gives where its streams are.
Steps = Generator[list[Pass], list[Tensor], State]


class CoRIT(nn.Module):
    """Features of images, by ``settings``, from ``tower``. Raises CoritError when they do not fit each other."""

    def __init__(self, tower: VisionTower, settings: CoRITSettings) -> None:
        super().__init__()
        settings.check(tower.config.layers)
        self.tower = tower
        self.settings = settings
        self.views = [parse_view(spec) for spec in settings.views] if settings.contrasted else []
        self.mask = parse_mask(settings.mask)
        self.spread = settings.spread if settings.integrate else ()  # it is read beside class tokens

    @property
    def parts(self) -> list[tuple[str, int]]:
        """(kind, layer) of each d-wide part of the features, in order; kinds are cls, spread, cgp and patches."""
        s = self.settings
        return (
            [("cls", layer) for layer in s.integrate]
            + [("spread", layer) for layer in self.spread]
            + [("cgp", layer) for layer in s.cgp]
            + [("patches", layer) for layer in s.cgp if s.patches]
        )

    @property
    def width(self) -> int:
        """F, the width of a feature vector."""
        return len(self.parts) * self.tower.config.width

    @property
    def end(self) -> int:
        """The deepest layer that is read; blocks after it are never run."""
        return max((*self.settings.integrate, *self.spread, self._views_end))

    @property
    def _views_end(self) -> int:
        """The deepest layer at which a contrast is read."""
        s = self.settings
        return max((*s.cgp, *s.inject_at[:1])) if self.views else 0

    def forward(self, images: Tensor) -> Reading:
        """Images (B, 3, S, S) in [0, 1] to a :class:`Reading`."""
        return self.read(self.run(self.start(images), self.end))

    def start(self, images: Tensor) -> State:
        """Images (B, 3, S, S) in [0, 1] and their views, embedded."""
        streams = torch.cat([images, *(view(images) for view in self.views)])  # ((1+K)B, 3, S, S)
        return State(0, self.tower.embed(streams))

    def run(self, state: State, until: int) -> State:
        """Run the blocks after ``state.layer`` up to ``until`` and note what is read on the way."""
        return side_by_side(self.tower, [self.steps(state, until)])[0]

    def steps(self, state: State, until: int) -> Steps:
        """As :meth:`run`, by whoever computes the passes."""
        s, streams, normal, K = self.settings, state.streams, state.normal, len(self.views)
        source, views_end = min(s.inject_at, default=0), self._views_end
        found = dict(state.found)
        for layer in range(state.layer + 1, until + 1):
            B = len(streams) // (1 + K if layer <= views_end else 1)
            patches_read = self._patches_read(layer)
            x_rows = 1 if layer == self.end and self.ends_in_class_tokens else None
            v_rows = 1 if layer == views_end and not patches_read else None
            if layer > views_end or x_rows == v_rows:
                (streams,) = yield [Pass(layer, streams, x_rows, normal)]
                x, v = streams[:B], streams[B:]
            else:
                x, v = yield [Pass(layer, streams[:B], x_rows), Pass(layer, streams[B:], v_rows)]
            normal = None

            if layer in s.integrate:
                found["cls", layer] = x[:, 0].clone()  # (B, d); a view would keep all tokens, of all readers perhaps
            if layer in self.spread:
                found["spread", layer] = spread(x[:, 1:])  # (B, d)
            if layer in s.cgp or patches_read:
                c = cgp.contrast(x[:, : v.shape[1]], v.unflatten(0, (K, B)))  # (K, B, 1 or N, d)
                found["cgp", layer] = c[:, :, 0].mean(0)  # (B, d)
            if s.patches and layer in s.cgp:
                found["patches", layer] = c[:, :, 1:].mean((0, 2))  # (B, d)
            if layer == source:
                found["contrast", layer] = c[:, :, 1:].mean(0)  # (B, P, d)
                found["norm", layer] = x[:, 1:].norm(dim=-1, keepdim=True)  # (B, P, 1)
                found["energy", layer], found["mask", layer] = cgp.energy(c[:, :, 1:]), self.mask(c[:, :, 1:])  # (B, P)
            if layer in s.inject_at and layer < self.end:
                norm, contrast, mask = (found[name, source] for name in ("norm", "contrast", "mask"))
                x = inject(x, norm, contrast, mask, s.alpha)
            if layer >= views_end:
                streams = x
            elif layer in s.inject_at:
                streams = torch.cat([x, v])
        return State(until, streams, found, normal)

    def _patches_read(self, layer: int) -> bool:
        """Whether contrasts of patches are read at a layer."""
        return (self.settings.patches and layer in self.settings.cgp) or layer in self.settings.inject_at[:1]

    @property
    def ends_in_class_tokens(self) -> bool:
        """Whether class tokens, of whichever streams, are all that is read of the deepest layer."""
        return not (self._patches_read(self.end) or self.end in self.spread)

    def regional(self, images: Tensor) -> Tensor:
        """Contrasts of every patch of images (B, 3, S, S) at the layers of ``cgp``, each of unit norm, side by side:
        (B, P, len(cgp) * d). The stream is the plain one, whatever is injected elsewhere."""
        B, K, layers = len(images), len(self.views), self.settings.cgp
        streams, found = self.start(images).streams, []  # ((1+K)B, N, d)
        for layer in range(1, max(layers) + 1):
            streams = self.tower.blocks[layer - 1](streams)
            if layer in layers:
                views = streams[B:, 1:].unflatten(0, (K, B))  # (K, B, P, d)
                found.append(cgp.contrast(streams[:B, 1:], views).mean(0))  # (B, P, d)
        return integrate(found)

    def read(self, state: State) -> Reading:
        """What was read by the time that ``state`` reached :attr:`end`."""
        source = min(self.settings.inject_at, default=0)
        z = integrate([state.found[part] for part in self.parts])  # (B, F)
        return Reading(z, state.found.get(("energy", source)), state.found.get(("mask", source)))


def side_by_side(tower: VisionTower, every: Sequence[Steps], most: int = 0, stop: Stop = never) -> list[State]:
    """Run the ``steps`` of several through ``tower``; where each state is in the end.

    What several ask of the same block, of all tokens, is computed in one batch where these are ``most`` images or
    fewer together: a single image by itself takes half as long again as one of a batch. Raises CancelledError where,
    between two blocks, ``stop`` says so.
    """
    ended: dict[int, State] = {}
    asked: dict[int, list[Pass]] = {}

    def go_on(number: int, found: list[Tensor] | None) -> None:
        try:
            asked[number] = every[number].send(found)
        except StopIteration as end:
            ended[number] = end.value

    for number in range(len(every)):
        go_on(number, None)
    while asked:
        if stop():
            raise CancelledError
        layer = min(passes[0].layer for passes in asked.values())
        due = {number: asked.pop(number) for number in list(asked) if asked[number][0].layer == layer}
        found = iter(_through(tower.blocks[layer - 1], [one for passes in due.values() for one in passes], most))
        counts = {number: len(passes) for number, passes in due.items()}
        due.clear()  # nobody needs the tokens any more that went in
        for number, count in counts.items():
            go_on(number, list(islice(found, count)))
    return [ended[number] for number in range(len(every))]


def _through(block: Block, passes: Sequence[Pass], most: int) -> list[Tensor]:
    """The outputs of all ``passes`` through a block."""
    whole = [k for k, one in enumerate(passes) if one.rows is None and one.normal is None]
    sizes = [len(passes[k].tokens) for k in whole]
    found: dict[int, Tensor] = {}
    if len(whole) > 1 and sum(sizes) <= most:
        tokens = block(torch.cat([passes[k].tokens for k in whole]))  # (n, N, d)
        found = dict(zip(whole, tokens.split(sizes), strict=True))
    for k, one in enumerate(passes):
        if k not in found:
            found[k] = block(one.tokens, one.rows, one.normal)
    return [found[k] for k in range(len(passes))]
