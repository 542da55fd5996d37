"""Does signal in the gradient go with what a layer is worth? GSNR against AUC on sources held out, by layer.

    python benchmarks/gsnr_auc.py MANIFEST [--samples 1000] [--strata class|source] [--cache FILE] [--limit N]

For every layer's class token, and its contrast (CGP): GSNR of a random and of a fitted linear head, measured as by
``corit gsnr --wrt head``, and the mean AUC of linear heads on sources that they never saw. Below, Spearman's
correlation over the layers with its bootstrap interval; layers of one tower are no independent draws, so it is narrower
than it would be over towers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from held_out import Bench, Row, first_of_each

from corit_cli.cli.console import Bars
from corit_cli.data.manifest import load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.features.cache import default_cache_path
from corit_cli.gsnr.layers import study
from corit_cli.gsnr.settings import StudySettings
from corit_cli.gsnr.study import Compared
from corit_cli.metrics.correlation import spearman
from corit_cli.model.settings import METHOD, baseline
from corit_cli.training.settings import TrainSettings

CROPS = CropConfig("native")
TRAINING = replace(TrainSettings(), rho=0.0)


def row_of(model: str, *layers: int) -> Row:
    """What the model reads at each of some layers."""
    contrasts = replace(METHOD, cgp=layers, integrate=(), inject_at=(), patches=False)
    settings = replace(baseline(layers[0]), integrate=layers) if model == "baseline" else contrasts
    return Row(f"{model} {layers[0]}-{layers[-1]}", settings, TRAINING, CROPS)


def main(bench: Bench, settings: StudySettings) -> None:
    """Print the tables."""
    depth = bench.backbone.tower.config.layers
    models = [Compared("baseline", baseline(depth)), Compared("corit", METHOD)]
    crops = replace(CROPS, size=bench.backbone.tower.config.image_size)
    with Bars() as bars:
        found = study(bench.samples, bench.backbone, models, crops, settings, progress=bars, cache=bench.cache)
    gsnr = {(row.model, row.head, int(row.layer)): row.estimate for row in found.rows}
    for model in models:
        aucs = []
        bench.data(row_of(model.name, *range(1, depth + 1)))  # one pass for all layers, which the cache then has
        for layer in range(1, depth + 1):
            data = bench.data(row_of(model.name, layer))
            scores = bench.scores(bench.leave_source_out(data, TRAINING), data.z[data.originals])
            aucs.append(float(np.mean(list(bench.aucs(scores).values()))))
        print(f"\n**{model.name}**: GSNR x 1,000, and AUC on {len(bench.tested)} sources held out\n")
        print(f"| layer | {' | '.join(settings.states)} | AUC |\n|{'---|' * (len(settings.states) + 2)}")
        for layer, auc in enumerate(aucs, 1):
            cells = [gsnr[model.name, state, layer] for state in settings.states]
            texts = [f"{1000 * e.value:.1f} [{1000 * e.low:.1f}, {1000 * e.high:.1f}]" for e in cells]
            print(f"| {layer} | {' | '.join(texts)} | {auc:.3f} |")
        for state in settings.states:
            values = [gsnr[model.name, state, layer].value for layer in range(1, depth + 1)]
            print(f"\nSpearman, {state} head: {spearman(values, aucs)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--strata", choices=("class", "source"), default="class")
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument("--limit", type=int, help="only so many images of each class, source and split")
    arguments = parser.parse_args()
    samples = load_samples(arguments.manifest)
    if arguments.limit:
        samples = first_of_each(samples, arguments.limit)
    main(Bench(samples, arguments.cache), StudySettings(wrt="head", samples=arguments.samples, strata=arguments.strata))
