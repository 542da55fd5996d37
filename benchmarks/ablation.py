"""The paper's story in one table: CoRIT's components added one at a time, and taken away, on images of sources never
trained on. One linear head reads all that a row reads (``--fusion early``), of images as they are.

    python benchmarks/ablation.py MANIFEST [--cache FILE] [--limit N]

For each row: AUC on sources held out in turn, with its paired margin over the linear probe; GSNR of a head's parameters
at their initial values; and COR, the radius at which two-layer heads on the row's features collapse under SAM. GSNR and
COR are taken on 300 training and 150 validation images, the same for every row; below stands their rank correlation.
Linear heads do not collapse (docs/theory.md), hence the two layers.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from held_out import Bench, Row, first_of_each

from corit_cli.cor.arms import HeadArm, Split
from corit_cli.cor.collapse import Criteria, critical_radius, rounded
from corit_cli.cor.settings import Optimization
from corit_cli.cor.theory import Condition, head_gsnr, rank_correlation
from corit_cli.data.manifest import load_samples
from corit_cli.data.splits import thin, units_of
from corit_cli.features.cache import default_cache_path
from corit_cli.model.settings import DETECTOR, CoRITSettings, baseline
from corit_cli.training.settings import TrainSettings

HEADS = Optimization(lr=3e-3, epochs=20, batch_size=16, hidden=64)
RADII = tuple(rounded(float(r)) for r in np.geomspace(0.1, 30, 6))
SEEDS = (0, 1, 2)
#: Images that GSNR and COR are measured on.
TRAIN, VAL = 300, 150


def rows() -> list[Row]:
    """From the last block's linear probe to what the shipped detector reads, and that, but for the spread of patches,
    without each part and with RSI and RRM."""
    sam = replace(TrainSettings(), fusion="early")
    plain, all_read = replace(sam, rho=0.0), replace(DETECTOR, face=())
    tokens = replace(all_read, spread=())
    hri, hri_cgp = replace(tokens, cgp=(), patches=False, native=()), replace(tokens, native=())
    injected = replace(tokens, inject_at=(2,))
    return [
        Row("probe", baseline(12), plain),
        Row("+ HRI", hri, plain),
        Row("+ CGP", hri_cgp, plain),
        Row("+ native class tokens", tokens, plain),
        Row("+ SAM", tokens, sam),
        Row("+ patch spread: what ships reads", all_read, sam),
        Row("without HRI", replace(tokens, integrate=()), sam),
        Row("without CGP", replace(tokens, cgp=(), patches=False), sam),
        Row("with RSI at 2, no mask", replace(injected, mask="none"), sam),
        Row("with RSI at 2 and RRM", injected, sam),
    ]


def stability(bench: Bench, row: Row) -> Condition:
    """GSNR and COR of heads on a row's features."""
    data = bench.data(row)
    samples, units = bench.samples, units_of(bench.samples, photographs=True)
    parts = [
        thin(samples, units, np.flatnonzero(bench.splits == part).tolist(), most, seed=0)
        for part, most in (("train", TRAIN), ("val", VAL))
    ]
    labels = bench.labels.tolist()
    z = data.z[data.originals]
    arm = HeadArm(row.name, z, Split.of(labels, *parts), HEADS)
    found = head_gsnr(arm.x, arm.split.labels, arm.split.train, units, HEADS)
    tests = Criteria.of(*([labels[i] for i in part] for part in parts))
    runs = list(arm.run([(rho, seed, False) for rho in RADII for seed in SEEDS]))
    for _ in range(2):
        ends = critical_radius(runs, tests).bracket
        if ends is not None:
            between = np.geomspace(*ends, 4)[1:-1]
            runs += arm.run([(rounded(float(rho)), seed, False) for rho in between for seed in SEEDS])
    return Condition("component", 0.0, found, critical_radius(runs, tests))


def main(bench: Bench) -> None:
    """Print the table."""
    scores, gsnr, cor = {}, {}, {}
    measured: dict[CoRITSettings, Condition] = {}  # neither depends on how the row's own head is trained
    for row in rows():
        data = bench.data(row)
        scores[row.name] = bench.scores(bench.leave_source_out(data, row.training), data.z[data.originals])
        if row.settings not in measured:
            measured[row.settings] = stability(bench, row)
        e = measured[row.settings].gsnr
        gsnr[row.name] = f"{1000 * e.value:.1f} [{1000 * e.low:.1f}, {1000 * e.high:.1f}]"
        cor[row.name] = str(measured[row.settings].cor)
    print(file=sys.stderr)
    everything = np.ones(len(bench.samples), bool)
    bench.table("Leave-source-out", scores, everything, {"GSNR x 1,000": gsnr, "COR": cor})
    print(f"\nSpearman's correlation of COR with GSNR over what is read: {rank_correlation(list(measured.values()))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument("--limit", type=int, help="only so many images of each class, source and split")
    arguments = parser.parse_args()
    samples = load_samples(arguments.manifest)
    main(Bench(first_of_each(samples, arguments.limit) if arguments.limit else samples, arguments.cache))
