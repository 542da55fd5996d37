"""What a training would cost, without it: rows, those to be read, heads to be fitted, and seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from corit_cli.data.splits import source_split
from corit_cli.features.cache import Job
from corit_cli.features.extractor import Extractor
from corit_cli.features.foresee import BACKWARDS, Cost, lacking, seconds_each
from corit_cli.model.settings import baseline
from corit_cli.training.head import fit_heads
from corit_cli.training.plan import Planned, by_readings, plan
from corit_cli.training.run import Run
from corit_cli.training.settings import DEGRADATION, TrainSettings, TuneSettings
from corit_cli.training.tower import ASIDE

#: Rows that a head is fitted to, to learn how long an epoch takes.
TRIED = 1024


def head_seconds(settings: TrainSettings, heads: Mapping[str, int], rows: Sequence[Planned], members: int) -> float:
    """How long fitting ``heads`` (how many features each reads, by name), so many of each at once, takes on those of
    the rows that each is trained on, from two short fits of random numbers."""
    total, taught = 0.0, [row for row in rows if row.trained]
    for name, width in heads.items():
        own = sum(row.readings is None or name in row.readings for row in taught)
        tried = min(own, TRIED)
        labels = torch.arange(tried) % 2
        kind = "linear" if name == DEGRADATION else settings.head
        z, took = torch.randn(tried, width, generator=torch.Generator().manual_seed(0)), []
        for epochs in (1, 1, 3):  # the first warms up
            begun = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                fit_heads(z, labels, torch.ones(members, tried), replace(settings, head=kind, epochs=epochs))
            took.append(time.perf_counter() - begun)
        epoch = max(0.0, took[2] - took[1]) / 2
        total += (max(0.0, took[1] - epoch) + settings.epochs * epoch) * own / tried
    return total


def reading_cost(rows: Sequence[Planned], extractor: Extractor, cache: Path | None) -> Cost:
    """What taking the features of ``rows`` would cost."""
    cost = Cost(0)
    for where, part in by_readings(rows, extractor):
        jobs = [rows[k].job for k in where]
        missing = lacking(part, jobs, cache)
        read, cached = cost.to_read + len(missing), cost.cached + len(set(jobs)) - len(missing)
        cost = Cost(read, cached, cost.reading + seconds_each(part, missing) * len(missing))
    return cost


def foresee(run: Run, tuning: TuneSettings, cache: Path | None) -> tuple[Cost, int, int]:
    """What ``run`` would cost with features kept in ``cache``, as :func:`~corit_cli.training.train.train` does it; how
    many rows there are to train on, and how many heads are fitted."""
    part = sorted([*run.train_part, *(run.val_part if run.refit else ())])
    planned = plan(run.samples, part, run.recipe, run.extractor)
    planned += [Planned(i, Job(run.samples[i].path), run.samples[i].label, trained=False) for i in run.val_part]
    extractor, settings = run.extractor, run.settings
    last = baseline(extractor.backbone.tower.config.layers).integrate
    if run.probe and not extractor.settings.inject_at:  # read in one pass
        extractor = extractor.with_settings(replace(extractor.settings, integrate=extractor.settings.integrate + last))
    cost = reading_cost(planned, extractor, cache)
    rows = sum(row.trained for row in planned)
    tuned = tuning.scope != "head"
    heads = settings.heads_of(run.extractor.readings) if tuned else settings.fitted(run.extractor.readings, run.recipe)
    members = 1 if tuned else 1 + len(run.folds(part))
    fitting = head_seconds(settings, heads, planned, members)
    if not tuned:
        turns = 2 if run.refit else 1
        return replace(cost, fitting=turns * fitting), rows, turns * members * len(heads)
    each = seconds_each(extractor, [row.job for row in planned if row.readings is None])
    fitted, aside = (len(side) for side in source_split([run.samples[i] for i in run.train_part], ASIDE, settings.seed))
    per_image = rows / max(1, len(part))
    passes = (1 + BACKWARDS) * (2 if tuning.rho else 1)
    tuning_passes = (
        tuning.epochs * (fitted * per_image * passes + aside) * each + (2 * aside + len(run.val_part)) * each
    )
    return replace(cost, fitting=fitting, passes=tuning_passes), rows, len(heads)
