"""What each reading of the shipped detector ranks unknown sources by, and all of them joined.

    python benchmarks/readings.py MANIFEST [--cache FILE] [--per-source 4] [--chains jpeg-75,resize-0.5,noise-2]

Heads like the shipped detector's are trained without each fold of sources in turn and score that fold; what joins them
is fitted to the other folds. The first table is of all images as they are: the mean over sources with enough images of
both classes, paired with all joined. "probe" is a linear head on the last layer's class token of images as they are.
The second is of the images that show a face, with the reading of that, and as it would be joined with the others. The
third is of so many images of each class, source and split, as they are and after what befalls pictures, with the
verdicts at the shipped thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from held_out import Bench, Row, first_of_each
from torch import Tensor

from corit_cli import metrics
from corit_cli.data.manifest import load_samples
from corit_cli.data.robustness import CHAINS, parse_chains
from corit_cli.data.settings import CropConfig
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.detection.detector import Detector
from corit_cli.evaluation.protocols import recipe_of
from corit_cli.features.cache import Job, default_cache_path
from corit_cli.model.fusion import FusedHead
from corit_cli.model.settings import baseline
from corit_cli.training.fusion import HeldOut, join
from corit_cli.training.rows import TrainingSet, plan
from corit_cli.training.run import Run, of_probe
from corit_cli.training.settings import Recipe

JOINED, MIXED = "all joined", "all and the face joined"


@torch.inference_mode()
def say(heads: Mapping[int, FusedHead], z: Tensor, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Logits (n,) of images with features ``z`` (n, F) by the head of each one's fold (n,): joined, then each alone."""
    names = next(iter(heads.values())).names
    out = np.empty((len(z), 1 + len(names)))
    for number, head in heads.items():
        own = folds == number
        each = head.each(z[own])  # (m, R) or (m, R + 1)
        out[own] = torch.cat([head.fuse(each)[:, None], each[:, : len(names)]], 1).numpy()
    return dict(zip([JOINED, *names], out.T, strict=True))


@torch.inference_mode()
def mixed(found: HeldOut, z: Tensor, folds: np.ndarray) -> np.ndarray:
    """Logits (n,) of images with features ``z`` (n, F) as they would be if the face were joined with the other
    readings, NaN where there is none: for each one's fold (n,) by what is said of the faces in the others."""
    seen, out = found.logits.isfinite().all(1), torch.full((len(z),), float("nan"))
    for number, head in found.heads.items():
        own, others = torch.from_numpy(folds == number), seen & (found.folds != number)
        joined = FusedHead(dict(head.heads), head.degradation)
        join(joined, found.logits[others], found.labels[others], found.touched[others])
        each = head.each(z[own])
        out[own] = torch.where(each.isfinite().all(1), joined.fuse(each), float("nan"))
    return out.numpy()


def main(arguments: argparse.Namespace) -> None:
    """Print both tables."""
    samples = load_samples(arguments.manifest)
    bench, detector = Bench(samples, arguments.cache), Detector.load()
    checkpoint = detector.checkpoint
    settings, recipe = recipe_of(checkpoint)
    run = Run(samples, detector.extractor, settings, recipe, probe=False, refit=True, cache=bench.cache)
    everything = list(range(len(samples)))
    folds = run.folds(everything)
    of_fold = np.empty(len(samples), int)
    for number, fold in enumerate(folds):
        of_fold[fold] = number
    found = run.read().data.held_out(folds, settings)
    heads = found.joined()

    row = Row("as shipped", checkpoint.settings, settings, checkpoint.crops)
    z = bench.features(row, [Job(s.path) for s in samples])
    scores = say(heads, z, of_fold)
    last = Row("probe", baseline(detector.extractor.backbone.tower.config.layers), crops=CropConfig("resize"))
    z_last = bench.features(last, [Job(s.path) for s in samples])
    plain = TrainingSet.of(samples, plan(samples, everything, Recipe()), z_last)
    scores["probe"] = say(plain.held_out(folds, of_probe(settings)).joined(), z_last, of_fold)[JOINED]
    everywhere = {name: s for name, s in scores.items() if name != "face"}
    bench.table("Readings, sources held out", everywhere, np.ones(len(samples), bool))
    if "face" in scores:
        scores[MIXED] = mixed(found, z, of_fold)
        bench.table("Images that show a face", scores, np.isfinite(scores["face"]))

    tested = set(bench.tested)
    few = first_of_each([s for s in samples if s.source in tested], arguments.per_source)
    numbers = {s.path: i for i, s in enumerate(samples)}
    where = np.array([numbers[s.path] for s in few])
    labels, sources = bench.labels[where], bench.sources[where]
    print(f"\n{len(few)} images of {len(tested)} sources, verdicts from {checkpoint.thresholds.fake:.3f} on fake:\n")
    print("| | mean AUC | change [95%] | real called fake | fake called fake | fake called real |")
    print("|---|---|---|---|---|---|")
    variants = {"as they are": ORIGINAL}
    variants |= {chain: Variant(chain=CHAINS[chain]) for chain in parse_chains(arguments.chains)}
    said = {}
    for name, variant in variants.items():
        z = bench.features(row, [Job(s.path, variant) for s in few])
        said[name] = say(heads, z, of_fold[where])[JOINED]
    distributions, values = metrics.bootstrap_auc(labels, said, sources)
    for name, logits in said.items():
        gap = metrics.interval(values[name] - values["as they are"], distributions[name] - distributions["as they are"])
        p = checkpoint.calibration(torch.from_numpy(logits)).numpy()
        rates = (
            metrics.proportion(int(hits.sum()), hits.size)
            for hits in (
                p[labels == 0] >= checkpoint.thresholds.fake,
                p[labels == 1] >= checkpoint.thresholds.fake,
                p[labels == 1] <= checkpoint.thresholds.real,
            )
        )
        change = "" if name == "as they are" else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        cells = (f"{r.value:.0%} [{r.low:.0%}, {r.high:.0%}]" for r in rates)
        print(f"| {name} | {values[name]:.3f} | {change} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument("--per-source", type=int, default=4)
    parser.add_argument("--chains", default="jpeg-75,resize-0.5,noise-2")
    main(parser.parse_args())
