"""The training set: each image as it is, its forgeries and degraded copies, with their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from corit_cli.data.forge import parse_forge
from corit_cli.data.images import ImageError, inspect
from corit_cli.data.manifest import Sample
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.features.cache import Job
from corit_cli.model.head import Head
from corit_cli.progress import Advance, hush
from corit_cli.training.head import balance_weights, fit_head
from corit_cli.training.settings import Recipe, TrainSettings


@dataclass(frozen=True)
class Planned:
    """One row of the training set: which sample it comes from, what is done to it, its label afterwards, and whether
    heads are trained on it or only scored."""

    sample: int
    job: Job
    label: int
    trained: bool = True


def plan(samples: Sequence[Sample], indices: Sequence[int], recipe: Recipe) -> list[Planned]:
    """The training rows of ``samples[indices]``: each sample, forgeries of the real ones, and degraded copies of all.

    A forgery is saved the way its photograph was (JPEG at the same quality, or losslessly), so that the codec does
    not give it away. Where every image is re-encoded, each is there as it is too, to be scored: files to be detected
    are not re-encoded.
    """
    forges = [parse_forge(spec) for spec in recipe.forge]
    rows = []
    for i in indices:
        sample = samples[i]
        clean = Variant(codec=recipe.match_codec, seed=recipe.seed if recipe.match_codec else 0)
        versions: list[tuple[Variant, int]] = [(clean, sample.label)]
        if sample.label == 0 and forges:
            try:
                quality = inspect(sample.path).jpeg_quality
            except ImageError:
                rows.append(Planned(i, Job(sample.path), sample.label))  # to be reported when it is read
                continue
            versions += [(replace(clean, forge=forge, saved=quality, seed=recipe.seed), 1) for forge in forges]
        for variant, label in versions:
            rows.append(Planned(i, Job(sample.path, variant), label))
            for copy in range(1, recipe.copies_made + 1):
                degraded = replace(variant, degradations=recipe.degrade, seed=recipe.seed * 1000 + copy)
                rows.append(Planned(i, Job(sample.path, degraded), label))
        if recipe.match_codec:
            rows.append(Planned(i, Job(sample.path), sample.label, trained=False))
    return rows


@dataclass
class TrainingSet:
    """Features of planned rows, failures left out, with the sources that balance and folds go by."""

    rows: list[Planned]
    z: Tensor  # (n, F)
    labels: Tensor  # (n,)
    sources: list[str]
    parts: int = 1  # equally wide, one a layer and kind, that make up the features

    @classmethod
    def of(cls, samples: Sequence[Sample], rows: list[Planned], z: Tensor, parts: int = 1) -> TrainingSet:
        """Rows with their features ``z`` (n, F), in the same order."""
        labels = torch.tensor([row.label for row in rows])
        return cls(rows, z, labels, [samples[row.sample].source for row in rows], parts)

    def fit(self, settings: TrainSettings, keep: Tensor | None = None, advance: Advance = hush) -> Head:
        """A head on the rows to be trained on, or on those of them where ``keep`` (n,) is true."""
        keep = self.trained if keep is None else keep & self.trained
        sources = [s for s, k in zip(self.sources, keep.tolist(), strict=True) if k]
        weights = balance_weights(self.labels[keep].tolist(), sources, settings.balance)
        return fit_head(self.z[keep], self.labels[keep], weights, settings, advance, parts=self.parts, units=sources)

    @property
    def trained(self) -> Tensor:
        """Which rows heads are trained on, (n,) bool."""
        return torch.tensor([row.trained for row in self.rows], dtype=torch.bool)

    @property
    def originals(self) -> Tensor:
        """Which rows are images as they are, (n,) bool."""
        return torch.tensor([row.job.variant == ORIGINAL for row in self.rows], dtype=torch.bool)

    def chosen(self, keep: Tensor) -> TrainingSet:
        """Some of the rows, by a mask (n,)."""
        numbers = keep.nonzero().squeeze(1).tolist()
        rows, sources = ([values[k] for k in numbers] for values in (self.rows, self.sources))
        return replace(self, rows=rows, z=self.z[keep], labels=self.labels[keep], sources=sources)

    def cross_fit(self, folds: Sequence[Sequence[int]], settings: TrainSettings) -> dict[int, float]:
        """Logits of the originals in ``folds`` (lists of sample numbers) by heads that never saw their fold.

        Returns {sample number: logit}. A fold without which only one class would be left is passed over.
        """
        samples = torch.tensor([row.sample for row in self.rows])
        original = self.originals
        logits: dict[int, float] = {}
        for fold in folds:
            held_out = torch.isin(samples, torch.tensor(list(fold)))
            if len(self.labels[~held_out].unique()) < 2 or not held_out.any():
                continue
            head = self.fit(settings, ~held_out)
            chosen = held_out & original
            with torch.inference_mode():
                logits.update(zip(samples[chosen].tolist(), head(self.z[chosen]).tolist(), strict=True))
        return logits
