"""The tables of docs/model-card.md: the shipped detector on the validation split of the manifest it was trained on.

python benchmarks/model_card.py MANIFEST [--cache FILE]
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch

from corit_cli import metrics
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.detection.calibration import strict_threshold
from corit_cli.detection.detector import Detector
from corit_cli.evaluation.protocols import recipe_of
from corit_cli.features.cache import FeatureCache, Job, default_cache_path, extract
from corit_cli.training.run import Run


def rate(hits: np.ndarray) -> str:
    """A share with its 95% Wilson interval, in percent."""
    if not hits.size:
        return "–"
    share = metrics.proportion(int(hits.sum()), hits.size)
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def as_sources_vary(hits: np.ndarray, sources: np.ndarray) -> str:
    """The 95% bootstrap interval of a share of all images when it is the sources that are drawn, in percent."""
    names = np.unique(sources)
    if len(names) < 2:
        return "–"
    counts = np.array([[hits[sources == name].sum(), (sources == name).sum()] for name in names])  # (sources, 2)
    drawn = counts[np.random.default_rng(0).integers(0, len(names), (2000, len(names)))].sum(1)  # (2000, 2)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return f"{low:.0%} to {high:.0%}"


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


def held_out_logits(detector: Detector, samples: list[Sample], cache: FeatureCache) -> dict[int, float]:
    """Logits of the training images by heads that never saw their source, as the thresholds were fitted on."""
    settings, recipe = recipe_of(detector.checkpoint)
    run = Run(samples, detector.extractor, settings=settings, recipe=recipe, probe=False, cache=cache)
    return run.read().data.cross_fit(run.folds(), settings)


def operating_points(detector: Detector, samples: list[Sample], kinds: dict[Path, str], cache: FeatureCache) -> None:
    """Print the probabilities from which on at most 1% and 5% of real images of new sources are called fake, and the
    rates for each kind of photograph when each source is judged by a threshold that its own scores had no part in.

    Intervals in brackets take images for independent; those in parentheses draw whole sources.
    """
    logits = held_out_logits(detector, samples, cache)
    numbers = sorted(logits)
    labels = np.array([samples[i].label for i in numbers])
    sources = np.array([samples[i].source for i in numbers])
    kind = np.array([kinds.get(samples[i].path, "") or "any" for i in numbers])
    scores = np.array([logits[i] for i in numbers])

    def threshold(chosen: np.ndarray, target: float) -> float:
        real = chosen & (labels == 0)
        return strict_threshold(scores[real], sources[real], target)

    everything = np.ones(len(numbers), bool)
    print("\n| false positives aimed at | from probability | kind | real called fake | fake called fake |")
    print("|---|---|---|---|---|")
    for target in (0.01, 0.05):
        at = threshold(everything, target)
        p = float(detector.checkpoint.calibration(torch.tensor([at])))
        called = np.zeros(len(numbers), bool)
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
    detector = Detector.load()
    checkpoint = detector.checkpoint
    print("| source | training: real, fake | validation: real, fake |\n|---|---|---|")
    for source, counts in sorted(checkpoint.data["sources"].items()):
        cells = (f"{counts.get(f'{part}_real', 0)}, {counts.get(f'{part}_fake', 0)}" for part in ("train", "val"))
        print(f"| {source} | {' | '.join(cells)} |")
    everything = load_samples(manifest)
    samples = [s for s in everything if s.split == "val"]
    labels = np.array([s.label for s in samples])
    sources = np.array([s.source for s in samples])
    z, errors = extract(detector.extractor, [Job(s.path) for s in samples], cache)
    assert not errors, errors
    with torch.inference_mode():
        probabilities = checkpoint.calibration(checkpoint.head(z)).double().numpy().round(6)
    verdicts = np.array([checkpoint.thresholds.verdict(p) for p in probabilities])
    held_out, t = checkpoint.metrics["held_out_sources"], checkpoint.thresholds
    print(f"\nFake from {t.fake:.3f}, real up to {t.real:.3f}, uncertain between:\n")
    print("| source | real / fake | AUC [95%] | AP | right at 0.5 | real called fake | fake called fake | uncertain |")
    print("|---|---|---|---|---|---|---|---|")
    for source in np.unique(sources):
        chosen = sources == source
        print(line(source, labels[chosen], probabilities[chosen], verdicts[chosen]))
    print(line("**all**", labels, probabilities, verdicts))
    ece = metrics.expected_calibration_error(labels, probabilities)
    print(f"\nCalibration error on these images: {ece:.3f}.")
    print(f"\nOn {held_out['images']} training images, each scored by a head that never saw its source:\n")
    print("| | called real | uncertain | called fake |")
    print("|---|---|---|---|")
    for kind in ("real", "fake"):
        shares = (held_out[f"{kind}_called_{verdict}"] for verdict in ("real", "uncertain", "fake"))
        print(f"| {kind} images | {' | '.join(f'{share:.1%}' for share in shares)} |")
    operating_points(detector, everything, kinds_of(manifest), cache)


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
