"""What each reading of the shipped detector ranks unknown sources by, and all of them joined.

    python benchmarks/readings.py MANIFEST [--cache FILE] [--per-source 4] [--chains jpeg-75,resize-0.5,noise-2]

Heads like the shipped detector's are trained without each fold of sources in turn and score that fold; what joins them
is fitted to the other folds. The first table is of all images as they are: the mean over sources with enough images of
both classes, paired with all joined. "probe" is a linear head on the last layer's class token of images as they are.
The second is of the images that show a face, with the reading of that, as a face is judged, and as pictures would be if
it were joined with all. The third is of so many images of each class, source and split, as they are and after what
befalls pictures, with the verdicts at the shipped thresholds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
from corit_cli.model.settings import FACE, baseline
from corit_cli.training.plan import plan
from corit_cli.training.rows import TrainingSet
from corit_cli.training.run import Run, of_probe
from corit_cli.training.settings import Recipe

JOINED, FACES, MIXED = "all joined", "face, as it is judged", "all and the face joined"


@torch.inference_mode()
def say(
    heads: Mapping[int, FusedHead], z: Tensor, folds: np.ndarray, ways: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Logits (n,) of images with features ``z`` (n, F) by the head of each one's fold (n,): in each of the ``ways``,
    which name readings; NaN where one of these is missing. One alone does not hear whether a picture was degraded."""
    out = {name: np.empty(len(z)) for name in ways}
    for number, head in heads.items():
        own = folds == number
        each = head.each(z[own])  # (m, R) or (m, R + 1)
        for name, readings in ways.items():
            columns = [head.names.index(one) for one in readings]
            missing = each[:, columns].isnan().any(1)
            logits = head.fuse(head.hearing(each, readings)) if [name] != list(readings) else each[:, columns[0]]
            out[name][own] = torch.where(missing, float("nan"), logits).numpy()
    return out


def main(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    samples = load_samples(arguments.manifest)
    bench, detector = Bench(samples, arguments.cache), Detector.load(precision="fp32")
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
    names = detector.head.names
    ways = {JOINED: detector.head.of_pictures, **{name: [name] for name in names}}
    if FACE in names:
        ways |= {FACES: detector.extractor.face_readings, MIXED: names}

    row = Row("as shipped", checkpoint.settings, settings, checkpoint.crops)
    z = bench.features(row, [Job(s.path) for s in samples])
    scores = say(heads, z, of_fold, ways)
    last = Row("probe", baseline(detector.extractor.backbone.tower.config.layers), crops=CropConfig("resize"))
    z_last = bench.features(last, [Job(s.path) for s in samples])
    plain = TrainingSet.of(samples, plan(samples, everything, Recipe()), z_last)
    probes = plain.held_out(folds, of_probe(settings)).joined()
    scores |= say(probes, z_last, of_fold, {"probe": next(iter(probes.values())).names})
    everywhere = {name: s for name, s in scores.items() if FACE not in ways.get(name, ())}
    bench.table("Readings, sources held out", everywhere, np.ones(len(samples), bool))
    if FACE in names:
        bench.table("Images that show a face", scores, np.isfinite(scores[FACE]))

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
        said |= say(heads, z, of_fold[where], {name: detector.head.of_pictures})
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
