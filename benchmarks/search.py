"""The search for the default detector: every candidate on sources held out in turn, and what choosing is worth.

    python benchmarks/search.py MANIFEST [--cache FILE] [--forge SPEC] [--rows TEXT] [--nested]

The columns "after" tell how mean AUC changes when the same heads see the images re-encoded or halved. The rows are
optimistic to the extent that one picks among them. With --nested, four times as long, a last row leaves the choice
out of the figure: for each source the candidate is taken that does best on the other sources, each of them scored by a
head that saw neither; the source itself has no say. The list itself was drawn up after looking at the same sources,
which no nesting undoes. --rows keeps the probe and the candidates whose names hold TEXT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from held_out import Bench, Row, first_of_each

from corit_cli.config import Recipe, TrainSettings
from corit_cli.data.images import CropConfig
from corit_cli.data.manifest import load_samples
from corit_cli.data.robustness import CHAINS
from corit_cli.data.variants import Variant
from corit_cli.engine.features import Job, default_cache_path
from corit_cli.model.settings import DETECTOR, CoRITSettings, baseline, parse_layers

DEGRADED = Recipe(degrade=("jpeg:50-95", "resize:0.5-1.5", "blur:0.3-1.5", "webp:60-95"), copies=1)
TWICE = replace(DEGRADED, copies=2)
DECAY = replace(TrainSettings(), weight_decay=0.1)
SQRT = replace(TrainSettings(), balance="source")
#: Robustness tests, on so many images of each class, source and split.
CHAINS_TESTED, LIMIT = ("jpeg-75", "resize-0.5"), 8


def candidates(forge: Sequence[str]) -> list[Row]:
    """The probe, then what is ours to choose."""

    def reads(integrate: str, cgp: str) -> CoRITSettings:
        return replace(CoRITSettings(), integrate=parse_layers(integrate), cgp=parse_layers(cgp))

    chosen, whole = DETECTOR, DETECTOR.plain()
    rows = [
        Row("probe", baseline(12), replace(SQRT, rho=0.0)),
        Row("HRI 4-9, CGP 4-9, by square root", reads("4-9", "4-9"), SQRT),
        Row("HRI 4-9, CGP 4-9", reads("4-9", "4-9")),
        Row("HRI 6-12, CGP 4-9", reads("6-12", "4-9")),
        Row("HRI 7-12, no CGP", whole),
        Row("HRI 7-12, CGP 4-6", chosen),
        Row("same, all from the resized window", chosen, crops=CropConfig("resize")),
        Row("same, a degraded copy of each", chosen, recipe=DEGRADED),
        Row("same, two degraded copies", chosen, recipe=TWICE),
        Row("same, two copies, decay 0.1", chosen, DECAY, recipe=TWICE),
        Row("same, two copies, decay 0.3", chosen, replace(DECAY, weight_decay=0.3), recipe=TWICE),
        Row("HRI 7-12, no CGP, a degraded copy", whole, recipe=DEGRADED),
        Row("HRI 7-12, no CGP, two copies", whole, recipe=TWICE),
        Row("HRI 7-12, no CGP, two copies, decay 0.1", whole, DECAY, recipe=TWICE),
    ]
    return rows + [
        Row(f"HRI 7-12, CGP 4-6, {spec.partition(':')[0]}", chosen, recipe=Recipe((spec,))) for spec in forge
    ]


def main(bench: Bench, rows: Sequence[Row], nested: bool) -> None:
    """Print the table of all candidates and, where asked for, the nested choice."""
    tested, scores, inner = bench.tested, {}, {}
    few = {s.path for s in first_of_each(bench.samples, LIMIT)}
    subset = [i for i, s in enumerate(bench.samples) if s.path in few and s.source in tested]
    falls: dict[str, dict[str, str]] = {f"after {chain}": {} for chain in CHAINS_TESTED}
    for row in rows:
        data = bench.data(row)
        heads, z = bench.leave_source_out(data, row.training), data.z[data.originals]
        scores[row.name] = bench.scores(heads, z)
        clean = np.full(len(bench.samples), np.nan)
        clean[subset] = scores[row.name][subset]
        for chain in CHAINS_TESTED:
            jobs = [Job(bench.samples[i].path, Variant(chain=CHAINS[chain])) for i in subset]
            degraded = bench.scores(heads, bench.features(row, jobs), subset)
            change = [np.mean(list(bench.aucs(s).values())) for s in (degraded, clean)]
            falls[f"after {chain}"][row.name] = f"{change[0] - change[1]:+.3f}"
        # What a source's choice may go by: the others' AUC by heads that saw neither of the two.
        inner[row.name] = {source: [] for source in tested}
        for a, b in combinations(tested, 2) if nested else ():
            head = bench.without(data, row.training, [a, b])
            found = bench.aucs(bench.scores({a: head, b: head}, z))
            inner[row.name][a].append(found[b])
            inner[row.name][b].append(found[a])
        mean = np.mean(list(bench.aucs(scores[row.name]).values()))
        print(f"\r{row.name}: {mean:.3f}", " " * 40, file=sys.stderr)
    if nested:
        blind, chosen = np.full(len(bench.samples), np.nan), {}
        for source in tested:
            chosen[source] = max(inner, key=lambda name: float(np.mean(inner[name][source])))
            mask = bench.sources == source
            blind[mask] = scores[chosen[source]][mask]
        scores["**nested choice**"] = blind
    bench.table("Leave-source-out", scores, np.ones(len(bench.samples), bool), falls)
    if nested:
        said = "; ".join(f"{s.split('/')[0]}: {c}" for s, c in chosen.items())
        print(f"\nChosen, by the source that had no say: {said}")
    print(f"\nFalls are on {len(subset)} of the images.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument("--forge", action="append", default=[])
    parser.add_argument("--rows", default="")
    parser.add_argument("--nested", action="store_true")
    arguments = parser.parse_args()
    probe, *others = candidates(arguments.forge)
    kept = [probe, *(row for row in others if arguments.rows in row.name)]
    main(Bench(load_samples(arguments.manifest), arguments.cache), kept, arguments.nested)
