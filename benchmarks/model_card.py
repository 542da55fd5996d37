"""The tables of docs/model-card.md: what heads like the shipped detector's say of its training images, each source by
heads that never saw it and by thresholds that were fitted to the others.

python benchmarks/model_card.py MANIFEST [--cache FILE]
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from corit_cli import metrics
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.splits import units_of
from corit_cli.detection.calibration import Thresholds, strict_threshold
from corit_cli.detection.detector import Detector
from corit_cli.evaluation.groups import MINIMUM
from corit_cli.evaluation.protocols import recipe_of
from corit_cli.features.cache import FeatureCache, default_cache_path
from corit_cli.training.operating import OperatingPoint
from corit_cli.training.run import Run


def rate(hits: np.ndarray) -> str:
    """A share with its 95% Wilson interval, in percent."""
    if not hits.size:
        return "–"
    share = metrics.proportion(int(hits.sum()), hits.size)
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def as_sources_vary(hits: np.ndarray, sources: np.ndarray) -> str:
    """The 95% bootstrap interval of a share of all images when it is the sources that are drawn, in percent, never
    within that of independent images: where none is hit no resampling changes that."""
    names = np.unique(sources)
    if len(names) < 2:
        return "–"
    counts = np.array([[hits[sources == name].sum(), (sources == name).sum()] for name in names])  # (sources, 2)
    drawn = counts[np.random.default_rng(0).integers(0, len(names), (2000, len(names)))].sum(1)  # (2000, 2)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    images = metrics.proportion(int(hits.sum()), hits.size)
    return f"{min(low, images.low):.0%} to {max(high, images.high):.0%}"


def line(name: str, labels: np.ndarray, probabilities: np.ndarray, verdicts: np.ndarray) -> str:
    """One source's row."""
    both = len(set(labels)) == 2
    cells = [
        name,
        f"{(labels == 0).sum()} / {(labels == 1).sum()}",
        str(metrics.auc_interval(labels, probabilities)) if both else "–",
        f"{metrics.average_precision(labels, probabilities):.3f}" if both else "–",
        f"{((probabilities >= 0.5) == labels).mean():.0%}",
        rate(verdicts[labels == 0] == "fake"),
        rate(verdicts[labels == 1] == "fake"),
        f"{(verdicts == 'uncertain').mean():.0%}",
    ]
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Judged:
    """Images, as they are or degraded, with logits (n,) by heads that never saw their source, and what they are called
    (n,) by thresholds that were fitted to the other folds: those ``without`` each."""

    samples: list[Sample]
    logits: np.ndarray
    touched: np.ndarray
    called: np.ndarray
    without: list[Thresholds]

    @property
    def labels(self) -> np.ndarray:
        return np.array([s.label for s in self.samples])

    @property
    def sources(self) -> np.ndarray:
        return np.array([s.source for s in self.samples])

    def where(self, mask: np.ndarray) -> Judged:
        """Some of them, by a mask (n,)."""
        numbers = np.flatnonzero(mask)
        kept = (of[mask] for of in (self.logits, self.touched, self.called))
        return Judged([self.samples[i] for i in numbers], *kept, self.without)


def judge(
    detector: Detector, samples: list[Sample], cache: FeatureCache
) -> tuple[Judged, Judged | None, np.ndarray | None]:
    """The images that the detector was trained on, by heads trained as its own without their source; the faces in them,
    where it judges these; and how likely each image was degraded, where it tells that, (n,)."""
    settings, recipe = recipe_of(detector.checkpoint)
    refit = bool(detector.checkpoint.training.get("refit"))
    run = Run(samples, detector.extractor, settings, recipe, probe=False, refit=refit, cache=cache)
    part = sorted([*run.train_part, *(run.val_part if refit else ())])
    found = run.read().of(part).data.held_out(run.folds(part), settings)
    images = [samples[i] for i in found.samples]
    targets = settings.target_fpr, settings.target_fnr

    def judged(*readings: str) -> Judged:
        logits = found.fused(*readings)
        seen = logits.isfinite()
        some = [images[k] for k in seen.nonzero().squeeze(1).tolist()]
        labels, folds, touched = (of[seen] for of in (found.labels, found.folds, found.touched))
        sources, units = [s.source for s in some], units_of(some)
        point = OperatingPoint.fit(logits[seen], labels, sources, units, folds, touched, targets)
        return Judged(some, logits[seen].numpy(), touched.numpy(), point.called(), list(point.without.values()))

    told = None if detector.head.degradation is None else detector.head.degraded(found.logits).numpy()
    faces = None if detector.checkpoint.faces is None else judged(*detector.extractor.face_readings)
    return judged(), faces, told


def verdict_table(title: str, judged: Judged) -> None:
    """Print how images of either class are called."""
    said = judged.called
    print(f"\n| {title} | called real | uncertain | called fake |\n|---|---|---|---|")
    for label, kind in enumerate(("real", "fake")):
        own = judged.labels == label
        shares = (
            f"{rate(said[own] == verdict)} ({as_sources_vary(said[own] == verdict, judged.sources[own])})"
            for verdict in ("real", "uncertain", "fake")
        )
        print(f"| {kind} images ({own.sum()}) | {' | '.join(shares)} |")
    wrong = []
    for label, verdict in ((0, "fake"), (1, "real")):
        there = Counter(judged.sources[judged.labels == label])
        called = Counter(judged.sources[(judged.labels == label) & (said == verdict)])
        for source, count in called.most_common(1):
            most = f"of one source at most {count} (of the {there[source]} of {source})"
            wrong.append(f"{verdict}: {called.total()}, {most}")
    if wrong:
        print(f"\nWrongly called {'; wrongly called '.join(wrong)}.")


def thresholds_apart(judged: Judged) -> str:
    """A sentence on those that were fitted without one of the folds each."""
    fake, real = ([getattr(t, side) for t in judged.without] for side in ("fake", "real"))
    each = (f"between {min(s):.3f} and {max(s):.3f} ({kind})" for s, kind in ((fake, "fake"), (real, "real")))
    return f"Thresholds fitted without one fold of sources lie {' and '.join(each)}."


def operating_points(detector: Detector, judged: Judged, kinds: dict[Path, str]) -> None:
    """Print the probabilities from which on at most 1% and 5% of real images of new sources are called fake, and the
    rates for each kind of photograph when each source is judged by a threshold that its own scores had no part in.

    Intervals in brackets take images for independent; those in parentheses draw whole sources.
    """
    samples, scores, labels, sources = judged.samples, judged.logits, judged.labels, judged.sources
    kind = np.array([kinds.get(s.path, "") or "any" for s in samples])

    def threshold(chosen: np.ndarray, target: float) -> float:
        real = chosen & (labels == 0)
        return strict_threshold(scores[real], sources[real], target)

    everything = np.ones(len(samples), bool)
    print("\n| false positives aimed at | from probability | kind | real called fake | fake called fake |")
    print("|---|---|---|---|---|")
    for target in (0.01, 0.05):
        at = threshold(everything, target)
        p = float(detector.checkpoint.calibration(torch.tensor([at])))
        called = np.zeros(len(samples), bool)
        for source in np.unique(sources):
            mask = sources == source
            called[mask] = scores[mask] >= threshold(~mask, target)
        for name in ["all", *np.unique(kind)]:
            chosen = everything if name == "all" else kind == name
            masks = [chosen & (labels == label) for label in (0, 1)]
            rates = (f"{rate(called[m])} ({as_sources_vary(called[m], sources[m])})" for m in masks)
            print(f"| {target:.0%} | {p:.3f} | {name} | {' | '.join(rates)} |")


def main(manifest: Path, cache: FeatureCache) -> None:
    """Print the data by source, then the detector's tables."""
    detector = Detector.load(precision="fp32")  # as it was trained
    checkpoint = detector.checkpoint
    t, everything = checkpoint.thresholds, load_samples(manifest)
    print("| source | real | fake |\n|---|---|---|")
    for source, counts in sorted(checkpoint.data["sources"].items()):
        cells = (sum(counts.get(f"{part}_{kind}", 0) for part in ("train", "val")) for kind in ("real", "fake"))
        print(f"| {source} | {' | '.join(map(str, cells))} |")

    judged, faces, told = judge(detector, everything, cache)
    plain = judged.where(~judged.touched)
    labels, sources = plain.labels, plain.sources
    probabilities = checkpoint.calibration(torch.from_numpy(plain.logits)).double().numpy().round(6)
    verdicts = plain.called
    print(f"\nFake from {t.fake:.3f} (--strict: {t.strict:.3f}), real up to {t.real:.3f}, uncertain between.")
    print(f"{thresholds_apart(plain)}\n")
    print("| source | real / fake | AUC [95%] | AP | right at 0.5 | real called fake | fake called fake | uncertain |")
    print("|---|---|---|---|---|---|---|---|")
    small = np.ones(len(labels), bool)
    for source in np.unique(sources):
        chosen = sources == source
        if min((labels[chosen] == c).sum() for c in (0, 1)) >= MINIMUM:
            small &= ~chosen
            print(line(source, labels[chosen], probabilities[chosen], verdicts[chosen]))
    print(line("all others", labels[small], probabilities[small], verdicts[small]))
    print(line("**all**", labels, probabilities, verdicts))
    ece = metrics.expected_calibration_error(labels, probabilities)
    print(f"\nCalibration error on these images: {ece:.3f}.")
    if told is not None:
        auc = metrics.auc(judged.touched.astype(int), told)
        copies, others = (rate(told[state] > 0.5) for state in (judged.touched, ~judged.touched))
        print(
            f"\nDegraded copies told from images as they are: AUC {auc:.3f}; `degraded` is above one half of {copies}"
        )
        print(f"of copies and of {others} of the others.")
    for title, state in (("as they are", ~judged.touched), ("degraded copies", judged.touched)):
        verdict_table(title, judged.where(state))
    if checkpoint.faces is not None and faces is not None:
        at = checkpoint.faces.thresholds
        print(f"\nFaces: fake from {at.fake:.3f} (--strict: {at.strict:.3f}), real up to {at.real:.3f}.")
        print(thresholds_apart(faces))
        for title, state in (("largest face, as it is", ~faces.touched), ("in degraded copies", faces.touched)):
            verdict_table(title, faces.where(state))
    operating_points(detector, plain, kinds_of(manifest))


def kinds_of(manifest: Path) -> dict[Path, str]:
    """The manifest's column ``domain``, by file, where it has one."""
    if manifest.suffix != ".csv":
        return {}
    with manifest.open(newline="") as file:
        return {manifest.parent / row["path"]: row.get("domain", "") for row in csv.DictReader(file)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    arguments = parser.parse_args()
    main(arguments.manifest, FeatureCache(arguments.cache, warn=lambda message: print(message, file=sys.stderr)))
