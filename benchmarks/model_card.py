"""The tables of docs/model-card.md: the shipped detectors on the validation split of the manifest they were trained on.

python benchmarks/model_card.py MANIFEST [--cache FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from corit_cli import metrics
from corit_cli.data.manifest import load_samples
from corit_cli.engine.features import FeatureCache, Job, default_cache_path, extract
from corit_cli.engine.predict import Detector


def rate(hits: np.ndarray) -> str:
    """A share with its 95% Wilson interval, in percent."""
    if not hits.size:
        return "–"
    share = metrics.proportion(int(hits.sum()), hits.size)
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


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


def main(manifest: Path, cache: FeatureCache) -> None:
    """Print the data by source, then a table for each detector."""
    print("| source | training: real, fake | validation: real, fake |\n|---|---|---|")
    for source, counts in sorted(Detector.load().checkpoint.data["sources"].items()):
        cells = (f"{counts.get(f'{part}_real', 0)}, {counts.get(f'{part}_fake', 0)}" for part in ("train", "val"))
        print(f"| {source} | {' | '.join(cells)} |")
    samples = [s for s in load_samples(manifest) if s.split == "val"]
    labels = np.array([s.label for s in samples])
    sources = np.array([s.source for s in samples])
    for title, fast in (("Default", False), ("--fast", True)):
        detector = Detector.load(fast=fast)
        z, errors = extract(detector.extractor, [Job(s.path) for s in samples], cache)
        assert not errors, errors
        checkpoint = detector.checkpoint
        with torch.inference_mode():
            probabilities = checkpoint.calibration(checkpoint.head(z)).double().numpy().round(6)
        verdicts = np.array([checkpoint.thresholds.verdict(p) for p in probabilities])
        held_out = checkpoint.metrics["held_out_sources"]
        t = checkpoint.thresholds
        print(f"\n**{title}**: fake from {t.fake:.3f}, real up to {t.real:.3f}, uncertain between\n")
        print(
            "| source | real / fake | AUC [95%] | AP | right at 0.5 | real called fake | fake called fake | uncertain |"
        )
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    arguments = parser.parse_args()
    main(arguments.manifest, FeatureCache(arguments.cache, warn=lambda message: print(message, file=sys.stderr)))
