"""Training parts of the tower many times over, on images whose streams were run up to the first trained block once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corit_cli.cor.heads import micro_batches, run_batches, sam_of
from corit_cli.cor.memory import give_back
from corit_cli.cor.settings import Optimization
from corit_cli.features.extractor import BATCH, pixels
from corit_cli.features.lanes import Lanes
from corit_cli.features.stream import on_lanes
from corit_cli.model.backbone import VisionTower
from corit_cli.model.corit import CoRIT, State
from corit_cli.model.head import Head
from corit_cli.model.scope import Scope, draw_low_rank, thaw
from corit_cli.model.settings import CoRITSettings, HeadKind
from corit_cli.progress import Advance, Stop, hush, never
from corit_cli.seeds import undisturbed

#: torch has one sequence of random numbers for all threads.
_drawing = Lock()


class Tuned(nn.Module):
    """CoRIT whose tower is partly trained, on images whose streams were run up to the first trained block once.

    Frozen parameters are shared with the tower given; trained ones are copies. ``trained`` maps names to them.
    """

    def __init__(self, tower: VisionTower, settings: CoRITSettings, scope: Scope) -> None:
        super().__init__()
        end = CoRIT(tower, settings).end
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

    def another(self) -> Tuned:
        """One to be trained beside this: all that is not trained is shared."""
        own = {id(p) for p in self.trained.values()}
        shared = [t for t in (*self.parameters(), *self.buffers()) if id(t) not in own]
        return deepcopy(self, {id(t): t for t in (*shared, self._initial)})

    def prepare(self, images: Tensor, advance: Advance = hush, frozen: VisionTower | None = None) -> Prepared:
        """Windows (n, S, S, 3) uint8 to what :meth:`forward` takes, through the frozen blocks of ``frozen``: the tower
        given, perhaps in another precision.

        ``advance`` is told each batch's size. The weights given are put back.
        """
        self.reset(0)
        own = CoRIT(frozen or self.corit.tower, self.corit.settings) if self.frozen_blocks > 0 else None
        z, begun, size = [], {}, self.batch
        batches = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]

        @torch.no_grad()
        def run(batch: slice) -> Tensor:
            features = self._prepare(images, batch, own, begun)
            give_back()
            return features

        lanes = Lanes(self._device.type)
        found = chain(map(run, batches[:1]), on_lanes(run, batches[1:], lanes, min(lanes.count, len(batches) - 1)))
        for batch, features in zip(batches, found, strict=True):  # the first makes room in ``begun``
            z.append(features)
            advance(batch.stop - batch.start)
        return Prepared(images, torch.cat(z), begun)

    def let_go(self) -> None:
        """Be without the blocks that nothing prepared is run through: the frozen ones, and those past the deepest that
        is read. Nothing else can be prepared afterwards."""
        for number in range(len(self.corit.tower.blocks)):
            if not self.frozen_blocks <= number < self.corit.end:
                self.corit.tower.blocks[number] = nn.Identity()

    def _prepare(self, images: Tensor, batch: slice, frozen: CoRIT | None, begun: dict[Any, Tensor]) -> Tensor:
        """Put a batch's streams into their places in ``begun``; return its features (b, F)."""
        state = self._begin(images[batch], frozen)
        for key, value in _by_image(state, batch.stop - batch.start).items() if self.frozen_blocks >= 0 else ():
            if key not in begun:
                begun[key] = value.new_empty(len(value), len(images), *value.shape[2:])
            # Copied: what was read is part of all tokens of its layer, which would stay in memory with it.
            begun[key][:, batch] = value
        return self._end(state)

    def _begin(self, images: Tensor, frozen: CoRIT | None = None) -> State:
        """The streams of windows (b, S, S, 3) uint8 up to the first trained block, through ``frozen`` blocks."""
        state = self.corit.start(pixels(images, self._device))
        if frozen is not None:
            state = frozen.run(state, self.frozen_blocks)
        if self.frozen_blocks == self.corit.end - 1 and self.corit.ends_in_class_tokens:
            block = self.corit.tower.blocks[self.frozen_blocks]
            state = replace(state, streams=state.streams[:, :1], normal=block.normalised(state.streams))
        return state

    def _end(self, state: State) -> Tensor:
        """Features (b, F) from there on."""
        return self.corit.read(self.corit.run(state, self.corit.end)).z

    @property
    def batch(self) -> int:
        """Images in one pass where no gradient is taken; their views count, too."""
        return max(1, BATCH[self._device.type] // (1 + len(self.corit.views)))

    @property
    def _device(self) -> torch.device:
        return self.corit.tower.class_embedding.device

    def forward(self, prepared: Prepared, indices: Sequence[int] | Tensor) -> Tensor:
        """Features (b, F) of some of the images."""
        return self.go_on(self.pick(prepared, indices))

    def pick(self, prepared: Prepared, indices: Sequence[int] | Tensor) -> State | Tensor:
        """A copy of what :meth:`go_on` goes on from for some of the images: their state, or where the embedding is
        trained their windows (b, S, S, 3)."""
        if self.frozen_blocks < 0:
            return prepared.images[indices]
        some = {key: _of_images(value, torch.as_tensor(indices)) for key, value in prepared.begun.items()}
        streams, normal = (some.pop(name, None) for name in _STREAMS)
        return State(self.frozen_blocks, streams, some, normal)

    def go_on(self, picked: State | Tensor) -> Tensor:
        """Features (b, F) at the present weights of images that were picked."""
        return self._end(self._begin(picked) if isinstance(picked, Tensor) else picked)


#: A state's tensors of all streams.
_STREAMS = ("streams", "normal")


def _by_image(state: State, count: int) -> dict[Any, Tensor]:
    """What the state of ``count`` images holds, images along the second dimension: streams (1+K, b, ...), and what was
    read (1, b, ...)."""
    streams = {name: getattr(state, name) for name in _STREAMS}
    own = {name: value.unflatten(0, (-1, count)) for name, value in streams.items() if value is not None}
    return own | {key: value[None] for key, value in state.found.items()}


def _of_images(values: Tensor, indices: Tensor) -> Tensor:
    """Of :func:`_by_image`'s values (s, n, ...) those of some images, as a state has them: (s * b, ...)."""
    count = values.shape[1]
    rows = torch.arange(len(values))[:, None] * count + indices  # (s, b)
    # A batch of rows that are whole is copied fast; along the second dimension it is not.
    return values.flatten(0, 1)[rows.flatten().to(values.device)]


@dataclass(frozen=True)
class Prepared:
    """Images (n, S, S, 3) uint8, their features ``z`` (n, F) at the initial weights, and what was ``begun``: by name,
    their streams up to the first trained block (1+K, n, ...) and what was read by then (1, n, ...); nothing where the
    embedding is trained."""

    images: Tensor
    z: Tensor
    begun: dict[Any, Tensor]

    def __len__(self) -> int:
        return len(self.images)


def train_tuned(
    tuned: Tuned,
    prepared: Prepared,
    labels: Tensor,
    trained_on: Tensor,
    seed: int,
    rho: float,
    o: Optimization,
    stop: Stop = never,
) -> tuple[Head, float]:
    """Train the scope's parameters, in place, and a fresh head on images ``trained_on`` (t,) with ``labels`` (n,).

    The head's standardiser is fitted at the initial weights and stays. Returns the head, and the mean cosine between
    ascent and descent over the last epoch. Raises CancelledError where, between two steps, ``stop`` says so.
    """
    tuned.reset(seed)
    z = prepared.z
    with _drawing, undisturbed():
        torch.manual_seed(seed)
        head = Head(z.shape[1], HeadKind(o.hidden)).to(z.device)
    head.fit_standardiser(z[trained_on])
    sam = sam_of(o, [*tuned.trained.values(), *head.parameters()], rho)
    y, size = labels.float().to(z.device), min(o.batch_size, len(trained_on))

    def loss(part: tuple[Tensor, State | Tensor]) -> Tensor:
        batch, picked = part
        logits = head(tuned.go_on(picked))  # (b,)
        return F.binary_cross_entropy_with_logits(logits, y[batch], reduction="sum") / size

    def step(batch: Tensor) -> float:  # (1, b)
        if stop():
            raise CancelledError
        # Picked once for both of SAM's passes, since picking copies all tokens.
        return sam.step(loss, [(part, tuned.pick(prepared, part)) for part in micro_batches(o, batch[0])]).cosine

    return head.eval(), float(run_batches(o, trained_on, [seed], step))


@torch.no_grad()
def read(tuned: Tuned, prepared: Prepared, indices: Tensor, stop: Stop = never) -> Tensor:
    """Features (n, F) of the images ``indices`` at the present weights. Raises CancelledError where, between two
    batches, ``stop`` says so."""
    z = []
    for batch in indices.split(tuned.batch):
        if stop():
            raise CancelledError
        z.append(tuned(prepared, batch))
    return torch.cat(z)
