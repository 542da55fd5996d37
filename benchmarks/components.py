"""What each component of CoRIT is worth: the tables of docs/results.md.

    python benchmarks/components.py MANIFEST --forge reconstruct:FOLDER [--cache FILE] [--rsi] [--limit N]

Two protocols, mean over the sources that have at least eight images of each class:

* validation: trained on the manifest's training split, tested on its validation split;
* leave-source-out: each source tested by a head trained on all other sources, both splits.

The first row is a linear probe of the last block's CLS token on the same windows. Intervals are 95% bootstraps over the
images of each source; differences are paired. Features are cached, so that a second run costs minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from corit_cli import metrics
from corit_cli.config import Recipe, TrainSettings
from corit_cli.data.images import CropConfig
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.engine.features import Extractor, FeatureCache, default_cache_path, extract
from corit_cli.engine.train import TrainingSet, plan
from corit_cli.engine.weights import load_backbone
from corit_cli.model.settings import CoRITSettings, baseline

MINIMUM = 8


@dataclass(frozen=True)
class Row:
    """One row of the table: what is read, from which windows, trained how and on which images."""

    name: str
    settings: CoRITSettings
    crops: CropConfig
    training: TrainSettings
    recipe: Recipe = Recipe()  # noqa: RUF009 - frozen


def table_rows(forge: tuple[str, ...], with_rsi: bool) -> list[Row]:
    """Components added one at a time, then the windows one by one."""
    both, sam = CropConfig(), TrainSettings()
    plain = replace(sam, rho=0.0)
    probe, cgp = baseline(12), CoRITSettings()
    hri = cgp.plain()
    rows = [
        Row("linear probe, last block", probe, both, plain),
        Row("+ HRI", hri, both, plain),
        Row("+ CGP", cgp, both, plain),
    ]
    if with_rsi:
        rows += [
            Row("+ RRM, RSI after block 3", replace(cgp, inject_at=(3,)), both, plain),
        ]
    rows += [
        Row("HRI + CGP + SAM (default)", cgp, both, sam),
        Row("same, resized window only", cgp, CropConfig("resize"), sam),
        Row("same, native window only", cgp, CropConfig("native"), sam),
        Row("same, CGP alone", replace(cgp, integrate=()), both, sam),
    ]
    if forge:
        made = Recipe(forge=forge)
        rows += [
            Row("default, reconstructions added", cgp, both, sam, made),
            Row("CGP alone, reconstructions added", replace(cgp, integrate=()), both, sam, made),
        ]
    return rows


class Bench:
    """Features on demand and the two protocols."""

    def __init__(self, samples: list[Sample], cache: FeatureCache) -> None:
        self.samples, self.cache, self.backbone = samples, cache, load_backbone()
        self.sources = np.array([s.source for s in samples])
        self.labels = np.array([s.label for s in samples])
        self.splits = np.array([s.split for s in samples])
        self.tested = [
            source
            for source in np.unique(self.sources)
            if all((self.labels[self.sources == source] == c).sum() >= MINIMUM for c in (0, 1))
        ]

    def data(self, row: Row) -> TrainingSet:
        """All samples as they are, and forgeries of the training split's real images where the row has them."""
        planned = plan(self.samples, range(len(self.samples)), row.recipe)
        planned = [p for p in planned if not p.job.variant.forge or self.splits[p.sample] == "train"]
        extractor = Extractor(self.backbone, row.settings, row.crops)
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            print(f"\r{row.name}: {done}/{len(planned)} ", end="", file=sys.stderr, flush=True)

        z, errors = extract(extractor, [p.job for p in planned], self.cache, progress)
        assert not errors, errors
        return TrainingSet.of(self.samples, planned, z)

    def scores(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all samples: by the head of the training split, and by heads that never saw their source."""
        data = self.data(row)
        owners = np.array([p.sample for p in data.rows])
        original = torch.tensor([not p.job.variant.forge for p in data.rows])
        head = data.fit(row.training, torch.from_numpy(self.splits[owners] == "train"))
        with torch.inference_mode():
            validation = head(data.z[original]).numpy()
        folds = [np.flatnonzero(self.sources == source).tolist() for source in self.tested]
        held_out = data.cross_fit(folds, row.training)
        return validation, np.array([held_out.get(i, np.nan) for i in range(len(self.samples))])

    def report(self, rows: Sequence[Row]) -> None:
        """Print the tables as Markdown."""
        validation, held_out = {}, {}
        for row in rows:
            validation[row.name], held_out[row.name] = self.scores(row)
        print(file=sys.stderr)
        tested = np.isin(self.sources, self.tested)
        for title, scores, chosen in (
            ("Validation split", validation, tested & (self.splits == "val")),
            ("Leave-source-out", held_out, tested),
        ):
            labels, groups = self.labels[chosen], self.sources[chosen]
            chosen_scores = {name: s[chosen] for name, s in scores.items()}
            distributions, values = metrics.bootstrap_auc(labels, chosen_scores, groups)
            first = rows[0].name
            print(f"\n**{title}** ({chosen.sum()} images of {len(self.tested)} sources)\n")
            print("| | mean AUC [95%] | minus the probe [95%] | " + " | ".join(short(s) for s in self.tested) + " |")
            print("|---|---|---|" + "---|" * len(self.tested))
            for name, s in chosen_scores.items():
                estimate = metrics.interval(values[name], distributions[name])
                gap = metrics.interval(values[name] - values[first], distributions[name] - distributions[first])
                each = [f"{metrics.auc(labels[groups == g], s[groups == g]):.3f}" for g in self.tested]
                difference = "" if name == first else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
                print(f"| {name} | {estimate} | {difference} | " + " | ".join(each) + " |")


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


def short(source: str) -> str:
    """A column's heading: the owner's name."""
    return source.split("/")[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--forge", action="append", default=[])
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument(
        "--rsi", action="store_true", help="also the rows with injection, which need passes of their own"
    )
    parser.add_argument("--limit", type=int, help="only so many images of each class, source and split")
    arguments = parser.parse_args()
    cache = FeatureCache(arguments.cache, max_bytes=20 << 30, warn=print)
    samples = load_samples(arguments.manifest)
    if arguments.limit:
        samples = first_of_each(samples, arguments.limit)
    Bench(samples, cache).report(table_rows(tuple(arguments.forge), arguments.rsi))
    cache.close()
