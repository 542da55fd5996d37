"""What a sweep trains: a head on features that are taken once, or parts of the tower as well."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from corit_cli.cor.collapse import Run
from corit_cli.cor.curvature import Batch, Loss, Params
from corit_cli.cor.heads import train_population
from corit_cli.cor.memory import give_back
from corit_cli.cor.settings import Optimization
from corit_cli.cor.sweep import Wanted
from corit_cli.cor.tuned import Prepared, Tuned, read, train_tuned
from corit_cli.features.lanes import Lanes
from corit_cli.metrics.ranking import auc
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.progress import Stop, never
from corit_cli.seeds import undisturbed

#: Blocks that are trained at a time in all runs together: each has weights, gradients, moments and SAM's copies.
MOST_BLOCKS = 4


@dataclass
class Split:
    """Labels of all images (n,), and positions of those trained on (t,) and validated on (v,)."""

    labels: Tensor
    train: Tensor
    val: Tensor

    @classmethod
    def of(cls, labels: Sequence[int], train: Sequence[int], val: Sequence[int]) -> Split:
        """From plain lists."""
        return cls(torch.tensor(labels), torch.tensor(train), torch.tensor(val))

    def shuffled(self, seed: int) -> Tensor:
        """Labels (n,) whose training part is in random order, with as large a share of fakes among the real images as
        among the fakes. In any order at all few labels agree with the true ones by chance, which is enough to learn
        from where these are easily learned."""
        labels, generator = self.labels.clone(), torch.Generator().manual_seed(seed)
        sides = [self.train[labels[self.train] == label] for label in (0, 1)]
        real, fakes = (len(side) for side in sides)
        given = round(fakes * real / max(1, real + fakes))  # labels of fakes that go to real images
        for side, count in zip(sides, (given, fakes - given), strict=True):
            labels[side] = (torch.randperm(len(side), generator=generator) < count).to(labels.dtype)
        return labels

    def run(self, name: str, wanted: Wanted, labels: Tensor, logits: Tensor, cosine: float) -> Run:
        """A finished run's figures from all images' ``logits`` (n,) and the ``labels`` (n,) it was trained with."""
        logits = logits.float().cpu()
        loss = F.binary_cross_entropy_with_logits(logits[self.train], labels[self.train].float())
        val = logits[self.val]
        area = auc(self.labels[self.val].numpy(), val.numpy()) if val.isfinite().all() else float("nan")
        return Run(name, *wanted, float(loss), area, float(val.std()), float(cosine))


@dataclass
class HeadArm:
    """Heads on features ``z`` (n, F): all wanted runs are trained in one batched program."""

    one_by_one: ClassVar[bool] = False

    name: str
    z: Tensor
    split: Split
    optimization: Optimization

    def __post_init__(self) -> None:
        head = Head(self.z.shape[1]).to(self.z.device)
        head.fit_standardiser(self.z[self.split.train])
        self.x = head.standardise(self.z)  # (n, F)

    def run(self, wanted: Sequence[Wanted]) -> Iterator[Run]:
        """Train every wanted run; a radius that one seed misses is run for all seeds, and only what is wanted told."""
        for shuffled in (False, True):
            chosen = [w for w in wanted if w[2] == shuffled]
            seeds, radii = sorted({w[1] for w in chosen}), sorted({w[0] for w in chosen})
            if not chosen:
                continue
            labels = torch.stack([self.split.shuffled(s) if shuffled else self.split.labels for s in seeds])  # (S, n)
            fitted = train_population(self.x, labels, self.split.train, seeds, radii, self.optimization)
            for w in chosen:
                s, r = seeds.index(w[1]), radii.index(w[0])
                yield self.split.run(self.name, w, labels[s], fitted.logits[s, r], float(fitted.cosine[s, r]))

    @undisturbed()
    def objective(self) -> tuple[Loss, Params]:
        """The loss of some images as a function of a head's parameters, and the first seed's initial ones."""
        torch.manual_seed(0)
        head = Head(self.x.shape[1], HeadKind(self.optimization.hidden)).to(self.x.device).layers

        def loss(parameters: Params, batch: Batch) -> Tensor:
            logits = functional_call(head, parameters, (self.x[batch],)).squeeze(-1)  # (b,)
            return F.binary_cross_entropy_with_logits(logits, self.split.labels[batch].to(logits))

        return loss, {name: p.detach() for name, p in head.named_parameters()}


@dataclass
class TunedArm:
    """Parts of the tower and a head, every run trained by itself."""

    one_by_one: ClassVar[bool] = True

    name: str
    tuned: Tuned
    prepared: Prepared
    split: Split
    optimization: Optimization

    def at_once(self, threads: int | None = None) -> int:
        """How many runs are trained at a time, on so many threads or torch's here: as many as the device takes, and as
        have ``MOST_BLOCKS`` trained blocks together, each of which takes memory."""
        blocks = self.tuned.corit.end - self.tuned.frozen_blocks
        return min(Lanes(self.prepared.z.device.type, threads).count, max(1, MOST_BLOCKS // max(1, blocks)))

    def run(self, wanted: Sequence[Wanted]) -> Iterator[Run]:
        """Train every wanted run, several at a time, each in a thread with its share of torch's, however many are
        wanted; yield each as it is finished."""
        at_once = self.at_once()
        if at_once == 1:
            yield from (self._train(self.tuned, one) for one in wanted)
            return
        stop, free, lanes = Event(), SimpleQueue(), Lanes("cpu")
        for tuned in (self.tuned, *(self.tuned.another() for _ in range(1, at_once))):
            free.put(tuned)

        def train(one: Wanted) -> Run:
            tuned = free.get()
            try:
                return self._train(tuned, one, stop.is_set)
            finally:
                free.put(tuned)

        with ThreadPoolExecutor(at_once, initializer=partial(lanes.take, at_once)) as pool:
            runs = [pool.submit(train, one) for one in wanted]
            try:
                yield from (run.result() for run in as_completed(runs))
            finally:
                stop.set()
                for run in runs:
                    run.cancel()

    def _train(self, tuned: Tuned, wanted: Wanted, stop: Stop = never) -> Run:
        """One run, trained in ``tuned``."""
        rho, seed, shuffled = wanted
        labels = self.split.shuffled(seed) if shuffled else self.split.labels
        head, cosine = train_tuned(tuned, self.prepared, labels, self.split.train, seed, rho, self.optimization, stop)
        with torch.no_grad():
            logits = head(read(tuned, self.prepared, torch.arange(len(labels)), stop))
        give_back()
        return self.split.run(self.name, wanted, labels, logits, cosine)

    @undisturbed()
    def objective(self) -> tuple[Loss, Params]:
        """The loss of some images as a function of all that is trained, and the first seed's initial values."""
        self.tuned.reset(0)
        z = self.prepared.z
        torch.manual_seed(0)
        head = Head(z.shape[1], HeadKind(self.optimization.hidden)).to(z.device)
        head.fit_standardiser(z[self.split.train])
        whole = _Whole(self.tuned, head)
        trained = {id(p) for p in (*self.tuned.trained.values(), *head.parameters())}

        def loss(parameters: Params, batch: Batch) -> Tensor:
            logits = functional_call(whole, parameters, (self.prepared, batch))  # (b,)
            return F.binary_cross_entropy_with_logits(logits, self.split.labels[batch].to(logits))

        return loss, {name: p.detach() for name, p in whole.named_parameters() if id(p) in trained}


class _Whole(nn.Module):
    """Tuned features and a head as one module."""

    def __init__(self, tuned: Tuned, head: Head) -> None:
        super().__init__()
        self.tuned, self.head = tuned, head

    def forward(self, prepared: Prepared, batch: Batch) -> Tensor:
        return self.head(self.tuned(prepared, batch))
