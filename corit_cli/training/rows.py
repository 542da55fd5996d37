"""The training set: planned rows with their features, and the heads that are trained on them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress

import torch
import torch.nn.functional as F
from torch import Tensor

from corit_cli.data.manifest import Sample
from corit_cli.data.splits import deal, sources_or_videos, units_of
from corit_cli.data.variants import ORIGINAL
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.progress import Advance, hush
from corit_cli.training.fusion import HeldOut
from corit_cli.training.head import balance_weights, fit_heads, missing
from corit_cli.training.log import Log, unlogged
from corit_cli.training.plan import Planned
from corit_cli.training.settings import DEGRADATION, TrainSettings

#: Parts of the sources that are held out in turn to join heads.
INNER_FOLDS = 5


@dataclass
class TrainingSet:
    """Features of planned rows, failures left out, with the sources that balance and folds go by, and the ``units``,
    such as videos, that folds never divide."""

    rows: list[Planned]
    z: Tensor  # (n, F)
    labels: Tensor  # (n,)
    sources: list[str]
    units: list[Hashable]
    readings: Mapping[str, int]  # how many features each has, side by side

    @classmethod
    def of(
        cls, samples: Sequence[Sample], rows: list[Planned], z: Tensor, readings: Mapping[str, int] | None = None
    ) -> TrainingSet:
        """Rows with their features ``z`` (n, F), in the same order; one reading by default."""
        labels, F = torch.tensor([row.label for row in rows]), z.shape[1]
        units = units_of(samples)
        sources, units = ([values[row.sample] for row in rows] for values in ([s.source for s in samples], units))
        return cls(rows, z, labels, sources, units, readings or {"cls": F})

    def fit(self, settings: TrainSettings, keep: Tensor | None = None, advance: Advance = hush) -> FusedHead:
        """Heads on the rows to be trained on, or on those of them where ``keep`` (n,) is true, joined by what heads
        say of sources that were held out from them in turn."""
        (head,) = self.fit_each(settings, [keep], advance)
        return head

    def fit_each(
        self, settings: TrainSettings, keeps: Sequence[Tensor | None], advance: Advance = hush
    ) -> list[FusedHead]:
        """As :meth:`fit`, for each of several choices of rows; all their heads are trained at once."""
        several = len(settings.heads_of(self.readings)) > 1
        kept = torch.stack([self._kept(keep) for keep in keeps])  # (K, n)
        joined = [several or tells for tells in self._tells_degraded(settings, kept)]
        splits = [
            self._splits(self._folds(keep, settings.seed), keep) if join else []
            for keep, join in zip(keeps, joined, strict=True)
        ]
        wanted = [keep for keep, own in zip(keeps, splits, strict=True) for keep in (keep, *(s.rest for s in own))]
        trained, out = iter(self.heads_each(settings, wanted, advance)), []
        for keep, own in zip(keeps, splits, strict=True):
            out.append(next(trained))
            if own:
                self._said(own, [next(trained) for _ in own], settings, keep).join(out[-1])
        return out

    def heads(
        self, settings: TrainSettings, keep: Tensor | None = None, advance: Advance = hush, log: Log = unlogged
    ) -> FusedHead:
        """As :meth:`fit`, not joined yet. ``log`` is told of the epochs of every reading's head."""
        (head,) = self.heads_each(settings, [keep], advance, [log])
        return head

    def heads_each(
        self, settings: TrainSettings, keeps: Sequence[Tensor | None], advance: Advance = hush, logs: Sequence[Log] = ()
    ) -> list[FusedHead]:
        """As :meth:`heads`, for each of several choices of rows, with a log each; a reading's heads are trained at
        once."""
        kept = torch.stack([self._kept(keep) for keep in keeps])  # (K, n)
        logs = logs or [unlogged] * len(keeps)
        readings = settings.heads_of(self.readings)
        heads: list[dict[str, Head]] = [{} for _ in keeps]
        for name, z in zip(readings, self.z.split(list(readings.values()), dim=1), strict=True):
            chosen = kept & z.isfinite().all(1)
            two = torch.tensor([len(self.labels[own].unique()) == 2 for own in chosen])
            weights = torch.zeros(chosen.shape)
            for k in two.nonzero().squeeze(1).tolist():
                weights[k, chosen[k]] = self._unread.chosen(chosen[k]).weights(settings)
            told = [partial(log, reading=name) for log in logs]
            found = _fit(z, self.labels, weights, settings, advance, told)
            for own, head in zip(heads, found, strict=True):
                own[name] = head or missing(z.shape[1], settings)
        degradation = self._degradation(settings, kept, advance, logs)
        return [FusedHead(own, told).eval() for own, told in zip(heads, degradation, strict=True)]

    def _degradation(
        self, settings: TrainSettings, kept: Tensor, advance: Advance, logs: Sequence[Log]
    ) -> list[Head | None]:
        """For each choice of rows ``kept`` (K, n) a linear head that tells degraded copies from the other rows, by all
        readings but that of faces; None where these are not there to be told apart."""
        z, degraded = self.z[:, : settings.degradation_width(self.readings)], self.degraded
        chosen, weights = kept & self.whole & z.isfinite().all(1), torch.zeros(kept.shape)
        for k, (own, tells) in enumerate(zip(chosen, self._tells_degraded(settings, kept), strict=True)):
            if tells:
                sources = self._unread.chosen(own).sources
                weights[k, own] = balance_weights(degraded[own].tolist(), sources, settings.balance)
        told = [partial(log, reading=DEGRADATION) for log in logs]
        return _fit(z, degraded.long(), weights, replace(settings, head="linear"), advance, told)

    def _tells_degraded(self, settings: TrainSettings, kept: Tensor) -> list[bool]:
        """For each choice of rows ``kept`` (K, n), whether images as they are and copies of them, both of either class,
        are among them."""
        width = settings.degradation_width(self.readings)
        if not width:
            return [False] * len(kept)
        there, degraded = self.whole & self.found & self.z[:, :width].isfinite().all(1), self.degraded
        kinds = (there & ~degraded, there & degraded)
        return [min(len(self.labels[own & kind].unique()) for kind in kinds) == 2 for own in kept]

    def cross_fit(
        self, folds: Sequence[Sequence[int]], settings: TrainSettings, advance: Advance = hush, log: Log = unlogged
    ) -> tuple[FusedHead, HeldOut]:
        """Heads on all rows to be trained on, joined by what heads say of images in ``folds`` (lists of sample numbers)
        that they never saw; and that."""
        splits = self._splits(folds)
        logs = [log, *(partial(log, fold=split.number + 1) for split in splits)]
        head, *others = self.heads_each(settings, [None, *(split.rest for split in splits)], advance, logs)
        held_out = self._said(splits, others, settings)
        held_out.join(head)
        return head, held_out

    def _folds(self, keep: Tensor | None, seed: int) -> list[list[int]]:
        """The originals among the rows to be used, as lists of sample numbers, by :func:`sources_or_videos`."""
        usable = (self.originals if keep is None else self.originals & keep).tolist()
        rows = [(row.sample, row.label) for row in compress(self.rows, usable)]
        labels, videos = [label for _, label in rows], list(compress(self.units, usable))
        units = sources_or_videos(labels, list(compress(self.sources, usable)), videos)
        return [[rows[k][0] for k in fold] for fold in deal(labels, units, min(INNER_FOLDS, len(set(units))), seed)]

    def weights(self, settings: TrainSettings) -> Tensor:
        """What each row weighs (n,), 1 on average; of balanced classes each as much, whatever its copies weigh."""
        copies = torch.tensor([row.is_copy for row in self.rows])
        weights = balance_weights(self.labels.tolist(), self.sources, settings.balance)
        weights = torch.where(copies, settings.copy_weight, 1.0) * weights
        if settings.balance != "none":
            for label in self.labels.unique():
                weights[self.labels == label] /= weights[self.labels == label].sum()
        return weights / weights.mean()

    def weights_by_head(self, settings: TrainSettings, heads: Sequence[str]) -> Tensor:
        """What each row weighs for each of ``heads`` (n, R), by their readings: 1 on average over those that it is for,
        0 of the others."""
        weights = torch.zeros(len(self.rows), len(heads))
        for column, name in enumerate(heads):
            own = torch.tensor([row.readings is None or name in row.readings for row in self.rows])
            weights[own, column] = self._unread.chosen(own).weights(settings)
        return weights

    def _kept(self, keep: Tensor | None) -> Tensor:
        return self.trained if keep is None else keep & self.trained

    @property
    def trained(self) -> Tensor:
        """Which rows heads are trained on, (n,) bool."""
        return torch.tensor([row.trained for row in self.rows], dtype=torch.bool)

    @property
    def whole(self) -> Tensor:
        """Which rows all readings are taken of, (n,) bool."""
        return torch.tensor([row.readings is None for row in self.rows], dtype=torch.bool)

    @property
    def originals(self) -> Tensor:
        """Which rows are images as they are, (n,) bool."""
        return torch.tensor([row.job.variant == ORIGINAL for row in self.rows], dtype=torch.bool)

    @property
    def degraded(self) -> Tensor:
        """Which rows are degraded copies, (n,) bool."""
        return torch.tensor([bool(row.job.variant.degradations) for row in self.rows], dtype=torch.bool)

    @property
    def found(self) -> Tensor:
        """Which rows are whole images as they are or degraded, not forged or re-encoded by us, (n,) bool."""
        variants = [row.job.variant for row in self.rows]
        return torch.tensor([not (v.forge or v.codec or v.window) for v in variants], dtype=torch.bool)

    @property
    def _unread(self) -> TrainingSet:
        """The same rows without features, of which no copy need be made."""
        return replace(self, z=self.z[:, :0])

    def chosen(self, keep: Tensor) -> TrainingSet:
        """Some of the rows, by a mask (n,)."""
        numbers = keep.nonzero().squeeze(1).tolist()
        rows, sources, units = ([values[k] for k in numbers] for values in (self.rows, self.sources, self.units))
        return replace(self, rows=rows, z=self.z[keep], labels=self.labels[keep], sources=sources, units=units)

    def held_out(self, folds: Sequence[Sequence[int]], settings: TrainSettings, keep: Tensor | None = None) -> HeldOut:
        """What heads on the rows that :meth:`fit` would use say of images in ``folds`` (lists of sample numbers) that
        they never saw, as they are and degraded. A fold without which only one class would be left is passed over."""
        splits = self._splits(folds, keep)
        return self._said(splits, self.heads_each(settings, [split.rest for split in splits]), settings, keep)

    def _splits(self, folds: Sequence[Sequence[int]], keep: Tensor | None = None) -> list[_Split]:
        """The rows of each of ``folds`` (lists of sample numbers), and those of the others that ``keep`` (n,) names."""
        owners, found = torch.tensor([row.sample for row in self.rows]), []
        taught = self.trained & self.whole
        for number, fold in enumerate(folds):
            own = torch.isin(owners, torch.tensor(list(fold)))
            rest = ~own if keep is None else ~own & keep
            if len(self.labels[rest & taught].unique()) == 2 and own.any():
                found.append(_Split(number, own, rest))
        return found

    @torch.inference_mode()
    def _said(
        self, splits: Sequence[_Split], heads: Sequence[FusedHead], settings: TrainSettings, keep: Tensor | None = None
    ) -> HeldOut:
        """What heads, one for each of ``splits``, say of its fold, as :meth:`held_out` has it."""
        width = len(settings.heads_of(self.readings))
        if not splits:
            none = torch.empty(0, dtype=torch.long)
            return HeldOut([], torch.empty(0, width), none, none, none.bool(), {})
        owners = torch.tensor([row.sample for row in self.rows])
        usable = self.found if keep is None else self.found & keep
        found, sources = [], []
        for split, head in zip(splits, heads, strict=True):
            chosen = split.own & usable
            numbers = torch.full((int(chosen.sum()),), split.number)
            rows = (owners, self.labels, ~self.originals)
            found.append((*(values[chosen] for values in rows), numbers, head.each(self.z[chosen])))
            sources += [self.sources[k] for k in chosen.nonzero().squeeze(1).tolist()]
        width = max(logits.shape[1] for *_, logits in found)  # by a head that tells nothing that column is missing
        found = [(*rest, F.pad(logits, (0, width - logits.shape[1]), value=float("nan"))) for *rest, logits in found]
        samples, labels, touched, numbers, logits = (torch.cat(values) for values in zip(*found, strict=True))
        by_fold = {split.number: head for split, head in zip(splits, heads, strict=True)}
        return HeldOut(samples.tolist(), logits, labels, numbers, touched, by_fold, sources, settings.balance)


@dataclass(frozen=True)
class _Split:
    """The rows ``own`` (n,) of the fold of that number, and the ``rest`` (n,), on which it is trained."""

    number: int
    own: Tensor
    rest: Tensor


def _fit(
    z: Tensor, labels: Tensor, weights: Tensor, settings: TrainSettings, advance: Advance, logs: Sequence[Log]
) -> list[Head | None]:
    """:func:`fit_heads` on the rows that any head is trained on; None for a head whose ``weights`` (K, n) are all 0."""
    there, out = (weights > 0).any(1), [None] * len(weights)
    if there.any():
        rows, numbers = (weights > 0).any(0), there.nonzero().squeeze(1).tolist()
        told = [logs[k] for k in numbers]
        found = fit_heads(z[rows], labels[rows], weights[there][:, rows], settings, advance, logs=told)
        for k, head in zip(numbers, found, strict=True):
            out[k] = head
    return out
