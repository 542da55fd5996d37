"""What a sweep would cost, without it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from corit_cli.cor.heads import train_population
from corit_cli.cor.problem import TRAINED_ON, Problem
from corit_cli.cor.sweep import ROUNDS
from corit_cli.features.extractor import Extractor
from corit_cli.features.foresee import Cost, lacking, seconds_each
from corit_cli.model.scope import Scope
from corit_cli.model.settings import CoRITSettings

#: Images that a block is tuned on for one epoch, to learn how long that takes.
TRIED = 24


def foresee(
    problem: Problem,
    models: Mapping[str, CoRITSettings],
    scope: Scope,
    radii: Sequence[float],
    seeds: int,
    cache: Path | None,
) -> tuple[Cost, int, int]:
    """What the sweep of ``models`` by name on ``problem`` would cost, with features kept in ``cache``; how many runs
    there are, and at most how many more around a cliff, which are not in it."""
    runs, more = len(models) * seeds * (2 + len(radii)), len(models) * seeds * 2 * ROUNDS
    if scope.kind == "head":
        return _heads(problem, models, [0.0, *radii], seeds, cache), runs, more
    few = Problem(
        problem.samples,
        problem.backbone,
        problem.crops,
        replace(problem.optimization, epochs=1),
        most=min(TRIED, len(problem)),
        device=problem.device,
        precision=problem.precision,
    )
    reading = passes = 0.0
    share = len(problem) / len(few)
    for name, settings in models.items():
        begun = time.perf_counter()
        arm = few.arm(name, settings, scope)
        reading += (time.perf_counter() - begun) * share
        tried = [(max(radii), seed, False) for seed in range(arm.at_once())]
        for _ in range(2):  # the first warms up
            begun = time.perf_counter()
            list(arm.run(tried))
        epoch = (time.perf_counter() - begun) / len(tried)
        passes += runs / len(models) * problem.optimization.epochs * epoch * share
    return Cost(len(problem) * len(models), reading=reading, passes=passes), runs, more


def _heads(
    problem: Problem, models: Mapping[str, CoRITSettings], radii: Sequence[float], seeds: int, cache: Path | None
) -> Cost:
    """That of heads on frozen features."""
    n, reading, training, missing = len(problem), 0.0, 0.0, 0
    labels, part = torch.arange(n) % 2, torch.arange(max(2, round(n * TRAINED_ON)))
    for settings in models.values():
        extractor = Extractor(problem.backbone, settings, problem.crops, problem.device, problem.precision)
        own = lacking(extractor, problem.jobs, cache)
        missing += len(own)
        reading += seconds_each(extractor, own) * len(own)
        x = torch.randn(n, extractor.width, generator=torch.Generator().manual_seed(0)).to(problem.device)
        for _ in range(2):  # the first warms up
            begun = time.perf_counter()
            train_population(x, labels, part, range(seeds), radii, replace(problem.optimization, epochs=1))
        training += (time.perf_counter() - begun) * problem.optimization.epochs
    return Cost(missing, n * len(models) - missing, reading, training)
