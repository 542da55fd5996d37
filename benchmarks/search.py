"""The search for the default detector: every candidate on sources held out in turn, and what choosing is worth.

    python benchmarks/search.py MANIFEST [--cache FILE] [--rows TEXT] [--nested]
    python benchmarks/search.py MANIFEST --one-change [--limit 16] [--autoencoder FOLDER]

The columns "after" tell how mean AUC changes when the same heads see the images re-encoded, halved or with faint noise,
and what share of the real images then scores above the value that 5% of the same images exceed untouched (brackets take
images for independent). The rows are optimistic to the extent that one picks among them. With --nested, four times as
long, a last row leaves the choice out of the figure: for each source the candidate is taken that does best on the
other sources, each of them scored by a head that saw neither; the source itself has no say. The list itself was drawn
up after looking at the same sources, which no nesting undoes. --rows keeps the candidates whose names hold TEXT, with
the probe and "HRI 7-12, CGP 4-6".

With --one-change the rows are others: each changes one thing of "HRI 7-12, CGP 4-6", on the images as they are.
--limit takes so many images of each class, source and split, since most of these rows need passes of their own.
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

from corit_cli import metrics
from corit_cli.data.manifest import load_samples
from corit_cli.data.robustness import CHAINS
from corit_cli.data.settings import CropConfig
from corit_cli.data.variants import Variant
from corit_cli.evaluation.protocols import heads_without
from corit_cli.features.cache import Job, default_cache_path
from corit_cli.model.settings import DETECTOR, CoRITSettings, baseline, parse_layers
from corit_cli.report.evaluation import number
from corit_cli.training.settings import Recipe, TrainSettings

ONE = Recipe(degrade=("jpeg:40-95", "resize:0.35-1.5", "blur:0.3-1.5", "noise:0.5-6", "webp:50-95"), copies=1)
TWO, FOUR = replace(ONE, copies=2), replace(ONE, copies=4)
DECAY = replace(TrainSettings(), weight_decay=0.1)
SQRT = replace(TrainSettings(), balance="source")
#: What the rows of --one-change differ from.
UNCHANGED = "HRI 7-12, CGP 4-6"
PROBE = Row("probe", baseline(12), replace(SQRT, rho=0.0))
#: Robustness tests, on so many images of each class, source and split.
CHAINS_TESTED, LIMIT = ("jpeg-75", "resize-0.5", "noise-2"), 8


def candidates() -> list[Row]:
    """The probe, then which layers are read, from which windows, and what degraded copies are worth."""

    def reads(integrate: str, cgp: str) -> CoRITSettings:
        return replace(CoRITSettings(), integrate=parse_layers(integrate), cgp=parse_layers(cgp))

    both, whole = DETECTOR, DETECTOR.plain()
    return [
        PROBE,
        Row("HRI 4-9, CGP 4-9, by square root", reads("4-9", "4-9"), SQRT),
        Row("HRI 4-9, CGP 4-9", reads("4-9", "4-9")),
        Row("HRI 6-12, CGP 4-9", reads("6-12", "4-9")),
        Row("HRI 7-12, no CGP", whole),
        Row("HRI 7-12, CGP 4-6", both),
        Row("same, all from the resized window", both, crops=CropConfig("resize")),
        Row("same, a degraded copy of each", both, recipe=ONE),
        Row("same, four degraded copies", both, recipe=FOUR),
        Row("same, four copies, decay 0.1", both, DECAY, recipe=FOUR),
        Row("HRI 7-12, no CGP, two copies", whole, recipe=TWO),
        Row("HRI 7-12, no CGP, four copies", whole, recipe=FOUR),
        Row("HRI 7-12, no CGP, four copies, decay 0.1", whole, DECAY, recipe=FOUR),
    ]


def one_change(autoencoder: str | None) -> list[Row]:
    """The probe, a row to compare with, and rows that differ from that in one thing each."""

    def reads(name: str, **change: object) -> Row:
        return Row(name, replace(DETECTOR, **change))

    def trained(name: str, **change: object) -> Row:
        return Row(name, DETECTOR, replace(TrainSettings(), **change))

    rows = [
        PROBE,
        Row(UNCHANGED, DETECTOR),
        Row("without CGP", DETECTOR.plain()),
        *(reads(f"view {view}", views=(view,)) for view in ("blur:0.5", "blur:2.0", "resample:2", "jpeg:75")),
        reads("three views", views=("blur:1.0", "resample:2", "jpeg:75")),
        Row("three native windows", DETECTOR, crops=CropConfig("both", crops=3)),
        reads("CGP without patches", patches=False),
        reads("RSI at 3, no mask", inject_at=(3,), mask="none"),
        reads("RSI at 3, quantile mask", inject_at=(3,)),
        reads("RSI at 3-6, quantile mask", inject_at=(3, 4, 5, 6)),
        trained("head: an MLP of 256, step size 0.003", head="mlp:256", lr=0.003),
        *(trained(f"SAM's radius {rho:g}", rho=rho) for rho in (0.0, 0.1, 1.0, 2.0)),
        trained("classes balanced, not sources", balance="class"),
        Row("saved again as JPEG 75-95", DETECTOR, recipe=Recipe(match_codec=(75, 95))),
        Row("with self-blends", DETECTOR, recipe=Recipe(("self_blend",))),
    ]
    if autoencoder:
        rows.append(Row("with reconstructions", DETECTOR, recipe=Recipe((f"reconstruct:{autoencoder}",))))
    return rows


def main(bench: Bench, rows: Sequence[Row], nested: bool, chains: Sequence[str], against: str) -> None:
    """Print the table of all candidates, each ``against`` one of them, how each bears the ``chains`` and, where asked
    for, the nested choice."""
    tested, scores, inner = bench.tested, {}, {}
    few = {s.path for s in first_of_each(bench.samples, LIMIT)}
    subset = [i for i, s in enumerate(bench.samples) if s.path in few and s.source in tested]
    real = bench.labels[subset] == 0
    falls: dict[str, dict[str, str]] = {f"after {chain}": {} for chain in chains}
    for row in rows:
        data = bench.data(row)
        heads = bench.leave_source_out(data, row.training)
        z = bench.features(row, [Job(s.path) for s in bench.samples])  # as they are, whatever the recipe trains on
        scores[row.name] = bench.scores(heads, z)
        clean = np.full(len(bench.samples), np.nan)
        clean[subset] = scores[row.name][subset]
        high = np.quantile(clean[subset][real], 0.95)
        for chain in chains:
            jobs = [Job(bench.samples[i].path, Variant(chain=CHAINS[chain])) for i in subset]
            degraded = bench.scores(heads, bench.features(row, jobs), subset)
            both = {"after": degraded[subset], "before": clean[subset]}
            draws, values = metrics.bootstrap_auc(bench.labels[subset], both, bench.sources[subset])
            change = metrics.interval(values["after"] - values["before"], draws["after"] - draws["before"])
            called = (degraded[subset] > high)[real]
            share = metrics.proportion(int(called.sum()), called.size)
            cell = f"{number(change, signed=True)}; {share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
            falls[f"after {chain}"][row.name] = cell
        # What a source's choice may go by: the others' AUC by heads that saw neither of the two.
        inner[row.name] = {source: [] for source in tested}
        for a, b in combinations(tested, 2) if nested else ():
            pair = {"": np.isin(bench.sources, [a, b])}
            head = heads_without(data, row.training, pair)[""]
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
    bench.table("Leave-source-out", scores, np.ones(len(bench.samples), bool), falls, against)
    if nested:
        said = "; ".join(f"{s.split('/')[0]}: {c}" for s, c in chosen.items())
        print(f"\nChosen, by the source that had no say: {said}")
    if chains:
        print(f'\nThe columns "after" are on {len(subset)} of the images, {real.sum()} of them real.')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cache", type=Path, default=default_cache_path())
    parser.add_argument("--one-change", action="store_true")
    parser.add_argument("--autoencoder", help="a TAESD autoencoder's folder, for reconstructions")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rows", default="")
    parser.add_argument("--nested", action="store_true")
    arguments = parser.parse_args()
    samples = load_samples(arguments.manifest)
    if arguments.limit:
        samples = first_of_each(samples, arguments.limit)
    probe, *others = one_change(arguments.autoencoder) if arguments.one_change else candidates()
    kept = [probe, *(row for row in others if arguments.rows in row.name or row.name == UNCHANGED)]
    chains, against = ((), UNCHANGED) if arguments.one_change else (CHAINS_TESTED, PROBE.name)
    main(Bench(samples, arguments.cache), kept, arguments.nested, chains, against)
