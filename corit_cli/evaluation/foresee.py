"""What an evaluation would cost, without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.robustness import CHAINS, parse_chains
from corit_cli.data.variants import ORIGINAL, Variant
from corit_cli.detection.detector import Detector
from corit_cli.evaluation import protocols
from corit_cli.evaluation.evaluate import of_split
from corit_cli.features.cache import Job
from corit_cli.features.foresee import Cost
from corit_cli.training.foresee import head_seconds, reading_cost
from corit_cli.training.plan import Planned, plan
from corit_cli.training.rows import INNER_FOLDS


def foresee(
    data: Path,
    checkpoint: str | Path | None,
    split: str | None,
    robustness: str | None,
    names: Sequence[str],
    cache: Path | None,
    device: str,
    precision: str,
) -> tuple[Cost, Sequence[Sample], int]:
    """As :func:`~corit_cli.evaluation.evaluate.evaluate` takes it, with features kept in ``cache``; the images, and how
    many heads are trained."""
    samples = load_samples(data)
    samples = samples if split is None else of_split(samples, split)
    detector = Detector.load(checkpoint, device, precision).without_faces()
    protocols.check(detector.checkpoint, samples, names)
    chains = () if robustness is None else parse_chains(robustness)
    variants = [ORIGINAL, *(Variant(chain=CHAINS[name]) for name in chains)]
    rows = [Planned(i, Job(s.path, variant), s.label) for i, s in enumerate(samples) for variant in variants]
    heads, fitting = 0, 0.0
    if names:
        settings, recipe = protocols.recipe_of(detector.checkpoint)
        recipe, _ = protocols.at_hand(recipe)
        planned = plan(samples, range(len(samples)), recipe, detector.extractor)
        rows += planned
        fitted = settings.fitted(detector.extractor.readings, recipe)
        each = 1 + (INNER_FOLDS if len(fitted) > 1 else 0)
        members = [each * len(protocols.leave_out(samples, name, settings.seed)[0]) for name in names]
        heads = sum(members) * len(fitted)
        fitting = sum(head_seconds(settings, fitted, planned, count) for count in members)
    cost = reading_cost(rows, detector.extractor, cache)
    return replace(cost, fitting=fitting), samples, heads
