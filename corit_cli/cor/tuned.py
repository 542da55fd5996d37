"""Training parts of the tower many times over, on images whose streams were run up to the first trained block once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    def prepare(self, images: Tensor, advance: Advance = hush) -> Prepared:
        """Windows (n, S, S, 3) uint8 to what :meth:`forward` takes. ``advance`` is told each batch's size."""
        if self.frozen_blocks < 0:
            advance(len(images))
            return Prepared(images, None)
        n, K, size = len(images), len(self.corit.views), BATCH[self._device.type]
        whole: dict[Any, Tensor] = {}  # (n, ...) each
        for start in range(0, n, size):
            batch = slice(start, start + size)
            s = self.corit.run(self.corit.start(pixels(images[batch], self._device)), self.frozen_blocks)
            views = s.views.view(K, len(s.x), *s.views.shape[1:]).transpose(0, 1)  # (b, K, N, d)
            for key, part in {**s.found, "x": s.x, "views": views}.items():
                # Copied: what was read is part of all tokens of its layer, which would stay in memory with it.
                whole.setdefault(key, part.new_empty(n, *part.shape[1:]))[batch] = part
            advance(len(s.x))
            del s, views, part
            give_back()
        return Prepared(images, State(self.frozen_blocks, whole.pop("x"), whole.pop("views"), whole))

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


def train_tuned(
    tuned: Tuned, prepared: Prepared, labels: Tensor, trained_on: Tensor, seed: int, rho: float, o: Optimization
) -> tuple[Head, float]:
    """Train the scope's parameters, in place, and a fresh head on images ``trained_on`` (t,) with ``labels`` (n,).

    The head's standardiser is fitted at the initial weights and stays. Returns the head, and the mean cosine between
    ascent and descent over the last epoch.
    """
    tuned.reset(seed)
    z = read(tuned, prepared, trained_on)
    torch.manual_seed(seed)
    head = Head(z.shape[1], HeadKind(o.hidden)).to(z.device)
    head.fit_standardiser(z)
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
