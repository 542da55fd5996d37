"""What several benchmarks share: features of a manifest's images, heads that never saw a source, and tables of AUC."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from corit_cli import metrics
from corit_cli.cli.console import Bars
from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.evaluation.groups import MINIMUM
from corit_cli.evaluation.protocols import heads_without, held_out_logits
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.model.fusion import FusedHead
from corit_cli.model.loading import load_backbone
from corit_cli.model.settings import CoRITSettings
from corit_cli.report.evaluation import number
from corit_cli.training.plan import Planned, features_of, plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.settings import Recipe, TrainSettings


@dataclass(frozen=True)
class Row:
    """One row of a table: what is read, from which windows, trained how and on which images."""

    name: str
    settings: CoRITSettings
    training: TrainSettings = field(default_factory=TrainSettings)
    crops: CropConfig = field(default_factory=CropConfig)
    recipe: Recipe = field(default_factory=Recipe)


class Bench:
    """Features on demand, and heads that never saw some sources. Forgeries and degraded copies are made of the
    training split's images only."""

    def __init__(self, samples: list[Sample], cache: Path) -> None:
        self.samples, self.backbone = samples, load_backbone()
        self.cache = FeatureCache(cache, max_bytes=40 << 30, warn=lambda message: print(message, file=sys.stderr))
        self.sources = np.array([s.source for s in samples])
        self.labels = np.array([s.label for s in samples])
        self.splits = np.array([s.split for s in samples])
        self.tested = [
            str(source)
            for source in np.unique(self.sources)
            if all((self.labels[self.sources == source] == c).sum() >= MINIMUM for c in (0, 1))
        ]

    def data(self, row: Row) -> TrainingSet:
        """All samples as they are, and what the row's recipe makes of the training split."""
        extractor = self.extractor(row)
        planned = plan(self.samples, range(len(self.samples)), row.recipe, extractor)
        planned = [p for p in planned if _clean(p) or self.splits[p.sample] == "train"]
        z, errors = features_of(planned, extractor, lambda part, jobs: self._extract(part, jobs, row.name))
        assert not errors, errors
        return TrainingSet.of(self.samples, planned, z, extractor.readings)

    def extractor(self, row: Row) -> Extractor:
        """What reads as the row says."""
        return Extractor(self.backbone, row.settings, row.crops)

    def features(self, row: Row, jobs: Sequence[Job]) -> Tensor:
        """Features (n, F) of ``jobs``, as the row reads them."""
        z, errors = self._extract(self.extractor(row), jobs, row.name)
        assert not errors, errors
        return z

    def _extract(self, extractor: Extractor, jobs: Sequence[Job], title: str) -> tuple[Tensor, dict[int, str]]:
        with Bars() as bars:
            return extract(extractor, jobs, self.cache, bars(title, len(jobs)))

    def masks(self) -> dict[str, np.ndarray]:
        """The samples (n,) of each tested source."""
        return {source: self.sources == source for source in self.tested}

    def leave_source_out(self, data: TrainingSet, training: TrainSettings) -> dict[str, FusedHead]:
        """For each tested source a head that never saw it."""
        return heads_without(data, training, self.masks())

    def scores(self, heads: Mapping[str, FusedHead], z: Tensor, of: Sequence[int] | None = None) -> np.ndarray:
        """Logits (n,) of the samples by the head of their source; ``z`` are the features of the samples, or of those
        numbered ``of``. NaN elsewhere."""
        numbers = np.arange(len(self.samples)) if of is None else np.asarray(of)
        masks = {source: mask[numbers] for source, mask in self.masks().items() if source in heads}
        out = np.full(len(self.samples), np.nan)
        for source, logits in held_out_logits(heads, z, masks).items():
            out[numbers[masks[source]]] = logits[masks[source]]
        return out

    def aucs(self, scores: np.ndarray) -> dict[str, float]:
        """AUC of each tested source, over its samples that have a score."""
        scored = np.isfinite(scores)
        chosen = {s: (self.sources == s) & scored for s in self.tested}
        return {s: metrics.auc(self.labels[mask], scores[mask]) for s, mask in chosen.items() if mask.any()}

    def table(
        self,
        title: str,
        scores: dict[str, np.ndarray],
        chosen: np.ndarray,
        extra: dict | None = None,
        against: str | None = None,
    ) -> None:
        """Print mean AUC over sources, its paired margin over the row ``against`` (the first), and each source's, as
        Markdown.

        Intervals in brackets resample the images of these very sources; those in parentheses are Student's over the
        sources, for which the tested ones are a sample. ``extra`` maps further column headings to {row: cell}.
        """
        counts = {s: np.bincount(self.labels[chosen & (self.sources == s)], minlength=2) for s in self.tested}
        tested = [source for source, count in counts.items() if count.min() >= MINIMUM]
        chosen = chosen & np.isin(self.sources, tested)
        labels, groups = self.labels[chosen], self.sources[chosen]
        picked = {name: s[chosen] for name, s in scores.items()}
        distributions, values = metrics.bootstrap_auc(labels, picked, groups)
        first, extra = against or next(iter(picked)), extra or {}
        each = {
            name: np.array([metrics.auc(labels[groups == g], s[groups == g]) for g in tested])
            for name, s in picked.items()
        }
        heads = [
            "",
            "mean AUC [95%] (as sources vary)",
            f"minus {first}",
            *extra,
            *(source.split("/")[0] for source in tested),
        ]
        print(f"\n**{title}** ({chosen.sum()} images of {len(tested)} sources)\n")
        print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        for name in picked:
            gap = metrics.interval(values[name] - values[first], distributions[name] - distributions[first])
            cells = [
                name,
                f"{metrics.interval(values[name], distributions[name])} ({_varying(each[name], '.3f')})",
                "" if name == first else f"{number(gap, signed=True)} ({_varying(each[name] - each[first], '+.3f')})",
                *(column.get(name, "") for column in extra.values()),
                *(f"{auc:.3f}" for auc in each[name]),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


def _varying(values: np.ndarray, form: str) -> str:
    """The interval of the sources' mean when it is the sources that are drawn."""
    mean = metrics.mean_interval(values)
    return f"{mean.low:{form}} to {mean.high:{form}}"


def _clean(planned: Planned) -> bool:
    variant = planned.job.variant
    return not (variant.forge or variant.degradations or variant.window)


def first_of_each(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most ``limit`` images of each class of each source and split."""
    seen: Counter[tuple[str, int, str]] = Counter()
    kept = []
    for sample in samples:
        key = (sample.source, sample.label, sample.split)
        seen[key] += 1
        if seen[key] <= limit:
            kept.append(sample)
    return kept
