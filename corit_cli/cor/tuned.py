"""Training parts of the tower many times over, on images whose streams were run up to the first trained block once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corit_cli.cor.heads import micro_batches, run_batches, sam_of
from corit_cli.cor.memory import give_back
from corit_cli.cor.settings import Optimization
from corit_cli.features.extractor import BATCH, pixels
from corit_cli.model.backbone import VisionTower
from corit_cli.model.corit import CoRIT, State
from corit_cli.model.head import Head
from corit_cli.model.precision import lowered
from corit_cli.model.scope import Scope, draw_low_rank, thaw
from corit_cli.model.settings import CoRITSettings, HeadKind
from corit_cli.progress import Advance, hush


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

    @torch.no_grad()
    def prepare(self, images: Tensor, advance: Advance = hush, precision: str = "fp32") -> Prepared:
        """Windows (n, S, S, 3) uint8 to what :meth:`forward` takes, the products of frozen blocks in ``precision``.
        ``advance`` is told each batch's size."""
        n, size = len(images), BATCH[self._device.type]
        frozen = CoRIT(lowered(self.corit.tower, precision), self.corit.settings) if self.frozen_blocks > 0 else None
        whole: dict[Any, Tensor] = {}
        self.reset(0)
        for start in range(0, n, size):
            part = images[start : start + size]
            state = self._begin(part, frozen)
            for key, value in _by_image(state, len(part)).items() if self.frozen_blocks >= 0 else ():
                # Copied: what was read is part of all tokens of its layer, which would stay in memory with it.
                kept = whole.setdefault(key, value.new_empty(len(value), n, *value.shape[2:]))
                kept[:, start : start + size] = value
            z = self._end(state)
            whole.setdefault("z", z.new_empty(n, z.shape[1]))[start : start + size] = z
            advance(len(part))
            del state, z
            give_back()
        return Prepared(images, whole.pop("z"), whole)

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
    def _device(self) -> torch.device:
        return self.corit.tower.class_embedding.device

    def forward(self, prepared: Prepared, indices: Tensor) -> Tensor:
        """Features (b, F) of some of the images."""
        if self.frozen_blocks < 0:
            return self._end(self._begin(prepared.images[indices]))
        some = {key: _of_images(value, indices) for key, value in prepared.begun.items()}
        streams, normal = (some.pop(name, None) for name in _STREAMS)
        return self._end(State(self.frozen_blocks, streams, some, normal))


#: A state's tensors of all streams.
_STREAMS = ("streams", "normal")


def _by_image(state: State, count: int) -> dict[Any, Tensor]:
    """What is in the state of ``count`` images, with images along the second dimension: of the streams and of what was
    read, which has a first dimension of one."""
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
    """Images (n, S, S, 3) uint8, their features ``z`` (n, F) at the initial weights, and their streams up to the first
    trained block, (streams, n, ...) each, unless that is the embedding."""

    images: Tensor
    z: Tensor
    begun: dict[Any, Tensor]

    def __len__(self) -> int:
        return len(self.images)


def train_tuned(
    tuned: Tuned, prepared: Prepared, labels: Tensor, trained_on: Tensor, seed: int, rho: float, o: Optimization
) -> tuple[Head, float]:
    """Train the scope's parameters, in place, and a fresh head on images ``trained_on`` (t,) with ``labels`` (n,).

    The head's standardiser is fitted at the initial weights and stays. Returns the head, and the mean cosine between
    ascent and descent over the last epoch.
    """
    tuned.reset(seed)
    z = prepared.z
    torch.manual_seed(seed)
    head = Head(z.shape[1], HeadKind(o.hidden)).to(z.device)
    head.fit_standardiser(z[trained_on])
    sam = sam_of(o, [*tuned.trained.values(), *head.parameters()], rho)
    y, size = labels.float().to(z.device), min(o.batch_size, len(trained_on))

    def loss(batch: Tensor) -> Tensor:
        logits = head(tuned(prepared, batch))  # (b,)
        return F.binary_cross_entropy_with_logits(logits, y[batch], reduction="sum") / size

    def step(batch: Tensor) -> float:  # (1, b)
        return sam.step(loss, micro_batches(o, batch[0])).cosine

    return head.eval(), float(run_batches(o, trained_on, [seed], step))


@torch.no_grad()
def read(tuned: Tuned, prepared: Prepared, indices: Tensor) -> Tensor:
    """Features (n, F) of the images ``indices`` at the present weights."""
    return torch.cat([tuned(prepared, batch) for batch in indices.split(BATCH[tuned._device.type])])
